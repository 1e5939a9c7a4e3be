"""Images with channels first, a block of channels after the other under all taps.

Channels first, every channel of a tile lies in a line of cache, and often a page, of its own. Summed tap by tap, all of
them pass again for each tap, and are no longer near when they come back: 64 channels of 224 x 224 all lie in one set of
the first-level cache and in 64 pages. Here a block of channels goes through all taps before the next one comes:

    block 0:   tap 0   c0 c1 ... c15,   tap 1   c0 c1 ... c15,   ...       16 lines a row of taps, read once, used often
    block 1:   tap 0   c16 ...

Tiles of evenly spaced windows inside the image walk from channel to channel with one address. Others work out an
address for each pixel and tap once, keep them in a table on the stack, and move them on as blocks go by.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, I64, PTR, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import ZERO_BYTES, PlaneCursor, PointerCursor
from leanconv.kernels.image import Image, mapped_position

ENTRY = 8  # bytes of an address, of a step and of an offset in the table
BLOCK = "block"


@dataclass(frozen=True, slots=True)
class PlaneBlocks(Image):
    """`block` channels at a time, the last time `rest` (0: as many).

    Fields: as in `Image`, and `blocks` whole blocks.
    """

    block: int
    rest: int

    @staticmethod
    def of(image: Image, channels: int, block: int) -> PlaneBlocks:
        """An image of so many channels by blocks."""
        i = image
        shape = (i.stride, i.dilation, i.pad_low, i.padded, i.pad_mode, i.width_bytes)
        return PlaneBlocks(*shape, block, channels % block)

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """Choose between evenly spaced windows inside the image and the table."""
        fn = sum_.fn
        return fn.if_(
            self.even(sum_, state),
            lambda: self._evenly(sum_, base, weights, state),
            lambda: self._apart(sum_, base, weights, state),
            hint="even",
        )

    def _blocks(
        self,
        sum_: Sum,
        first: list[Value],
        weights: Value,
        accs: list[Value],
        taps: Callable[[list[Value], Value, list[Value], int], list[Value]],
        moved: Callable[[list[Value]], list[Value]],
    ) -> list[Value]:
        """All terms: `taps` adds those of some channels to accumulators, `moved` is where the next block begins."""
        fn, red, known = sum_.fn, sum_.reduction, len(first) + 1
        step = math.prod(red.kernel) * self.block * sum_.tile.step_bytes

        def block(number: Value, state: list[Value]) -> list[Value]:
            at, w, inner = state[: known - 1], state[known - 1], state[known:]
            inner = sum_.end_section("blocks", taps(at, w, inner, self.block), number)
            return [*moved(at), fn.gep(w, step), *inner]

        state = fn.loop(0, sum_.fields["blocks"], 1, [*first, weights, *accs], block, hint=BLOCK)
        if self.rest:
            return sum_.finish(taps(state[: known - 1], state[known - 1], state[known:], self.rest))
        return sum_.finish(state[known:])

    def _rows(self, sum_: Sum, dim: int, channels: int) -> int:
        """Bytes of weights from one tap of a dimension to the next, in a block of so many channels."""
        return channels * math.prod(sum_.reduction.kernel[dim + 1 :]) * sum_.tile.step_bytes

    def _evenly(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """One address for all pixels of a tile; taps above and below the image are left out."""
        fn, fields, kernel, last = sum_.fn, sum_.fields, sum_.reduction.kernel, self.dims - 1
        channel = fields["x_c"]
        clipped = self.ranges(sum_, state) if self.padded else None
        ranges: list[tuple[Index, Index]] = [*(clipped or [(0, taps) for taps in kernel[:-1]]), (0, kernel[-1])]
        apart = [fn.mul(self.step(fields, last), i) for i in range(sum_.tile.rows)]
        weights, accs = sum_.start(weights)

        def taps(at: list[Value], weights: Value, accs: list[Value], channels: int) -> list[Value]:
            def level(dim: int, pixel: Value, weights: Value, accs: list[Value]) -> list[Value]:
                if dim == self.dims:
                    return sum_.run(PlaneCursor(fn, pixel, apart, channel), channels, weights, accs)[1]

                def one(tap: Value, accs: list[Value]) -> list[Value]:
                    there = fn.gep(pixel, fn.mul(tap, fields[f"tap{dim}"]))
                    return level(dim + 1, there, fn.gep(weights, fn.mul(tap, self._rows(sum_, dim, channels))), accs)

                begin, end = ranges[dim]
                return fn.loop(begin, end, 1, accs, one, guard=dim < last, hint="tap")

            return level(0, at[0], weights, accs)

        step = fn.mul(channel, self.block)
        first = self.first_window(sum_, base, state)
        return self._blocks(sum_, [first], weights, accs, taps, lambda at: [fn.gep(at[0], step)])

    def _apart(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """An address for each pixel and tap, from a table that holds the taps of which any pixel is in the image."""
        fn, rows = sum_.fn, sum_.tile.rows
        taps, entry = math.prod(sum_.reduction.kernel), (2 * rows + 1) * ENTRY
        table = fn.alloca((taps + 1) * entry)
        count = self._fill(sum_, base, state, table, entry)
        weights, accs = sum_.start(weights)

        def sums(_: list[Value], weights: Value, accs: list[Value], channels: int) -> list[Value]:
            def one(number: Value, accs: list[Value]) -> list[Value]:
                row = fn.gep(table, fn.mul(number, entry))
                pixels = [fn.load(PTR, row, i * ENTRY) for i in range(rows)]
                steps = [fn.load(I64, row, (rows + i) * ENTRY) for i in range(rows)]
                w = fn.gep(weights, fn.mul(fn.load(I64, row, 2 * rows * ENTRY), channels * sum_.tile.step_bytes))
                cursor = PointerCursor(fn, pixels, steps, None)
                return self._run(sum_, cursor, channels, w, accs, row)

            return fn.loop(0, count, 1, accs, one, guard=True, hint="tap")

        return self._blocks(sum_, [], weights, accs, sums, lambda at: [])

    def _run(
        self, sum_: Sum, cursor: PointerCursor, channels: int, weights: Value, accs: list[Value], row: Value
    ) -> list[Value]:
        """The channels of a block under one tap, whose addresses in the table move on."""
        fn, known = sum_.fn, len(cursor.state)

        def step(_: Value, state: list[Value]) -> list[Value]:
            here = cursor.at(state[:known])
            ((pixels, offset),) = here.addresses(1)
            accs = sum_.step(pixels, offset, state[known], state[known + 1 :], 0)
            return [*here.advanced(1), sum_.moved(state[known], 1), *accs]

        state = fn.loop(0, channels, 1, [*cursor.state, weights, *accs], step, hint="channels")
        for i, pixel in enumerate(state[:known]):
            fn.store(pixel, row, i * ENTRY)
        return state[known + 1 :]

    def _fill(self, sum_: Sum, base: Value, state: list[Value], table: Value, entry: int) -> Value:
        """Write the table; returns how many taps it holds."""
        fn, fields, kernel = sum_.fn, sum_.fields, sum_.reduction.kernel
        zeros, true, channel = fn.module.zeros(ZERO_BYTES), Value("true", I1), fields["x_c"]
        positions = self.positions(sum_, state)
        corners = [
            [fn.i64(fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])) for dim, at in enumerate(position)]
            for position in positions
        ]

        def level(dim: int, offsets: list[Index], valid: list[Value], tap: Index, count: Value) -> Value:
            if dim == self.dims:
                row = fn.gep(table, fn.mul(count, entry))
                some = valid[0]
                for i, (offset, ok) in enumerate(zip(offsets, valid, strict=True)):
                    some = fn.either(some, ok)
                    fn.store(fn.select(ok, fn.gep(base, offset), zeros), row, i * ENTRY)
                    fn.store(fn.i64(fn.select(ok, channel, 0)), row, (len(valid) + i) * ENTRY)
                fn.store(fn.i64(tap), row, 2 * len(valid) * ENTRY)
                return fn.i64(fn.select(some, fn.add(count, 1), count))

            def one(at: Value, inner: list[Value]) -> list[Value]:
                here: list[Index] = []
                inside: list[Value] = []
                for corner, offset, ok in zip(corners, offsets, valid, strict=True):
                    place = fn.i64(fn.add(corner[dim], fn.mul(at, self.dilation[dim])))
                    if self.padded and self.pad_mode == "zeros":
                        inside.append(fn.both(ok, fn.cmp("ult", place, fields[f"in{dim}"])))
                    else:
                        if self.padded:
                            place = mapped_position(fn, place, fields[f"in{dim}"], self.pad_mode)
                        inside.append(ok)
                    here.append(fn.add(offset, fn.mul(place, fields[f"at{dim}"])))
                number = fn.add(tap, fn.mul(at, math.prod(kernel[dim + 1 :])))
                return [level(dim + 1, here, inside, number, inner[0])]

            return fn.loop(0, kernel[dim], 1, [count], one, hint="edge")[0]

        return level(0, [0] * len(corners), [true] * len(corners), 0, fn.i64(0))
