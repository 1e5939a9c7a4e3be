"""Where sums over pixels read the image: in place, or through a table of offsets.

Both add to the accumulators of a tile, input channels under one tap by registers of output channels, the products of
the pixels of a box with their staged gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from leanconv.classes import dataclass
from leanconv.codegen.ir import Index, Value
from leanconv.kernels.boxes import Box, Walker, each_line, tap_ranges
from leanconv.kernels.core import LOOP_ALIGN, Sum
from leanconv.kernels.cursor import SharedCursor
from leanconv.kernels.indirect import nowhere
from leanconv.kernels.reduction import UNROLL, Reduction
from leanconv.kernels.sections import REACH

# A sum of its own: the runs of pixels below stand for its loops.
RUNS = Reduction((1,), None, 0, False, False, None, 1, False, False)


class PixelSource(Protocol):
    """A way to read the pixels that a tap meets."""

    @property
    def unit_channel(self) -> bool:
        """Whether input channels are adjacent."""

    def add(
        self, sum_: Sum, box: Box, number: Index, tap: Sequence[Index], x: Value, staged: Walker, accs: list[Value]
    ) -> list[Value]:
        """Add the products of a box under tap `number`, at position `tap`; `x` is the first channel of the tile."""

    def issued(self, rows: int, vectors: int) -> float:
        """Issue slots of one step."""


def channel_step(sum_: Sum, source: PixelSource) -> Index:
    """Bytes between input channels."""
    return sum_.tile.itemsize if source.unit_channel else sum_.fields["x_c"]


@dataclass(frozen=True, slots=True)
class InPlace:
    """The image where it lies; under each tap only the pixels that read inside it, so that nothing is padded.

    `unit_channel`, `unit_pixel`: input channels, or the pixels of a line of windows, are adjacent.  Fields: `in{d}
    out{d}` sizes; `x_n x_c at{d} step{d} tap{d}` bytes.
    """

    windows: tuple[tuple[int, int, int], ...]
    unit_channel: bool
    unit_pixel: bool

    def add(
        self, sum_: Sum, box: Box, number: Index, tap: Sequence[Index], x: Value, staged: Walker, accs: list[Value]
    ) -> list[Value]:
        """Line by line."""
        fn, fields, last = sum_.fn, sum_.fields, len(self.windows) - 1
        row_step = channel_step(sum_, self)
        corner = x
        for d, (_, _, pad) in enumerate(self.windows):
            corner = fn.gep(corner, fn.mul(tap[d], fields[f"tap{d}"]))
            corner = fn.gep(corner, fn.mul(fields[f"at{d}"], -pad))
        image = Walker(corner, fields["x_n"], [fields[f"step{d}"] for d in range(last + 1)])
        step: Index = sum_.tile.itemsize if self.unit_pixel else fields[f"step{last}"]

        def run(places: list[Value], count: Value, accs: list[Value]) -> list[Value]:
            pixels = [fn.gep(places[0], fn.mul(row_step, i)) for i in range(sum_.tile.rows)]
            if not self.unit_channel:
                pixels = [fn.opaque(pixel) for pixel in pixels]
            cursor = SharedCursor(fn, pixels, 0, step)

            state = [*cursor.state, fn.gep(places[1], REACH), *accs]
            return each_run(sum_, count, state, along(sum_, cursor))[2:]

        ranges = tap_ranges(fn, fields, box, self.windows, tap)
        return each_line(fn, box, ranges, (image, staged), accs, run)

    def issued(self, rows: int, vectors: int) -> float:
        """Multiply-adds, or loads at two a cycle, or the latency of the sums."""
        return max(rows * vectors, rows + vectors, 8)


@dataclass(frozen=True, slots=True)
class ThroughTable:
    """Pixels found through a table of offsets: [output pixel][tap], as in `indirect.py`.

    `taps` entries of `entry_bytes` a pixel; `padded`: some mean padding, a row of zeros or, where channels lie apart, a
    pixel that is left out.  Buffers: offsets and, if padded with adjacent channels, zeros.  Fields: `x_n x_c`;
    `entry_{d}` bytes of the table between positions.
    """

    taps: int
    entry_bytes: int
    padded: bool
    unit_channel: bool
    dims: int

    def add(
        self, sum_: Sum, box: Box, number: Index, tap: Sequence[Index], x: Value, staged: Walker, accs: list[Value]
    ) -> list[Value]:
        """Line by line; all pixels of the box."""
        fn, fields, rows = sum_.fn, sum_.fields, sum_.tile.rows
        row_step, pixel_bytes = channel_step(sum_, self), self.taps * self.entry_bytes
        still: list[Index] = [0] * self.dims
        image = Walker(x, fields["x_n"], still)
        entries = fn.gep(fields.buffer("offsets"), fn.mul(number, self.entry_bytes))
        table = Walker(entries, 0, [fields[f"entry_{d}"] for d in range(self.dims)])
        zeros = fields.buffer("zeros") if self.padded and self.unit_channel else None

        def run(places: list[Value], count: Value, accs: list[Value]) -> list[Value]:
            start = places[0]
            pixels = [fn.gep(start, fn.mul(row_step, i)) for i in range(rows)]
            if not self.unit_channel:
                pixels = [fn.opaque(pixel) for pixel in pixels]

            def one(entry: Value, weights: Value, accs: list[Value], row: int) -> list[Value]:
                offset = fn.load_integer(self.entry_bytes, entry, row * pixel_bytes)
                outside = fn.cmp("eq", offset, nowhere(self.entry_bytes)) if self.padded else None
                if outside is None:
                    return sum_.step(pixels, offset, weights, accs, row)
                if zeros is None:
                    inside = fn.negate(outside)
                    return fn.if_(inside, lambda: sum_.step(pixels, offset, weights, accs, row), lambda: accs)
                pixel = fn.select(outside, zeros, fn.gep(start, offset))
                here = [fn.gep(pixel, fn.mul(row_step, i)) for i in range(rows)]
                return sum_.step(here, 0, weights, accs, row)

            def steps(number: int, state: list[Value]) -> list[Value]:
                entry, weights, accs = state[0], state[1], state[2:]
                for row in range(number):
                    accs = one(entry, weights, accs, row)
                return [fn.gep(entry, number * pixel_bytes), sum_.moved(weights, number), *accs]

            return each_run(sum_, count, [places[1], fn.gep(places[2], REACH), *accs], steps)[2:]

        return each_line(fn, box, box.ranges, (image, table, staged), accs, run)

    def issued(self, rows: int, vectors: int) -> float:
        """As in place, and an entry; or a branch in four."""
        return max(rows * vectors, rows + vectors + 1, 8) + (0 if self.unit_channel or not self.padded else 1)


def each_run(
    sum_: Sum, count: Value, state: list[Value], steps: Callable[[int, list[Value]], list[Value]]
) -> list[Value]:
    """`count` steps, some at a time: `steps(number, state)` emits so many."""
    fn = sum_.fn
    whole = fn.mul(fn.udiv(count, UNROLL), UNROLL)

    def many(_: Value, state: list[Value]) -> list[Value]:
        return steps(UNROLL, state)

    def one(_: Value, state: list[Value]) -> list[Value]:
        return steps(1, state)

    state = fn.loop(0, whole, UNROLL, state, many, guard=True, hint="pixels", align=LOOP_ALIGN)
    return fn.loop(whole, count, 1, state, one, guard=True, hint="pixel")


def along(sum_: Sum, cursor: SharedCursor) -> Callable[[int, list[Value]], list[Value]]:
    """Steps for `each_run` along a cursor; the state is its offset, the weights' address and the accumulators."""

    def steps(number: int, state: list[Value]) -> list[Value]:
        here = cursor.at(state[:1])
        weights, accs = state[1], state[2:]
        for row, (addresses, offset) in enumerate(here.addresses(number)):
            accs = sum_.step(addresses, offset, weights, accs, row)
        return [*here.advanced(number), sum_.moved(weights, number), *accs]

    return steps
