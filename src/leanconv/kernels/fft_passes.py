"""The passes of a transform over the plane of a tile: along one axis after the other, and what bins are stored as."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value, lanes_of, scalar_of
from leanconv.codegen.types import ITEMSIZE
from leanconv.kernels.fft_grid import Grid, Region
from leanconv.kernels.fft_program import forward, inverse, reals
from leanconv.kernels.fft_rows import clear


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a pass: where it lies in the plane, bytes to its imaginary parts, and its first point."""

    region: Region
    at: Value
    pair: int
    point: Value


Consume = Callable[[Line, Sequence[Value]], None]
Produce = Callable[[Line], list[Value]]


@dataclass(frozen=True, slots=True)
class Passes:
    """Transforms of a grid on vectors of `kind`, `width` bytes each, in a plane of row-major places."""

    fn: Function
    grid: Grid
    kind: str
    width: int
    fused: bool
    plane: Value

    def near(self, d: int) -> int:
        """Bytes between neighbours along an axis."""
        return self.grid.near(self.width)[d]

    @property
    def columns(self) -> list[int]:
        """The axes that are transformed after the rows."""
        return self.grid.active[:-1]

    @property
    def alone(self) -> bool:
        """Whether rows are all there is."""
        return len(self.grid.active) == 1

    def row_forward(self, row: Value, given: tuple[int, ...]) -> list[Value]:
        """The packed spectrum of a row, from its places `given`."""
        return self.row_spectrum([self.fn.load(self.kind, row, at * self.width) for at in given], given)

    def row_spectrum(self, values: Sequence[Value], given: tuple[int, ...]) -> list[Value]:
        """The packed spectrum of a row that holds these values in the places `given`."""
        window = self.grid.lines[self.grid.rows]
        return forward(window.size, given, real=True).emit(self.fn, values, fused=self.fused)

    def keep_row(self, values: Sequence[Value], at: Value) -> None:
        """Put the spectrum of a row into the plane."""
        for j, value in enumerate(values):
            self.fn.store(value, at, j * self.near(self.grid.rows))

    def spread(self, row: Value, first: int, count: int) -> None:
        """Put the places of a folded row, from `first` on, where they belong in the plane, and zeros elsewhere."""
        if count < math.prod(self.grid.sizes):
            places = self.grid.plane_bytes(self.width) // self.width
            clear(self.fn, self.kind, self.width, self.plane, (0, places))
        self._folded(first, count, row, lambda place, at: self.fn.store(self.fn.load(self.kind, at), place))

    def gather(self, row: Value, count: Index) -> None:
        """The first `count` places of a folded row, from the plane."""
        self._folded(0, count, row, lambda place, at: self.fn.store(self.fn.load(self.kind, place), at))

    def _folded(self, first: int, count: Index, row: Value, move: Callable[[Value, Value], None]) -> None:
        fn, (rows, columns) = self.fn, self.grid.sizes
        line = self.near(0)
        wraps = (rows * line, columns * self.width)

        def place(_: Value, state: list[Value]) -> list[Value]:
            move(fn.gep(self.plane, fn.add(state[0], state[1])), state[2])
            moved = [fn.i64(fn.add(at, step)) for at, step in zip(state[:2], (line, self.width), strict=True)]
            ends = [fn.cmp("eq", at, end) for at, end in zip(moved, wraps, strict=True)]
            after = [fn.select(end, 0, at) for end, at in zip(ends, moved, strict=True)]
            return [*after, fn.gep(state[2], self.width)]

        start = [fn.i64(first % rows * line), fn.i64(first % columns * self.width), row]
        fn.loop(0, count, 1, start, place, guard=True, hint="fold")

    def folded_rows(self, body: Callable[[Value], None]) -> None:
        """Run `body(row)` for every row of the plane."""

        def one(_: Value, state: list[Value]) -> list[Value]:
            body(state[0])
            return [self.fn.gep(state[0], self.near(0))]

        self.fn.loop(0, self.grid.sizes[0], 1, [self.plane], one, hint="row")

    def row_inverse(self, values: Sequence[Value], row: Value) -> None:
        """From the packed spectrum of a row to its results, in the places of `row`."""
        window = self.grid.lines[self.grid.rows]
        for j, value in enumerate(
            inverse(window.size, window.outputs, real=True).emit(self.fn, values, fused=self.fused)
        ):
            self.fn.store(value, row, j * self.width)

    def kept_row(self, at: Value) -> list[Value]:
        """The spectrum of a row in the plane."""
        near = self.near(self.grid.rows)
        return [self.fn.load(self.kind, at, j * near) for j in range(self.grid.lines[self.grid.rows].size)]

    def columns_forward(
        self,
        given: Callable[[int], tuple[int, ...]],
        extents: tuple[int, ...],
        gauss: bool,
        to: Value,
        step: Index,
        consume: Consume,
    ) -> None:
        """All axes but that of the rows; `consume(region, bins, point)` gets the bins of each last line.

        `given(d)` are the places along an axis that may be other than zero, `extents` those in use of axes that are not
        yet transformed.
        """
        for d in reversed(self.columns):
            final = d == self.columns[0]
            for region in self.grid.last_regions(gauss) if final else self.grid.regions(d, extents):
                self._forward_lines(d, region, given(d), to, step, consume if final else None)

    def _forward_lines(
        self, d: int, region: Region, given: tuple[int, ...], to: Value, step: Index, consume: Consume | None
    ) -> None:
        program = forward(self.grid.sizes[d], given, real=region.pair is None)

        def line(at: Value, pair: int, point: Value) -> None:
            here = Line(region, at, pair, point)
            bins = program.emit(self.fn, self.taken(here, d, given), fused=self.fused)
            if consume is not None:
                consume(here, bins)
            else:
                self.keep(here, d, bins)

        self.grid.each_line(self.fn, region, self.plane, self.width, to, step, line)

    def columns_inverse(self, gauss: bool, source: Value, step: Index, produce: Produce | None) -> None:
        """Back along all axes but that of the rows.

        `produce(line)` gives the bins of each line of the first; None if that is done already.
        """
        extents = tuple(w.outputs for w in self.grid.lines)
        for d in self.columns:
            first = d == self.columns[0]
            if first and produce is None:
                continue
            for region in self.grid.last_regions(gauss) if first else self.grid.regions(d, extents):
                self._inverse_lines(d, region, source, step, produce if first else None)

    def _inverse_lines(self, d: int, region: Region, source: Value, step: Index, produce: Produce | None) -> None:
        window = self.grid.lines[d]
        program = inverse(window.size, window.outputs, real=region.pair is None)

        def line(at: Value, pair: int, point: Value) -> None:
            here = Line(region, at, pair, point)
            bins = self.taken(here, d, tuple(range(window.size))) if produce is None else produce(here)
            self.keep(here, d, program.emit(self.fn, bins, fused=self.fused))

        self.grid.each_line(self.fn, region, self.plane, self.width, source, step, line)

    def line_inverse(self, line: Line, bins: Sequence[Value]) -> None:
        """Back along the first axis, from the bins of a line to its place in the plane."""
        d = self.columns[0]
        window = self.grid.lines[d]
        program = inverse(window.size, window.outputs, real=line.region.pair is None)
        self.keep(line, d, program.emit(self.fn, bins, fused=self.fused))

    def taken(self, line: Line, d: int, given: tuple[int, ...]) -> list[Value]:
        """What a line along axis d has in some of its places."""
        parts = (0, line.pair) if line.pair else (0,)
        return [self.fn.load(self.kind, line.at, j * self.near(d) + part) for j in given for part in parts]

    def keep(self, line: Line, d: int, values: Sequence[Value]) -> None:
        """Store a line along axis d in its place."""
        parts = 2 if line.pair else 1
        for i, value in enumerate(values):
            self.fn.store(value, line.at, i // parts * self.near(d) + (line.pair if i % parts else 0))


def bins_of(line: Line, n: int, values: Sequence[Value]) -> tuple[list[Value], list[tuple[Value, Value]]]:
    """The real bins of a line of n, and its complex ones."""
    first = reals(n) if line.region.pair is None else 0
    rest = values[first:]
    return list(values[:first]), list(zip(rest[::2], rest[1::2], strict=True))


def store_windows(fn: Function, line: Line, n: int, values: Sequence[Value], step: Index) -> None:
    """Points of a window's bins a + b i: a + b, a, b."""
    real, pairs = bins_of(line, n, values)
    points = [*real, *(p for a, b in pairs for p in (fn.binary("fadd", a, b), a, b))]
    _store_points(fn, points, line.point, step)


def store_weights(
    fn: Function, line: Line, n: int, values: Sequence[Value], step: Index, scale: float, gauss: bool
) -> None:
    """Points of a filter's bins, whose conjugates c + d i make a correlation: c, d - c, c + d, or else c, d."""
    real, pairs = bins_of(line, n, values)
    factor = fn.const(values[0].type, scale)
    points = [fn.binary("fmul", value, factor) for value in real]
    for a, b in pairs:
        c, minus_d = fn.binary("fmul", a, factor), fn.binary("fmul", b, factor)
        d = fn.op(c.type, f"fneg {c.type} {minus_d.name}")
        points += [c, fn.binary("fsub", d, c), fn.binary("fadd", c, d)] if gauss else [c, d]
    _store_points(fn, points, line.point, step)


def load_products(fn: Function, kind: str, line: Line, n: int, step: Index) -> list[Value]:
    """The bins of a line from the three products of each."""
    points, source = [], line.point
    for _ in range(line.region.points):
        points.append(fn.load(kind, source))
        source = fn.gep(source, step)
    first = reals(n) if line.region.pair is None else 0
    result = points[:first]
    for i in range(first, len(points), 3):
        both, b, c = points[i : i + 3]
        result += [fn.binary("fsub", both, c), fn.binary("fadd", both, b)]
    return result


def _store_points(fn: Function, points: Sequence[Value], to: Value, step: Index) -> None:
    for value in points:
        fn.store(value, to)
        to = fn.gep(to, step)


def times_weights(
    fn: Function, line: Line, n: int, values: Sequence[Value], weights: Value, fused: bool
) -> list[Value]:
    """The bins a + b i of a line times those of the filter, c + d i, one behind the other."""
    kind = values[0].type
    step = lanes_of(kind) * ITEMSIZE[scalar_of(kind)]
    factors = [fn.load(kind, weights, i * step) for i in range(len(values))]
    real, pairs = bins_of(line, n, values)
    real_factors, pair_factors = bins_of(line, n, factors)
    result = [fn.binary("fmul", a, c) for a, c in zip(real, real_factors, strict=True)]
    for (a, b), (c, d) in zip(pairs, pair_factors, strict=True):
        minus = fn.op(kind, f"fneg {kind} {fn.binary('fmul', b, d).name}")
        result += [fn.multiply_add(a, c, minus, fused=fused)]
        result += [fn.multiply_add(a, d, fn.binary("fmul", b, c), fused=fused)]
    return result
