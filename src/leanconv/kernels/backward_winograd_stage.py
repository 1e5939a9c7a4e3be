"""Winograd for gradients with respect to weights: windows and gradients of a section's tiles, transformed.

Tiles are counted over all images, `section` of them make a section.  Of each section there are two matrices a point:

    windows    B^T d B    [section][point][tile][input channel]
    gradients  A dY A^T   [section][point][panel][tile][NR]       NR output channels

Small tiles leave points out (`winograd_tiles.py`), so that a point has as many rows as there are tiles of its class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.channel_runs import gather, load_runs
from leanconv.kernels.cook_toom import Matrix
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import load_lanes
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.linear import linear
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.winograd_input import InputStep
from leanconv.kernels.winograd_tiles import Counters, Place, Tiling


def transposed(matrix: Matrix) -> Matrix:
    """Rows to columns."""
    return tuple(zip(*matrix, strict=True))


def transform(
    fn: Function, values: list[Value], sizes: list[int], matrices: list[Matrix], *, fused: bool
) -> list[Value]:
    """A block of vectors, in row-major order, multiplied by a matrix along each axis (of more than one element)."""
    sizes = list(sizes)
    for d in reversed(range(len(sizes))):
        rows = len(matrices[d])
        if rows == sizes[d] == 1:
            continue
        program = linear(matrices[d])
        inner = math.prod(sizes[d + 1 :])
        result: list[Value | None] = [None] * (len(values) // sizes[d] * rows)
        for outer, low in itertools.product(range(math.prod(sizes[:d])), range(inner)):
            taken = [values[(outer * sizes[d] + j) * inner + low] for j in range(sizes[d])]
            for i, value in enumerate(program.emit(fn, taken, fused=fused)):
                result[(outer * rows + i) * inner + low] = value
        values, sizes[d] = [value for value in result if value is not None], rows
    return values


def each_section_tile(
    kernel: KernelFunction,
    tiling: Tiling,
    body: Callable[[Value, Callable[[Callable[[Place, Counters], None]], None]], None],
) -> None:
    """Emit `body(section of the phase, walk)`, where `walk(step)` emits a step for the tiles of the chunk.

    Fields: `s_* b_*` for the chunk, `b_count` parts of a section; `section_first`, `section` tiles, `tile_count`.
    """
    fn, fields = kernel.fn, kernel.fields
    number, part = fn.i64(kernel.index("s")), fn.i64(kernel.index("b"))
    low = fn.i64(fn.mul(fn.add(fields["section_first"], number), fields["section"]))
    count = fn.sub(fn.smin(fn.add(low, fields["section"]), fields["tile_count"]), low)
    first, end = (fn.i64(fn.add(low, fn.udiv(fn.mul(count, n), fields["b_count"]))) for n in (part, fn.add(part, 1)))

    def some() -> list[Value]:
        before: Counters = {}
        for bits in tiling.classes:
            kept = [tiling.whole_tiles(fields, fn, d) if bit else fields[f"tiles{d}"] for d, bit in enumerate(bits)]
            here, start = (tiling.before(fn, fields, tile, kept) for tile in (first, low))
            before[bits] = fn.i64(fn.sub(here, start))
        position = tiling.start(fn, fields, first)
        body(number, lambda step: _walk(kernel, tiling, (first, end), position, step, before))
        return []

    fn.if_(fn.cmp("slt", first, end), some, lambda: [], hint="tiles")


def _walk(
    kernel: KernelFunction,
    tiling: Tiling,
    span: tuple[Value, Value],
    position: list[Value],
    step: Callable[[Place, Counters], None],
    before: Counters,
) -> None:
    tiling.each(kernel.fn, kernel.fields, *span, position, step, before)


@dataclass(frozen=True, slots=True)
class WindowStageSpec:
    """Transform windows; a chunk is a part of a section.

    Buffers: x, windows and, if padded with adjacent channels, zeros of each thread (a row of channels).  Fields: those
    of `each_section_tile`, `Tiling` and `InputStep`; `channels`; `section_bytes` of the windows of a section.
    """

    read: InputStep

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.read.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        zeros = None
        if self.read.padded and self.read.adjacent:
            zeros = fn.gep(fields.buffer("zeros"), fn.mul(kernel.thread, fields["thread_zeros"]))
            row = zeros

            def clear(c: Value, _: list[Value]) -> list[Value]:
                fn.store(fn.const(SCALARS[self.read.dtype], 0.0), fn.gep(row, fn.mul(c, self.read.item)))
                return []

            fn.loop(0, fields["channels"], 1, [], clear, hint="zero")

        def section(number: Value, walk: Callable[[Callable[[Place, Counters], None]], None]) -> None:
            windows = fn.gep(fields.buffer("windows"), fn.mul(number, fields["section_bytes"]))
            walk(self.read.emit(fn, fields, fields.buffer("x"), zeros, windows).tile)

        each_section_tile(kernel, self.read.tiling, section)
        return kernel.finish()

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Counted beside `ProductSpec`."""
        lanes = self.read.lanes
        vectors = fields["tiles_here"] * -(-fields["channels"] // lanes)
        return stage_cost(self.read.tiling, vectors, chunks, self.target, turned=not self.read.adjacent)


@dataclass(frozen=True, slots=True)
class GradientStageSpec:
    """Transform the gradient of the output; a chunk is a part of a section.

    `adjacent`: channels are; else `runs`: pixels along the last axis are.  Buffers: weights (the gradient), gradients.
    Fields: those of `each_section_tile` and `Tiling`; `y_n y_k y_{d}` bytes between images, channels and pixels;
    `panel_whole` whole panels; `vectors` of channels in all; `z_section z_point z_panel` bytes.
    """

    target: Target
    dtype: str
    tiling: Tiling
    panels: PanelShape
    adjacent: bool
    runs: bool

    @property
    def kind(self) -> str:
        """A vector of output channels."""
        return vector(SCALARS[self.dtype], self.target.lanes(self.dtype))

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields

        def section(number: Value, walk: Callable[[Callable[[Place, Counters], None]], None]) -> None:
            target = fn.gep(fields.buffer("gradients"), fn.mul(number, fields["z_section"]))
            walk(lambda place, rows: self._tile(fn, fields, target, place, rows))

        each_section_tile(kernel, self.tiling, section)
        return kernel.finish()

    def _tile(self, fn: Function, fields: Fields, target: Value, place: Place, rows: Counters) -> None:
        """All channels of one tile."""
        grad = fn.gep(fields.buffer("weights"), fn.mul(place.image, fields["y_n"]))
        for d, at in enumerate(place.origin):
            grad = fn.gep(grad, fn.mul(at, fields[f"y_{d}"]))
        lanes, width = self.target.lanes(self.dtype), self.target.vector_bytes
        shape = self.panels
        partly = int(bool(shape.last) and shape.valid < lanes)

        def one(number: Value, count: int) -> None:
            wide: Index = shape.vectors
            panel: Index = 0
            if shape.whole:
                panel = fn.udiv(number, shape.vectors)
            if shape.last and shape.whole:
                panel = fn.smin(panel, fields["panel_whole"])
                wide = fn.select(fn.cmp("eq", panel, fields["panel_whole"]), shape.last, shape.vectors)
            elif shape.last:
                wide = shape.last
            within = fn.sub(number, fn.mul(panel, shape.vectors))
            start = fn.gep(fn.gep(target, fn.mul(panel, fields["z_panel"])), fn.mul(within, width))
            bases = {bits: fn.gep(start, fn.mul(fn.mul(row, wide), width)) for bits, row in rows.items()}
            channel = fn.gep(grad, fn.mul(fn.mul(number, lanes), fields["y_k"]))
            self._vector(fn, fields, channel, place.outputs, bases, count)

        def turn(number: Value, _: list[Value]) -> list[Value]:
            one(number, lanes)
            return []

        fn.loop(0, fn.sub(fields["vectors"], partly), 1, [], turn, guard=True, hint="vector")
        if partly:
            one(fn.i64(fn.sub(fields["vectors"], 1)), shape.valid)

    def _vector(
        self, fn: Function, fields: Fields, grad: Value, outputs: tuple[int, ...], bases: Counters, count: int
    ) -> None:
        """All points of a vector of channels, of which `count` exist."""
        axes, values = self.tiling.axes, list[Value]()
        for at in itertools.product(*map(range, outputs[:-1])):
            line = grad
            for d, i in enumerate(at):
                line = fn.gep(line, fn.mul(fields[f"y_{d}"], i))
            values += self._line(fn, fields, line, outputs[-1], count)
        matrices = [transposed(axis.transform.results(n)) for axis, n in zip(axes, outputs, strict=True)]
        points = transform(fn, values, list(outputs), matrices, fused=self.target.fma)
        steps = [math.prod(self.tiling.sizes[d + 1 :]) for d in range(len(axes))]
        spans = [len(matrix) for matrix in matrices]
        for at, value in zip(itertools.product(*map(range, spans)), points, strict=True):
            bits = tuple(axis.bit(i) for axis, i in zip(axes, at, strict=True))
            number = sum(i * step for i, step in zip(at, steps, strict=True))
            fn.store(value, fn.gep(bases[bits], fn.mul(fields["z_point"], number)))

    def _line(self, fn: Function, fields: Fields, line: Value, pixels: int, count: int) -> list[Value]:
        """The pixels of one line of a tile."""
        channel, step = fields["y_k"], fields[f"y_{len(self.tiling.axes) - 1}"]
        if self.runs:
            return load_runs(fn, self.kind, line, channel, pixels, count)
        places = [fn.gep(line, fn.mul(step, j)) for j in range(pixels)]
        if self.adjacent:
            return [load_lanes(fn, self.kind, place, count, masks=self.target.masks) for place in places]
        return [gather(fn, self.kind, place, channel, count) for place in places]

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Counted beside `ProductSpec`."""
        vectors = fields["tiles_here"] * fields["vectors"]
        return stage_cost(self.tiling, vectors, chunks, self.target, turned=not self.adjacent)


def stage_cost(tiling: Tiling, vectors: float, chunks: int, target: Target, *, turned: bool) -> Cost:
    """Vectors of channels of tiles, each taken to all points."""
    points = vectors * tiling.points
    written = points * target.vector_bytes
    counts = {"vector": STAGED * points}
    if turned:
        counts["block"] = points / 2
    return Cost(counts, (), ((written, written),), chunks)


STAGED = 3.0  # issue slots of a point of a vector: its share of loads, of both transforms, and its store
