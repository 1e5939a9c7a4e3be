"""Local response normalisation across channels that are adjacent: x * (bias + alpha / size * sum of squares) ** -beta.

The squares of a window are those of neighbouring channels: vectors are loaded `size` times, each one element further.
Where the window leaves the channels, at both ends, single channels are computed.

A. Krizhevsky, I. Sutskever, G. Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012.
"""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.net_expression import emit_power


@dataclass(frozen=True, slots=True)
class LrnSpec:
    """Windows of `before` channels, the channel itself, and `after` channels; `factor` is alpha / size.

    A chunk is some pixels.  Buffers: in0, out.  Fields: `r_{div,count}`, `rows` pixels of a chunk, `row_count`,
    `channels`, `in0_row out_row` bytes between pixels, `n_{div,count}`, `in0_n out_n` images.
    """

    target: Target
    dtype: str
    before: int
    after: int
    factor: float
    bias: float
    beta: float

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        item, lanes = 8 if self.dtype == "float64" else 4, self.target.lanes(self.dtype)
        scalar, channels = SCALARS[self.dtype], fields["channels"]
        image = kernel.index("n")
        x0 = fn.gep(fields.buffer("in0"), fn.mul(image, fields["in0_n"]))
        out0 = fn.gep(fields.buffer("out"), fn.mul(image, fields["out_n"]))
        first = fn.mul(kernel.index("r"), fields["rows"])
        stop = fn.smin(fn.add(first, fields["rows"]), fields["row_count"])
        # Channels whose window, and those of the rest of their vector, lie inside.
        inside = fn.smax(fn.sub(fn.sub(channels, self.after + self.before), lanes - 1), 0)
        end = fn.add(fn.mul(fn.udiv(fn.add(inside, lanes - 1), lanes), lanes), self.before)
        end = fn.select(fn.cmp("sgt", inside, 0), end, 0)
        begin = fn.select(fn.cmp("sgt", inside, 0), self.before, 0)

        def result(kind: str, x: Value, total: Value) -> Value:
            base = fn.multiply_add(fn.const(kind, self.factor), total, fn.const(kind, self.bias), fused=self.target.fma)
            return fn.binary("fmul", x, emit_power(fn, base, -self.beta))

        def pixel(row: Value, _: list[Value]) -> list[Value]:
            x = fn.gep(x0, fn.mul(row, fields["in0_row"]))
            out = fn.gep(out0, fn.mul(row, fields["out_row"]))

            def single(at: Value, _: list[Value]) -> list[Value]:
                low, high = fn.smax(fn.sub(at, self.before), 0), fn.smin(fn.add(at, self.after + 1), channels)

                def add(c: Value, state: list[Value]) -> list[Value]:
                    value = fn.load(scalar, fn.gep(x, fn.mul(c, item)))
                    return [fn.multiply_add(value, value, state[0], fused=self.target.fma)]

                (total,) = fn.loop(low, high, 1, [fn.const(scalar, 0.0)], add, hint="window")
                place = fn.mul(at, item)
                fn.store(result(scalar, fn.load(scalar, fn.gep(x, place)), total), fn.gep(out, place))
                return []

            def many(at: Value, _: list[Value]) -> list[Value]:
                kind = vector(scalar, lanes)
                here, total = fn.gep(x, fn.mul(at, item)), fn.const(kind, 0.0)
                for shift in range(-self.before, self.after + 1):
                    value = fn.load(kind, here, shift * item)
                    total = fn.multiply_add(value, value, total, fused=self.target.fma)
                fn.store(result(kind, fn.load(kind, here), total), fn.gep(out, fn.mul(at, item)))
                return []

            def singles(low: Index, high: Index) -> None:
                fn.loop(low, high, 1, [], single, guard=True, hint="edge")

            singles(0, begin)
            fn.loop(begin, end, lanes, [], many, guard=True, hint="channels")
            singles(end, channels)
            return []

        fn.loop(first, stop, 1, [], pixel, hint="pixel")
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Loads of all windows, and some thirty operations for each vector."""
        rows, item = f["n_count"] * f["row_count"], 8 if self.dtype == "float64" else 4
        vectors = rows * f["channels"] / host.target.lanes(self.dtype)
        nbytes = rows * f["channels"] * item
        counts = {"multiply": vectors * (30 + self.before + self.after)}
        return Cost(counts, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)
