"""What one tap adds to a block of outputs: the steps of `TapsSpec`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from leanconv.classes import dataclass
from leanconv.codegen.ir import I32, I64, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import PointerCursor
from leanconv.kernels.epilogue import row_addresses
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.taps import Panel, Span, Tap
from leanconv.kernels.tile import Tile
from leanconv.kernels.wholewindows import whole_windows

Store = Callable[[Tile, list[Value], Value], None]
ONES = (1, 1, 1)


def length(panel: Panel, span: Span) -> Index:
    """Elements of a span."""
    return panel.fn.sub(span[1], span[0])


def stretch(panel: Panel, tap: Tap, width: Index) -> Index:
    """Pixels from the first that a tap reaches to the last, in rows of `width` without gaps between them."""
    fn = panel.fn
    return fn.add(fn.mul(fn.sub(length(panel, tap.rows), 1), width), length(panel, tap.columns))


def weights_of(panel: Panel, tap: Tap) -> Value:
    """The panel's weights of a tap."""
    fn = panel.fn
    steps = fn.mul(tap.number, panel.fields["channels"])
    return fn.gep(panel.weights, fn.mul(steps, panel.tile.step_bytes))


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a tap's pixels are read: the sum over their channels, `stride` pixels of x between those of a line.

    `pixel_bytes` is the distance between neighbours if the kernel is made for it (adjacent pixels).
    """

    reduction: Reduction
    stride: tuple[int, int, int] = ONES
    pixel_bytes: int | None = None

    def step(self, panel: Panel) -> Index:
        """Bytes from one pixel of a line to the next."""
        fn = panel.fn
        return fn.mul(panel.fields["at2"] if self.pixel_bytes is None else self.pixel_bytes, self.stride[2])

    def first(self, panel: Panel, tap: Tap, row: Index) -> Value:
        """Where the pixel of the first output that the tap reaches in a row lies."""
        fn, fields = panel.fn, panel.fields
        offset = fn.mul(tap.depth, fields["at0"])
        offset = fn.add(offset, fn.mul(fn.add(fn.mul(row, self.stride[1]), tap.down), fields["at1"]))
        column = fn.add(fn.mul(tap.columns[0], self.stride[2]), tap.right)
        return fn.gep(panel.x, fn.add(offset, fn.mul(column, fields["at2"])))

    def line(self, panel: Panel, weights: Value, x: Value, pixels: Index, at: Index, store: Store) -> None:
        """Multiply a line of evenly spaced pixels and store it from pixel `at` on."""
        fn, step = panel.fn, self.step(panel)

        def tile(height: int, state: list[Value]) -> list[Value]:
            sum_ = Sum(fn, panel.fields, panel.shaped(height), self.reduction)
            sums = whole_windows(sum_, row_addresses(fn, state[0], height, step), weights)
            store(sum_.tile, sums, state[1])
            return [fn.gep(state[0], fn.mul(step, height)), fn.i64(fn.add(state[1], height))]

        panel.line(pixels).walk(panel.heights, [x, fn.i64(at)], tile)


@dataclass(frozen=True, slots=True)
class Region:
    """Exactly the outputs that a tap reaches, row by row: nothing is computed in vain, nothing staged."""

    pixels: Pixels
    fills: ClassVar[bool] = True
    maps: ClassVar[bool] = False
    apart: ClassVar[bool] = True
    together: ClassVar[bool] = False

    @property
    def stride(self) -> tuple[int, int, int]:
        """Any stride."""
        return self.pixels.stride

    def tap(self, panel: Panel, tap: Tap) -> None:
        """One line a row."""
        weights = weights_of(panel, tap)

        def row(at: Value) -> None:
            x = self.pixels.first(panel, tap, at)
            first = panel.pixel(at, tap.columns[0])
            self.pixels.line(panel, weights, x, length(panel, tap.columns), first, panel.add)

        panel.each_row(tap.rows, row)


@dataclass(frozen=True, slots=True)
class Punched:
    """All rows at one go, as one shifted line: pixels that leave a row on one side would enter the next on the other.

    These are holes: zeros are read in their place.  Image and output are equally wide, the stride is 1.  Buffer
    "holes": for each column of the kernel and of the image, a number that is zero where there is a hole.  Field `gap`:
    bytes between the end of a row of x and the start of the next.
    """

    pixels: Pixels
    stride: ClassVar[tuple[int, int, int]] = ONES
    fills: ClassVar[bool] = True
    maps: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    together: ClassVar[bool] = True

    def tap(self, panel: Panel, tap: Tap) -> None:
        """One line for all rows."""
        fn, fields = panel.fn, panel.fields
        width, gap, step = fields["in2"], fields["gap"], self.pixels.step(panel)
        weights, store = weights_of(panel, tap), panel.add
        item = panel.tile.itemsize
        holes = fn.gep(fields.buffer("holes"), fn.mul(fn.mul(tap.column, width), item))
        even = fn.both(fn.cmp("eq", tap.right, 0), fn.cmp("eq", gap, 0))

        def wrapped(column: Index, moved: Index) -> list[Value]:
            """A column that may be past the end of its row, and the bytes that pixels are moved by where it is."""

            def turn() -> list[Value]:
                return [fn.i64(fn.urem(column, width)), fn.i64(fn.add(moved, fn.mul(fn.udiv(column, width), gap)))]

            return fn.if_(fn.cmp("slt", column, width), lambda: [fn.i64(column), fn.i64(moved)], turn, hint="wrap")

        def tile(height: int, state: list[Value]) -> list[Value]:
            x, at, column = state
            sum_ = Sum(fn, fields, panel.shaped(height), self.pixels.reduction)
            last = fn.add(column, height - 1)
            inside = fn.cmp("sge", fn.add(column, tap.right), 0)
            inside = fn.both(inside, fn.cmp("slt", fn.add(last, fn.smax(tap.right, 0)), width))

            def plain() -> list[Value]:
                return whole_windows(sum_, row_addresses(fn, x, height, step), weights)

            def punched() -> list[Value]:
                return self._punched(sum_, weights, x, column, holes, width, gap)

            sums = fn.if_(fn.either(even, inside), plain, punched, hint="holes")
            store(sum_.tile, sums, at)
            after, moved = wrapped(fn.add(column, height), fn.mul(step, height))
            return [fn.gep(x, moved), fn.i64(fn.add(at, height)), after]

        x = self.pixels.first(panel, tap, tap.rows[0])
        start = panel.pixel(tap.rows[0], tap.columns[0])
        state = [x, fn.i64(start), fn.i64(tap.columns[0])]
        panel.line(stretch(panel, tap, width)).walk(panel.heights, state, tile)

    def _punched(
        self, sum_: Sum, weights: Value, x: Value, column: Value, holes: Value, width: Value, gap: Value
    ) -> list[Value]:
        """A tile with holes in it: an address for each pixel."""
        fn, item = sum_.fn, sum_.tile.itemsize
        step: Index = sum_.fields["at2"] if self.pixels.pixel_bytes is None else self.pixels.pixel_bytes
        places, valid = [], []
        for _ in range(sum_.tile.rows):
            mark = fn.load(I64 if item == 8 else I32, holes, fn.mul(column, item))
            valid.append(fn.op("i1", f"icmp ne {mark.type} {mark.name}, 0"))
            places.append(x)
            following = fn.add(column, 1)
            ends = fn.cmp("eq", following, width)
            column = fn.select(ends, 0, following)
            x = fn.gep(x, fn.add(step, fn.select(ends, gap, 0)))
        stride: Index = item if sum_.reduction.unit_channel else sum_.fields["x_c"]
        cursor = PointerCursor.punched(fn, places, valid, stride)
        behind, accs = sum_.start(weights)
        return sum_.finish(sum_.run(cursor, sum_.reduction.channels, behind, accs)[1])
