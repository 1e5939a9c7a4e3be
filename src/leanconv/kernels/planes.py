"""Few channels a group, pixels adjacent in the output: vectors of pixels along an output row.

A chunk copies the rows under a band of output rows, padded and with strides taken apart (`RowStage`), for the input
channels of one group into the thread's own memory, which stays in the first-level cache; then it computes the band of
every output channel of the group.  Every tap is a plain load at some distance, with no edges.

A tile is `height` output rows by `vectors` registers of pixels.  Small windows (`resident`) keep all weights in
registers while a row of tiles passes, and use every pixel for all output rows that it is under; larger ones load the
weights of one chunk of a row's taps at a time (see `TapOrder`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.planestage import PlaneStage, copies
from leanconv.kernels.planetile import PlaneTerms, PlaneTile
from leanconv.kernels.rowstage import RowStage
from leanconv.kernels.window import Window

APART = 1.8  # times the multiply-adds, where each loads pixels for itself


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """What a kernel is specialised for.

    Tiles are `height` rows by `vectors` registers; `low` and `narrow` say that some are one row or one register less.
    The last register of a row holds `valid` pixels.  Buffers: x, w (packed [channel][bias][taps][channels]), out,
    residual, scratch.  Fields: `{n,u,d,b}_{div,count}` split the chunk's number into image, groups, outer positions and
    band; `units` groups and `band` tiles a chunk, `unit_count`, `tile_count`, `tile_high` (those of full height),
    `wide_count`, `wide_long` (tiles of a row, and those of full width); `x_n x_g x_c o_n o_k r_n r_k`, `in{d} out{d}
    at{d}` as in `Image`; `outputs` of a group, `w_k` bytes of weights of one; `s_phase s_row s_slice s_channel` bytes
    of scratch between phases, rows, positions of the outermost of three dimensions, and channels; `s_bytes` in all.
    """

    target: Target
    dtype: str
    window: Window
    channels: int
    stage: RowStage
    height: int
    low: bool
    vectors: int
    narrow: bool
    valid: int
    resident: bool
    bias: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        Planes(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Rows copied once for each band that reads them, and tiles; loads hold up those that use each of them once."""
        lanes, item = self.target.lanes(self.dtype), 8 if self.dtype == "float64" else 4
        window = self.window
        planes = f["n_count"] * f["unit_count"] * f["outputs"]
        width, high = f[f"out{window.dims - 1}"], f[f"out{window.dims - 2}"] if window.dims > 1 else 1
        outer = f["out0"] if window.dims == 3 else 1
        registers = planes * outer * high * -(-width // lanes)
        taps = math.prod(window.kernel) * self.channels
        size = math.prod(f[f"in{d}"] for d in range(window.dims))
        pieces = bin(self.valid).count("1") if self.valid < lanes else 1
        counts = copies(self, f, f["n_count"] * f["unit_count"] * outer * f["b_count"]) | {
            "multiply": registers * taps * (1.0 if self.resident else APART),
            "tile": planes * outer * f["tile_count"] * f["wide_count"],
            "store": planes * outer * high * (pieces - 1),
        }
        source = f["n_count"] * size * f["unit_count"] * self.channels * item
        out = planes * outer * high * width * item
        return Cost(counts, ((source, source),), ((out, out),), chunks)


@dataclass(slots=True)
class Planes(PlaneStage):
    """Emits one kernel."""

    spec: PlaneSpec

    def run(self) -> None:
        """All groups of the chunk."""
        fn, fields = self.fn, self.fields
        image, units, outer, band = (self.kernel.index(letter) for letter in "nudb")
        first = fn.i64(fn.mul(band, fields["band"]))
        end = fn.i64(fn.smin(fn.add(first, fields["band"]), fields["tile_count"]))
        top, bottom = self._row_of(first), self._row_of(end)
        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        scratch = self._scratch()
        begin = fn.i64(fn.mul(units, fields["units"]))
        stop = fn.smin(fn.add(begin, fields["units"]), fields["unit_count"])

        def group(index: Value, _: list[Value]) -> list[Value]:
            self._fill(x, index, scratch, outer, top, bottom)
            channel = fn.mul(index, fields["outputs"])

            def output(at: Value, _: list[Value]) -> list[Value]:
                k = fn.add(channel, at)
                shift = fn.add(fn.mul(image, fields["o_n"]), fn.mul(k, fields["o_k"]))
                ends = [fn.gep(fields.buffer("out"), shift)]
                if self.spec.epilogue.residual:
                    shift = fn.add(fn.mul(image, fields["r_n"]), fn.mul(k, fields["r_k"]))
                    ends.append(fn.gep(fields.buffer("residual"), shift))
                weights = fn.gep(fields.buffer("w"), fn.mul(k, fields["w_k"]))
                self._output(scratch, weights, ends, outer, first, end, top)
                return []

            fn.loop(0, fields["outputs"], 1, [], output, hint="output")
            return []

        fn.loop(begin, stop, 1, [], group, hint="group")

    def _row_of(self, tile: Value) -> Value:
        """The first output row of a tile: the high ones come first."""
        fn, spec = self.fn, self.spec
        row = fn.mul(tile, spec.height)
        if spec.low:
            row = fn.sub(row, fn.smax(fn.sub(tile, self.fields["tile_high"]), 0))
        return fn.i64(row)

    def _fill(self, x: Value, group: Value, scratch: Value, outer: Index, top: Value, bottom: Value) -> None:
        """Have what output rows [top, bottom) of a group read in scratch; `x` is the image."""
        self._stage(self.fn.gep(x, self.fn.mul(group, self.fields["x_g"])), scratch, outer, top, bottom)

    def _output(
        self,
        scratch: Value,
        weights: Value,
        ends: list[Value],
        outer: Index,
        first: Value,
        end: Value,
        top: Value,
    ) -> None:
        """The band of one output channel."""
        fn, fields, spec = self.fn, self.fields, self.spec
        loaded = self._all_weights(fn.gep(weights, spec.bias * self._item)) if spec.resident else []
        width = fields[f"out{self._dims - 1}"]
        outer_row = fn.mul(outer, fields[f"out{self._dims - 2}"]) if self._dims == 3 else 0
        turn = fields["tile_high"] if spec.low else end
        for height in (spec.height, spec.height - 1) if spec.low else (spec.height,):
            low, high = (first, fn.smin(end, turn)) if height == spec.height else (fn.smax(first, turn), end)

            def tile(index: Value, _: list[Value], height: int = height) -> list[Value]:
                row = self._row_of(index)
                step = spec.window.stride[self._dims - 2] if self._dims > 1 else 1
                x = fn.gep(scratch, fn.mul(fn.mul(fn.sub(row, top), step), fields["s_row"]))
                place = fn.mul(fn.mul(fn.add(outer_row, row), width), self._item)
                self._row(height, x, weights, loaded, [fn.gep(e, place) for e in ends])
                return []

            fn.loop(fn.i64(low), high, 1, [], tile, guard=True, hint="tile")

    def _all_weights(self, weights: Value) -> list[Value]:
        """All weights of an output channel in registers, in the order [tap][channel]."""
        count = math.prod(self.spec.window.kernel) * self.spec.channels
        scalar = SCALARS[self.spec.dtype]
        return [self.fn.splat(self.fn.load(scalar, weights, i * self._item), self._lanes) for i in range(count)]

    def _row(self, height: int, x: Value, weights: Value, loaded: list[Value], ends: list[Value]) -> None:
        """All tiles of some rows."""
        fn, fields, spec = self.fn, self.fields, self.spec
        step = spec.target.vector_bytes
        last, count = fn.sub(fields["wide_count"], 1), fields["wide_long"]

        def tile(vectors: int, valid: int, register: Index) -> None:
            shift = fn.mul(register, step)
            moved = [fn.gep(end, shift) for end in ends]
            self._tile(PlaneTile(height, vectors, valid), fn.gep(x, shift), weights, loaded, moved)

        def register_of(index: Index, vectors: int) -> Index:
            register = fn.mul(index, spec.vectors)
            return register if vectors == spec.vectors else fn.sub(register, fn.sub(index, count))

        # The last tile is written apart if its last register is not full.
        partial = spec.valid < self._lanes
        stop = last if partial else fields["wide_count"]
        for vectors in (spec.vectors, spec.vectors - 1) if spec.narrow else (spec.vectors,):
            low: Index = 0
            high: Index = stop
            if spec.narrow:
                low, high = (0, fn.smin(count, stop)) if vectors == spec.vectors else (count, stop)

            def body(index: Value, _: list[Value], vectors: int = vectors) -> list[Value]:
                tile(vectors, self._lanes, register_of(index, vectors))
                return []

            fn.loop(low, high, 1, [], body, guard=True, hint="wide")
        if partial:
            vectors = spec.vectors - 1 if spec.narrow else spec.vectors
            tile(vectors, spec.valid, register_of(last, vectors))

    def _tile(self, tile: PlaneTile, x: Value, weights: Value, loaded: list[Value], ends: list[Value]) -> None:
        """One tile: its sums, then the output step."""
        fn, fields, spec = self.fn, self.fields, self.spec
        step, masks = spec.target.vector_bytes, spec.target.masks
        start = fn.const(self._kind, 0.0)
        if spec.bias:
            start = fn.splat(fn.load(SCALARS[spec.dtype], weights), self._lanes)
            weights = fn.gep(weights, self._item)
        terms = PlaneTerms(fn, fields, spec.target, spec.dtype, spec.window, spec.channels, tile)
        sums = [start] * (tile.height * tile.vectors)
        sums = terms.resident(x, loaded, sums) if spec.resident else terms.general(x, weights, sums)
        pitch = fn.mul(fields[f"out{self._dims - 1}"], self._item)
        for j in range(tile.height):
            rows = [fn.gep(end, fn.mul(pitch, j)) for end in ends]
            for v in range(tile.vectors):
                valid = tile.valid if v == tile.vectors - 1 else self._lanes
                extra = None
                if len(rows) > 1:
                    extra = load_lanes(fn, self._kind, fn.gep(rows[1], v * step), valid, masks=masks)
                value = spec.epilogue.apply(fn, sums[j * tile.vectors + v], extra)
                store_lanes(fn, value, fn.gep(rows[0], v * step), valid, masks=masks)
