"""The rows, strips and tiles of a kernel of `channelwise`: loops over them, and the terms and output step of a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.kernels.epilogue import load_lanes, store_lanes
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.nexttile import LINEAR, fetch_next
from leanconv.kernels.rowtile import RowTerms, Tile
from leanconv.kernels.taporder import TapOrder, TapSum

if TYPE_CHECKING:
    from leanconv.kernels.channelwise import ChannelwiseSpec

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
    stream: bool = False

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
        """Emit the loops over rows, strips and units [first, end) each."""

        def row(index: Value, _: list[Value]) -> list[Value]:
            self._row(index, strips, units)
            return []

        self.fn.loop(rows[0], rows[1], 1, [], row, hint="row")

    def _row(self, row: Value, strips: Span, units: Span) -> None:
        """The tiles of one row."""
        fn, fields, spec = self.fn, self.fields, self.spec
        known = spec.edges.known
        left, right = known and spec.edges.left > 0, known and (spec.edges.right is not None or spec.edges.asks)
        first, end = strips
        last = fn.sub(fields["strip_count"], 1)
        long = fields["strip_long"]
        position, ranges, x = self._place(row)

        def one(strip: Index, width: int, at_left: bool = False, at_right: bool = False) -> list[Value]:
            # Strips of full width come first; those behind them start one pixel earlier for each short one before.
            pixel = fn.mul(strip, spec.width)
            if width < spec.width:
                pixel = fn.sub(pixel, fn.sub(strip, long))
            self._strip(Tile(width, fn.i64(pixel), at_left, at_right), row, position, ranges, x, units)
            return []

        if spec.single:
            one(0, spec.width, left, right)
            return

        def end_tile(strip: Index, width: int, *, at_left: bool = False, at_right: bool = False) -> list[Value]:
            if not spec.perhaps:
                return one(strip, width, at_left, at_right)
            whole = fn.cmp("slt", strip, long)
            wide, narrow = (lambda w=w: one(strip, w, at_left, at_right) for w in (spec.width, spec.width - 1))
            return fn.if_(whole, wide, narrow, hint="width")

        if left:
            fn.if_(fn.cmp("eq", first, 0), lambda: end_tile(0, spec.width, at_left=True), hint="left")
        begin = fn.smax(first, 1) if left else first
        stop = fn.smin(end, last) if right else end
        for width in (spec.width, spec.width - 1) if spec.short else (spec.width,):
            low, high = begin, stop
            if spec.short:
                low, high = (begin, fn.smin(stop, long)) if width == spec.width else (fn.smax(begin, long), stop)

            def body(at: Value, _: list[Value], width: int = width) -> list[Value]:
                return one(at, width)

            fn.loop(low, high, 1, [], body, guard=True, hint="strip")
        if right:
            width = spec.width - 1 if spec.short else spec.width
            at_end = fn.cmp("eq", end, fields["strip_count"])
            if spec.perhaps:
                at_end = fn.both(at_end, fn.cmp("slt", first, end))
            fn.if_(at_end, lambda: end_tile(last, width, at_right=True), hint="right")

    def _place(self, row: Value) -> tuple[list[Index], list[tuple[Index, Index]], Value]:
        """A row's position, the taps of each outer dimension that lie inside the image, and where the row begins."""
        fn, fields, window = self.fn, self.fields, self.spec.window
        inner = window.dims - 1
        position: list[Index] = []
        rest: Index = row
        for dim in reversed(range(1, inner)):
            position.insert(0, fn.urem(rest, fields[f"out{dim}"]))
            rest = fn.udiv(rest, fields[f"out{dim}"])
        position = [rest, *position] if inner else []
        x = self.x
        for dim, at in enumerate(position):
            if not (window.padded[dim] and window.pad_mode != "zeros"):
                offset = fn.sub(fn.mul(at, fields[f"step{dim}"]), fn.mul(fields[f"at{dim}"], window.pad_low[dim]))
                x = fn.gep(x, offset)
        return position, [window.tap_range(fn, fields, dim, at) for dim, at in enumerate(position)], x

    def _strip(
        self,
        tile: Tile,
        row: Value,
        position: list[Index],
        ranges: list[tuple[Index, Index]],
        x: Value,
        units: Span,
    ) -> None:
        """The tiles of one strip in one row."""
        fn, fields, window = self.fn, self.fields, self.spec.window
        inner = window.dims - 1
        corner = fn.sub(fn.mul(tile.pixel, window.stride[inner]), window.pad_low[inner])
        column = fn.mul(corner, fields[f"at{inner}"]) if self.spec.edges.knows(last=tile.right) else 0
        pixel = fn.add(fn.mul(row, fields[f"out{inner}"]), tile.pixel)
        self._units(tile, fn.i64(corner), position, ranges, fn.gep(x, column), pixel, units)

    def _units(
        self,
        tile: Tile,
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

        def unit(number: Value, groups: int, at: list[Value]) -> list[Value]:
            pixels, weights, *ends = at
            if spec.fetch:
                self._ask(tile, corner, number, pixels, ends[0] if spec.fetch > 1 else None)
            # Registers of a unit that takes several: the whole ones in a loop, the last one may hold fewer channels.
            full = lanes.group_out // lanes.lanes if lanes.parts > 1 else 0

            def part(index: Index, valid: int) -> list[Value]:
                shift = fn.mul(index, spec.target.vector_bytes)
                moved = [fn.gep(end, shift) for end in ends]
                w = fn.gep(weights, fn.mul(index, block))
                self._tile(tile, corner, position, ranges, pixels, w, moved, groups, valid)
                return []

            if full:
                fn.loop(0, full, 1, [], lambda index, _: part(index, lanes.lanes), hint="part")
            if full < lanes.parts:
                part(full, lanes.valid(full, groups))
            return []

        if spec.whole:
            stop = fn.smin(units[1], fields["unit_whole"])

            def body(number: Value, state: list[Value]) -> list[Value]:
                unit(number, lanes.groups, state)
                residual = [fn.gep(state[3], steps[2])] if self.residual is not None else []
                return [fn.gep(state[0], steps[0]), fn.gep(state[1], steps[1]), fn.gep(state[2], steps[2]), *residual]

            fn.loop(units[0], stop, 1, addresses(units[0]), body, guard=True, hint="unit")
        if spec.rest:
            fn.if_(
                fn.cmp("sgt", units[1], fields["unit_whole"]),
                lambda: unit(fields["unit_whole"], spec.rest, addresses(fields["unit_whole"])),
                hint="rest",
            )

    def _ask(self, tile: Tile, corner: Value, unit: Value, pixels: Value, out: Value | None) -> None:
        """Ask for what the next tile reads and overwrites, or find out whether to."""
        fn, fields, spec = self.fn, self.fields, self.spec
        if not spec.edges.knows(last=tile.right):
            pixels = fn.gep(pixels, fn.mul(corner, fields[f"at{spec.window.dims - 1}"]))

        def ask(*, linear: bool) -> list[Value]:
            fetch_next(fn, fields, replace(spec, linear=linear), tile, unit, pixels, out)
            return []

        if not spec.perhaps:
            ask(linear=spec.linear)
            return

        def some() -> list[Value]:
            linear = fn.cmp("eq", fields["asks"], LINEAR)
            return fn.if_(linear, lambda: ask(linear=True), lambda: ask(linear=False), hint="linear")

        fn.if_(fn.cmp("ne", fields["asks"], 0), some, hint="asks")

    def _tile(
        self,
        tile: Tile,
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

        terms = RowTerms(fn, fields, spec.target, spec.dtype, window, spec.edges, lanes, tile, groups, corner)
        sum_ = TapSum(fn, self._order, lanes.group_in * width, width, move, terms.add)
        for i, value in enumerate(sum_.run(x, weights, [start] * tile.width, ranges)):
            extra = None
            if self.residual is not None:
                extra = load_lanes(fn, self._kind, fn.gep(ends[1], fn.mul(fields["r_row"], i)), valid, masks=masks)
            place = fn.gep(ends[0], fn.mul(fields["o_row"], i))
            result = spec.epilogue.apply(fn, value, extra)
            if self.stream:
                fn.stream(result, place, width)
            else:
                store_lanes(fn, result, place, valid, masks=masks)
