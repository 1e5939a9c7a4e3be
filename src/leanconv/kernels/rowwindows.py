"""Windows of few channels, read by tiles that end with the rows of the output.

Where a pixel's channels are few and the columns of an image lie one behind the other, what a tile of one output row
reads is one run of memory for each row of taps, at distances known when the kernel is made: one address serves all of
its pixels, and every load is a displacement. A tile that ran on into the next row would need an address for each pixel.
So each row is cut into whole tiles of its own, of two heights (`dense`).

A tile that hangs over the image has those runs copied to the stack first, between zeros, and is then summed by the same
code:

    image      |a0 a1 a2 b0 b1 b2 c0 ...               the row ends, or begins, at the bar
    stack  0 0 0 a0 a1 a2 b0 b1 b2 c0 ...              `pitch` bytes from one row of taps to the next

Each vector of a run is copied whole: the last one overlaps the one before, so that nothing beyond the run is touched.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.image import Image
from leanconv.kernels.rowtiles import InRows
from leanconv.kernels.wholewindows import whole_windows

AHEAD = 2  # rows of the output between asking for a row of the image and reading it


@dataclass(frozen=True, slots=True)
class RowWindows(InRows):
    """An image under tiles that do not leave their row of the output; fields: as in `Image`.

    `channels` of a pixel, and `pad_high`, the columns that windows reach beyond the last one. `asks`: tiles ask for
    the rows of the image that those `AHEAD` rows further down are the first to read.
    """

    channels: int
    pad_high: int
    asks: bool

    @staticmethod
    def of(image: Image, channels: int, item: int, pad_high: int, *, asks: bool) -> RowWindows:
        """An image of so many channels of `item` bytes, columns adjacent."""
        i, pixel = image, channels * item
        return RowWindows(i.stride, i.dilation, i.pad_low, i.padded, i.pad_mode, pixel, channels, pad_high, asks)

    def reach(self, rows: int, taps: int) -> int:
        """Columns that a tile of so many pixels reads."""
        return (rows - 1) * self.stride[1] + taps

    def copies(self, rows: int, taps: int, lanes: int) -> bool:
        """Whether any tile of that height that hangs over the image still reads a whole vector of it."""
        return (self.reach(rows, taps) - self.pad_low[1] - self.pad_high) * self.channels >= lanes

    def vectors(self, rows: int, taps: int, lanes: int) -> int:
        """Vectors that hold what a tile reads of one row of the image."""
        return -(-self.reach(rows, taps) * self.channels // lanes)

    def copied(self, rows: int, kernel: tuple[int, ...], lanes: int) -> int:
        """Vectors that a tile that hangs over the image stores to the stack."""
        return 2 * kernel[0] * self.vectors(rows, kernel[1], lanes)

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """Windows inside the image where they lie, others on the stack: the same sum."""
        fn = sum_.fn
        step: Value = sum_.fields["tap0"]

        def inside() -> list[Value]:
            return [self.first_window(sum_, base, state), step]

        first, apart = inside()[0], step
        if self.asks:
            self._ask(sum_, first)
        if self.padded:
            first, apart = fn.if_(
                self.even(sum_, state), inside, lambda: self._copied(sum_, base, state), hint="inside"
            )
        return whole_windows(sum_, [first], weights, apart=self.apart, line=apart)

    def _ask(self, sum_: Sum, first: Value) -> None:
        """Ask for the rows of the image that are new to the tile below one whose window begins there."""
        fn, (taps, columns) = sum_.fn, sum_.reduction.kernel
        span = (taps - 1) * self.dilation[0] + 1
        nbytes = self.reach(sum_.tile.rows, columns) * self.channels * sum_.tile.itemsize
        last = AHEAD * self.stride[0] + span - 1
        for row in range(last + 1 - min(self.stride[0], span), last + 1):
            place = fn.gep(first, fn.mul(sum_.fields["at0"], row))
            for at in range(0, nbytes, LINE):
                fn.prefetch(place, at)

    def _copied(self, sum_: Sum, base: Value, state: list[Value]) -> list[Value]:
        """Where the windows of a tile lie on the stack, and the bytes between rows of taps there."""
        fn, fields, tile = sum_.fn, sum_.fields, sum_.tile
        lanes, width = tile.target.lanes(tile.dtype), tile.target.vector_bytes
        taps, pixel = sum_.reduction.kernel, self.channels * tile.itemsize
        reach = self.reach(tile.rows, taps[1])
        vectors = self.vectors(tile.rows, taps[1], lanes)
        pitch = vectors * width
        stack = fn.alloca(taps[0] * pitch)
        row, column = (fn.sub(fn.mul(at, self.stride[d]), self.pad_low[d]) for d, at in enumerate(state))
        low = fn.smax(fn.sub(0, column), 0)
        high = fn.smin(fn.sub(fields["in1"], column), reach)
        last = fn.sub(fn.mul(fn.sub(high, low), pixel), width)  # where the last vector of a run begins
        least = (reach - self.pad_low[1] - self.pad_high) * pixel - width
        starts = [v * width if v * width <= least else fn.i64(fn.smin(last, v * width)) for v in range(vectors)]
        left, right = self.pad_low[1] * pixel, (reach - self.pad_high) * pixel  # between them a run holds all
        ends = [v for v in range(vectors) if v * width < left or (v + 1) * width > right]
        from_ = fn.mul(fn.add(column, low), pixel)
        to = fn.mul(low, pixel)

        def line(tap: Value, _: list[Value]) -> list[Value]:
            at = fn.add(row, fn.mul(tap, self.dilation[0]))
            target = fn.gep(stack, fn.mul(tap, pitch))

            def clear(which: range | list[int]) -> None:
                for v in which:
                    fn.store(fn.const(tile.vec, 0.0), target, v * width)

            def some() -> list[Value]:
                clear(ends)
                source = fn.gep(base, fn.add(fn.mul(at, fields["at0"]), from_))
                place = fn.gep(target, to)
                for begin in starts:
                    fn.store(fn.load(tile.vec, fn.gep(source, begin)), fn.gep(place, begin))
                return []

            def none() -> list[Value]:
                clear(range(vectors))
                return []

            fn.if_(fn.cmp("ult", at, fields["in0"]), some, none, hint="line")
            return []

        fn.loop(0, taps[0], 1, [], line, hint="copy")
        return [stack, fn.i64(pitch)]
