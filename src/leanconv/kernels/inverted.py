"""Expand, depthwise, project in one kernel: neither tensor between the three layers is ever whole.

A chunk is some output rows of one image.  It goes down its rows band by band: each section of the middle channels is
expanded and filtered (see `expansion`), a slab a section, then the core projects the band.

    x rows ---expand---> [section][rows, W, 2 registers] ---depthwise---> [band, Q, channels] ---project---> out

Where memory for the channels of a band is not there, a chunk takes one group of sections after the other, and each adds
its part of the projection to the output.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.dense import DenseSpec, panel_tiles
from leanconv.kernels.expansion import Band, Between, Expansion, ExpansionSpec
from leanconv.kernels.fields import Fields, KernelFunction, Overlaid, Prefixed
from leanconv.kernels.groups import Group, group_parts
from leanconv.kernels.panels import each_panel
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class InvertedSpec:
    """What a kernel is specialised for: the three layers, the first two in `expansion`.

    `groups`: whether there are several; `residual`: whether x is added to the result; `shared` input rows under two
    chunks were expanded before (0: each chunk expands them).  Buffers: x, out, expand_w, depthwise_w, project_w
    (packed), expanded, filtered (of each thread), shared.  Fields: `n_*`, `b_*` for the chunk, `block` output rows of
    it, `band` rows at a time, `row_count`, `groups`, `group_sections`, `group_rows` channels of a group, `rows` of all,
    `x_n o_n` bytes between images; `shared_first` the first input row shared, `shared_step` rows from one boundary to
    the next, `shared_n shared_boundary shared_section` bytes of an image, a boundary and a section of them; those of
    the dense kernels with "expand_" and "project_", and the others of `expansion`.
    """

    target: Target
    dtype: str
    expansion: ExpansionSpec
    project: DenseSpec
    groups: bool
    residual: bool
    shared: int = 0

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
        """All groups and bands of the chunk."""
        kernel, fn, fields = self.kernel, self.fn, self.fields
        image, block = kernel.index("n"), kernel.index("b")
        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        out = fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"]))
        slabs, filtered = (
            fn.gep(fields.buffer(name), fn.mul(kernel.thread, fields[f"thread_{name}"]))
            for name in ("expanded", "filtered")
        )
        expansion = Expansion(fn, fields, self.spec.expansion)

        between = self._between(image, block) if self.spec.shared else None

        def group(index: Value, _: list[Value]) -> list[Value]:
            sections = fn.i64(fn.mul(index, fields["group_sections"])), fields["expand_panel_count"]
            if self.spec.groups:
                sections = sections[0], fn.i64(fn.smin(sections[1], fn.add(sections[0], fields["group_sections"])))

            def band(rows: Band) -> None:
                above = fn.mul(fn.mul(rows.row, fields["depthwise_out1"]), fields["depthwise_o_row"])
                expansion.sections(sections, x, slabs, fn.gep(filtered, fn.sub(0, above)), rows, between)
                self._project(index, filtered, x, out, rows)

            expansion.bands(fn.mul(block, fields["block"]), band)
            return []

        if self.spec.groups:
            fn.loop(0, fields["groups"], 1, [], group, hint="group")
        else:
            group(fn.i64(0), [])

    def _between(self, image: Index, block: Index) -> Between:
        """Rows that the chunk shares with the ones before and behind it."""
        fn, fields = self.fn, self.fields
        step, pitch = fields["shared_step"], fields["depthwise_at0"]
        height = fields["depthwise_in0"]
        below = fn.add(fields["shared_first"], fn.mul(block, step))
        above = fn.sub(below, step)
        first = fn.select(fn.cmp("sgt", block, 0), fn.i64(fn.add(above, self.spec.shared)), fn.i64(0))
        last = fn.cmp("eq", fn.add(block, 1), fields["b_count"])
        base = fn.gep(fields.buffer("shared"), fn.mul(image, fields["shared_n"]))

        def boundary(number: Index, row: Index) -> Value:
            return fn.gep(base, fn.sub(fn.mul(number, fields["shared_boundary"]), fn.mul(row, pitch)))

        end = fn.i64(fn.select(last, height, below))
        return Between(fn.i64(first), end, boundary(fn.sub(block, 1), above), boundary(block, below))

    def _project(self, group: Value, filtered: Value, x: Value, out: Value, rows: Band) -> None:
        """The group's part of the output rows of a band."""
        fn, fields, spec = self.fn, self.fields, self.spec.project
        own: Fields = Prefixed(fields, "project_")
        before = fn.mul(group, fields["group_rows"])
        if self.spec.groups:
            count = fn.i64(fn.smin(fields["group_rows"], fn.sub(fields["rows"], before)))
            own = Overlaid(own, {"channels_whole": count})  # groups are whole registers
        width = fields["depthwise_out1"]
        begin, end = fn.i64(fn.mul(rows.row, width)), fn.i64(fn.mul(rows.stop, width))
        weights = own.buffer("w")
        start = spec.source.start(fn, own, 0)
        residual = x if self.spec.residual else None
        last_group = fn.cmp("eq", fn.add(group, 1), fields["groups"])
        place = Group(fn.cmp("eq", group, 0), last_group, before)

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, pairs=last and spec.pairs)
            w = fn.gep(weights, fn.mul(at, own["w_panel"]))
            several = None
            if self.spec.groups:
                several = group_parts(fn, own, spec.reduction, spec.epilogue, valid, place)
            later = own["w_panel"] if spec.later else None
            panel_tiles(fn, own, spec, tile, valid, filtered, w, out, residual, at, begin, end, start, several, later)

        span = fn.i64(0), own["panel_count"]
        each_panel(fn, own, spec.panels, spec.target.lanes(spec.dtype), span, panel)
