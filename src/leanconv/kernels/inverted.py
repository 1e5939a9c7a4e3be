"""Expand, depthwise, project in one kernel: neither tensor between the three layers is ever whole.

A chunk is some output rows of one image.  It goes down its rows band by band.  Of each section of the middle channels
(a panel of the expansion, two registers) the core expands the input rows that the band has not yet, into a slab of the
section's own (rows of the band before that are needed again are moved up), and the depthwise kernel reads them while
they are near.  Then the core projects the band.

    x rows ---expand---> [section][rows, W, 2 registers] ---depthwise---> [band, Q, channels] ---project---> out

Where memory for the channels of a band is not there, a chunk takes one group of sections after the other, and each adds
its part of the projection to the output.  Where an image has few rows, of which each chunk would expand some again,
chunks are halves of the groups as well: one adds up in the output, the other in a buffer of the same shape.
"""

from __future__ import annotations

from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channelstrips import Channelwise
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.copy import copy_run
from leanconv.kernels.core import Sum
from leanconv.kernels.dense import DenseSpec, panel_tiles
from leanconv.kernels.fields import Fields, KernelFunction, Overlaid, Prefixed
from leanconv.kernels.output import Output
from leanconv.kernels.panels import each_panel
from leanconv.kernels.sections import REACH
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class InvertedSpec:
    """What a kernel is specialised for: the three layers.

    `depthwise` filters a section of a whole panel (or the only one), `narrow` the last section if it is narrower;
    `groups`: whether there are several; `residual`: whether x is added to the result; `parts`: whether a chunk is one
    half of the groups.  Buffers: x, out, expand_w, depthwise_w, project_w (packed), expanded, filtered (of each
    thread), second (the other half's output).  Fields: `n_*`, `b_*`, `p_*` for the chunk, `block` output rows of it,
    `band` rows at a time, `row_count`, `groups`, `group_sections`, `group_rows` channels of a group, `rows` of all,
    `x_n o_n` bytes between images; those of the dense kernels with "expand_" and "project_", those of the depthwise
    kernels with "depthwise_" and "narrow_"; `section_w` bytes of packed depthwise weights a section, `section_out`
    bytes of its channels.
    """

    target: Target
    dtype: str
    expand: DenseSpec
    depthwise: ChannelwiseSpec
    narrow: ChannelwiseSpec | None
    project: DenseSpec
    groups: bool
    residual: bool
    parts: bool = False

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Inverted(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()


class Rows(NamedTuple):
    """Input rows under a band: slabs hold those from `held` on, of which [low, fresh) stay; [fresh, high) come."""

    held: Value
    low: Value
    fresh: Value
    high: Value


@dataclass(slots=True)
class _Inverted:
    """Emits one kernel."""

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: InvertedSpec

    def run(self) -> None:
        """All groups and bands of the chunk."""
        kernel, fn, fields = self.kernel, self.fn, self.fields
        image, block = kernel.index("n"), kernel.index("b")
        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        out = fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"]))
        first = fn.i64(fn.mul(block, fields["block"]))
        end = fn.i64(fn.smin(fn.add(first, fields["block"]), fields["row_count"]))
        scratch = [
            fn.gep(fields.buffer(name), fn.mul(kernel.thread, fields[f"thread_{name}"]))
            for name in ("expanded", "filtered")
        ]

        low_group, high_group = fn.i64(0), fields["groups"]
        if self.spec.parts:
            part = kernel.index("p")
            low_group, high_group = (fn.i64(fn.udiv(fn.mul(fields["groups"], n), 2)) for n in (part, fn.add(part, 1)))
            second = fn.gep(fields.buffer("second"), fn.mul(image, fields["o_n"]))
            out = fn.select(fn.cmp("eq", part, 0), out, second)

        def group(index: Value, _: list[Value]) -> list[Value]:
            sections = fn.i64(fn.mul(index, fields["group_sections"])), fields["expand_panel_count"]
            if self.spec.groups:
                sections = sections[0], fn.i64(fn.smin(sections[1], fn.add(sections[0], fields["group_sections"])))
            none = fn.i64(0)

            def band(row: Value, state: list[Value]) -> list[Value]:
                stop = fn.i64(fn.smin(fn.add(row, fields["band"]), end))
                rows = self._rows(row, stop, state[0], state[1])
                self._sections(sections, x, scratch, row, stop, rows)
                self._project(index, low_group, scratch[1], x, out, row, stop)
                return [rows.low, rows.high]

            # Before the first band there are no rows yet: what is held ends where it begins.
            fn.loop(first, end, fields["band"], [none, none], band, hint="band")
            return []

        if self.spec.groups:
            fn.loop(low_group, high_group, 1, [], group, hint="group")
        else:
            group(fn.i64(0), [])

    def _rows(self, row: Value, stop: Value, held: Value, held_end: Value) -> Rows:
        """The input rows under output rows [row, stop); slabs hold `held` to `held_end` from the band before."""
        fn, window = self.fn, self.spec.depthwise.window
        height = self.fields["depthwise_in0"]
        top = fn.sub(fn.mul(row, window.stride[0]), window.pad_low[0])
        bottom = fn.sub(fn.mul(fn.sub(stop, 1), window.stride[0]), window.pad_low[0])
        bottom = fn.add(bottom, (window.kernel[0] - 1) * window.dilation[0] + 1)
        high = fn.i64(fn.smin(fn.smax(bottom, 0), height))
        low = fn.i64(fn.smin(fn.smax(top, 0), high))
        return Rows(held, low, fn.i64(fn.smin(fn.smax(low, held_end), high)), high)

    def _sections(
        self, span: tuple[Value, Value], x: Value, scratch: list[Value], row: Value, stop: Value, rows: Rows
    ) -> None:
        """Expand and filter the sections of a span."""
        fn, fields = self.fn, self.fields
        own, spec = Prefixed(fields, "expand_"), self.spec.expand
        pitch, item = fields["depthwise_at0"], self._item
        width = fields["depthwise_in1"]
        begin, end = fn.i64(fn.mul(rows.fresh, width)), fn.i64(fn.mul(rows.high, width))
        keep = fn.sub(rows.fresh, rows.low)
        kept = fn.both(fn.cmp("sgt", keep, 0), fn.cmp("sgt", rows.low, rows.held))
        start = spec.source.start(fn, own, begin)

        def section(at: Value, vectors: int, valid: int, last: bool) -> None:
            place = fn.sub(at, span[0])
            slab = fn.gep(scratch[0], fn.mul(place, own["o_panel"]))

            def move() -> list[Value]:
                vec = vector(SCALARS[self.spec.dtype], self.spec.target.lanes(self.spec.dtype))
                source = fn.gep(slab, fn.mul(fn.sub(rows.low, rows.held), pitch))
                copy_run(fn, vec, fn.udiv(fn.mul(keep, pitch), item), source, slab, (item, item), True)
                return []

            fn.if_(kept, move, hint="keep")

            def compute() -> list[Value]:
                tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
                w = fn.gep(own.buffer("w"), fn.mul(at, own["w_panel"]))
                target = fn.gep(slab, fn.sub(0, fn.mul(rows.low, pitch)))
                later = own["w_panel"] if spec.later else None
                panel_tiles(fn, own, spec, tile, valid, x, w, target, None, fn.i64(0), begin, end, start, None, later)
                return []

            fn.if_(fn.cmp("slt", rows.fresh, rows.high), compute, hint="fresh")
            filtered = fn.gep(scratch[1], fn.mul(place, fields["section_out"]))
            self._filter(at, slab, filtered, row, stop, rows.low, narrow=last)

        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, section)

    def _filter(
        self, section: Value, slab: Value, out: Value, row: Value, stop: Value, low: Value, *, narrow: bool
    ) -> None:
        """The depthwise outputs of rows [row, stop) of a section, whose slab begins with input row `low`."""
        fn, narrow = self.fn, narrow and self.spec.narrow is not None
        own = Prefixed(self.fields, "narrow_" if narrow else "depthwise_")
        spec = self.spec.narrow if narrow else self.spec.depthwise
        assert spec is not None
        source = fn.gep(slab, fn.sub(0, fn.mul(low, own["at0"])))
        target = fn.gep(out, fn.sub(0, fn.mul(fn.mul(row, own["out1"]), own["o_row"])))
        weights = fn.gep(self.fields.buffer("depthwise_w"), fn.mul(section, self.fields["section_w"]))
        zero = fn.i64(0)
        Channelwise(fn, own, spec, source, weights, target, None).run(
            (row, stop), (zero, own["strip_count"]), (zero, own["unit_count"])
        )

    def _project(
        self, group: Value, first: Value, scratch: Value, x: Value, out: Value, row: Value, stop: Value
    ) -> None:
        """The group's part of the output rows [row, stop); the `first` one of the chunk begins them."""
        fn, fields, spec = self.fn, self.fields, self.spec.project
        own: Fields = Prefixed(fields, "project_")
        before = fn.mul(group, fields["group_rows"])
        if self.spec.groups:
            count = fn.i64(fn.smin(fields["group_rows"], fn.sub(fields["rows"], before)))
            own = Overlaid(own, {"channels_whole": count})  # groups are whole registers
        width = fields["depthwise_out1"]
        begin, end = fn.i64(fn.mul(row, width)), fn.i64(fn.mul(stop, width))
        weights = own.buffer("w")
        start = spec.source.start(fn, own, 0)
        residual = x if self.spec.residual else None
        has_bias, is_first = fn.cmp("eq", group, 0), fn.cmp("eq", group, first)
        is_last = fn.cmp("eq", fn.add(group, 1), fields["groups"])

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
            w = fn.gep(weights, fn.mul(at, own["w_panel"]))
            offset = fn.mul(before, tile.step_bytes)

            def sums(shape: Tile) -> Sum:
                return GroupSum(fn, own, shape, spec.reduction, is_first=has_bias, offset=offset)

            def output(shape: Tile) -> Output:
                return GroupOutput(fn, own, shape, spec.epilogue, valid, False, is_first=is_first, is_last=is_last)

            several = (sums, output) if self.spec.groups else None
            later = own["w_panel"] if spec.later else None
            panel_tiles(fn, own, spec, tile, valid, scratch, w, out, residual, at, begin, end, start, several, later)

        span = fn.i64(0), own["panel_count"]
        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, panel)

    @property
    def _item(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4


@dataclass(slots=True, kw_only=True)
class GroupSum(Sum):
    """One group of the terms of a sum: the bias is in the first, and the weights lie `offset` bytes behind it."""

    is_first: Value
    offset: Index

    def start(self, weights: Value, *, spans: bool = False) -> tuple[Value, list[Value]]:
        """Sums as they begin, and the address of the group's weights."""
        return self.fn.gep(self.fn.gep(self.behind(weights), self.offset), REACH), self.begin()

    def biases(self, head: Value) -> list[Value]:
        """The bias in the first group, zero in the others."""
        zero, loaded = self.fn.const(self.tile.vec, 0.0), Sum.biases(self, head)
        chosen = {value: self.fn.select(self.is_first, value, zero) for value in dict.fromkeys(loaded)}
        return [chosen[value] for value in loaded]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOutput(Output):
    """Adds a group to what the groups before have stored; residual and activation come with the last one."""

    is_first: Value
    is_last: Value

    def store(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value) -> None:
        """Add the tile at a pixel to the output."""
        fn = self.fn

        def added() -> list[Value]:
            before = self.loaded(out, pixel)
            return [fn.binary("fadd", old, new) for old, new in zip(before, accs, strict=True)]

        total = fn.if_(self.is_first, lambda: accs, added, hint="first")

        def finish() -> list[Value]:
            Output.store(self, total, out, residual, pixel)
            return []

        def keep() -> list[Value]:
            self.put(total, out, pixel)
            return []

        fn.if_(self.is_last, finish, keep, hint="last")
