"""The sum of a tile of output channels by vectors of pixels along a row, over staged planes (see `planeband`).

A table in the order of the sum says how far from the tile each term is, so one loop goes through taps and channels:

    table     tap (0, 0) c0 c1 c2   (0, 1) c0 c1 c2   ...        weights, packed [panel][bias][term][rows of the panel]
    a term    --w0-->  acc[0][0]  acc[0][1]      two vectors of pixels of one output plane
              --w1-->  acc[1][0]  acc[1][1]      and of the next one
                ...
"""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, Function, Value
from leanconv.kernels.columns import ColumnSum
from leanconv.kernels.core import DEEPEST, LOOP_ALIGN
from leanconv.kernels.cursor import Addresses, Cursor

ENTRY = 8  # bytes of a distance
LONGEST = 4  # terms of a block where registers hold the pixels of one only: of longer ones LLVM loads ahead, and spills


class PanelCursor(Cursor):
    """Weights of a panel: one address that moves on, at which those of all its rows lie side by side."""

    by_pixels = True

    def __init__(self, fn: Function, first: Value, rows: int, item: int) -> None:
        self._fn, self._rows, self._item = fn, rows, item
        self.state = [first]

    def at(self, state: list[Value]) -> PanelCursor:
        """The same walk at another term."""
        return PanelCursor(self._fn, state[0], self._rows, self._item)

    def addresses(self, count: int) -> Addresses:
        """Displacements of one address."""
        rows = [self._fn.gep(self.state[0], i * self._item) for i in range(self._rows)]
        return [(rows, u * self._rows * self._item) for u in range(count)]

    def advanced(self, count: int) -> list[Value]:
        """The address `count` terms further on."""
        return [self._fn.gep(self.state[0], count * self._rows * self._item)]


@dataclass(slots=True)
class PlaneSum(ColumnSum):
    """The reduction of a tile; `place` is where the staged pixels are that the table's distances count from."""

    place: Value | None = None

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """The pixels of a term, `row` entries behind the address `weights` in the table."""
        fn, tile = self.fn, self.tile
        assert self.place is not None
        base = fn.gep(self.place, fn.load(I64, weights, row * ENTRY))
        return [fn.load(tile.vec, base, v * tile.target.vector_bytes) for v in range(tile.vectors)]

    def moved(self, weights: Value, count: int) -> Value:
        """The place in the table `count` terms further on."""
        return self.fn.gep(weights, count * ENTRY)

    def band_sums(self, table: Value, weights: Value, channels: int) -> list[Value]:
        """The sums of the tile with the panel at `weights`; sections end with some of the first axis's taps."""
        fn, tile, red = self.fn, self.tile, self.reduction
        cursor = PanelCursor(fn, self.behind(weights), tile.rows, tile.itemsize)
        self.known = self.splits(0)
        state = [*cursor.state, table, *self.begin()]
        inner = math.prod(red.kernel[1:]) * channels
        for span in self.spans(0):
            state = self._terms(cursor, (span[1] - span[0]) * inner, state)
            state = [*state[:2], *self.end_span(0, state[2:], span)]
        return self.finish(state[2:])

    def _terms(self, cursor: Cursor, count: int, state: list[Value]) -> list[Value]:
        """So many terms, in blocks of as many as registers hold the pixels of."""
        held = self._depth(cursor, math.factorial(DEEPEST))
        block = min(count, held if held > 1 else LONGEST)

        def body(_: Value, state: list[Value]) -> list[Value]:
            return self._round(cursor, block, state)

        rest = count % block
        state = self.fn.loop(0, count - rest, block, state, body, hint="terms", align=LOOP_ALIGN)
        return self._round(cursor, rest, state) if rest else state
