"""One chunk of a row's taps over a tile of pixels of an output row, vectors of channels (see `channelwise`)."""

from __future__ import annotations

from collections.abc import Iterable

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.window import Edges, Window

Columns = dict[int, list[tuple[int, int]]]  # of pixels, from the tile's first one: the (tap, output) pairs that read it


@dataclass(frozen=True, slots=True)
class Tile:
    """The width of a tile, its first output pixel in the row, and whether it lies at an end whose taps are known."""

    width: int
    pixel: Value
    left: bool
    right: bool


@dataclass(slots=True)
class RowTerms:
    """Emits the terms of chunks of a row's taps; `groups` of the unit's exist.

    `corner` is the position of the tile's first pixel in its row, which may lie outside the image.
    """

    fn: Function
    fields: Fields
    target: Target
    dtype: str
    window: Window
    edges: Edges
    lanes: Lanes
    tile: Tile
    groups: int
    corner: Value

    @property
    def _size(self) -> Value:
        return self.fields[f"in{self.window.dims - 1}"]

    @property
    def _at(self) -> Value:
        return self.fields[f"at{self.window.dims - 1}"]

    def columns(self, taps: int) -> Columns:
        """The pixels under the tile and so many taps, without those that are known to lie outside the image."""
        width, edges = self.tile.width, self.edges
        stride, dilation = self.window.stride[-1], self.window.dilation[-1]
        found: Columns = {}
        for tap in range(taps):
            for pixel in range(width):
                column = pixel * stride + tap * dilation
                outside = self.tile.left and column < edges.left
                if self.tile.right and edges.right is not None:
                    outside |= column >= width * stride + edges.right
                if not outside:
                    found.setdefault(column, []).append((tap, pixel))
        return dict(sorted(found.items()))

    def add(self, x: Value, weights: Value, sums: list[Value], first: Index, taps: int) -> list[Value]:
        """The sums with the terms of `taps` taps from `first` on.

        `x` is the pixel at the tile's corner if the edges are known, else the first one of the image's row.
        """
        fn, at = self.fn, self._at
        columns = self.columns(taps)
        shift = fn.mul(first, self.window.dilation[-1])
        if self.edges.knows(last=self.tile.right):
            pixels = self._even(fn.gep(x, fn.mul(shift, at)), columns)
            return self._terms(pixels, columns, weights, sums)
        low = fn.add(self.corner, shift)
        high = fn.add(low, max(columns))
        inside = fn.both(fn.cmp("sge", low, 0), fn.cmp("slt", high, self._size))

        def plain() -> list[Value]:
            return self._terms(self._even(fn.gep(x, fn.mul(low, at)), columns), columns, weights, sums)

        def asked() -> list[Value]:
            pixels = [self._asked(x, fn.i64(fn.add(low, column))) for column in columns]
            return self._terms(pixels, columns, weights, sums)

        def edge() -> list[Value]:
            if self.window.pad_mode != "zeros":
                return asked()
            some = fn.both(fn.cmp("sge", high, 0), fn.cmp("slt", low, self._size))
            return fn.if_(some, asked, lambda: sums, hint="some")

        return fn.if_(inside, plain, edge, hint="inside")

    def _even(self, base: Value, columns: Iterable[int]) -> list[Value]:
        """Addresses of columns that all count: a base every four columns, from which x86 reaches the next three."""
        fn, at = self.fn, self._at
        base, third = fn.opaque(base), fn.mul(at, 3)
        result, done = [], 0
        for column in columns:
            step = (column - done) // 4 * 4
            if step:
                base = fn.gep(base, fn.mul(at, step))
                done += step
            result.append(fn.gep(base, third if column - done == 3 else fn.mul(at, column - done)))
        return result

    def _asked(self, x: Value, position: Value) -> Value:
        """The address of the pixel at a position of a row that may lie outside the image."""
        fn, size, at = self.fn, self._size, self._at
        if self.window.pad_mode != "zeros":
            return fn.gep(x, fn.mul(mapped_position(fn, position, size, self.window.pad_mode), at))
        zeros = fn.module.zeros(max(64, self.lanes.readable(self.groups) * 8))
        return fn.select(fn.cmp("ult", position, size), fn.gep(x, fn.mul(position, at)), zeros)

    def _terms(self, pixels: list[Value], columns: Columns, weights: Value, sums: list[Value]) -> list[Value]:
        fn, target, lanes = self.fn, self.target, self.lanes
        kind = vector(SCALARS[self.dtype], lanes.lanes)
        sums = list(sums)
        used = sorted({tap for pairs in columns.values() for tap, _ in pairs})
        for channel in range(lanes.group_in):
            offsets = {tap: (tap * lanes.group_in + channel) * target.vector_bytes for tap in used}
            loaded = {tap: fn.load(kind, weights, offset) for tap, offset in offsets.items()}
            for pixel, pairs in zip(pixels, columns.values(), strict=True):
                value = lanes.load(fn, kind, pixel, channel, self.groups, masks=target.masks)
                for tap, output in pairs:
                    sums[output] = fn.multiply_add(value, loaded[tap], sums[output], fused=target.fma)
        return sums
