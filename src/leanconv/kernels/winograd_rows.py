"""Winograd along rows only, for images of few channels (see `algorithms.winograd_rows`).

A chunk is a band of output rows of one image.  The rows under it become points, tiles adjacent (`winograd_row_stage`);
then a panel of output channels passes the whole band, row by row, some tiles of a row at a time:

    points   [point] [row] [element] [tiles]      a thread's own
    products for each point a register tile: tiles x panel, over all terms (rows of the filter x elements)   ->  M
    outputs  A^T times M [tile] [point] [panel]  ->  pixels, bias, residual, activation

Terms of a sum lie at one distance, from row to row too, so a sum is one loop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE, Cost, issue_slots
from leanconv.kernels.cursor import PlaneCursor
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.linear import linear
from leanconv.kernels.panels import PanelShape, each_panel
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.tile import Tile
from leanconv.kernels.winograd_row_stage import RowPoints

OUTPUTS = 4.0  # issue slots of a register of outputs: its part of A^T, and 1.5 registers of M stored and loaded


@dataclass(frozen=True, slots=True)
class WinogradRowsSpec:
    """What a kernel is specialised for.

    `terms` of a sum; `stride` between rows; `pad` rows of zeros above the image; `edge` outputs of the last tile of a
    row (0: field `tile_edge` tells, and register tiles may reach over a row, whose outputs do not exist); `rows` tiles
    of the register tiles of whole panels and of the last one, some of which are one lower; `fetch`: the lines of the
    next tiles' outputs are asked for; `past`: outputs are stored past the caches if they begin at a multiple of a
    register's size.

    Buffers: x, w (packed), out, residual, scratch.  Fields: `n_* b_*` for the chunk; `band` output rows a chunk,
    `row_count` in all, `kernel_rows` under one; `in0` rows of the image; `x_n x_0` bytes between images and rows,
    `{o,r}_n {o,r}_0 {o,r}_1 {o,r}_panel` between images, rows, pixels and panels; `w_panel`; `turned_at points_at
    products_at` in the scratch; `high0 low0 high1 low1` register tiles of a row, of whole panels and of the last one;
    `tile_last` the number of a row's last tile; those of `RowPoints`.
    """

    target: Target
    dtype: str
    points: RowPoints
    terms: int
    stride: int
    pad: int
    edge: int
    reduction: Reduction
    rows: tuple[int, int]
    panels: PanelShape
    bias: bool
    epilogue: Epilogue
    fetch: bool
    past: bool

    @property
    def transform(self) -> CookToom:
        """Of a row."""
        return self.points.transform

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Emitter(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()

    def stand_in(self, fields: Mapping[str, int]) -> tuple[WinogradRowsSpec, Mapping[str, int]]:
        """The kernel for rows of any length, in register tiles of the usual height, and its fields."""
        rows = tuple(map(self.target.tile_rows, (self.panels.vectors, self.panels.last or self.panels.vectors)))
        tiles = fields["tile_last"] + 1
        heights = {f"high{i}": -(-tiles // height) for i, height in enumerate(rows)} | {"low0": 0, "low1": 0}
        return replace(self, edge=0, rows=rows, fetch=True, past=False), {**fields, **heights}

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Rows made points once for each band, products, and outputs."""
        item, size = self.points.item, self.transform.size
        lines = f["n_count"] * f["row_count"]
        tiles = f["tile_last"] + 1
        panels = [(self.panels.vectors, f["panel_whole"], f["high0"] + f["low0"])]
        panels += [(self.panels.last, 1, f["high1"] + f["low1"])] if self.panels.last else []
        multiply = blocks = vectors = 0.0
        for wide, count, number in panels:
            multiply += count * number * issue_slots(tiles / number, wide)
            blocks += count * number
            vectors += count * wide * tiles * self.transform.outputs
        staged = chunks * (f["band"] * self.stride + f["kernel_rows"] - self.stride)
        moved = self.points.elements * (2 * self.transform.outputs * f["turned_groups"] + 3 * size * f["tile_groups"])
        counts = {
            "multiply": lines * (size * self.terms * multiply + OUTPUTS * vectors),
            "tile": lines * size * blocks,
            "store": lines * vectors,
            "block": staged * moved,
        }
        source = f["n_count"] * f["in0"] * f["line_elements"] * item
        source *= self.points.channels if self.points.planes else 1
        out = lines * vectors * host.target.vector_bytes
        # Outputs come in bursts, between which products are summed: of 33 MB they take longer than of tiles of pixels.
        return Cost(counts, ((source, source),), ((1.3 * out, out),), chunks)


@dataclass(slots=True)
class _Panel:
    """A panel: its register tile, the channels in its last register, its weights and biases."""

    tile: Tile
    valid: int
    last: bool
    weights: Value
    biases: Value | None


@dataclass(slots=True)
class _Emitter:
    """Emits one kernel."""

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: WinogradRowsSpec

    def run(self) -> None:
        """Points of the rows under the band, then the band, panel by panel."""
        kernel, fn, fields = self.kernel, self.fn, self.fields
        image, band = kernel.index("n"), kernel.index("b")
        scratch = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        top = fn.i64(fn.mul(band, fields["band"]))
        bottom = fn.i64(fn.smin(fn.add(top, fields["band"]), fields["row_count"]))
        points = fn.gep(scratch, fields["points_at"])
        self._stage(fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"])), scratch, points, top, bottom)

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(top, fields[f"{letter}_0"]))
            return fn.gep(fields.buffer(role), offset)

        out = moved("out", "o")
        ends = [(out, "o")] + ([(moved("residual", "r"), "r")] if self.spec.epilogue.residual else [])
        count = fn.i64(fn.sub(bottom, top))
        products = fn.gep(scratch, fields["products_at"])
        if not self.spec.past:
            self._panels(points, products, ends, count)
            return
        near = replace(self, spec=replace(self.spec, past=False))

        def past() -> list[Value]:
            self._panels(points, products, ends, count)
            fn.stream_end(self.spec.target.triple)
            return []

        def through() -> list[Value]:
            near._panels(points, products, ends, count)
            return []

        address = fn.op("i64", f"ptrtoint ptr {out.name} to i64")
        fn.if_(fn.cmp("eq", fn.urem(address, self.spec.target.vector_bytes), 0), past, through, hint="past")

    def _stage(self, x: Value, line: Value, points: Value, top: Value, bottom: Value) -> None:
        """Points of the rows under output rows [top, bottom)."""
        fn, fields, stage = self.fn, self.fields, self.spec.points
        turned = fn.gep(line, fields["turned_at"])
        stage.clear(fn, line, fields["line_bytes"])
        first = fn.i64(fn.sub(fn.mul(top, self.spec.stride), self.spec.pad))
        end = fn.sub(fn.mul(fn.sub(bottom, 1), self.spec.stride), self.spec.pad)
        end = fn.i64(fn.add(end, fields["kernel_rows"]))

        def row(y: Value, state: list[Value]) -> list[Value]:
            def inside() -> list[Value]:
                stage.row(fn, fields, fn.gep(x, fn.mul(y, fields["x_0"])), line, turned, state[0])
                return []

            def outside() -> list[Value]:
                stage.nothing(fn, fields, state[0])
                return []

            fn.if_(fn.cmp("ult", y, fields["in0"]), inside, outside, hint="inside")
            return [fn.gep(state[0], fn.mul(fields["tile_pitch"], stage.elements))]

        fn.loop(first, end, 1, [points], row, hint="row")

    def _panels(self, points: Value, products: Value, ends: list[tuple[Value, str]], count: Value) -> None:
        """All panels over the band."""
        fn, fields, spec = self.fn, self.fields, self.spec
        lanes, width = spec.target.lanes(spec.dtype), spec.target.vector_bytes

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, bias=False)
            weights = fn.gep(fields.buffer("w"), fn.mul(at, fields["w_panel"]))
            behind = fn.gep(weights, vectors * width) if spec.bias else weights
            here = _Panel(tile, valid, last, behind, weights if spec.bias else None)
            begins = [fn.gep(end, fn.mul(at, fields[f"{letter}_panel"])) for end, letter in ends]

            def row(_: Value, state: list[Value]) -> list[Value]:
                self._row(here, state[0], products, [*zip(state[1:], (letter for _, letter in ends), strict=True)])
                under = fn.mul(fields["tile_pitch"], spec.points.elements * spec.stride)
                steps = [under, *(fields[f"{letter}_0"] for _, letter in ends)]
                return [fn.gep(place, step) for place, step in zip(state, steps, strict=True)]

            fn.loop(0, count, 1, [points, *begins], row, hint="row")

        each_panel(fn, fields, spec.panels, lanes, (fn.i64(0), fields["panel_count"]), panel)

    def _row(self, panel: _Panel, points: Value, products: Value, ends: list[tuple[Value, str]]) -> None:
        """A row of outputs: the higher register tiles, then those that are one lower."""
        fn, fields, first = self.fn, self.fields, self.fn.i64(0)
        for name, lower in (("high", 0), ("low", 1)):
            tile = replace(panel.tile, rows=panel.tile.rows - lower)
            if not tile.rows:
                continue

            def some(_: Value, state: list[Value], tile: Tile = tile) -> list[Value]:
                at = state[0]
                following = fn.mul(fn.add(at, tile.rows), self.spec.transform.outputs)
                ahead = fn.gep(ends[0][0], fn.mul(following, fields["o_1"]))
                self._products(tile, fn.gep(points, fn.mul(at, tile.itemsize)), panel.weights, products, ahead)
                self._outputs(panel, tile.rows, at, products, ends)
                return [fn.i64(fn.add(at, tile.rows))]

            (first,) = fn.loop(0, fields[f"{name}{int(panel.last)}"], 1, [first], some, guard=True, hint="tiles")

    def _products(self, tile: Tile, points: Value, weights: Value, products: Value, ahead: Value) -> None:
        """The sums of some tiles at every point, which ask for pixels from `ahead` on, those of the next tiles."""
        fn, fields, spec = self.fn, self.fields, self.spec
        row, size = tile.step_bytes, spec.transform.size
        apart: list[Index] = [i * tile.itemsize for i in range(tile.rows)]
        sum_ = Sum(fn, fields, tile, spec.reduction)
        asked = -(-tile.rows * spec.transform.outputs // size) if spec.fetch and not spec.past else 0

        def point(_: Value, state: list[Value]) -> list[Value]:
            for pixel in range(asked):
                for line in range(0, row, LINE):
                    fn.prefetch(fn.gep(state[3], fn.mul(fields["o_1"], pixel)), line, write=True)
            start, accs = sum_.start(state[1])
            cursor = PlaneCursor(fn, state[0], apart, fields["tile_pitch"])
            _, accs = sum_.run(cursor, spec.terms, start, accs, first=True)
            for i, acc in enumerate(sum_.finish(accs)):
                at, v = divmod(i, tile.vectors)
                fn.store(acc, state[2], at * size * row + v * tile.target.vector_bytes)
            steps: list[Index] = [fields["point_pitch"], spec.terms * row, row, fn.mul(fields["o_1"], asked)]
            return [fn.gep(place, step) for place, step in zip(state, steps, strict=True)]

        fn.loop(0, size, 1, [points, weights, products, ahead], point, hint="point")

    def _outputs(self, panel: _Panel, rows: int, first: Value, products: Value, ends: list[tuple[Value, str]]) -> None:
        """The outputs of some tiles from the `first` one on."""
        fn, fields, spec = self.fn, self.fields, self.spec
        outputs, step = spec.transform.outputs, spec.transform.size * panel.tile.step_bytes
        count: Index = rows
        if not spec.edge:
            count = fn.smin(rows, fn.sub(fn.add(fields["tile_last"], 1), first))

        def one(number: Value, state: list[Value]) -> list[Value]:
            at = fn.mul(fn.add(first, number), outputs)
            places = [(fn.gep(end, fn.mul(at, fields[f"{letter}_1"])), letter) for end, letter in ends]

            def some(count: int) -> list[Value]:
                self._tile(panel, state[0], places, count)
                return []

            if spec.edge == outputs:
                some(outputs)
            else:
                last = fn.cmp("eq", fn.add(first, number), fields["tile_last"])
                fn.if_(last, lambda: some(spec.edge), lambda: some(outputs), hint="edge")
            return [fn.gep(state[0], step)]

        fn.loop(0, count, 1, [products], one, hint="outputs")

    def _tile(self, panel: _Panel, products: Value, places: list[tuple[Value, str]], count: int) -> None:
        """The first `count` outputs of one tile, or as many as field `tile_edge` says (0)."""
        fn, spec, tile = self.fn, self.spec, panel.tile
        width, lanes, masks = tile.target.vector_bytes, tile.target.lanes(tile.dtype), tile.target.masks
        # Loaded for each tile: registers for all tiles would be taken from those of AVX2, which spills them.
        shifts = tile.row(fn, fn.opaque(panel.biases), 0) if panel.biases is not None else []
        for v in range(tile.vectors):
            channels = panel.valid if v == tile.vectors - 1 else lanes
            taken = [fn.load(tile.vec, products, i * tile.step_bytes + v * width) for i in range(spec.transform.size)]
            program = linear(spec.transform.results()).lazily(fn, taken, fused=tile.target.fma)

            def store(j: int, v: int, channels: int, value: Value) -> list[Value]:
                if shifts:
                    value = fn.binary("fadd", value, shifts[v])
                out, *extra = (
                    fn.gep(fn.gep(base, fn.mul(self.fields[f"{letter}_1"], j)), v * width) for base, letter in places
                )
                residual = load_lanes(fn, tile.vec, extra[0], channels, masks=masks) if extra else None
                value = spec.epilogue.apply(fn, value, residual)
                if spec.past and channels == lanes:
                    fn.stream(value, out, width)
                else:
                    store_lanes(fn, value, out, channels, masks=masks)
                return []

            for j in range(count or spec.transform.outputs):
                put = functools.partial(store, j, v, channels, program(j))
                if count or not j:
                    put()
                else:
                    fn.if_(fn.cmp("sgt", self.fields["tile_edge"], j), put, hint="exists")
