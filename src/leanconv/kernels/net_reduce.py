"""Elements joined along any axes: sums, means, extrema, products and norms.

What is summed along the innermost axis is added up then along the next, so that long sums keep their digits; the order
depends on the shape and on how the operand lies, never on threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, lanes_of
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.net_expression import emit_log
from leanconv.kernels.net_moments import strips
from leanconv.kernels.net_outer import each_row
from leanconv.kernels.net_rows import reduce_row

Join = Callable[[Function, Value, Value], Value]


def _plain(opcode: str) -> Join:
    return lambda fn, a, b: fn.binary(opcode, a, b)


def _extreme(stem: str) -> Join:
    return lambda fn, a, b: fn.intrinsic(stem, a, b)  # NaN stays NaN


_ADD = (_plain("fadd"), 0.0)
JOINS: dict[str, tuple[Join, float]] = {
    **dict.fromkeys(("sum", "mean", "l1", "l2", "squares", "log_sum"), _ADD),
    "product": (_plain("fmul"), 1.0),
    "max": (_extreme("maximum"), -math.inf),
    "min": (_extreme("minimum"), math.inf),
}


@dataclass(frozen=True, slots=True)
class ReduceSpec:
    """`how` (a key of `JOINS`) along `inner` axes, the last of which is of adjacent elements if `along`.

    Outputs are counted along `outer` dimensions; if `beside`, the innermost, of `width` outputs, is not among them:
    its elements are adjacent, here and there.  A chunk is `rows` rows of outputs.  Buffers: in0, out.  Fields:
    `r_{div,count}`, `rows`, `row_count`, `size{d} in0_{d} out_{d}`; `count{d} step{d}` of the axes joined, outermost
    first; `width` if beside; `total` elements of a mean.
    """

    target: Target
    dtype: str
    how: str
    outer: int
    inner: int
    along: bool
    beside: bool

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        scalar, lanes, item = SCALARS[self.dtype], self.target.lanes(self.dtype), self._item

        def row(places: list[Value]) -> None:
            x, out = places

            def strip(at: Value, kind: str, vectors: int) -> None:
                shift = fn.mul(at, item)
                found = self._joined(fn, fields, kind, 0, fn.gep(x, shift), vectors)
                for i, value in enumerate(found):
                    fn.store(self._last(fn, fields, value), fn.gep(out, shift), i * lanes_of(kind) * item)

            if self.beside:
                strips(fn, fields["width"], scalar, lanes, strip)
            else:
                fn.store(self._last(fn, fields, self._joined(fn, fields, scalar, 0, x, 1)[0]), out)

        each_row(kernel, self.outer, ("in0", "out"), row)
        return kernel.finish()

    def _joined(self, fn: Function, fields: Fields, kind: str, d: int, x: Value, vectors: int) -> list[Value]:
        """All that lies along the axes from d on, for some vectors of outputs."""
        join, start = JOINS[self.how]
        step = lanes_of(kind) * self._item
        if d == self.inner:
            return [self._term(fn, fn.load(kind, x, i * step)) for i in range(vectors)]
        if self.along and d == self.inner - 1:
            lanes = self.target.lanes(self.dtype)

            def term(kind: str, at: Index) -> Value:
                return self._term(fn, fn.load(kind, fn.gep(x, fn.mul(at, self._item))))

            length = fields[f"count{d}"]
            return [reduce_row(fn, kind, lanes, length, start, lambda a, b: join(fn, a, b), term)]

        def each(_: Value, state: list[Value]) -> list[Value]:
            place, *held = state
            more = self._joined(fn, fields, kind, d + 1, place, vectors)
            return [fn.gep(place, fields[f"step{d}"]), *(join(fn, a, b) for a, b in zip(held, more, strict=True))]

        return fn.loop(0, fields[f"count{d}"], 1, [x, *[fn.const(kind, start)] * vectors], each, hint="join")[1:]

    def _term(self, fn: Function, value: Value) -> Value:
        if self.how == "l1":
            return fn.intrinsic("fabs", value)
        return fn.binary("fmul", value, value) if self.how in ("l2", "squares") else value

    def _last(self, fn: Function, fields: Fields, value: Value) -> Value:
        if self.how == "l2":
            return fn.intrinsic("sqrt", value)
        if self.how == "log_sum":
            return emit_log(fn, value)
        if self.how != "mean":
            return value
        scalar, lanes = SCALARS[self.dtype], lanes_of(value.type)
        total = fn.op(scalar, f"sitofp i64 {fields['total'].name} to {scalar}")
        return fn.binary("fdiv", value, fn.splat(total, lanes) if value.type.startswith("<") else total)

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """A load and an operation for each vector, or each element where none are adjacent."""
        outputs = f["row_count"] * (f["width"] if self.beside else 1)
        terms = math.prod(f[f"count{d}"] for d in range(self.inner))
        nbytes = outputs * terms * self._item
        lanes = host.target.lanes(self.dtype)
        vectors = outputs * terms / (lanes if self.along or self.beside else 1)
        counts = {"vector": vectors, "multiply": 2.0 * vectors, "run": float(f["row_count"])}
        return Cost(counts, ((nbytes, nbytes),), ((outputs * self._item, outputs * self._item),), chunks)
