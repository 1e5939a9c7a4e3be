"""Few channels first: tiles of output channels by vectors of pixels of one row, over rows copied with their pads.

The rows under a band of output rows are copied into the thread's own memory, padded and with strides taken apart
(`rowstage`), for all channels of the group, so that every term of a sum is a vector of adjacent pixels.  A tile is
stored as it stands, in whole lines where the output's rows are; tiles of pixels by output channels are transposed, and
write a part of a line to each of many planes.  A panel of output channels passes the whole band, row by row, before the
next one does: twelve planes at most are written at one time, a page of each.

The order of each sum is that of the core, so are its bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import I64, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import LATENCY, Cost
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.planestage import PlaneStage, copies, tap_distance
from leanconv.kernels.planesum import ENTRY, PlaneSum
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.rowstage import RowStage
from leanconv.kernels.tile import Tile
from leanconv.kernels.window import Window


@dataclass(frozen=True, slots=True)
class PlaneBandSpec:
    """What a kernel is specialised for; one chunk is one (image, group, outer position, band of output rows).

    `rows` output channels a panel, `short` whether the last panels are one shorter; tiles are `vectors` registers of
    pixels, `narrow` says that the last ones of a row are one less, and the last register of a row holds `valid` pixels.
    `past`: the output is stored past the caches if it begins at a multiple of a register's size.

    Buffers: x, w (packed as for `ColumnSpec`), out, residual, scratch.  Fields: `{n,g,d,b}_{div,count}`; `band` output
    rows a chunk, `row_count` in all; `wide_count wide_long` tiles of a row, and those of full width; `panel_count
    panel_long w_g w_row x_n x_g o_n o_g o_k r_n r_g r_k` as in `ColumnSpec`; `out{d}`; those of `PlaneStage`.
    """

    target: Target
    dtype: str
    window: Window
    channels: int
    stage: RowStage
    reduction: Reduction
    rows: int
    short: bool
    vectors: int
    narrow: bool
    valid: int
    bias: bool
    epilogue: Epilogue
    past: bool

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Emitter(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Rows copied once for each band that reads them, and tiles, two of whose three loads of pixels cross lines."""
        item = 8 if self.dtype == "float64" else 4
        short, narrow = f["panel_count"] - f["panel_long"], f["wide_count"] - f["wide_long"]
        panels = ((self.rows, f["panel_long"]), (self.rows - 1, short))
        tiles = ((self.vectors, f["wide_long"]), (self.vectors - 1, narrow))
        slots = sum(
            panel_count * count * max(rows * vectors, rows + 5 / 3 * vectors, LATENCY)
            for rows, panel_count in panels
            for vectors, count in tiles
        )
        outputs = sum(rows * count for rows, count in panels)
        lines = f["n_count"] * f["g_count"] * f["d_count"] * f["row_count"]
        counts = copies(self, f, f["n_count"] * f["g_count"] * f["d_count"] * f["b_count"])
        if "vector" in counts:
            counts["vector"] *= COPIED
        counts["multiply"] = lines * math.prod(self.window.kernel) * self.channels * slots
        counts["tile"] = lines * f["panel_count"] * f["wide_count"]
        counts["store"] = lines * outputs * sum(vectors * count for vectors, count in tiles)
        source = f["n_count"] * f["g_count"] * self.channels * item
        source *= math.prod(f[f"in{d}"] for d in range(self.window.dims))
        out = lines * outputs * f[f"out{self.window.dims - 1}"] * item
        return Cost(counts, ((source, source),), ((out / 2, out),), chunks)  # whole lines, one behind the other


COPIED = 6  # vectors copied that one takes the time of here: it crosses lines, and none of an image is near
End = tuple[Value, str]  # an address in output or residual, and the first letter of its fields


@dataclass(slots=True)
class _Panel:
    """Some output channels: how many, the table of distances, and their packed weights."""

    rows: int
    table: Value
    weights: Value


@dataclass(slots=True)
class _Emitter(PlaneStage):
    """Emits one kernel: panels outermost, then rows of the band, then tiles."""

    spec: PlaneBandSpec
    pads = True

    def run(self) -> None:
        """Copy the rows of the band, then compute it."""
        fn, fields = self.fn, self.fields
        image, group, outer, band = (self.kernel.index(letter) for letter in "ngdb")
        top = fn.i64(fn.mul(band, fields["band"]))
        bottom = fn.i64(fn.smin(fn.add(top, fields["band"]), fields["row_count"]))

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(group, fields[f"{letter}_g"]))
            return fn.gep(fields.buffer(role), offset)

        scratch, table = self._scratch(), self._table()
        self._stage(moved("x", "x"), scratch, outer, top, bottom)
        line = fn.add(fn.mul(outer, fields["row_count"]), top) if self._dims == 3 else top
        first = fn.mul(fn.mul(line, fields[f"out{self._dims - 1}"]), self._item)
        out = moved("out", "o")
        ends = [(fn.gep(out, first), "o")]
        if self.spec.epilogue.residual:
            ends.append((fn.gep(moved("residual", "r"), first), "r"))
        weights = fn.gep(fields.buffer("w"), fn.mul(group, fields["w_g"]))
        count = fn.i64(fn.sub(bottom, top))
        if not self.spec.past:
            self._panels(scratch, table, weights, ends, count)
            return
        near = replace(self, spec=replace(self.spec, past=False))

        def past() -> list[Value]:
            self._panels(scratch, table, weights, ends, count)
            fn.stream_end(self.spec.target.triple)
            return []

        def through() -> list[Value]:
            near._panels(scratch, table, weights, ends, count)
            return []

        address = fn.op(I64, f"ptrtoint ptr {out.name} to i64")
        whole = fn.cmp("eq", fn.urem(address, self.spec.target.vector_bytes), 0)
        fn.if_(whole, past, through, hint="past")

    def _table(self) -> Value:
        """Bytes from the first pixel under a tile to that of each term: taps outermost, channels innermost."""
        fn, fields, window, channels = self.fn, self.fields, self.spec.window, self.spec.channels
        last = self._dims - 1
        table = fn.alloca(math.prod(window.kernel) * channels * ENTRY)

        def distance(dim: int, tap: Value) -> Index:
            if dim == last:
                return tap_distance(fn, fields, window, self._item, tap)
            if dim == last - 1:
                return fn.mul(fn.mul(tap, window.dilation[dim]), fields["s_row"])
            return fn.mul(tap, fields["s_slice"])  # of three dimensions the first is copied tap by tap

        def level(dim: int, offset: Index, entry: Index) -> None:
            if dim > last:
                for channel in range(channels):
                    at = fn.add(offset, fn.mul(fields["s_channel"], channel))
                    fn.store(fn.i64(at), fn.gep(table, fn.mul(fn.add(entry, channel), ENTRY)))
                return
            inner = math.prod(window.kernel[dim + 1 :]) * channels

            def tap(at: Value, _: list[Value]) -> list[Value]:
                level(dim + 1, fn.add(offset, distance(dim, at)), fn.add(entry, fn.mul(at, inner)))
                return []

            fn.loop(0, window.kernel[dim], 1, [], tap, hint="term")

        level(0, 0, 0)
        return table

    def _panels(self, x: Value, table: Value, weights: Value, ends: list[End], count: Value) -> None:
        """All panels of output channels, `count` rows of each; `ends` are where those of the first channel begin."""
        fn, fields, spec, dim = self.fn, self.fields, self.spec, self._dims - 1
        step = fn.mul(fields["s_row"], spec.window.stride[dim - 1] if dim else 1)
        width = fn.mul(fields[f"out{dim}"], self._item)
        long = fields["panel_long"]
        spans: list[tuple[int, Index, Index]] = [(spec.rows, 0, long)]
        if spec.short:
            spans.append((spec.rows - 1, long, fields["panel_count"]))
        for rows, begin, end in spans:

            def panel(at: Value, _: list[Value], rows: int = rows) -> list[Value]:
                # Panels before this one hold rows * at channels, less one for each short panel among them.
                channel = fn.mul(at, spec.rows)
                if rows < spec.rows:
                    channel = fn.sub(channel, fn.sub(at, long))
                this = _Panel(rows, table, fn.gep(weights, fn.mul(channel, fields["w_row"])))
                first = [fn.gep(base, fn.mul(channel, fields[f"{letter}_k"])) for base, letter in ends]

                def row(_: Value, state: list[Value]) -> list[Value]:
                    letters = (letter for _, letter in ends)
                    self._row(this, state[0], list(zip(state[1:], letters, strict=True)))
                    return [fn.gep(state[0], step), *(fn.gep(place, width) for place in state[1:])]

                fn.loop(0, count, 1, [x, *first], row, hint="row")
                return []

            fn.loop(begin, end, 1, [], panel, guard=True, hint="panel")

    def _row(self, panel: _Panel, x: Value, ends: list[End]) -> None:
        """All tiles of a row: wide ones, then narrow ones; the last apart if its last register is not full."""
        fn, fields, spec = self.fn, self.fields, self.spec
        partial = spec.valid < self._lanes
        stop = fn.sub(fields["wide_count"], 1) if partial else fields["wide_count"]

        def tile(vectors: int, valid: int, number: Index) -> None:
            register = fn.mul(number, spec.vectors)
            if vectors < spec.vectors:
                register = fn.sub(register, fn.sub(number, fields["wide_long"]))
            shift = fn.mul(register, spec.target.vector_bytes)
            shape = Tile(spec.target, spec.dtype, panel.rows, vectors, spec.bias)
            sum_ = PlaneSum(fn, fields, shape, spec.reduction, place=fn.gep(x, shift))
            accs = sum_.band_sums(panel.table, panel.weights, spec.channels)
            self._store(shape, valid, accs, [(fn.gep(base, shift), letter) for base, letter in ends])

        spans: list[tuple[int, Index, Index]] = [(spec.vectors, 0, stop)]
        if spec.narrow:
            long = fields["wide_long"]
            spans = [(spec.vectors, 0, fn.smin(long, stop)), (spec.vectors - 1, long, stop)]
        for vectors, begin, end in spans:

            def body(number: Value, _: list[Value], vectors: int = vectors) -> list[Value]:
                tile(vectors, self._lanes, number)
                return []

            fn.loop(begin, end, 1, [], body, guard=True, hint="wide")
        if partial:
            tile(spec.vectors - spec.narrow, spec.valid, stop)

    def _store(self, shape: Tile, valid: int, accs: list[Value], ends: list[End]) -> None:
        """The output step: each register where it belongs in its plane; `valid` pixels of the last one of a row."""
        fn, spec, masks, width = self.fn, self.spec, self.spec.target.masks, self.spec.target.vector_bytes
        for i in range(shape.rows):
            places = [fn.gep(base, fn.mul(self.fields[f"{letter}_k"], i)) for base, letter in ends]
            for v in range(shape.vectors):
                count = valid if v == shape.vectors - 1 else self._lanes
                place, *others = (fn.gep(base, v * width) for base in places)
                extra = load_lanes(fn, shape.vec, others[0], count, masks=masks) if others else None
                value = spec.epilogue.apply(fn, accs[i * shape.vectors + v], extra)
                if spec.past:
                    fn.stream(value, place, width)
                else:
                    store_lanes(fn, value, place, count, masks=masks)
