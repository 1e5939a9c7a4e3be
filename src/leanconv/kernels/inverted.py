"""Expand, depthwise, project in one kernel: neither tensor between the three layers is ever whole.

A chunk is some output rows of one image.  For one section of the middle channels after the other it goes down its
rows band by band: the core expands the input rows that the band has not yet (rows of the band before that are needed
again are moved up), the depthwise kernel reads them, and the core adds the section's part of the projection to the
output.  Sections are those of `SECTION` terms or fewer in which long sums are added up anyway.

    x rows ---expand---> [rows, W, section] ---depthwise---> [band, Q, section] ---project---> out += ...

Where an image has few rows, of which each chunk would expand some again, chunks are halves of the sections as well: one
adds up in the output, the other in a buffer of the same shape.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channelstrips import Channelwise
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.copy import copy_run
from leanconv.kernels.core import Sum
from leanconv.kernels.dense import DenseSpec, panel_tiles
from leanconv.kernels.fields import Fields, KernelFunction, Prefixed
from leanconv.kernels.output import Output
from leanconv.kernels.panels import each_panel
from leanconv.kernels.sections import REACH
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class InvertedSpec:
    """What a kernel is specialised for: the three layers of one section.

    `sections`: whether there are several; `residual`: whether x is added to the result; `parts`: whether a chunk is one
    half of the sections.  Buffers: x, out, expand_w, depthwise_w, project_w (packed), expanded, filtered (of each
    thread), second (the other half's output).  Fields: `n_*`, `b_*`, `p_*` for the chunk, `block`
    output rows of it, `band` rows at a time, `row_count`, `sections`, `section_rows` channels of a section, `x_n o_n`
    bytes between images; those of the dense kernels with "expand_" and "project_", those of the depthwise kernel with
    "depthwise_"; `expand_w_g depthwise_w_g` bytes of packed weights a section.
    """

    target: Target
    dtype: str
    expand: DenseSpec
    depthwise: ChannelwiseSpec
    project: DenseSpec
    sections: bool
    residual: bool
    parts: bool = False

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Inverted(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()


@dataclass(slots=True)
class _Inverted:
    """Emits one kernel."""

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: InvertedSpec

    def run(self) -> None:
        """All sections and bands of the chunk."""
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

        low_section, high_section = fn.i64(0), fields["sections"]
        if self.spec.parts:
            part = kernel.index("p")
            low_section, high_section = (
                fn.i64(fn.udiv(fn.mul(fields["sections"], n), 2)) for n in (part, fn.add(part, 1))
            )
            second = fn.gep(fields.buffer("second"), fn.mul(image, fields["o_n"]))
            out = fn.select(fn.cmp("eq", part, 0), out, second)

        def section(index: Value, _: list[Value]) -> list[Value]:
            none = fn.i64(0)

            def band(row: Value, state: list[Value]) -> list[Value]:
                stop = fn.i64(fn.smin(fn.add(row, fields["band"]), end))
                low, high = self._expand(index, x, scratch[0], row, stop, state[0], state[1])
                self._filter(index, scratch, row, stop, low)
                self._project(index, low_section, scratch[1], x, out, row, stop)
                return [low, high]

            # Before the first band there are no rows yet: what is held ends where it begins.
            fn.loop(first, end, fields["band"], [none, none], band, hint="band")
            return []

        if self.spec.sections:
            fn.loop(low_section, high_section, 1, [], section, hint="section")
        else:
            section(fn.i64(0), [])

    def _expand(
        self, section: Value, x: Value, scratch: Value, row: Value, stop: Value, held: Value, held_end: Value
    ) -> tuple[Value, Value]:
        """Have the input rows under output rows [row, stop) in scratch; returns which [low, high) those are.

        `held` to `held_end` are the rows that are there from the band before.
        """
        fn, window = self.fn, self.spec.depthwise.window
        own, depthwise = Prefixed(self.fields, "expand_"), Prefixed(self.fields, "depthwise_")
        top = fn.sub(fn.mul(row, window.stride[0]), window.pad_low[0])
        bottom = fn.sub(fn.mul(fn.sub(stop, 1), window.stride[0]), window.pad_low[0])
        bottom = fn.add(bottom, (window.kernel[0] - 1) * window.dilation[0] + 1)
        high = fn.i64(fn.smin(fn.smax(bottom, 0), depthwise["in0"]))
        low = fn.i64(fn.smin(fn.smax(top, 0), high))
        pitch = depthwise["at0"]
        fresh = fn.i64(fn.smin(fn.smax(low, held_end), high))
        keep = fn.sub(fresh, low)

        def move() -> list[Value]:
            vec = vector(self._scalar, self.spec.target.lanes(self.spec.dtype))
            source = fn.gep(scratch, fn.mul(fn.sub(low, held), pitch))
            count = fn.udiv(fn.mul(keep, pitch), self._item)
            copy_run(fn, vec, count, source, scratch, (self._item, self._item), True)
            return []

        fn.if_(fn.both(fn.cmp("sgt", keep, 0), fn.cmp("sgt", low, held)), move, hint="keep")

        def compute() -> list[Value]:
            width = depthwise["in1"]
            begin, end = fn.i64(fn.mul(fresh, width)), fn.i64(fn.mul(high, width))
            target = fn.gep(scratch, fn.sub(0, fn.mul(low, pitch)))
            weights = fn.gep(own.buffer("w"), fn.mul(section, own["w_g"]))
            spec = self.spec.expand
            start = spec.source.start(fn, own, begin)

            def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
                tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
                w = fn.gep(weights, fn.mul(at, own["w_panel"]))
                panel_tiles(fn, own, spec, tile, valid, x, w, target, None, at, begin, end, start)

            span = fn.i64(0), own["panel_count"]
            each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, panel)
            return []

        fn.if_(fn.cmp("slt", fresh, high), compute, hint="fresh")
        return low, high

    def _filter(self, section: Value, scratch: list[Value], row: Value, stop: Value, low: Value) -> None:
        """The depthwise outputs of rows [row, stop)."""
        fn, own = self.fn, Prefixed(self.fields, "depthwise_")
        source = fn.gep(scratch[0], fn.sub(0, fn.mul(low, own["at0"])))
        target = fn.gep(scratch[1], fn.sub(0, fn.mul(fn.mul(row, own["out1"]), own["o_row"])))
        weights = fn.gep(own.buffer("w"), fn.mul(section, own["w_g"]))
        zero = fn.i64(0)
        Channelwise(fn, own, self.spec.depthwise, source, weights, target, None).run(
            (row, stop), (zero, own["strip_count"]), (zero, own["unit_count"])
        )

    def _project(
        self, section: Value, first: Value, scratch: Value, x: Value, out: Value, row: Value, stop: Value
    ) -> None:
        """The section's part of the output rows [row, stop); the `first` one of the chunk begins them."""
        fn, own, spec = self.fn, Prefixed(self.fields, "project_"), self.spec.project
        width = self.fields["depthwise_out1"]
        begin, end = fn.i64(fn.mul(row, width)), fn.i64(fn.mul(stop, width))
        weights = own.buffer("w")
        start = spec.source.start(fn, own, 0)
        residual = x if self.spec.residual else None
        has_bias, is_first = fn.cmp("eq", section, 0), fn.cmp("eq", section, first)
        is_last = fn.cmp("eq", fn.add(section, 1), self.fields["sections"])

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
            w = fn.gep(weights, fn.mul(at, own["w_panel"]))
            offset = fn.mul(fn.mul(section, self.fields["section_rows"]), tile.step_bytes)

            def sums(shape: Tile) -> Sum:
                return SectionSum(fn, own, shape, spec.reduction, is_first=has_bias, offset=offset)

            def output(shape: Tile) -> Output:
                return SectionOutput(fn, own, shape, spec.epilogue, valid, False, is_first=is_first, is_last=is_last)

            several = (sums, output) if self.spec.sections else None
            panel_tiles(fn, own, spec, tile, valid, scratch, w, out, residual, at, begin, end, start, several)

        span = fn.i64(0), own["panel_count"]
        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, panel)

    @property
    def _item(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4

    @property
    def _scalar(self) -> str:
        return "double" if self.spec.dtype == "float64" else "float"


@dataclass(slots=True, kw_only=True)
class SectionSum(Sum):
    """One section of a sum: the bias is in the first, and the weights lie `offset` bytes behind it."""

    is_first: Value
    offset: Index

    def start(self, weights: Value, *, spans: bool = False) -> tuple[Value, list[Value]]:
        """Sums as they begin, and the address of the section's weights."""
        return self.fn.gep(self.fn.gep(self.behind(weights), self.offset), REACH), self.begin()

    def biases(self, head: Value) -> list[Value]:
        """The bias in the first section, zero in the others."""
        zero, loaded = self.fn.const(self.tile.vec, 0.0), Sum.biases(self, head)
        chosen = {value: self.fn.select(self.is_first, value, zero) for value in dict.fromkeys(loaded)}
        return [chosen[value] for value in loaded]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionOutput(Output):
    """Adds a section to what the sections before have stored; residual and activation come with the last one."""

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
