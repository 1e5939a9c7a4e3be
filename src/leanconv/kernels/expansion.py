"""Expand (1x1) and depthwise in one kernel, section by section: the tensor between the two layers is never whole.

A section of the middle channels is a panel of the expansion, two registers. The core expands the input rows that a band
of output rows has not yet into a slab of the section's own (rows of the band before that are needed again are moved
up), and the depthwise kernel reads them while they are near.

    x rows ---expand---> [rows, W, 2 registers] ---depthwise---> [band, Q, channels]

`ExpansionSpec` is a kernel of its own, whose chunks are runs of sections in blocks of rows: what it stores all threads
share, and read in the next phase. `inverted` goes on with a thread's own bands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channelstrips import Channelwise
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.copy import copy_run
from leanconv.kernels.dense import DenseSpec, panel_tiles
from leanconv.kernels.fields import Fields, KernelFunction, Prefixed
from leanconv.kernels.panels import each_panel
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class ExpansionSpec:
    """What a kernel is specialised for: the two layers.

    `depthwise` filters a section of a whole panel (or the only one), `narrow` the last section if it is narrower.
    Buffers: x, expand_w, depthwise_w (packed), expanded (of each thread), filtered (shared). Fields: `s_*`, `b_*` for
    the chunk, `sections` and `block` output rows of it, `first_section` and `end_section` of the phase, `band` rows at
    a time, `row_count`; those of the dense kernel with "expand_", those of the depthwise kernels with "depthwise_"
    and "narrow_"; `section_w` bytes of packed depthwise weights a section, `section_out` bytes of its channels.
    """

    target: Target
    dtype: str
    expand: DenseSpec
    depthwise: ChannelwiseSpec
    narrow: ChannelwiseSpec | None

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        slab = fn.gep(fields.buffer("expanded"), fn.mul(kernel.thread, fields["thread_expanded"]))
        rows, expansion = fn.i64(fn.mul(kernel.index("b"), fields["block"])), Expansion(fn, fields, self)
        begin = fn.i64(fn.add(fn.mul(kernel.index("s"), fields["sections"]), fields["first_section"]))
        end = fn.i64(fn.smin(fn.add(begin, fields["sections"]), fields["end_section"]))

        def section(at: Value, _: list[Value]) -> list[Value]:
            place = fn.mul(fn.sub(at, fields["first_section"]), fields["section_out"])
            span, filtered = (at, fn.i64(fn.add(at, 1))), fn.gep(fields.buffer("filtered"), place)

            def band(rows: Band) -> None:
                expansion.sections(span, fields.buffer("x"), slab, filtered, rows)

            expansion.bands(rows, band)
            return []

        fn.loop(begin, end, 1, [], section, hint="section")
        return kernel.finish()


class Between(NamedTuple):
    """Rows that a chunk shares with its neighbours: it reads those before `first` `above`, and from `end` on `below`.

    These are addresses of input row 0 of the first section.
    """

    first: Value
    end: Value
    above: Value
    below: Value


class Band(NamedTuple):
    """Output rows [row, stop), and input rows under them.

    Slabs hold those from `held` on, of which [low, fresh) stay; [fresh, high) come.
    """

    row: Value
    stop: Value
    held: Value
    low: Value
    fresh: Value
    high: Value


@dataclass(slots=True)
class Expansion:
    """Emits the two layers of a band."""

    fn: Function
    fields: Fields
    spec: ExpansionSpec

    def bands(self, first: Index, body: Callable[[Band], None]) -> None:
        """Emit the loop over the bands of a block of rows."""
        fn, fields = self.fn, self.fields
        first = fn.i64(first)
        end = fn.i64(fn.smin(fn.add(first, fields["block"]), fields["row_count"]))

        def band(row: Value, state: list[Value]) -> list[Value]:
            stop = fn.i64(fn.smin(fn.add(row, fields["band"]), end))
            rows = self._rows(row, stop, *state)
            body(rows)
            return [rows.low, rows.high]

        # Before the first band there are no rows yet: what is held ends where it begins.
        fn.loop(first, end, fields["band"], [fn.i64(0)] * 2, band, hint="band")

    def _rows(self, row: Value, stop: Value, held: Value, held_end: Value) -> Band:
        """The band of output rows [row, stop); slabs hold `held` to `held_end` from the one before."""
        fn, window = self.fn, self.spec.depthwise.window
        height = self.fields["depthwise_in0"]
        top = fn.sub(fn.mul(row, window.stride[0]), window.pad_low[0])
        bottom = fn.sub(fn.mul(fn.sub(stop, 1), window.stride[0]), window.pad_low[0])
        bottom = fn.add(bottom, (window.kernel[0] - 1) * window.dilation[0] + 1)
        high = fn.i64(fn.smin(fn.smax(bottom, 0), height))
        low = fn.i64(fn.smin(fn.smax(top, 0), high))
        return Band(row, stop, held, low, fn.i64(fn.smin(fn.smax(low, held_end), high)), high)

    def sections(
        self,
        span: tuple[Value, Value],
        x: Value,
        slabs: Value,
        filtered: Value,
        rows: Band,
        between: Between | None = None,
    ) -> None:
        """Expand and filter the sections of a span; `filtered` is where the first channel of output row 0 goes."""
        fn, fields = self.fn, self.fields
        own, spec = Prefixed(fields, "expand_"), self.spec.expand
        pitch, item = fields["depthwise_at0"], 8 if self.spec.dtype == "float64" else 4
        width = fields["depthwise_in1"]
        first, stop = rows.fresh, rows.high
        if between is not None:
            first, stop = fn.i64(fn.smax(first, between.first)), fn.i64(fn.smin(stop, between.end))
        begin, end = fn.i64(fn.mul(first, width)), fn.i64(fn.mul(stop, width))
        keep = fn.sub(rows.fresh, rows.low)
        kept = fn.both(fn.cmp("sgt", keep, 0), fn.cmp("sgt", rows.low, rows.held))
        start = spec.source.start(fn, own, begin)
        later = own["w_panel"] if spec.later else None

        def section(at: Value, vectors: int, valid: int, last: bool) -> None:
            place = fn.sub(at, span[0])
            slab = fn.gep(slabs, fn.mul(place, own["o_panel"]))

            def copy(count: Index, source: Value, target: Value) -> list[Value]:
                vec = vector(SCALARS[self.spec.dtype], self.spec.target.lanes(self.spec.dtype))
                copy_run(fn, vec, fn.udiv(fn.mul(count, pitch), item), source, target, (item, item), True)
                return []

            def shared(low: Value, high: Value, source: Value) -> None:
                """Rows [low, high) of this section, if there are any."""
                place = fn.gep(source, fn.add(fn.mul(at, fields["shared_section"]), fn.mul(low, pitch)))
                target = fn.gep(slab, fn.mul(fn.sub(low, rows.low), pitch))
                fn.if_(fn.cmp("slt", low, high), lambda: copy(fn.sub(high, low), place, target), hint="shared")

            held = fn.gep(slab, fn.mul(fn.sub(rows.low, rows.held), pitch))
            fn.if_(kept, lambda: copy(keep, held, slab), hint="keep")
            if between is not None:
                shared(rows.fresh, fn.i64(fn.smin(rows.high, between.first)), between.above)
                shared(fn.i64(fn.smax(rows.fresh, between.end)), rows.high, between.below)

            def compute() -> list[Value]:
                tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
                w = fn.gep(own.buffer("w"), fn.mul(at, own["w_panel"]))
                target = fn.gep(slab, fn.sub(0, fn.mul(rows.low, pitch)))
                panel_tiles(fn, own, spec, tile, valid, x, w, target, None, fn.i64(0), begin, end, start, None, later)
                return []

            fn.if_(fn.cmp("slt", first, stop), compute, hint="fresh")
            self._filter(at, slab, fn.gep(filtered, fn.mul(place, fields["section_out"])), rows, narrow=last)

        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, section)

    def _filter(self, section: Value, slab: Value, out: Value, rows: Band, *, narrow: bool) -> None:
        """The depthwise outputs of a band of a section, whose slab begins with input row `low`."""
        fn, narrow = self.fn, narrow and self.spec.narrow is not None
        own = Prefixed(self.fields, "narrow_" if narrow else "depthwise_")
        spec = self.spec.narrow if narrow else self.spec.depthwise
        assert spec is not None
        source = fn.gep(slab, fn.sub(0, fn.mul(rows.low, own["at0"])))
        weights = fn.gep(self.fields.buffer("depthwise_w"), fn.mul(section, self.fields["section_w"]))
        zero = fn.i64(0)
        Channelwise(fn, own, spec, source, weights, out, None).run(
            (rows.row, rows.stop), (zero, own["strip_count"]), (zero, own["unit_count"])
        )
