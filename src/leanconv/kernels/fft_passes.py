"""The passes of a transform over the plane of a tile: along one axis after the other, and what bins are stored as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.fft_grid import Grid, Region
from leanconv.kernels.fft_program import forward, inverse, reals
from leanconv.kernels.winograd_tiles import row_major

Consume = Callable[[Region, Sequence[Value], Value], None]
Produce = Callable[[Region, Value], list[Value]]


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
        return self.width * row_major(self.grid.sizes)[d]

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
        window = self.grid.windows[self.grid.rows]
        return forward(window.size, given, real=True).emit(self.fn, values, fused=self.fused)

    def keep_row(self, values: Sequence[Value], at: Value) -> None:
        """Put the spectrum of a row into the plane."""
        for j, value in enumerate(values):
            self.fn.store(value, at, j * self.near(self.grid.rows))

    def row_inverse(self, values: Sequence[Value], row: Value) -> None:
        """From the packed spectrum of a row to its results, in the places of `row`."""
        window = self.grid.windows[self.grid.rows]
        for j, value in enumerate(
            inverse(window.size, window.outputs, real=True).emit(self.fn, values, fused=self.fused)
        ):
            self.fn.store(value, row, j * self.width)

    def kept_row(self, at: Value) -> list[Value]:
        """The spectrum of a row in the plane."""
        near = self.near(self.grid.rows)
        return [self.fn.load(self.kind, at, j * near) for j in range(self.grid.windows[self.grid.rows].size)]

    def columns_forward(
        self, given: Callable[[int], tuple[int, ...]], extents: tuple[int, ...], gauss: bool, to: Value, step: Index,
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
            bins = program.emit(self.fn, self._load(at, pair, d, given), fused=self.fused)
            if consume is not None:
                consume(region, bins, point)
            else:
                self._store(bins, at, pair, d)

        self.grid.each_line(self.fn, region, self.plane, self.width, to, step, line)

    def columns_inverse(self, gauss: bool, source: Value, step: Index, produce: Produce) -> None:
        """Back along all axes but that of the rows; `produce(region, point)` gives the bins of each first line."""
        extents = tuple(w.outputs for w in self.grid.windows)
        for d in self.columns:
            first = d == self.columns[0]
            for region in self.grid.last_regions(gauss) if first else self.grid.regions(d, extents):
                self._inverse_lines(d, region, source, step, produce if first else None)

    def _inverse_lines(self, d: int, region: Region, source: Value, step: Index, produce: Produce | None) -> None:
        window = self.grid.windows[d]
        program = inverse(window.size, window.outputs, real=region.pair is None)

        def line(at: Value, pair: int, point: Value) -> None:
            if produce is not None:
                bins = produce(region, point)
            else:
                bins = self._load(at, pair, d, tuple(range(window.size)))
            self._store(program.emit(self.fn, bins, fused=self.fused), at, pair, d)

        self.grid.each_line(self.fn, region, self.plane, self.width, source, step, line)

    def _load(self, at: Value, pair: int, d: int, given: tuple[int, ...]) -> list[Value]:
        parts = (0, pair) if pair else (0,)
        return [self.fn.load(self.kind, at, j * self.near(d) + part) for j in given for part in parts]

    def _store(self, values: Sequence[Value], at: Value, pair: int, d: int) -> None:
        parts = 2 if pair else 1
        for i, value in enumerate(values):
            self.fn.store(value, at, i // parts * self.near(d) + (pair if i % parts else 0))


def bins_of(region: Region, n: int, values: Sequence[Value]) -> tuple[list[Value], list[tuple[Value, Value]]]:
    """The real bins of a line of n, and its complex ones."""
    first = reals(n) if region.pair is None else 0
    rest = values[first:]
    return list(values[:first]), list(zip(rest[::2], rest[1::2], strict=True))


def store_windows(fn: Function, region: Region, n: int, values: Sequence[Value], to: Value, step: Index) -> None:
    """Points of a window's bins a + b i: a + b, a, b."""
    real, pairs = bins_of(region, n, values)
    points = [*real, *(p for a, b in pairs for p in (fn.binary("fadd", a, b), a, b))]
    _store_points(fn, points, to, step)


def store_weights(
    fn: Function, region: Region, n: int, values: Sequence[Value], to: Value, step: Index, scale: float, gauss: bool
) -> None:
    """Points of a filter's bins, whose conjugates c + d i make a correlation: c, d - c, c + d, or else c, d."""
    real, pairs = bins_of(region, n, values)
    factor = fn.const(values[0].type, scale)
    points = [fn.binary("fmul", value, factor) for value in real]
    for a, b in pairs:
        c, minus_d = fn.binary("fmul", a, factor), fn.binary("fmul", b, factor)
        d = fn.op(c.type, f"fneg {c.type} {minus_d.name}")
        points += [c, fn.binary("fsub", d, c), fn.binary("fadd", c, d)] if gauss else [c, d]
    _store_points(fn, points, to, step)


def load_products(fn: Function, kind: str, region: Region, n: int, source: Value, step: Index) -> list[Value]:
    """The bins of a line from the three products of each."""
    points = []
    for _ in range(region.points):
        points.append(fn.load(kind, source))
        source = fn.gep(source, step)
    first = reals(n) if region.pair is None else 0
    result = points[:first]
    for i in range(first, len(points), 3):
        both, b, c = points[i : i + 3]
        result += [fn.binary("fsub", both, c), fn.binary("fadd", both, b)]
    return result


def _store_points(fn: Function, points: Sequence[Value], to: Value, step: Index) -> None:
    for value in points:
        fn.store(value, to)
        to = fn.gep(to, step)
