"""Few channels a group, channels adjacent in memory: vectors of channels, tiles of pixels along an output row.

A tile is `width` output pixels of one row by one register of channels.  The weights of one chunk of a row's taps stay in
registers; every pixel under the tile is loaded once for them and multiplied into all outputs that want it:

    taps       w0 w1 w2                              width + 2 loads for 3 * width multiply-adds
    pixels   x0 x1 x2 x3 x4 ...
    sums        s0 s1 s2 ...        s0 += x0 w0, x1 w1, x2 w2;  s1 += x1 w0, ...

A strip is the column of tiles at one place of all rows: a chunk goes down a strip before it takes the next, with so few
channels at a time that the rows under the kernel stay in the first-level cache.  Rows of taps above and below the image
are left out.  Where the image ends on the left and right the first and the last tile leave out the same taps always,
so that they are left out of the code (`Edges.known`); if the pads reach further, or name pixels of the image, the tiles
ask where each pixel lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.taporder import TapOrder, TapSum


@dataclass(frozen=True, slots=True)
class Edges:
    """Which pixels under a tile lie outside the image, along the innermost dimension.

    `left` columns of the first tile do; of the last tile those from `width * stride + right` on (None: none).  With
    `known` false every tile finds out when it runs.
    """

    known: bool
    left: int
    right: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry that kernels are specialised for; `padded` dimensions have pads."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: tuple[bool, ...]
    pad_mode: str

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    def tap_range(self, fn: Function, fields: Fields, dim: int, at: Index) -> tuple[Index, Index]:
        """The taps [first, end) of a dimension that read inside the image for an output position."""
        if not self.padded[dim] or self.pad_mode != "zeros":
            return 0, self.kernel[dim]
        dilation = self.dilation[dim]
        corner = fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])

        def reach(distance: Index) -> Index:
            return fn.udiv(fn.add(fn.smax(distance, 0), dilation - 1), dilation)

        end = reach(fn.sub(fields[f"in{dim}"], corner))
        return fn.smin(reach(fn.sub(0, corner)), self.kernel[dim]), fn.smin(end, self.kernel[dim])


@dataclass(frozen=True, slots=True)
class ChannelwiseSpec:
    """What a kernel is specialised for.

    Tiles are `width` pixels wide, or one less (`short`); `single`: one tile is a whole row; `rest` groups are left
    for the last unit (0: none).  Buffers: x, w (packed [unit][part][bias][taps][channels][lanes]), out, residual.  Fields:
    `{n,b,t,u}_{div,count}` split the chunk's number into image, band of rows, strips and units; `band`, `strips`,
    `units` a chunk, `row_count`, `strip_count`, `strip_long` (those of full width), `unit_count`, `unit_whole`;
    `x_n o_n r_n o_row r_row` bytes between images and output pixels; `in{d} out{d} at{d} step{d} tap{d}` as in `Image`.
    """

    target: Target
    dtype: str
    window: Window
    edges: Edges
    lanes: Lanes
    width: int
    short: bool
    single: bool
    whole: bool
    rest: int
    bias: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        image, band, strips, units = (kernel.index(letter) for letter in "nbtu")

        def span(index: Index, size: str, count: str) -> tuple[Value, Value]:
            first = fn.i64(fn.mul(index, fields[size]))
            return first, fn.i64(fn.smin(fn.add(first, fields[size]), fields[count]))

        Channelwise(
            fn,
            fields,
            self,
            fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"])),
            fields.buffer("w"),
            fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"])),
            fn.gep(fields.buffer("residual"), fn.mul(image, fields["r_n"])) if self.epilogue.residual else None,
        ).run(
            span(band, "band", "row_count"), span(strips, "strips", "strip_count"), span(units, "units", "unit_count")
        )
        return kernel.finish()


Span = tuple[Value, Value]


@dataclass(slots=True)
class Channelwise:
    """Emits all tiles of some rows, strips and units of one image; the addresses are those of the image's arrays."""

    fn: Function
    fields: Fields
    spec: ChannelwiseSpec
    x: Value
    weights: Value
    out: Value
    residual: Value | None

    @property
    def _item(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4

    @property
    def _kind(self) -> str:
        return vector(SCALARS[self.spec.dtype], self.spec.lanes.lanes)

    @property
    def _order(self) -> TapOrder:
        return TapOrder(self.spec.window.kernel, self.spec.lanes.group_in)

    def run(self, rows: Span, strips: Span, units: Span) -> None:
        """Emit the loops over strips, rows and units [first, end) each."""
        fn, fields, spec = self.fn, self.fields, self.spec
        known = spec.edges.known
        left, right = known and spec.edges.left > 0, known and spec.edges.right is not None
        first, end = strips
        last = fn.sub(fields["strip_count"], 1)
        long = fields["strip_long"]

        def one(strip: Value, width: int, at_left: bool, at_right: bool) -> None:
            # Strips of full width come first; those behind them start one pixel earlier for each short one before.
            pixel = fn.mul(strip, spec.width)
            if width < spec.width:
                pixel = fn.sub(pixel, fn.sub(strip, long))
            self._strip(_Tile(width, fn.i64(pixel), at_left, at_right), rows, units)

        if spec.single:
            one(fn.i64(0), spec.width, left, right)
            return
        if left:
            fn.if_(fn.cmp("eq", first, 0), lambda: _nothing(one(fn.i64(0), spec.width, True, False)), hint="left")
        begin = fn.smax(first, 1) if left else first
        stop = fn.smin(end, last) if right else end
        for width in (spec.width, spec.width - 1) if spec.short else (spec.width,):
            low, high = (begin, stop) if not spec.short else (begin, fn.smin(stop, long))
            if width < spec.width:
                low, high = fn.smax(begin, long), stop
            fn.loop(
                fn.i64(low), high, 1, [], lambda at, _, w=width: _nothing(one(at, w, False, False)), guard=True,
                hint="strip",
            )
        if right:
            width = spec.width - 1 if spec.short else spec.width
            fn.if_(
                fn.cmp("eq", end, fields["strip_count"]),
                lambda: _nothing(one(fn.i64(last), width, False, True)),
                hint="right",
            )

    def _strip(self, tile: _Tile, rows: Span, units: Span) -> None:
        """All rows of one strip."""
        fn, fields, spec = self.fn, self.fields, self.spec
        window = spec.window
        inner = window.dims - 1
        corner = fn.sub(fn.mul(tile.pixel, window.stride[inner]), window.pad_low[inner])
        column = fn.mul(corner, fields[f"at{inner}"]) if spec.edges.known else 0

        def row(index: Value, _: list[Value]) -> list[Value]:
            position: list[Index] = []
            rest: Index = index
            for dim in reversed(range(1, inner)):
                position.insert(0, fn.urem(rest, fields[f"out{dim}"]))
                rest = fn.udiv(rest, fields[f"out{dim}"])
            position = [rest, *position] if inner else []
            x = fn.gep(self.x, column)
            for dim, at in enumerate(position):
                if not (window.padded[dim] and window.pad_mode != "zeros"):
                    offset = fn.sub(fn.mul(at, fields[f"step{dim}"]), fn.mul(fields[f"at{dim}"], window.pad_low[dim]))
                    x = fn.gep(x, offset)
            ranges = [window.tap_range(fn, fields, dim, at) for dim, at in enumerate(position)]
            pixel = fn.add(fn.mul(index, fields[f"out{inner}"]), tile.pixel)
            self._units(tile, fn.i64(corner), position, ranges, x, pixel, units)
            return []

        fn.loop(rows[0], rows[1], 1, [], row, hint="row")

    def _units(
        self,
        tile: _Tile,
        corner: Value,
        position: list[Index],
        ranges: list[tuple[Index, Index]],
        x: Value,
        pixel: Index,
        units: Span,
    ) -> None:
        """The tiles of all units at one place."""
        fn, fields, spec = self.fn, self.fields, self.spec
        lanes, item = spec.lanes, self._item
        order = self._order
        taps = 1
        for count in order.kernel:
            taps *= count
        block = (taps * lanes.group_in + spec.bias) * spec.target.vector_bytes
        steps = (lanes.groups * lanes.group_in * item, lanes.parts * block, lanes.groups * lanes.group_out * item)

        def addresses(unit: Index) -> list[Value]:
            result = [fn.gep(x, fn.mul(unit, steps[0])), fn.gep(self.weights, fn.mul(unit, steps[1]))]
            for base, letter in ((self.out, "o"), (self.residual, "r")):
                if base is not None:
                    offset = fn.add(fn.mul(unit, steps[2]), fn.mul(pixel, fields[f"{letter}_row"]))
                    result.append(fn.gep(base, offset))
            return result

        def unit(groups: int, at: list[Value]) -> None:
            pixels, weights, *ends = at
            # Registers of a unit that takes several: the whole ones in a loop, the last one may hold fewer channels.
            full = lanes.group_out // lanes.lanes if lanes.parts > 1 else 0

            def part(index: Index, valid: int) -> None:
                shift = fn.mul(index, spec.target.vector_bytes)
                moved = [fn.gep(end, shift) for end in ends]
                w = fn.gep(weights, fn.mul(index, block))
                self._tile(tile, corner, position, ranges, pixels, w, moved, groups, valid)

            if full:
                fn.loop(0, full, 1, [], lambda i, _: _nothing(part(i, lanes.lanes)), hint="part")
            if full < lanes.parts:
                part(full, lanes.valid(full, groups))

        if spec.whole:
            stop = fn.smin(units[1], fields["unit_whole"])

            def body(_: Value, state: list[Value]) -> list[Value]:
                unit(lanes.groups, state)
                residual = [fn.gep(state[3], steps[2])] if self.residual is not None else []
                return [fn.gep(state[0], steps[0]), fn.gep(state[1], steps[1]), fn.gep(state[2], steps[2]), *residual]

            fn.loop(units[0], stop, 1, addresses(units[0]), body, guard=True, hint="unit")
        if spec.rest:
            fn.if_(
                fn.cmp("sgt", units[1], fields["unit_whole"]),
                lambda: _nothing(unit(spec.rest, addresses(fields["unit_whole"]))),
                hint="rest",
            )

    def _tile(
        self,
        tile: _Tile,
        corner: Value,
        position: list[Index],
        ranges: list[tuple[Index, Index]],
        x: Value,
        weights: Value,
        ends: list[Value],
        groups: int,
        valid: int,
    ) -> None:
        """One tile: its sums, then the output step."""
        fn, fields, spec = self.fn, self.fields, self.spec
        window, lanes, masks = spec.window, spec.lanes, spec.target.masks
        width = spec.target.vector_bytes
        start = fn.const(self._kind, 0.0)
        if spec.bias:
            start = fn.load(self._kind, weights)
            weights = fn.gep(weights, width)
        def move(dim: int, x: Value, tap: Value) -> Value:
            if window.padded[dim] and window.pad_mode != "zeros":
                at = fn.add(fn.mul(position[dim], window.stride[dim]), fn.mul(tap, window.dilation[dim]))
                at = fn.sub(at, window.pad_low[dim])
                at = mapped_position(fn, fn.i64(at), fields[f"in{dim}"], window.pad_mode)
                return fn.gep(x, fn.mul(at, fields[f"at{dim}"]))
            return fn.gep(x, fn.mul(tap, fields[f"tap{dim}"]))

        def chunk(x: Value, weights: Value, sums: list[Value], first: Index, size: int) -> list[Value]:
            return _Chunk(self, tile, groups, corner, weights, first, size).add(x, sums)

        sum_ = TapSum(fn, self._order, lanes.group_in * width, width, move, chunk)
        for i, value in enumerate(sum_.run(x, weights, [start] * tile.width, ranges)):
            extra = None
            if self.residual is not None:
                extra = load_lanes(fn, self._kind, fn.gep(ends[1], fn.mul(fields["r_row"], i)), valid, masks=masks)
            place = fn.gep(ends[0], fn.mul(fields["o_row"], i))
            store_lanes(fn, spec.epilogue.apply(fn, value, extra), place, valid, masks=masks)


@dataclass(frozen=True, slots=True)
class _Tile:
    """The width of a tile, its first output pixel in the row, and whether it lies at an end whose taps are known."""

    width: int
    pixel: Value
    left: bool
    right: bool


@dataclass(slots=True)
class _Chunk:
    """Emits the terms of one chunk of a row's taps; `x` is column 0 of the tile, or of the image if it has to ask."""

    of: Channelwise
    tile: _Tile
    groups: int
    corner: Value
    weights: Value
    first: Index
    size: int

    def columns(self) -> dict[int, list[tuple[int, int]]]:
        """For each column of pixels under the tile, from its first one, the (tap, output) pairs that read it."""
        spec, width = self.of.spec, self.tile.width
        stride, dilation = spec.window.stride[-1], spec.window.dilation[-1]
        found: dict[int, list[tuple[int, int]]] = {}
        for tap in range(self.size):
            for pixel in range(width):
                column = pixel * stride + tap * dilation
                dead = self.tile.left and column < spec.edges.left
                if self.tile.right and spec.edges.right is not None:
                    dead |= column >= width * stride + spec.edges.right
                if not dead:
                    found.setdefault(column, []).append((tap, pixel))
        return dict(sorted(found.items()))

    def add(self, x: Value, sums: list[Value]) -> list[Value]:
        """The sums with the chunk's terms."""
        fn, fields, spec = self.of.fn, self.of.fields, self.of.spec
        window = spec.window
        at = fields[f"at{window.dims - 1}"]
        columns = self.columns()
        if spec.edges.known:
            base = fn.gep(x, fn.mul(fn.mul(self.first, window.dilation[-1]), at))
            return self._terms(self._even(base, columns), columns, sums)
        size = fields[f"in{window.dims - 1}"]
        low = fn.add(self.corner, fn.mul(self.first, window.dilation[-1]))
        high = fn.add(low, max(columns))
        inside = fn.both(fn.cmp("sge", low, 0), fn.cmp("slt", high, size))

        def plain() -> list[Value]:
            return self._terms(self._even(fn.gep(x, fn.mul(low, at)), columns), columns, sums)

        def asked() -> list[Value]:
            return self._terms([self._asked(x, fn.i64(fn.add(low, c)), size, at) for c in columns], columns, sums)

        def edge() -> list[Value]:
            if window.pad_mode != "zeros":
                return asked()
            some = fn.both(fn.cmp("sge", high, 0), fn.cmp("slt", low, size))
            return fn.if_(some, asked, lambda: sums, hint="some")

        return fn.if_(inside, plain, edge, hint="inside")

    def _even(self, base: Value, columns: Sequence[int]) -> list[Value]:
        """Addresses of columns of which all count: a base every four columns, from which x86 reaches three."""
        fn, at = self.of.fn, self.of.fields[f"at{self.of.spec.window.dims - 1}"]
        base, third = fn.opaque(base), fn.mul(at, 3)
        result, done = [], 0
        for column in columns:
            while column - done >= 4:
                base = fn.gep(base, fn.mul(at, 4))
                done += 4
            result.append(fn.gep(base, third if column - done == 3 else fn.mul(at, column - done)))
        return result

    def _asked(self, x: Value, position: Value, size: Value, at: Value) -> Value:
        """The address of the pixel at a position of a row that may lie outside the image."""
        fn, spec = self.of.fn, self.of.spec
        if spec.window.pad_mode != "zeros":
            return fn.gep(x, fn.mul(mapped_position(fn, position, size, spec.window.pad_mode), at))
        zeros = fn.module.zeros(max(64, spec.lanes.readable(self.groups) * 8))
        return fn.select(fn.cmp("ult", position, size), fn.gep(x, fn.mul(position, at)), zeros)

    def _terms(
        self, pixels: list[Value], columns: dict[int, list[tuple[int, int]]], sums: list[Value]
    ) -> list[Value]:
        fn, spec = self.of.fn, self.of.spec
        kind, lanes, width = self.of._kind, spec.lanes, spec.target.vector_bytes
        sums = list(sums)
        used = sorted({tap for pairs in columns.values() for tap, _ in pairs})
        for channel in range(lanes.group_in):
            loaded = {
                tap: fn.load(kind, self.weights, (tap * lanes.group_in + channel) * width) for tap in used
            }
            for pixel, pairs in zip(pixels, columns.values(), strict=True):
                value = lanes.load(fn, kind, pixel, channel, self.groups, masks=spec.target.masks)
                for tap, output in pairs:
                    sums[output] = fn.multiply_add(value, loaded[tap], sums[output], fused=spec.target.fma)
        return sums


def _nothing(_: None) -> list[Value]:
    """No values: what a loop that carries nothing returns."""
    return []
