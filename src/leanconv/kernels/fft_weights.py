"""Filters' spectra, in panels: [group][panel][bias NR][point][channels][NR], as Winograd's transformed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_passes import Line, Passes, store_weights
from leanconv.kernels.fft_rows import Lie, fetch
from leanconv.kernels.fields import Fields
from leanconv.kernels.winograd_weights import WeightStep


@dataclass(frozen=True, slots=True)
class FftWeightStep(WeightStep):
    """How the filters of a panel are transformed; `gauss`: three points a complex bin."""

    tiling: FftTiling
    gauss: bool

    def emit(
        self, fn: Function, fields: Fields, source: Value, target: Value, point: Index, width: int, count: int
    ) -> None:
        """Write [point][channel][width] from filters at `source`; the first `count` of `width` channels exist."""
        grid, nbytes = self.tiling.grid, self.target.vector_bytes
        row = grid.plane_bytes(nbytes)
        plane = fn.alloca(row + grid.longest * nbytes)
        passes = Passes(fn, grid, self.kind, nbytes, self.target.fma, plane)
        vectors, exist = width // self.lanes, count - (width // self.lanes - 1) * self.lanes

        def channel(_: Value, state: list[Value]) -> list[Value]:
            def vector(v: Value, inner: list[Value]) -> list[Value]:
                last = fn.cmp("eq", v, vectors - 1) if exist < self.lanes else None
                self._filters(fn, fields, passes, fn.gep(plane, row), inner[0], inner[1], point, last, exist)
                return [fn.gep(inner[0], fn.mul(fields["w_k"], self.lanes)), fn.gep(inner[1], nbytes)]

            fn.loop(0, vectors, 1, state, vector, hint="vector")
            return [fn.gep(state[0], fields["w_c"]), fn.gep(state[1], width * self.item)]

        fn.loop(0, fields["channels"], 1, [source, target], channel, hint="channel")

    def _filters(
        self,
        fn: Function,
        fields: Fields,
        passes: Passes,
        row: Value,
        source: Value,
        to: Value,
        point: Index,
        last: Value | None,
        exist: int,
    ) -> None:
        """A vector of filters; `last`: whether only `exist` of them do."""
        grid = passes.grid
        given = grid.windows[grid.axis].tap_places
        order = sorted(range(len(given)), key=given.__getitem__)
        scale = 1.0 / math.prod(grid.sizes)

        def consume(line: Line, values: Sequence[Value]) -> None:
            store_weights(fn, line, grid.sizes[grid.active[0]], values, point, scale, self.gauss)

        def rows(rest: list[int], source: Value, at: Value) -> None:
            if not rest:
                self._fetch(fn, fields, passes, source, row, last, exist)
                if grid.fold is not None:
                    passes.spread(row, given[0], len(given))
                    every = tuple(range(grid.fold[1]))
                    passes.folded_rows(lambda at: passes.keep_row(passes.row_forward(at, every), at))
                    return
                values = [fn.load(passes.kind, row, tap * passes.width) for tap in order]
                bins = passes.row_spectrum(values, tuple(given[tap] for tap in order))
                if passes.alone:
                    consume(Line(grid.last_regions(self.gauss)[0], at, 0, to), bins)
                else:
                    passes.keep_row(bins, at)
                return
            window = grid.windows[rest[0]]

            def one(i: Index, state: list[Value]) -> list[Value]:
                place = fn.select(fn.cmp("slt", i, window.shift), window.size - window.shift, -window.shift)
                at = fn.gep(state[1], fn.mul(fn.add(i, place), passes.near(rest[0])))
                rows(rest[1:], state[0], at)
                return [fn.gep(state[0], fields[f"w_{rest[0]}"]), state[1]]

            if window.taps == 1:
                rows(rest[1:], source, at)
            else:
                fn.loop(0, window.taps, 1, [source, at], one, hint="tap")

        rows([d for d in range(len(grid.windows)) if d != grid.axis], source, passes.plane)
        if not passes.alone:
            extents = tuple(w.size for w in grid.lines)
            places = [tuple(sorted(w.tap_places)) for w in grid.lines]
            passes.columns_forward(places.__getitem__, extents, self.gauss, to, point, consume)

    def _fetch(
        self, fn: Function, fields: Fields, passes: Passes, source: Value, row: Value, last: Value | None, exist: int
    ) -> None:
        """A row of taps, one behind the other; weights may be bound that lie otherwise than those planned for."""
        grid = passes.grid
        step = fields[f"w_{grid.axis}"]

        def some(count: int, runs: bool) -> list[Value]:
            lie = Lie(False, runs, step, fields["w_k"])
            fetch(fn, self.target, passes.kind, lie, source, (0, grid.windows[grid.axis].taps), row, count)
            return []

        def either(count: int) -> list[Value]:
            adjacent = fn.cmp("eq", step, self.item)
            return fn.if_(adjacent, lambda: some(count, True), lambda: some(count, False), hint="runs")

        if last is None:
            either(self.lanes)
        else:
            fn.if_(last, lambda: either(exist), lambda: either(self.lanes), hint="last")
