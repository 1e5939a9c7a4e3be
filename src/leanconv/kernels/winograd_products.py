"""The matrix products of fused kernels, one a point, on the register-tiled core.

    V [point][section][tile][channel]  *  U [point][channel][NR]  ->  M [point][tile][NR]

What the products of one point read comes from the second or the third level of cache, a few times only.  The processor
fetches ahead along a line of memory, but neither from page to page nor early enough: with all operands in the first
level the products reach 95 % of the peak, without 70 to 84 %.  So each register tile asks for the rows of the next one,
and all tiles of a section together for the weights of the next section (or point, or panel: they lie behind these).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import Addresses, SharedCursor
from leanconv.kernels.epilogue import row_addresses
from leanconv.kernels.fields import Fields, Overlaid
from leanconv.kernels.reduction import UNROLL, Reduction
from leanconv.kernels.tile import Tile

Asked = tuple[Value, Index, int]  # an address, how much further on it is in the next round, and lines of each
Ahead = Callable[[Function, Fields, list[Value]], Asked | None]
"""Told where the rows of a register tile are, asks for something, and returns what else its rounds are to ask for."""


def most_rows(target: Target, vectors: int) -> int:
    """Rows of the highest register tile.

    The walk over the channels begins at zero here, and LLVM turns it into a pointer a row; with ten of them it loads
    pairs ahead on NEON, and spills. With masks (AVX-512) what is asked for takes the registers of two rows.
    """
    return min(target.tile_rows(vectors), 10 if target.masks else 9)


def lines_asked(target: Target, vectors: int, tiles: int) -> int:
    """Lines of weights that each round of a register tile asks for, so that those of `tiles` tiles ask for all."""
    nbytes = UNROLL * vectors * target.vector_bytes
    return -(-nbytes // (LINE * -(-tiles // most_rows(target, vectors))))


def ask_next_point(fn: Function, fields: Fields, rows: list[Value]) -> Asked | None:
    """Ask for the same rows of the next point, where points are many, and lie apart further than one is guessed."""

    def line(at: Value, _: list[Value]) -> list[Value]:
        for row in rows:
            fn.prefetch(fn.gep(row, at))
        return []

    end = fn.add(fields["v_point"], fields["v_row"])
    fn.loop(fields["v_point"], end, LINE, [], line, hint="ahead")
    return None


class AskingCursor(SharedCursor):
    """A walk that asks for lines on its way: every round for some at each address, which then moves by its step."""

    def __init__(self, fn: Function, pixels: list[Value], offset: Index, stride: int, asked: list[Asked]) -> None:
        super().__init__(fn, pixels, offset, stride)
        self._item = stride
        self._asked = asked
        self.state += [address for address, _, _ in asked]

    def at(self, state: list[Value]) -> AskingCursor:
        """The same walk at another offset."""
        asked = [(address, step, lines) for address, (_, step, lines) in zip(state[1:], self._asked, strict=True)]
        return AskingCursor(self._fn, list(self._pixels), state[0], self._item, asked)

    def addresses(self, count: int) -> Addresses:
        """Where the next steps read; whole rounds ask."""
        if count == self.unroll:
            for address, _, lines in self._asked:
                for line in range(lines):
                    self._fn.prefetch(address, line * LINE)
        return super().addresses(count)

    def advanced(self, count: int) -> list[Value]:
        """The state `count` steps further on."""
        asked = [self._fn.gep(address, step) for address, step, _ in self._asked]
        return [*super().advanced(count), *asked]


class Heights(NamedTuple):
    """How rows make register tiles: `lower` of `low` rows, `higher` of one row more; the bytes of all rows.

    `step` bytes of weights are each tile's to ask for in each round.
    """

    low: Value
    lower: Value
    higher: Value
    nbytes: Value
    step: Value


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix product of one point.

    `sections`: V has several sections of channels, whose sums are added up in M; the weights of one stay in the
    first-level cache while all tiles pass.  `asked`: lines of weights that a round asks for; 0: nobody asks.  `ahead`
    is called in each register tile.
    Fields: `v_point v_section v_row` bytes from point to point, section to section, tile to tile; `section_channels` in
    each of them but the last.
    """

    target: Target
    dtype: str
    reduction: Reduction
    vectors: int
    sections: bool
    asked: int
    ahead: Ahead | None = None

    @property
    def row(self) -> int:
        """Bytes of weights of one channel, and of sums of one tile."""
        return self.vectors * self.target.vector_bytes

    def heights(self, fn: Function, fields: Fields, count: Value) -> Heights:
        """The fewest tiles, t = ceil(n / most) of n // t rows, n % t of them one row higher."""
        most = most_rows(self.target, self.vectors)
        number = fn.udiv(fn.add(count, most - 1), most)
        some = fn.smax(number, 1)
        low, more = fn.udiv(count, some), fn.urem(count, some)
        step = fn.udiv(fn.add(some, UNROLL * self.row - 1), some)
        nbytes = fn.mul(count, fields["v_row"])
        return Heights(*(fn.i64(value) for value in (low, fn.sub(number, more), more, nbytes, step)))

    def point(self, fn: Function, fields: Fields, heights: Heights, state: list[Value]) -> None:
        """All rows of a point; `state` is where its V, U and M begin."""
        if not self.sections:
            after = fn.gep(state[0], fields["v_point"])
            self._section(fn, fields, heights, state, after, None)
            return
        channels, length = fields["channels"], fields["section_channels"]

        def section(first: Value, at: list[Value]) -> list[Value]:
            begins = fn.cmp("eq", first, 0)
            before = fn.select(begins, fn.module.zeros(self.row), state[2]), fn.i64(fn.select(begins, 0, self.row))
            here = Overlaid(fields, {"channels_whole": fn.i64(fn.smin(length, fn.sub(channels, first)))})
            after = fn.gep(at[0], fields["v_section"])
            self._section(fn, here, heights, [*at, state[2]], after, before)
            return [after, fn.gep(at[1], fn.mul(length, self.row))]

        fn.loop(0, channels, length, state[:2], section, hint="section")

    def _section(
        self,
        fn: Function,
        fields: Fields,
        heights: Heights,
        begin: list[Value],
        after: Value,
        before: tuple[Value, Value] | None,
    ) -> None:
        """Register tiles of every height, two of which occur.

        `after` is where the rows of the next section begin; `before` where sums so far are, and bytes between rows.
        """
        rows_at, weights, to = begin
        channels = fields["channels_whole"]
        share = fn.mul(heights.step, fn.udiv(channels, UNROLL))
        asked = fn.gep(weights, fn.mul(channels, self.row))
        state = [rows_at, to, asked, heights.nbytes, *(before[:1] if before else ())]
        for rows in reversed(range(1, most_rows(self.target, self.vectors) + 1)):
            tile = Tile(self.target, self.dtype, rows, self.vectors, bias=False)
            sum_ = Sum(fn, fields, tile, self.reduction)
            number = fn.select(fn.cmp("eq", heights.low, rows), heights.lower, 0)
            number = fn.select(fn.cmp("eq", heights.low, rows - 1), heights.higher, number)

            def body(_: Value, state: list[Value], tile: Tile = tile, sum_: Sum = sum_) -> list[Value]:
                here, sums, asked, left, *old = state
                pixels = row_addresses(fn, here, tile.rows, fields["v_row"])
                more = self.ahead(fn, fields, pixels) if self.ahead is not None else None
                nbytes = fn.mul(fields["v_row"], tile.rows)
                behind, left = fn.gep(here, nbytes), fn.i64(fn.sub(left, nbytes))
                following = fn.select(fn.cmp("eq", left, 0), after, behind)
                start, accs = sum_.start(weights)
                lines = [(asked, heights.step, self.asked), *([more] if more else [])]
                cursor = self._cursor(fn, tile, pixels, following, lines)
                # One offset for all rows, in the loads themselves, is LLVM's doing: a tenth of the instructions.
                hides, fn.module.hides = fn.module.hides, False
                _, accs = sum_.run(cursor, self.reduction.channels, start, accs, first=self.reduction.short)
                fn.module.hides = hides
                for i, acc in enumerate(sum_.finish(accs)):
                    at, v = divmod(i, tile.vectors)
                    if before:
                        so_far = fn.load(tile.vec, fn.gep(old[0], fn.mul(before[1], at)), v * self.target.vector_bytes)
                        acc = fn.binary("fadd", so_far, acc)
                    fn.store(acc, sums, i * self.target.vector_bytes)
                moved = [fn.gep(old[0], fn.mul(before[1], tile.rows))] if before else []
                return [behind, fn.gep(sums, tile.rows * self.row), fn.gep(asked, share), left, *moved]

            state = fn.loop(0, number, 1, state, body, guard=True, hint="rows")

    def _cursor(self, fn: Function, tile: Tile, pixels: list[Value], behind: Value, asked: list[Asked]) -> SharedCursor:
        """The walk over the channels of a tile, the rows `behind` which are the next to be used; all rounds ask."""
        pixels = [fn.opaque(pixel) for pixel in pixels]
        if not self.asked or self.reduction.channels is not None:
            return SharedCursor(fn, pixels, 0, tile.itemsize)
        nbytes = UNROLL * tile.rows * tile.itemsize
        rows = (fn.opaque(behind), nbytes, -(-nbytes // LINE))
        return AskingCursor(fn, pixels, 0, tile.itemsize, [rows, *asked])
