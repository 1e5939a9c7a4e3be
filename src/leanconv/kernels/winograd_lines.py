"""The matrix products of a line of points, whose weights are transformed along the last axis in registers.

    V [point][section][tile][channel]  *  P (H [line][channel][tap][NR])  ->  M [point][tile][NR]

Weights are packed as transformed along all axes but the last: of F(4, 3) in two dimensions 6 x 3 numbers a filter, not
36.  The products of some points of a line are summed at one time, for as many tiles as there are registers; what a
channel's taps are in these points takes one multiply-add and two additions for a pair of points +p and -p.  Where tiles
are few, weights are most of what is read, and this halves it.

What all points of a column of P agree in is left to the packing: of the points +-sqrt(1/2), +-sqrt(2) it is the factor
sqrt(1/2) of the middle tap, and the pairs' odd parts are the tap itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.cook_toom import ONE, ZERO, Matrix, Surd
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import Addresses, Cursor
from leanconv.kernels.fields import Fields, Overlaid
from leanconv.kernels.linear import linear
from leanconv.kernels.polyphase import Transform
from leanconv.kernels.reduction import UNROLL, Reduction
from leanconv.kernels.sections import REACH
from leanconv.kernels.tile import Tile
from leanconv.kernels.winograd_tiles import Axis, Bits

_OTHERS = 3  # accumulators less than elsewhere: a channel's taps, their points and a pixel take eight registers


def line_rows(target: Target, points: int, vectors: int) -> int:
    """Tiles that so many points are summed of at one time: of three points in two vectors four, with AVX-512."""
    return max(1, (target.accumulators - _OTHERS) // (points * vectors))


def common_factors(matrix: Matrix) -> tuple[Surd, ...]:
    """Of each column the number that its entries are, but for signs; one, if they are several."""
    result = []
    for column in zip(*matrix, strict=True):
        first = next(entry for entry in column if entry)
        result.append(first if all(not entry or entry in (first, -first) for entry in column) else ONE)
    return tuple(result)


@dataclass(frozen=True, slots=True)
class TapsOf:
    """The taps of a transform times what their columns have in common: what is packed in place of its points."""

    transform: Transform

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.transform.outputs

    @property
    def taps(self) -> int:
        """Taps, as many as numbers that are packed."""
        return self.transform.taps

    size = taps

    def weights(self) -> Matrix:
        """The factors on the diagonal."""
        factors = common_factors(self.transform.weights())
        return tuple(tuple(f if i == j else ZERO for j in range(len(factors))) for i, f in enumerate(factors))

    def points(self) -> Matrix:
        """P, from what is packed to points."""
        matrix = self.transform.weights()
        factors = common_factors(matrix)
        return tuple(tuple(entry / f for entry, f in zip(row, factors, strict=True)) for row in matrix)


class LineCursor(Cursor):
    """A walk over the channels of some tiles of some points, which asks for lines of weights on its way.

    Tiles are `step` bytes apart: every third one has an address that moves, as in `EvenCursor`.
    """

    def __init__(self, fn: Function, bases: list[Value], rows: int, step: Value, item: int, asked: Asked) -> None:
        self._fn, self._rows, self._step, self._item, self._asked = fn, rows, step, item, asked
        self.state = [*bases, asked.address]

    def at(self, state: list[Value]) -> LineCursor:
        """The same walk at other addresses."""
        asked = self._asked._replace(address=state[-1])
        return LineCursor(self._fn, state[:-1], self._rows, self._step, self._item, asked)

    def addresses(self, count: int) -> Addresses:
        """An address, none to two steps, and a displacement; whole rounds ask."""
        fn, each = self._fn, -(-self._rows // 3)
        if count == self.unroll:
            for line in range(self._asked.lines):
                fn.prefetch(self.state[-1], line * LINE)
        bases = [fn.anew(base) for base in self.state[:-1]]
        self.state = [*bases, self.state[-1]]
        moved = [
            fn.gep(bases[point * each + i // 3], fn.mul(self._step, i % 3))
            for point in range(len(bases) // each)
            for i in range(self._rows)
        ]
        return [(moved, u * self._item) for u in range(count)]

    def advanced(self, count: int) -> list[Value]:
        """The addresses `count` channels further on."""
        moved = [self._fn.gep(base, count * self._item) for base in self.state[:-1]]
        return [*moved, self._fn.gep(self.state[-1], self._asked.step)]


class Asked(NamedTuple):
    """Weights that are asked for: where, how much further on in the next round, and how many lines in each."""

    address: Value
    step: Value
    lines: int


@dataclass(slots=True)
class LineSum(Sum):
    """The sums of some points: "pixels" are tiles, point by point, a "row" of weights is a channel's taps."""

    matrix: Matrix = ()
    points: Sequence[int] = ()

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """A channel's weights of every point, `vectors` of each."""
        fn, tile = self.fn, self.tile
        width, taps = tile.target.vector_bytes, len(self.matrix[0])
        lazy = []
        for v in range(tile.vectors):

            def tap(t: int, v: int = v) -> Value:
                at = (row * taps + t) * tile.vectors + v
                return fn.load(tile.vec, weights, at * width - REACH)

            lazy.append(linear(self.matrix).lazily(fn, tap, fused=tile.target.fma))
        return [one(point) for point in self.points for one in lazy]

    def _add(
        self, pixels: Sequence[Value], offset: Index, row: list[Value], accs: list[Value], at: int, *, first: bool
    ) -> list[Value]:
        fn, tile, result = self.fn, self.tile, list(accs)
        rows, lanes = tile.rows // len(self.points), tile.target.lanes(tile.dtype)
        for i, pixel in enumerate(pixels, at):
            x = fn.splat(fn.load(tile.scalar, pixel, offset), lanes)
            for v in range(tile.vectors):
                w, k = row[i // rows * tile.vectors + v], i * tile.vectors + v
                result[k] = fn.binary("fmul", x, w) if first else fn.multiply_add(x, w, accs[k], fused=tile.target.fma)
        return result

    def moved(self, weights: Value, count: int) -> Value:
        """The weights' address `count` channels further on."""
        return self.fn.gep(weights, count * len(self.matrix[0]) * self.tile.step_bytes)


class Runs(NamedTuple):
    """How the tiles of a group of points make register tiles: `lower` of `low` rows, `higher` of one row more."""

    low: Value
    lower: Value
    higher: Value


@dataclass(frozen=True, slots=True)
class Lines:
    """The matrix products of a line of points along `axis`, `together` of them (or fewer) at one time.

    `sections` and `asked`, and fields, as of `Products`.
    """

    target: Target
    dtype: str
    reduction: Reduction
    vectors: int
    sections: bool
    asked: int
    axis: Axis
    together: int

    @property
    def row(self) -> int:
        """Bytes of a tap of one channel, and of sums of one tile."""
        return self.vectors * self.target.vector_bytes

    @property
    def matrix(self) -> Matrix:
        """From what is packed to points."""
        return TapsOf(self.axis.transform).points()

    def groups(self) -> list[tuple[list[int], int]]:
        """Points that are summed at one time, and their class bit."""
        parts = linear(self.matrix).parts(self.together)
        classes = [(sorted(p for p in part if self.axis.bit(p) == bit), bit) for part in parts for bit in (0, 1)]
        return [(points, bit) for points, bit in classes if points]

    def _runs(self, fn: Function, count: Value, points: int) -> Runs:
        most = line_rows(self.target, points, self.vectors)
        number = fn.udiv(fn.add(count, most - 1), most)
        some = fn.smax(number, 1)
        more = fn.urem(count, some)
        return Runs(fn.i64(fn.udiv(count, some)), fn.i64(fn.sub(number, more)), fn.i64(more))

    def line(self, fn: Function, fields: Fields, counts: dict[Bits, Value], state: list[Value]) -> None:
        """All points of a line; `state` is where V, H and M begin, `counts` the tiles of each class along the axis."""
        taps = self.axis.transform.taps
        groups = [(points, self._runs(fn, counts[(bit,)], len(points))) for points, bit in self.groups()]
        total: Index = 0
        for _, runs in groups:
            total = fn.add(total, fn.add(runs.lower, runs.higher))
        step = fn.i64(fn.udiv(fn.add(UNROLL * taps * self.row - 1, total), fn.smax(total, 1)))
        channels, length = fields["channels"], fields["section_channels"]

        def section(first: Value, at: list[Value]) -> list[Value]:
            here, begins = fields, None
            if self.sections:
                begins = fn.cmp("eq", first, 0)
                here = Overlaid(fields, {"channels_whole": fn.i64(fn.smin(length, fn.sub(channels, first)))})
            behind = fn.gep(at[1], fn.mul(here["channels_whole"], taps * self.row))
            share = fn.i64(fn.mul(step, fn.udiv(here["channels_whole"], UNROLL)))
            asked = behind
            for points, runs in groups:
                rows = [fn.gep(at[0], fn.mul(fields["v_point"], p)) for p in points]
                sums = [fn.gep(state[2], fn.mul(fields["m_point"], p)) for p in points]
                asked = self._group(fn, here, points, runs, [*rows, *sums], at[1], asked, (step, share), begins)
            return [fn.gep(at[0], fields["v_section"]), behind]

        if self.sections:
            fn.loop(0, channels, length, state[:2], section, hint="section")
        else:
            section(fn.i64(0), state[:2])

    def _group(
        self,
        fn: Function,
        fields: Fields,
        points: list[int],
        runs: Runs,
        begin: list[Value],
        weights: Value,
        asked: Value,
        steps: tuple[Value, Value],
        begins: Value | None,
    ) -> Value:
        """All tiles of some points; `begin` is where their V and M do. Returns what is to be asked for next."""
        n, step = len(points), fields["v_row"]
        state = [*begin, asked]
        for rows in reversed(range(1, line_rows(self.target, n, self.vectors) + 1)):
            tile = Tile(self.target, self.dtype, n * rows, self.vectors, bias=False)
            sum_ = LineSum(fn, fields, tile, self.reduction, matrix=self.matrix, points=points)
            number = fn.select(fn.cmp("eq", runs.low, rows), runs.lower, 0)
            number = fn.select(fn.cmp("eq", runs.low, rows - 1), runs.higher, number)

            def body(
                _: Value, state: list[Value], rows: int = rows, tile: Tile = tile, sum_: LineSum = sum_
            ) -> list[Value]:
                at, sums, asked = state[:n], state[n : 2 * n], state[2 * n]
                start, accs = sum_.start(weights)
                bases = [fn.gep(base, fn.mul(step, i)) for base in at for i in range(0, rows, 3)]
                cursor = LineCursor(fn, bases, rows, fn.i64(step), tile.itemsize, Asked(asked, steps[0], self.asked))
                hides, fn.module.hides = fn.module.hides, False
                _, accs = sum_.run(cursor, self.reduction.channels, start, accs, first=self.reduction.short)
                fn.module.hides = hides
                self._store(fn, sum_.finish(accs), sums, rows * self.vectors, tile, begins)
                behind = [fn.gep(base, fn.mul(step, rows)) for base in at]
                return [*behind, *(fn.gep(to, rows * self.row) for to in sums), fn.gep(asked, steps[1])]

            state = fn.loop(0, number, 1, state, body, guard=True, hint="rows")
        return state[-1]

    def _store(
        self, fn: Function, accs: list[Value], sums: list[Value], each: int, tile: Tile, begins: Value | None
    ) -> None:
        """Write sums, or add them to those of the sections before."""
        width = self.target.vector_bytes

        def store(*, add: bool) -> Callable[[], list[Value]]:
            def emit() -> list[Value]:
                for i, acc in enumerate(accs):
                    to, at = sums[i // each], i % each * width
                    fn.store(fn.binary("fadd", fn.load(tile.vec, to, at), acc) if add else acc, to, at)
                return []

            return emit

        if begins is None:
            store(add=False)()
        else:
            fn.if_(begins, store(add=False), store(add=True), hint="begins")
