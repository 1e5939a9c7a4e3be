"""Rows of adjacent elements brought to mean 0 and variance 1, or to mean square 1: layer and RMS normalisation.

J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization, 2016.  B. Zhang, R. Sennrich: Root Mean Square Layer
Normalization, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.net_outer import each_row
from leanconv.kernels.net_rows import reduce_row


@dataclass(frozen=True, slots=True)
class RowNormSpec:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` of each row; not `centred`: the mean is taken as 0.

    Rows are counted along `outer` dimensions; a chunk is `rows` of them.  The order of a row's sums depends on its
    length only.  Buffers: in0, out; scale and (if `biased`) bias, of a row's length.  Fields: `r_{div,count}`, `rows`,
    `row_count`, `length`, `size{d} in0_{d} out_{d}`.
    """

    target: Target
    dtype: str
    outer: int
    centred: bool
    biased: bool
    epsilon: float

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        scalar, lanes, item = SCALARS[self.dtype], self.target.lanes(self.dtype), 8 if self.dtype == "float64" else 4
        wide, length = vector(scalar, lanes), fields["length"]
        size = fn.op(scalar, f"sitofp i64 {length.name} to {scalar}")
        whole = fn.mul(fn.udiv(length, lanes), lanes)

        def total(term: Callable[[str, Index], Value]) -> Value:
            return reduce_row(fn, scalar, lanes, length, 0.0, lambda a, b: fn.binary("fadd", a, b), term)

        def row(places: list[Value]) -> None:
            x, out = places

            def load(kind: str, at: Index, source: Value) -> Value:
                return fn.load(kind, fn.gep(source, fn.mul(at, item)))

            def spread(value: Value, kind: str) -> Value:
                return fn.splat(value, lanes) if kind == wide else value

            mean = fn.binary("fdiv", total(lambda kind, at: load(kind, at, x)), size) if self.centred else None

            def apart(kind: str, at: Index) -> Value:
                value = load(kind, at, x)
                return value if mean is None else fn.binary("fsub", value, spread(mean, kind))

            def square(kind: str, at: Index) -> Value:
                value = apart(kind, at)
                return fn.binary("fmul", value, value)

            variance = fn.binary("fdiv", total(square), size)
            root = fn.intrinsic("sqrt", fn.binary("fadd", variance, fn.const(scalar, self.epsilon)))
            factor = fn.binary("fdiv", fn.const(scalar, 1.0), root)
            for kind, step, begin, end in ((wide, lanes, 0, whole), (scalar, 1, whole, length)):
                held = spread(factor, kind)

                def finish(at: Value, _: list[Value], kind: str = kind, held: Value = held) -> list[Value]:
                    value, scale = fn.binary("fmul", apart(kind, at), held), load(kind, at, fields.buffer("scale"))
                    if self.biased:
                        bias = load(kind, at, fields.buffer("bias"))
                        value = fn.multiply_add(value, scale, bias, fused=self.target.fma)
                    else:
                        value = fn.binary("fmul", value, scale)
                    fn.store(value, fn.gep(out, fn.mul(at, item)))
                    return []

                fn.loop(begin, end, step, [], finish, guard=True, hint="finish")

        each_row(kernel, self.outer, ("in0", "out"), row)
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Each row three times, once from memory."""
        lanes, rows = host.target.lanes(self.dtype), f["row_count"]
        vectors = rows * (f["length"] // lanes + f["length"] % lanes)
        nbytes = rows * f["length"] * (8 if self.dtype == "float64" else 4)
        counts = {"multiply": 4.0 * vectors + 30.0 * rows, "vector": 2.0 * vectors}
        return Cost(counts, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)
