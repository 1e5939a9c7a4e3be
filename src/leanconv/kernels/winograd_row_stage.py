"""Rows of an image of few channels to points of Winograd's transform along them, tiles adjacent.

A row with its pads is copied into a line, all channels or, where they come first, one after the other.  As many pixels
as the stride, and their channels, are a *position* of the line; a tile's windows begin `outputs` positions behind the
last one's.  Transposed, each element of those positions is a vector of tiles; what a window reads beyond its tile's own
positions are vectors one tile on:

    line     [position 0: pixels x channels] [position 1] ...              outputs = 4, taps = 3
    turned   [element e of position j of a tile: j, e] [tiles]             j < 4; window 4, 5: j = 0, 1, a tile on
    points   [point] [row] [element e] [tiles]   =   B^T times windows 0 to 5 of e
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.copy import copy_run
from leanconv.kernels.epilogue import transpose
from leanconv.kernels.fields import Fields
from leanconv.kernels.linear import linear


@dataclass(frozen=True, slots=True)
class RowPoints:
    """How a row becomes points: `channels`, and the `stride` along the row; `planes`: channels come first.

    Fields: `line_before line_elements line_bytes` bytes before the first pixel of the line, elements of a row in it,
    and bytes of all of the line; `x_c` bytes between planes; `turned_pitch turned_groups` bytes of all tiles of an
    element there, and registers with tiles; `tile_pitch tile_groups` the same of points; `point_pitch` bytes from
    point to point.
    """

    target: Target
    dtype: str
    transform: CookToom
    channels: int
    stride: int
    planes: bool

    @property
    def elements(self) -> int:
        """Elements of a position: phases of the stride, channels innermost."""
        return self.stride * self.channels

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def lanes(self) -> int:
        """Tiles in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def kind(self) -> str:
        """A vector of tiles."""
        return vector(SCALARS[self.dtype], self.lanes)

    def nothing(self, fn: Function, fields: Fields, points: Value) -> None:
        """The points of a row of zeros."""

        def point(_: Value, state: list[Value]) -> list[Value]:
            self.clear(fn, state[0], fn.mul(fields["tile_pitch"], self.elements))
            return [fn.gep(state[0], fields["point_pitch"])]

        fn.loop(0, self.transform.size, 1, [points], point, hint="point")

    def clear(self, fn: Function, place: Value, nbytes: Index) -> None:
        """Zeros in whole registers: a line before its first row, so that its pads are."""

        def body(at: Value, _: list[Value]) -> list[Value]:
            fn.store(fn.const(self.kind, 0.0), place, at)
            return []

        fn.loop(0, nbytes, self.target.vector_bytes, [], body, hint="clear")

    def row(self, fn: Function, fields: Fields, x: Value, line: Value, turned: Value, points: Value) -> None:
        """The points of the row of pixels at `x`, by way of a line and of what it is transposed to."""
        start = fn.gep(line, fields["line_before"])

        def some(source: Value, target: Value, each: int, apart: int) -> None:
            copy_run(fn, self.kind, fields["line_elements"], source, start, (self.item, self.item), True)
            self._turn(fn, fields, line, target, each, apart)

        def plane(_: Value, state: list[Value]) -> list[Value]:
            some(state[0], state[1], self.stride, self.channels)
            return [fn.gep(state[0], fields["x_c"]), fn.gep(state[1], fields["turned_pitch"])]

        if self.planes:
            fn.loop(0, self.channels, 1, [x, turned], plane, hint="plane")
        else:
            some(x, turned, self.elements, 1)
        self._transform(fn, fields, turned, points)

    def _turn(self, fn: Function, fields: Fields, line: Value, turned: Value, each: int, apart: int) -> None:
        """Transpose the line, as many tiles at a time as a register holds.

        It has `each` of the elements of a position, every `apart`-th one.
        """
        lanes, width = self.lanes, self.target.vector_bytes
        count = self.transform.outputs * each  # elements from tile to tile
        tile = count * self.item

        def group(_: Value, state: list[Value]) -> list[Value]:
            for first in range(0, count, lanes):
                rows = [fn.load(self.kind, state[0], i * tile + first * self.item) for i in range(lanes)]
                for e, value in enumerate(transpose(fn, rows)[: count - first], first):
                    position, element = divmod(e, each)
                    place = position * self.elements + element * apart
                    fn.store(value, fn.gep(state[1], fn.mul(fields["turned_pitch"], place)))
            return [fn.gep(state[0], lanes * tile), fn.gep(state[1], width)]

        fn.loop(0, fields["turned_groups"], 1, [line, turned], group, hint="turn")

    def _transform(self, fn: Function, fields: Fields, turned: Value, points: Value) -> None:
        """All points of all elements."""
        transform, width = self.transform, self.target.vector_bytes
        program = linear(transform.inputs())

        def element(e: Value, state: list[Value]) -> list[Value]:
            def group(_: Value, at: list[Value]) -> list[Value]:
                windows = []
                for j in range(transform.size):
                    tiles, own = divmod(j, transform.outputs)
                    place = fn.gep(at[0], fn.mul(fields["turned_pitch"], own * self.elements))
                    windows.append(fn.load(self.kind, place, tiles * self.item))
                for i, value in enumerate(program.emit(fn, windows, fused=self.target.fma)):
                    fn.store(value, fn.gep(at[1], fn.mul(fields["point_pitch"], i)))
                return [fn.gep(place, width) for place in at]

            fn.loop(0, fields["tile_groups"], 1, state, group, hint="points")
            after = fields["turned_pitch"], fields["tile_pitch"]
            return [fn.gep(place, step) for place, step in zip(state, after, strict=True)]

        fn.loop(0, self.elements, 1, [turned, points], element, hint="element")
