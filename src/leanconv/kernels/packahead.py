"""Micropanels packed while others are multiplied: a sum copies four channels of a later tile in each of its rounds.

Multiply-adds take both of a core's floating-point pipes, and half of what it can load; packing takes neither for long,
but waits for stores.  In the shade of multiply-adds it is free: the tiles of one part of a block are summed over the
first panel while those of the next part are packed, which needs room for two parts.

    part 0   packed                               tile i: (part, tile of the part) = slot (part mod 2, tile)
    part 1   packed while panel 0 sums part 0
             panels 1, 2, ... sum part 0
    part 2   packed while panel 0 sums part 1
             ...

Tiles with a window over the edge, and the first part, are packed on their own (`PackTiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, I64, PTR, Function, Index, Value, vector
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import Addresses, Cursor, FoursCursor
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import following, position_of
from leanconv.kernels.micropanels import Micropanels, PackTiles, packed_sums
from leanconv.kernels.output import Output
from leanconv.kernels.panels import each_panel
from leanconv.kernels.tile import Tile

if TYPE_CHECKING:
    from leanconv.kernels.dense import DenseSpec

POINTER = 8  # bytes


class PackingCursor(FoursCursor):
    """A walk through a packed tile that packs another one, `apart` bytes behind it.

    `places` is where the addresses of that tile's windows are: a dozen of them leave no registers for the rest.  The
    state is the address in the packed tile, how far the walk through those windows has come, and a line of the image
    that is asked for: one in each round, those that the next row of the output will be the first to read.
    """

    def __init__(self, fn: Function, state: list[Value], rows: int, item: int, apart: Value, places: Value) -> None:
        super().__init__(fn, state[0], rows, item)
        self._apart, self._places = apart, places
        self.state = state

    def at(self, state: list[Value]) -> PackingCursor:
        """The same walk at another round."""
        return PackingCursor(self._fn, state, self._rows, self._item, self._apart, self._places)

    def addresses(self, count: int) -> Addresses:
        """Those of the packed tile; asks for the line."""
        self._fn.prefetch(self.state[2])
        return super().addresses(count)

    def behind(self, sums: Sequence[Value]) -> PackingCursor:
        """The copies of a round stand behind its multiply-adds.

        LLVM has all loads of this tile that stand before a store to the other done first: it would spill for them.
        """
        return self.at([self.state[0], self._fn.behind(self.state[1], sums), self.state[2]])

    def advanced(self, count: int) -> list[Value]:
        """Copies as many channels of the other tile; both walks `count` channels further on."""
        fn, nbytes = self._fn, self.unroll * self._item
        kind = vector("float" if self._item == 4 else "double", self.unroll)
        here, at, later = self.state
        target = fn.gep(here, self._apart)
        for i in range(self._rows):
            window = fn.gep(fn.load(PTR, self._places, i * POINTER), at)
            for step in range(0, count, self.unroll):
                fn.store(fn.load(kind, window, step * self._item), target, step * self._rows * self._item + i * nbytes)
        return [*super().advanced(count), fn.i64(fn.add(at, count * self._item)), fn.gep(later, LINE)]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The tiles of a block, their slots, and the arrays that all of a chunk's tiles have in common.

    Fields: `part` tiles a part, `slot` bytes of a packed tile; those of `PackTiles` and of the dense kernel.
    """

    fn: Function
    fields: Fields
    spec: DenseSpec
    stage: PackTiles
    x: Value
    scratch: Value
    weights: Value
    out: Value
    residual: Value | None
    first: Value
    tiles: tuple[Index, Index]  # all of them, and the whole ones
    panels: tuple[Value, Value]  # the first, and behind the last; all of them, if the last one is another than the rest

    def emit(self) -> None:
        """All panels over all tiles, part by part; the turn before the first one only packs."""
        fn, fields, spec = self.fn, self.fields, self.spec
        number, part = self.tiles[0], fields["part"]
        area = fn.mul(part, fields["slot"])
        places = fn.alloca(spec.rows[0] * POINTER)
        shape, lanes = spec.panels, spec.target.lanes(spec.dtype)

        def turn(begin: Value, state: list[Value]) -> list[Value]:
            here, there = state
            low, high = fn.i64(fn.smax(begin, 0)), fn.i64(fn.smin(fn.add(begin, part), number))
            span = low, high

            def panel(at: Value, vectors: int, valid: int, last: bool, *, first: bool = False) -> list[Value]:
                pairs = last and spec.pairs
                tile = Tile(spec.target, spec.dtype, spec.rows[0], vectors, spec.bias, 0, pairs)
                step = self._packing(begin, here, there, places) if first else self._plain(begin, here)
                return self._panel(tile, at, valid, span, step)

            start = self.panels[0]
            one = (start, shape.vectors, lanes, False) if shape.whole else (start, shape.last, shape.valid, True)
            done = panel(*one, first=True)[0]
            self._rest(begin, there, done)
            if shape.whole:
                rest = fn.i64(fn.add(start, 1)), self.panels[1]

                def other(at: Value, vectors: int, valid: int, last: bool) -> None:
                    panel(at, vectors, valid, last)

                each_panel(fn, fields, shape, lanes, rest, other)
            return [there, here]

        fn.loop(fn.i64(fn.sub(0, part)), number, part, [fn.i64(area), fn.i64(0)], turn, hint="part")

    def _panel(
        self,
        tile: Tile,
        panel: Value,
        valid: int,
        span: tuple[Value, Value],
        step: Callable[[Sum, Value, Value, Value], tuple[list[Value], Value]],
    ) -> list[Value]:
        """One panel over the tiles of a span; returns which tiles of the next part were packed meanwhile, as bits."""
        fn, fields, spec = self.fn, self.fields, self.spec
        weights = fn.gep(self.weights, fn.mul(panel, fields["w_panel"]))
        done = [fn.i64(0)]
        o = fn.gep(self.out, fn.mul(panel, fields["o_panel"]))
        r = None if self.residual is None else fn.gep(self.residual, fn.mul(panel, fields["r_panel"]))
        for rows in self.heights:
            shape = Tile(tile.target, tile.dtype, rows, tile.vectors, tile.bias, tile.valid, tile.pairs)
            output = Output(fn, fields, shape, spec.epilogue, valid, spec.columns)

            def body(number: Value, state: list[Value], shape: Tile = shape, output: Output = output) -> list[Value]:
                pixel = self._corner(number)
                sums, packed = step(Sum(fn, fields, shape, spec.reduction), weights, number, state[0])
                output.store(sums, o, r, pixel)
                if spec.fetch:
                    output.fetch(o, pixel)
                return [packed]

            low, high = self._of_height(rows, *span)
            done = fn.loop(low, high, 1, done, body, guard=True, hint="tile")
        return done

    @property
    def heights(self) -> tuple[int, ...]:
        """Of whole tiles, and of those that are a row shorter, which come last."""
        height = self.spec.rows[0]
        return (height, height - 1) if self.spec.ragged and height > 1 else (height,)

    def _of_height(self, rows: int, low: Index, high: Index) -> tuple[Index, Index]:
        """The tiles of a span that have so many rows."""
        fn, whole = self.fn, self.tiles[1]
        if rows == self.spec.rows[0]:
            return low, fn.smin(high, whole) if self.spec.ragged else high
        return fn.smax(low, whole), high

    def _corner(self, tile: Index) -> Value:
        """The first pixel of a tile."""
        fn = self.fn
        short = fn.smax(fn.sub(tile, self.tiles[1]), 0)
        return fn.i64(fn.sub(fn.add(self.first, fn.mul(tile, self.spec.rows[0])), short))

    def _positions(self, tile: Index, rows: int) -> list[list[Value]]:
        """The output positions of a tile's pixels."""
        positions = [position_of(self.fn, self.fields, self._corner(tile), self.stage.patches.dims)]
        for _ in range(1, rows):
            positions.append(following(self.fn, self.fields, positions[-1]))
        return positions

    def _slot(self, area: Value, number: Index) -> Value:
        """Where a tile is packed: the place of its part, and its number there."""
        return self.fn.gep(self.scratch, self.fn.add(area, self.fn.mul(number, self.fields["slot"])))

    def _rest(self, begin: Value, there: Value, done: Value) -> None:
        """Pack the tiles of the next part that were not packed meanwhile."""
        fn, part = self.fn, self.fields["part"]
        low = fn.i64(fn.add(begin, part))
        high = fn.smin(fn.add(low, part), self.tiles[0])
        for rows in self.heights:

            def one(tile: Value, _: list[Value], rows: int = rows) -> list[Value]:
                number = fn.i64(fn.sub(tile, low))
                bit = fn.op(I64, f"lshr i64 {done.name}, {number.name}")

                def pack() -> list[Value]:
                    self.stage.tile(fn, self.fields, self.x, self._slot(there, number), self._positions(tile, rows))
                    return []

                fn.if_(fn.cmp("eq", fn.urem(bit, 2), 0), pack, lambda: [], hint="pack")
                return []

            start, end = self._of_height(rows, low, high)
            fn.loop(start, end, 1, [], one, guard=True, hint="rest")

    def _plain(self, begin: Value, here: Value) -> Callable[[Sum, Value, Value, Value], tuple[list[Value], Value]]:
        """The sums of a tile."""

        def step(sum_: Sum, weights: Value, tile: Value, done: Value) -> tuple[list[Value], Value]:
            return self._total(sum_, self._slot(here, self.fn.sub(tile, begin)), weights), done

        return step

    def _packing(
        self, begin: Value, here: Value, there: Value, places: Value
    ) -> Callable[[Sum, Value, Value, Value], tuple[list[Value], Value]]:
        """The sums of a tile, and the tile one part further on packed meanwhile if that can be."""
        fn = self.fn
        apart = fn.i64(fn.sub(there, here))

        def step(sum_: Sum, weights: Value, tile: Value, done: Value) -> tuple[list[Value], Value]:
            rows, number = sum_.tile.rows, fn.i64(fn.sub(tile, begin))
            place, later = self._slot(here, number), fn.i64(fn.add(tile, self.fields["part"]))
            alike = fn.cmp("slt", later, self._of_height(rows, 0, self.tiles[0])[1])
            inside = fn.if_(alike, lambda: [self._put_windows(later, rows, places)], lambda: [Value("false", I1)])[0]

            def both() -> list[Value]:
                mark = fn.op(I64, f"shl i64 1, {number.name}")
                sums = self._total(sum_, place, weights, apart, places)
                return [fn.op(I64, f"or i64 {done.name}, {mark.name}"), *sums]

            def alone() -> list[Value]:
                return [done, *self._total(sum_, place, weights)]

            done, *sums = fn.if_(inside, both, alone, hint="ahead")
            return sums, done

        return step

    def _put_windows(self, tile: Value, rows: int, places: Value) -> Value:
        """Put the addresses of a tile's windows where the sum finds them; whether all lie inside the image."""
        fn, fields, patches = self.fn, self.fields, self.stage.patches
        inside = Value("true", I1)
        for i, position in enumerate(self._positions(tile, rows)):
            offset: Index = fn.sub(0, fields["pad_bytes"]) if patches.padded else 0
            for dim, at in enumerate(position):
                offset = fn.add(offset, fn.mul(at, fields[f"step{dim}"]))
                if patches.padded:
                    inside = fn.both(inside, fn.cmp("sge", at, fields[f"low{dim}"]))
                    inside = fn.both(inside, fn.cmp("slt", at, fields[f"high{dim}"]))
            fn.store(fn.gep(self.x, offset), places, i * POINTER)
        return inside

    def _total(
        self, sum_: Sum, place: Value, weights: Value, apart: Value | None = None, places: Value | None = None
    ) -> list[Value]:
        """The sums of the tile packed at a place; see `PackingCursor`."""
        fn, rows, item = self.fn, sum_.tile.rows, sum_.tile.itemsize
        if apart is None or places is None:
            return packed_sums(sum_, weights, [fn.opaque(place)], Micropanels(self.spec.dtype, fours=True).cursor)

        def cursor(_: Sum, state: list[Value]) -> Cursor:
            return PackingCursor(fn, state, rows, item, apart, places)

        later = fn.gep(fn.load(PTR, places), self.fields["step0"])
        state = [fn.opaque(place), fn.i64(0), later]
        return packed_sums(sum_, weights, state, cursor, lambda dim: [self.fields[f"tap{dim}"]] * 2)
