"""Tiles that end with the rows of the output, and leave out what padding they would read.

A tile that runs on from one row of a small image into the next multiplies padding wherever one of its pixels lies
inside: on 7 x 7 under 3 x 3 taps every fifth product is one with a zero. A tile that keeps to its row has the same rows
of taps inside the image for all of its pixels, and of each column of taps it leaves the pixels at its ends out:

    taps of column 0     . 1 2 3 4 5 6      the first pixel's is outside: six pixels go through the channels
    taps of column 1     0 1 2 3 4 5 6
    taps of column 2     0 1 2 3 4 5 .      the last one's

The sums of pixels left out stay in their registers meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import Cursor, EvenCursor, SharedCursor
from leanconv.kernels.epilogue import row_addresses
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import Image


@dataclass(frozen=True, slots=True)
class InRows(Image):
    """An image in two dimensions under tiles that do not leave their row of the output; fields: as in `Image`."""

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """The row of a pixel, the first of one."""
        return [fn.i64(fn.udiv(pixel, fields["out1"])), fn.i64(0)]

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """Further on in the row."""
        return [state[0], fn.i64(fn.add(state[1], rows))]


@dataclass(frozen=True, slots=True)
class RowTiles(InRows):
    """Such an image under padding of zeros, its channels adjacent.

    `outside`: how many first and how many last pixels of a row read padding, for each column of taps; never as many as
    the lowest tile has rows. `alone`: a row is one tile.
    """

    outside: tuple[tuple[int, int], ...]
    alone: bool

    @staticmethod
    def of(image: Image, outside: tuple[tuple[int, int], ...], *, alone: bool) -> RowTiles:
        """An image with such ends of its rows."""
        i = image
        return RowTiles(i.stride, i.dilation, i.pad_low, i.padded, i.pad_mode, None, outside, alone)

    def anywhere(self) -> Image:
        """The image under tiles that run on from row to row."""
        return Image(self.stride, self.dilation, self.pad_low, self.padded, self.pad_mode, None)

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The taps of each row that lies inside, column by column."""
        fn, red, fields, shape = sum_.fn, sum_.reduction, sum_.fields, sum_.tile
        step = self.step(fields, 1)
        pixels = row_addresses(fn, fn.opaque(self.first_window(sum_, base, state)), shape.rows, step)
        ranges = self.ranges(sum_, state)
        assert ranges is not None
        first, accs = sum_.start(weights)

        def row(tap: Value, accs: list[Value]) -> list[Value]:
            down = fn.mul(tap, fields["tap0"])
            w = fn.gep(first, fn.mul(fn.mul(tap, fields["w_rows0"]), shape.step_bytes))
            for column in range(red.kernel[1]):
                offset = fn.add(down, fn.mul(fields["tap1"], column))
                here = fn.gep(w, fn.mul(fn.mul(fields["w_rows1"], column), shape.step_bytes))

                def some(
                    left: int, right: int, offset: Index = offset, here: Value = here, accs: list[Value] = accs
                ) -> list[Value]:
                    inside = pixels[left : shape.rows - right]
                    return sum_.run(self._channels(sum_, inside, left, offset), None, here, accs)[1] if inside else accs

                accs = self._between(sum_, state[1], self.outside[column], some)
                accs = sum_.end_section(1, accs, fn.i64(column))
            return sum_.end_section(0, accs, tap)

        start, end = ranges[0]
        return sum_.finish(fn.loop(start, end, 1, accs, row, guard=True, hint="row"))

    def _between(
        self, sum_: Sum, column: Value, outside: tuple[int, int], some: Callable[[int, int], list[Value]]
    ) -> list[Value]:
        """`some` of a tile at a column of the output: without the pixels at the ends of its row that are outside."""
        fn, (left, right) = sum_.fn, outside
        if self.alone:
            return some(left, right)

        def end(left: int) -> list[Value]:
            if not right:
                return some(left, 0)
            last = fn.cmp("eq", fn.add(column, sum_.tile.rows), sum_.fields["out1"])
            return fn.if_(last, lambda: some(left, right), lambda: some(left, 0), hint="last")

        if not left:
            return end(0)
        return fn.if_(fn.cmp("eq", column, 0), lambda: end(left), lambda: end(0), hint="first")

    def _channels(self, sum_: Sum, pixels: list[Value], first: int, offset: Index) -> Cursor:
        """The channels of some pixels of a tile, from its `first` one on."""
        fn, tile = sum_.fn, sum_.tile
        step = self.step(sum_.fields, 1)
        cursor: Cursor = SharedCursor(fn, pixels, offset, tile.itemsize)
        if tile.target.masks and isinstance(step, Value):
            cursor = EvenCursor(fn, pixels, step, tile.itemsize, offset)
        cursor.first = first
        return cursor
