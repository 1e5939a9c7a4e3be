"""Windows reduced to their largest element, their mean or their sum, with channels in vectors.

The taps of an output are those of its window that lie inside the image.  Sums are taken row by row of the window and
the rows added up then, so that the mean over a large image keeps its digits; their order depends on nothing else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, scalar_of, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.net_expression import pick

VECTORS = 4  # of channels that are reduced at a time
WRITTEN_OUT = 9  # taps at most
MAX, MEAN, SUM, SQUARES = "max", "mean", "sum", "squares"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Reduce windows over `dims` dimensions.

    `how` is MAX, MEAN, SUM or SQUARES (the sum of them); `padded`: a mean counts taps in the padding too.  `unit`:
    channels are adjacent, and so are those of the output.  `taps`: of each dimension, where they are so few
    that those of outputs away from the edges are written out, or ().  Buffers: x, out.  Fields: `{c,p,n}_{div,count}`
    split the chunk's number into channels, rows of outputs and images; `channels`, `c_block` of a chunk; `p_block`
    rows; `x_n x_c o_n o_c` bytes; for each dimension `in out at to taps stride dilation pad end`: sizes, bytes between
    input positions and between outputs, the window, and where padding ends.
    """

    target: Target
    dtype: str
    dims: int
    how: str
    padded: bool
    unit: bool
    taps: tuple[int, ...] = ()

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        image, rows, part = kernel.index("n"), kernel.index("p"), kernel.index("c")
        first = fn.mul(part, fields["c_block"])
        count = fn.sub(fn.smin(fn.add(first, fields["c_block"]), fields["channels"]), first)
        step_in, step_out = (self._item, self._item) if self.unit else (fields["x_c"], fields["o_c"])
        x = fn.gep(fields.buffer("x"), fn.add(fn.mul(image, fields["x_n"]), fn.mul(first, step_in)))
        out = fn.gep(fields.buffer("out"), fn.add(fn.mul(image, fields["o_n"]), fn.mul(first, step_out)))
        begin = fn.mul(rows, fields["p_block"])
        stop = fn.smin(fn.add(begin, fields["p_block"]), fields["out0"])

        def output(dim: int, x: Value, out: Value, ranges: list[tuple[Index, Index]], divisor: Index) -> None:
            if dim == self.dims:
                self._taps(fn, fields, x, out, ranges, divisor, count)
                return
            taps, dilation = fields[f"taps{dim}"], fields[f"dilation{dim}"]

            def at(index: Value, state: list[Value]) -> list[Value]:
                corner = fn.sub(fn.mul(index, fields[f"stride{dim}"]), fields[f"pad{dim}"])
                # Taps t with 0 <= corner + t * dilation < size.
                low = fn.udiv(fn.add(fn.smax(fn.sub(0, corner), 0), fn.sub(dilation, 1)), dilation)
                room = fn.smax(fn.sub(fields[f"in{dim}"], corner), 0)
                high = fn.smin(taps, fn.udiv(fn.add(room, fn.sub(dilation, 1)), dilation))
                low = fn.smin(low, high)
                counted: Index = fn.sub(high, low)
                if self.padded:
                    left = fn.smax(fn.sub(fields[f"end{dim}"], corner), 0)
                    counted = fn.smin(taps, fn.udiv(fn.add(left, fn.sub(dilation, 1)), dilation))
                start = fn.add(corner, fn.mul(low, dilation))
                moved = fn.gep(x, fn.mul(start, fields[f"at{dim}"]))
                span = (0, fn.sub(high, low))
                whole = fn.mul(divisor, counted) if self.how == MEAN else 1
                output(dim + 1, moved, state[0], [*ranges, span], whole)
                return [fn.gep(state[0], fields[f"to{dim}"])]

            if dim:
                fn.loop(0, fields[f"out{dim}"], 1, [out], at, hint="output")
            else:
                fn.loop(begin, stop, 1, [fn.gep(out, fn.mul(begin, fields["to0"]))], at, hint="output")

        output(0, x, out, [], 1)
        return kernel.finish()

    def _taps(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        out: Value,
        ranges: list[tuple[Index, Index]],
        divisor: Index,
        count: Index,
    ) -> None:
        """One output; its taps are known where none of them is outside."""
        if not self.taps:
            self._channels(fn, fields, x, out, ranges, divisor, count)
            return
        inside = [fn.cmp("eq", high, taps) for (_, high), taps in zip(ranges, self.taps, strict=True)]

        def known() -> list[Value]:
            self._channels(fn, fields, x, out, None, divisor, count)
            return []

        def some() -> list[Value]:
            self._channels(fn, fields, x, out, ranges, divisor, count)
            return []

        fn.if_(functools.reduce(fn.both, inside), known, some, hint="inside")

    def _channels(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        out: Value,
        ranges: list[tuple[Index, Index]] | None,
        divisor: Index,
        count: Index,
    ) -> None:
        """All channels of one output; `ranges` of its taps, None for all of them."""
        scalar, lanes = SCALARS[self.dtype], self.target.lanes(self.dtype) if self.unit else 1
        number: Value | None = None
        if self.how == MEAN:
            number = fn.op(scalar, f"sitofp i64 {fn.i64(divisor).name} to {scalar}")
        steps = [(VECTORS, lanes), (1, lanes), (1, 1)] if lanes > 1 else [(1, 1)]
        done: Index = 0
        for vectors, width in steps:
            kind = vector(scalar, width) if width > 1 else scalar
            size = vectors * width
            end = fn.add(done, fn.mul(fn.udiv(fn.sub(count, done), size), size))

            def some(at: Value, _: list[Value], kind: str = kind, vectors: int = vectors) -> list[Value]:
                self._some(fn, fields, x, out, ranges, number, at, kind, vectors)
                return []

            fn.loop(done, end, size, [], some, guard=True, hint="channels")
            done = end

    def _some(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        out: Value,
        ranges: list[tuple[Index, Index]] | None,
        number: Value | None,
        at: Value,
        kind: str,
        vectors: int,
    ) -> None:
        """Some vectors of one output."""
        item = self._item
        width = 1 if kind == scalar_of(kind) else self.target.lanes(self.dtype)
        start = fn.const(kind, -math.inf if self.how == MAX else 0.0)
        steps = (item, item) if self.unit else (fields["x_c"], fields["o_c"])
        source = fn.gep(x, fn.mul(at, steps[0]))

        def window(dim: int, place: Value, sums: list[Value]) -> list[Value]:
            step = fn.mul(fields[f"at{dim}"], fields[f"dilation{dim}"])

            def tap(_: Value, state: list[Value]) -> list[Value]:
                place, *held = state
                if dim == self.dims - 1:
                    held = [
                        self._join(fn, value, fn.load(kind, place, i * width * item)) for i, value in enumerate(held)
                    ]
                elif self.how == MAX:
                    held = window(dim + 1, place, held)
                else:
                    parts = window(dim + 1, place, [start] * vectors)
                    held = [fn.binary("fadd", a, b) for a, b in zip(held, parts, strict=True)]
                return [fn.gep(place, step), *held]

            if ranges is None:
                state = [place, *sums]
                for _ in range(self.taps[dim]):
                    state = tap(place, state)
                return state[1:]
            low, high = ranges[dim]
            return fn.loop(low, high, 1, [place, *sums], tap, guard=True, hint="tap")[1:]

        target = fn.gep(out, fn.mul(at, steps[1]))
        for i, value in enumerate(window(0, source, [start] * vectors)):
            if number is not None:
                value = fn.binary("fdiv", value, fn.splat(number, width) if width > 1 else number)
            fn.store(value, target, i * width * item)

    def _join(self, fn: Function, sum_: Value, value: Value) -> Value:
        if self.how == MAX:
            return pick(fn, fn.fcmp("uge", value, sum_), value, sum_)  # one instruction on x86, "ugt" is two
        if self.how == SQUARES:
            return fn.multiply_add(value, value, sum_, fused=self.target.fma)
        return fn.binary("fadd", sum_, value)

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """A load and an operation for each tap."""
        lanes = host.target.lanes(self.dtype) if self.unit else 1
        outputs = f["n_count"] * math.prod(f[f"out{d}"] for d in range(self.dims))
        taps = math.prod(min(f[f"taps{d}"], f[f"in{d}"]) for d in range(self.dims))
        vectors = f["channels"] // lanes + f["channels"] % lanes
        read = f["n_count"] * math.prod(f[f"in{d}"] for d in range(self.dims)) * f["channels"] * self._item
        counts = {"vector": float(outputs * taps * vectors), "tap": float(outputs * taps)}
        written = outputs * f["channels"] * self._item
        return Cost(counts, ((read, read),), ((written, written),), chunks)
