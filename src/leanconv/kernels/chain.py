"""Layers one after another in one kernel, band by band: no tensor between two of them is ever whole.

A chunk is some output rows of one image.  It goes down its rows a band at a time.  From the last layer to the first it
works out which rows each layer has to have; from the first to the last it computes those that are not there yet.  Rows
of the band before that are needed again are moved up; a layer none of whose followers has windows over several rows
keeps none.  Between layers channels are adjacent; the first reads and the last writes arrays as the caller has them.

    x rows ---layer 0---> [rows, W, C0] ---layer 1---> [rows, Q, C1] --- ... ---> out rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.channelstrips import Channelwise
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.copy import copy_run
from leanconv.kernels.cost import Cost
from leanconv.kernels.dense import DenseSpec, panel_tiles
from leanconv.kernels.fields import Fields, KernelFunction, Prefixed
from leanconv.kernels.panels import each_panel
from leanconv.kernels.tile import Tile

Span = tuple[Value, Value]

LOADS = 1.4  # times the multiply-adds of a layer on vectors of channels, where a row of taps is short


def prefix(layer: int) -> str:
    """What the names of a layer's fields and buffers begin with."""
    return f"layer{layer}_"


@dataclass(frozen=True, slots=True)
class RowWindow:
    """The windows of a layer along the rows of the image."""

    kernel: int
    stride: int
    dilation: int
    pad_low: int

    @property
    def reach(self) -> int:
        """Rows from the first tap to behind the last one."""
        return (self.kernel - 1) * self.dilation + 1

    def span(self, first: int, end: int, size: int) -> tuple[int, int]:
        """The rows of an image of `size` rows under output rows [first, end), as the kernel works them out."""
        high = min(max((end - 1) * self.stride - self.pad_low + self.reach, 0), size)
        return min(max(first * self.stride - self.pad_low, 0), high), high


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """What a kernel is specialised for: the kernels of the layers and their windows along the rows.

    Buffers: x, out, residual, layer{i}_w (packed), between{i} (of each thread: the rows that layer i writes).
    Fields: `{n,b}_{div,count}` split the chunk's number into image and block; `block` output rows a chunk, `band` at a
    time, `row_count`; `x_n o_n r_n` bytes between images; those of the layers' kernels with "layer{i}_", and
    `layer{i}_row_count` output rows of a layer, `layer{i}_width` pixels of each, `layer{i}_pitch` bytes of each.
    """

    target: Target
    dtype: str
    layers: tuple[DenseSpec | ChannelwiseSpec, ...]
    windows: tuple[RowWindow, ...]

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Chain(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """The sums of all layers; traffic of the first and the last, what lies between stays in the cache."""
        counts: dict[str, float] = {}
        images, last = f["n_count"], len(self.layers) - 1
        ends: list[tuple[tuple[float, float], ...]] = []
        for i, layer in enumerate(self.layers):
            own = {name.removeprefix(prefix(i)): value for name, value in f.items() if name.startswith(prefix(i))}
            if isinstance(layer, DenseSpec):
                found = _core_cost(layer, own, images)
            else:
                found = layer.cost({**own, "n_count": images}, chunks, host)
            for name, count in found.counts.items():
                # Between rows in one cache, vectors of channels are held up by their loads.
                held = LOADS if name == "multiply" and isinstance(layer, ChannelwiseSpec) else 1.0
                counts[name] = counts.get(name, 0.0) + count * held
            ends += [found.reads] if i == 0 else [found.writes] if i == last else []
        return Cost(counts, ends[0], ends[-1], chunks)


def _core_cost(spec: DenseSpec, f: Mapping[str, int], images: int) -> Cost:
    """The register-tiled core over all pixels of a layer."""
    lanes, item = spec.target.lanes(spec.dtype), 8 if spec.dtype == "float64" else 4
    registers = f["panel_whole"] * spec.panels.vectors + spec.panels.last
    steps = f["w_panel"] // (spec.panels.vectors * spec.target.vector_bytes) - spec.bias
    pixels = images * f["row_count"] * f["width"]
    counts = {"multiply": float(pixels * registers * steps), "tile": pixels * f["panel_count"] / spec.rows[0]}
    taps = math.prod(spec.reduction.kernel)
    counts["tap"] = counts["tile"] * taps
    if spec.columns:
        counts["turn"] = float(pixels * registers)
    read, written = float(pixels * steps // taps * item), float(pixels * registers * lanes * item)
    return Cost(counts, ((read, read),), ((written, written),))


def kept(windows: Sequence[RowWindow]) -> tuple[bool, ...]:
    """For each layer, whether later bands need rows of it again."""
    return tuple(any(w.kernel > 1 for w in windows[i + 1 :]) for i in range(len(windows)))


def fresh_rows(windows: Sequence[RowWindow], fields: Mapping[str, int]) -> list[set[int]]:
    """How many rows of each layer are computed at a time, as the kernel will do it: tiles have to cover them."""
    count, keeps = len(windows), kept(windows)
    found: list[set[int]] = [set() for _ in range(count)]
    sizes = [fields[f"{prefix(i)}row_count"] for i in range(count)]
    rows = fields["row_count"]
    for first in range(0, rows, fields["block"]):
        stop_all, have = min(first + fields["block"], rows), [0] * count
        for row in range(first, stop_all, fields["band"]):
            span = row, min(row + fields["band"], stop_all)
            for i in reversed(range(count)):
                begin = min(max(span[0], have[i]), span[1]) if keeps[i] else span[0]
                found[i].add(span[1] - begin)
                have[i] = span[1]
                if i:
                    span = windows[i].span(*span, sizes[i - 1])
    return [counts - {0} for counts in found]


@dataclass(slots=True)
class _Chain:
    """Emits one kernel."""

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: ChainSpec

    def run(self) -> None:
        """All bands of the chunk."""
        kernel, fn, fields = self.kernel, self.fn, self.fields
        image, block = kernel.index("n"), kernel.index("b")
        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        out = fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"]))
        residual = None
        if self.spec.layers[-1].epilogue.residual:
            residual = fn.gep(fields.buffer("residual"), fn.mul(image, fields["r_n"]))
        first = fn.i64(fn.mul(block, fields["block"]))
        end = fn.i64(fn.smin(fn.add(first, fields["block"]), fields["row_count"]))
        last, keeps = len(self.spec.layers) - 1, kept(self.spec.windows)
        between = [
            fn.gep(fields.buffer(f"between{i}"), fn.mul(kernel.thread, fields[f"thread_between{i}"]))
            for i in range(last)
        ]

        def band(row: Value, state: list[Value]) -> list[Value]:
            spans: list[Span] = [(row, fn.i64(fn.smin(fn.add(row, fields["band"]), end)))]
            for i in reversed(range(1, last + 1)):
                spans.insert(0, self._read(i, spans[0]))
            source = x
            for i, span in enumerate(spans):
                begin = span[0]
                if keeps[i]:
                    begin = self._keep(i, between[i], span, (state[2 * i], state[2 * i + 1]))
                target, extra = out, residual
                if i < last:
                    target, extra = self._row_zero(i, between[i], span[0]), None
                self._compute(i, source, target, extra, (begin, span[1]))
                source = target
            return [end for span in spans for end in span]

        # Before the first band there are no rows yet: what is held ends where it begins.
        fn.loop(first, end, fields["band"], [fn.i64(0)] * (2 * last + 2), band, hint="band")

    def _read(self, layer: int, span: Span) -> Span:
        """The rows that a layer reads for its output rows [first, end)."""
        fn, window = self.fn, self.spec.windows[layer]
        if window == RowWindow(1, 1, 1, 0):
            return span
        size = self.fields[f"{prefix(layer - 1)}row_count"]
        top = fn.sub(fn.mul(span[0], window.stride), window.pad_low)
        bottom = fn.sub(fn.mul(fn.sub(span[1], 1), window.stride), window.pad_low)
        high = fn.i64(fn.smin(fn.smax(fn.add(bottom, window.reach), 0), size))
        return fn.i64(fn.smin(fn.smax(top, 0), high)), high

    def _row_zero(self, layer: int, buffer: Value, low: Value) -> Value:
        """Where row 0 of a layer's output would be, if row `low` is at the start of its buffer."""
        fn = self.fn
        return fn.gep(buffer, fn.sub(0, fn.mul(low, self.fields[f"{prefix(layer)}pitch"])))

    def _keep(self, layer: int, buffer: Value, span: Span, held: Span) -> Value:
        """Move up the rows [low, ...) of a layer that are there already; returns the first one that is not."""
        fn, (low, high) = self.fn, span
        pitch = self.fields[f"{prefix(layer)}pitch"]
        fresh = fn.i64(fn.smin(fn.smax(low, held[1]), high))
        keep = fn.sub(fresh, low)
        item = 8 if self.spec.dtype == "float64" else 4

        def move() -> list[Value]:
            kind = vector(SCALARS[self.spec.dtype], self.spec.target.lanes(self.spec.dtype))
            source = fn.gep(buffer, fn.mul(fn.sub(low, held[0]), pitch))
            copy_run(fn, kind, fn.udiv(fn.mul(keep, pitch), item), source, buffer, (item, item), True)
            return []

        fn.if_(fn.both(fn.cmp("sgt", keep, 0), fn.cmp("sgt", low, held[0])), move, hint="keep")
        return fresh

    def _compute(self, layer: int, source: Value, target: Value, residual: Value | None, rows: Span) -> None:
        """Output rows [first, end) of a layer; the addresses are those of row 0."""
        fn, spec = self.fn, self.spec.layers[layer]

        def body() -> list[Value]:
            own = Prefixed(self.fields, prefix(layer))
            if isinstance(spec, DenseSpec):
                self._dense(own, spec, source, target, residual, rows)
            else:
                zero = fn.i64(0)
                Channelwise(fn, own, spec, source, own.buffer("w"), target, residual).run(
                    rows, (zero, own["strip_count"]), (zero, own["unit_count"])
                )
            return []

        if kept(self.spec.windows)[layer]:
            fn.if_(fn.cmp("slt", rows[0], rows[1]), body, hint="fresh")
        else:
            body()

    def _dense(
        self, own: Fields, spec: DenseSpec, source: Value, target: Value, residual: Value | None, rows: Span
    ) -> None:
        """The register-tiled core over some rows."""
        fn = self.fn
        begin, end = (fn.i64(fn.mul(row, own["width"])) for row in rows)
        start = spec.source.start(fn, own, begin)

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias)
            w = fn.gep(own.buffer("w"), fn.mul(at, own["w_panel"]))
            panel_tiles(fn, own, spec, tile, valid, source, w, target, residual, at, begin, end, start)

        span: tuple[Index, Index] = fn.i64(0), own["panel_count"]
        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, panel)  # type: ignore[arg-type]
