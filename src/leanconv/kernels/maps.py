"""Maps, the products of one tap with all pixels, and their sum: the steps of `TapsSpec` that stage products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.classes import dataclass
from leanconv.codegen.ir import Index, Value
from leanconv.kernels.epilogue import Epilogue, load_lanes, row_addresses
from leanconv.kernels.output import Output
from leanconv.kernels.steps import ONES, Pixels, length, stretch, weights_of
from leanconv.kernels.taps import Panel, Tap
from leanconv.kernels.tile import Tile


def channels(panel: Panel) -> int:
    """Output channels of a panel."""
    return (panel.tile.vectors - 1) * panel.tile.target.lanes(panel.tile.dtype) + panel.valid


@dataclass(frozen=True, slots=True)
class ImageMaps:
    """A map of the image for every tap.

    Fields: `t_row t_k t_panel t_g t_tap` bytes between pixels, channels, panels, groups and maps.
    """

    def start(self, panel: Panel, tap: Tap) -> Value:
        """The panel's first channel in the map of a tap."""
        fn, fields = panel.fn, panel.fields
        offset = fn.add(fn.mul(panel.group, fields["t_g"]), fn.mul(panel.number, fields["t_panel"]))
        assert panel.maps is not None
        return fn.gep(panel.maps, fn.add(offset, fn.mul(tap.number, fields["t_tap"])))

    def steps(self, panel: Panel) -> Mapping[str, Index]:
        """Bytes between pixels (`t_row`) and channels (`t_k`)."""
        return {name: panel.fields[name] for name in ("t_row", "t_k")}

    def place(self, panel: Panel, tap: Tap, row: Index) -> Index:
        """The number in the map of the first pixel that the outputs of a row read."""
        fn, fields = panel.fn, panel.fields
        line = fn.add(fn.mul(tap.depth, fields["in1"]), fn.add(row, tap.down))
        return fn.add(fn.mul(line, fields["in2"]), fn.add(tap.columns[0], tap.right))


@dataclass(frozen=True, slots=True)
class BlockMap:
    """A map of the block, panel by panel, which all taps use in turn; one after the other, or (`strip`) the same place.

    Fields: `map_width` pixels in a row of the map, `map_pixel` bytes of all channels of a pixel, `group_out`.
    """

    strip: bool

    def start(self, panel: Panel, tap: Tap) -> Value:
        """The panel's part: as large as the block, behind those of blocks, groups and panels before it."""
        fn, fields = panel.fn, panel.fields
        assert panel.maps is not None
        if self.strip:
            return panel.maps
        lanes = panel.tile.target.lanes(panel.tile.dtype)
        row = fn.add(fn.mul(panel.plane, fields["out1"]), panel.block[0][0])
        first = fn.add(fn.mul(row, fields["map_width"]), panel.block[1][0])
        before = fn.mul(panel.number, panel.spec.panels.vectors * lanes)
        before = fn.mul(fn.add(fn.mul(panel.group, fields["group_out"]), before), panel.tile.itemsize)
        offset = fn.add(fn.mul(first, fields["map_pixel"]), fn.mul(before, self._pixels(panel)))
        return fn.gep(panel.maps, offset)

    def _pixels(self, panel: Panel) -> Index:
        """Pixels of the block's map."""
        fn, width = panel.fn, panel.fields["map_width"]
        rows, columns = panel.block
        above = fn.mul(fn.sub(fn.sub(rows[1], rows[0]), 1), width)
        return fn.add(above, fn.smin(fn.sub(columns[1], columns[0]), width))

    def steps(self, panel: Panel) -> Mapping[str, Index]:
        """Bytes between pixels (`t_row`) and channels (`t_k`)."""
        item = panel.tile.itemsize
        return {"t_row": channels(panel) * item, "t_k": panel.fn.mul(self._pixels(panel), item)}

    def place(self, panel: Panel, tap: Tap, row: Index) -> Index:
        """The number in the map of the first pixel that the outputs of a row read."""
        fn = panel.fn
        return fn.mul(fn.sub(row, panel.block[0][0]), panel.fields["map_width"])


@dataclass(frozen=True, slots=True)
class Product:
    """The product of a tap's weights with the pixels it reads, stored in a map with rows as wide as the image.

    `flat`: rows of x follow each other evenly, those of the map are as wide, and a block's rows are one line.
    """

    pixels: Pixels
    map: ImageMaps | BlockMap
    flat: bool
    stride: ClassVar[tuple[int, int, int]] = ONES
    fills: ClassVar[bool] = False
    maps: ClassVar[bool] = True

    @property
    def apart(self) -> bool:
        """A line a row."""
        return not self.flat

    @property
    def together(self) -> bool:
        """One line."""
        return self.flat

    def tap(self, panel: Panel, tap: Tap) -> None:
        """One line for all rows, or one a row."""
        fn = panel.fn
        target, weights, steps = self.map.start(panel, tap), weights_of(panel, tap), self.map.steps(panel)

        def store(tile: Tile, accs: list[Value], pixel: Value) -> None:
            output = Output(fn, steps, tile, Epilogue(), panel.valid, panel.columns, "t")
            output.store(accs, target, None, pixel)

        def line(row: Index, pixels: Index) -> None:
            at = self.map.place(panel, tap, row)
            self.pixels.line(panel, weights, self.pixels.first(panel, tap, row), pixels, at, store)

        if self.flat:
            line(tap.rows[0], stretch(panel, tap, panel.fields["in2"]))
        else:
            panel.each_row(tap.rows, lambda row: line(row, length(panel, tap.columns)))


@dataclass(frozen=True, slots=True)
class ShiftAdd:
    """Add the map of a tap, shifted to the outputs: that of `product`, made just before, or one of a whole image."""

    map: ImageMaps | BlockMap
    product: Product | None = None
    stride: ClassVar[tuple[int, int, int]] = ONES
    fills: ClassVar[bool] = True
    maps: ClassVar[bool] = True
    apart: ClassVar[bool] = True

    @property
    def together(self) -> bool:
        """As the product is made."""
        return self.product is not None and self.product.flat

    def tap(self, panel: Panel, tap: Tap) -> None:
        """Make the map if it is not there, then add it row by row."""
        if self.product is not None:
            self.product.tap(panel, tap)
        source, steps = self.map.start(panel, tap), self.map.steps(panel)

        def row(at: Value) -> None:
            place = self.map.place(panel, tap, at)
            add = self._columns if panel.columns else self._rows
            add(panel, source, steps, place, panel.pixel(at, tap.columns[0]), length(panel, tap.columns))

        panel.each_row(tap.rows, row)

    def _rows(
        self, panel: Panel, source: Value, steps: Mapping[str, Index], place: Index, pixel: Index, pixels: Index
    ) -> None:
        """Channels are adjacent: pixel by pixel, in tiles."""
        fn, lanes = panel.fn, panel.tile.target.lanes(panel.tile.dtype)
        width, masks = panel.tile.target.vector_bytes, panel.tile.target.masks
        counts = [lanes] * (panel.tile.vectors - 1) + [panel.valid]

        def tile(height: int, state: list[Value]) -> list[Value]:
            shape, step = panel.shaped(height), steps["t_row"]
            accs = [
                load_lanes(fn, shape.vec, fn.gep(row, v * width), count, masks=masks)
                for row in row_addresses(fn, state[0], height, step)
                for v, count in enumerate(counts)
            ]
            panel.add(shape, accs, state[1])
            return [fn.gep(state[0], fn.mul(step, height)), fn.i64(fn.add(state[1], height))]

        start = [fn.gep(source, fn.mul(place, steps["t_row"])), fn.i64(pixel)]
        panel.line(pixels).walk(panel.heights, start, tile)

    def _columns(
        self, panel: Panel, source: Value, steps: Mapping[str, Index], place: Index, pixel: Index, pixels: Index
    ) -> None:
        """Pixels are adjacent: channel by channel, in vectors, and the rest one by one."""
        fn, fields, item = panel.fn, panel.fields, panel.tile.itemsize
        lanes = panel.tile.target.lanes(panel.tile.dtype)
        whole = fn.mul(fn.udiv(pixels, lanes), lanes)

        def channel(_: Value, state: list[Value]) -> list[Value]:
            def add(kind: str, at: Value) -> list[Value]:
                source, out = (fn.gep(place, fn.mul(at, item)) for place in state)
                fn.store(fn.binary("fadd", fn.load(kind, source), fn.load(kind, out)), out)
                return []

            vec, scalar = panel.tile.vec, panel.tile.scalar
            fn.loop(0, whole, lanes, [], lambda at, _: add(vec, at), guard=True, hint="vector")
            fn.loop(whole, pixels, 1, [], lambda at, _: add(scalar, at), guard=True, hint="rest")
            return [fn.gep(state[0], steps["t_k"]), fn.gep(state[1], fields["o_k"])]

        start = [fn.gep(source, fn.mul(place, item)), fn.gep(panel.out, fn.mul(pixel, item))]
        fn.loop(0, channels(panel), 1, start, channel, hint="channel")
