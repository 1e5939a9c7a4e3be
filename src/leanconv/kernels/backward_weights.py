"""The gradient with respect to weights: a tile of input channels by output channels, summed over pixels in registers.

    dW[k, c, tap] = sum over images n, output positions q of  dY[n, k, q] * X[n, c, q * stride + tap * dilation - pad]

A tile is `rows` input channels under one tap by `vectors` registers of output channels. One step of the reduction is
one output pixel: it loads a row of the output's gradient, staged as [pixel][output channels] for a box of pixels, and
broadcasts one element of the image for each input channel, read where it lies:

            gradient  [pixel][NR]             NR = vectors * lanes
                         |  w0      |  w1
    channel 0 --x0-->  acc[0][0]  acc[0][1]
    channel 1 --x1-->  acc[1][0]  acc[1][1]
      ...

Under each tap only pixels that read inside the image are summed, so that nothing is padded. The sum of a box, about 256
pixels, is added to totals kept apart. Boxes follow from the problem alone, so that neither tile nor number of threads
changes a bit of the result. A chunk owns the outputs of some panels of output channels, taps and input channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.backward_stage import GradientRows
from leanconv.kernels.backward_store import add_staged, put_lanes
from leanconv.kernels.backward_tiles import RUNS, PixelSource, channel_step
from leanconv.kernels.boxes import Box, Walker, each_box, position_of_tap
from leanconv.kernels.copy import copy_run
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.panels import PanelShape, each_panel
from leanconv.kernels.tile import Tile

_Tap = tuple[Index, list[Index]]  # its number, and its position along each dimension


@dataclass(frozen=True, slots=True)
class BackwardWeightsSpec:
    """One chunk is one (group, some panels of output channels, block of taps, part of the input channels).

    `source`: where the image is read; `rows` input channels a tile, and `short` whether the last tiles are one lower,
    for whole panels and for the last one; `bias`: the first chunks of each panel add up its gradient too;
    `accumulate`: results are added to what is there.

    Buffers: x, weights (the gradient of the output), out, bias, those of the source; scratch (staged gradient) and sums
    (totals) of each thread.  Fields: `g_* k_* t_* c_*` for the chunk; `batch out{d}`; `b_n b_{d}` sizes of a box; those
    of the source; `x_g` bytes of the image between groups; `y_n y_g y_k y_{d}` of the gradient; `o_g o_k o_c o_{d}` of
    the result; `panels` a chunk, `taps` a block; `panel_count panel_whole tap_count` in all; `tiles{j} long{j}` tiles,
    and those of full height, of kind j; `stage_panel` bytes of staged gradient a panel, `sum_tap` of totals a tap,
    `sum_panel` a panel, `sum_bytes` in all.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    source: PixelSource
    panels: PanelShape
    rows: tuple[int, int]
    short: tuple[bool, bool]
    gradient: GradientRows
    bias: bool
    accumulate: bool = False

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Chunk(self, kernel, {letter: fn_index(kernel, letter) for letter in "gktc"}).emit()
        return kernel.finish()

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Steps of all tiles, and what they read of a box again and again."""
        f, item = fields, 8 if self.dtype == "float64" else 4
        dims = range(self.gradient.dims)
        pixels = f["batch"] * math.prod(f[f"out{d}"] for d in dims)
        box = f["b_n"] * math.prod(f[f"b_{d}"] for d in dims)
        counts = {"multiply": 0.0, "tile": 0.0, "block": 0.0, "element": 0.0}
        shape = self.panels
        for kind, (vectors, number) in enumerate(((shape.vectors, f["panel_whole"]), (shape.last, 1))):
            if number and vectors:
                tiles = f[f"tiles{kind}"] * f["tap_count"] * f["g_count"] * number
                counts["multiply"] += tiles * pixels * self.source.issued(self.rows[kind], vectors)
                counts["tile"] += tiles * -(-pixels // box)
                staged = f["g_count"] * number * f["t_count"] * f["c_count"] * pixels * vectors
                counts["block"] += staged
                lanes = host.target.lanes(self.dtype)
                counts["element"] += tiles * self.rows[kind] * vectors * lanes
        image = pixels * f["tiles0"] * self.rows[0] * item
        reads = ((f["g_count"] * f["k_count"] * image, image),)
        result = counts["element"] * item
        return Cost(counts, reads, ((result, result),), chunks)


def fn_index(kernel: KernelFunction, letter: str) -> Value:
    """One coordinate of the chunk's number."""
    return kernel.fn.i64(kernel.index(letter))


@dataclass(frozen=True, slots=True)
class _Kind:
    """Whole panels (0) or the last one (1): registers of output channels, and lanes that count in the last one."""

    number: int
    vectors: int
    valid: int


@dataclass(slots=True)
class _Chunk:
    """Emits all that a chunk does."""

    spec: BackwardWeightsSpec
    kernel: KernelFunction
    indices: dict[str, Value]

    @property
    def fn(self) -> Function:
        return self.kernel.fn

    @property
    def fields(self) -> Fields:
        return self.kernel.fields

    @property
    def item(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4

    @property
    def lanes(self) -> int:
        return self.spec.target.lanes(self.spec.dtype)

    def tile(self, rows: int, kind: _Kind) -> Tile:
        return Tile(self.spec.target, self.spec.dtype, rows, kind.vectors, bias=False)

    def width(self, kind: _Kind) -> int:
        """Bytes of a row of the staged gradient."""
        return kind.vectors * self.spec.target.vector_bytes

    def emit(self) -> None:
        fn, fields, spec, indices = self.fn, self.fields, self.spec, self.indices
        thread = self.kernel.thread
        staged = fn.gep(fields.buffer("scratch"), fn.mul(thread, fields["thread_scratch"]))
        sums = fn.gep(fields.buffer("sums"), fn.mul(thread, fields["thread_sums"]))
        x = fn.gep(fields.buffer("x"), fn.mul(indices["g"], fields["x_g"]))
        vec = vector(SCALARS[spec.dtype], self.lanes)
        copy_run(fn, vec, fn.udiv(fields["sum_bytes"], self.item), None, sums, (self.item, self.item), True)
        starts = fn.cmp("eq", fn.add(indices["t"], indices["c"]), 0) if spec.bias else None
        begin = fn.i64(fn.mul(indices["k"], fields["panels"]))
        end = fn.i64(fn.smin(fn.add(begin, fields["panels"]), fields["panel_count"]))

        def panels(body: Callable[[_Kind, Value, Value, Value], None]) -> None:
            """Emit `body(kind, first output channel, staged gradient, totals)` for the panels of the chunk."""

            def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
                number = fn.sub(at, begin)
                body(
                    _Kind(int(last), vectors, valid),
                    fn.i64(fn.mul(at, spec.panels.vectors * self.lanes)),
                    fn.gep(staged, fn.mul(number, fields["stage_panel"])),
                    fn.gep(sums, fn.mul(number, fields["sum_panel"])),
                )

            each_panel(fn, fields, spec.panels, self.lanes, (begin, end), panel)

        def stage(kind: _Kind, first: Value, rows: Value, totals: Value, box: Box) -> None:
            offset = fn.add(fn.mul(indices["g"], fields["y_g"]), fn.mul(first, fields["y_k"]))
            grad = fn.gep(fields.buffer("weights"), offset)
            spec.gradient.emit(fn, fields, grad, rows, box, kind.vectors, kind.valid)
            if starts is not None:
                fn.if_(starts, lambda: self._add_bias(kind, box, rows, totals), lambda: [], hint="bias")

        def add(kind: _Kind, first: Value, rows: Value, totals: Value, box: Box) -> None:
            self._tiles(kind, totals, lambda high, tap, c, at: self._add_tile(kind, box, high, tap, c, x, rows, at))

        def box(box: Box) -> None:
            panels(lambda kind, first, rows, totals: stage(kind, first, rows, totals, box))
            panels(lambda kind, first, rows, totals: add(kind, first, rows, totals, box))

        each_box(fn, fields, spec.gradient.dims, box)

        def store(kind: _Kind, first: Value, rows: Value, totals: Value) -> None:
            offset = fn.add(fn.mul(indices["g"], fields["o_g"]), fn.mul(first, fields["o_k"]))
            out = fn.gep(fields.buffer("out"), offset)
            self._tiles(kind, totals, lambda high, tap, c, at: self._store(kind, high, tap[1], c, at, out), outer=False)
            if starts is not None:
                fn.if_(starts, lambda: self._store_bias(kind, first, totals), lambda: [], hint="bias")

        panels(store)

    def _tiles(
        self, kind: _Kind, sums: Value, body: Callable[[int, _Tap, Value, Value], None], *, outer: bool = True
    ) -> None:
        """Emit `body(rows, tap, first channel, totals)` for the tiles of a panel; taps are the outer loop or the inner.

        With taps inside, the elements of a line of the result are written one soon after the other.
        """
        fn, fields, spec = self.fn, self.fields, self.spec
        tiles, long = fields[f"tiles{kind.number}"], fields[f"long{kind.number}"]
        rows, part, parts = spec.rows[kind.number], self.indices["c"], fields["c_count"]
        begin, end = fn.i64(fn.udiv(fn.mul(tiles, part), parts)), fn.i64(fn.udiv(fn.mul(tiles, fn.add(part, 1)), parts))
        first = fn.i64(fn.mul(self.indices["t"], fields["taps"]))
        last = fn.i64(fn.smin(fn.add(first, fields["taps"]), fields["tap_count"]))
        base = fn.gep(sums, spec.bias * self.width(kind))

        def taps(inner: Callable[[Value], None]) -> None:
            def tap(number: Value, _: list[Value]) -> list[Value]:
                inner(number)
                return []

            fn.loop(first, last, 1, [], tap, guard=True, hint="tap")

        def spans(inner: Callable[[int, Value], None]) -> None:
            def span(high: int, start: Value, stop: Value) -> None:
                def tile(at: Value, _: list[Value]) -> list[Value]:
                    inner(high, at)
                    return []

                fn.loop(start, stop, 1, [], tile, guard=True, hint="tile")

            span(rows, begin, fn.i64(fn.smin(end, long)))
            if spec.short[kind.number]:
                span(rows - 1, fn.i64(fn.smax(begin, long)), end)

        def one(high: int, at: Value, number: Value) -> None:
            position = position_of_tap(fn, number, spec.kernel)
            channel = fn.mul(at, rows)
            if high < rows:
                channel = fn.sub(channel, fn.sub(at, long))
            line = fn.gep(base, fn.mul(fn.sub(number, first), fields["sum_tap"]))
            body(
                high,
                (number, position),
                fn.i64(channel),
                fn.gep(line, fn.mul(fn.sub(at, begin), rows * self.width(kind))),
            )

        if outer:
            taps(lambda number: spans(lambda high, at: one(high, at, number)))
        else:
            spans(lambda high, at: taps(lambda number: one(high, at, number)))

    def _add_tile(
        self,
        kind: _Kind,
        box: Box,
        rows: int,
        tap: _Tap,
        channel: Value,
        x: Value,
        staged: Value,
        totals: Value,
    ) -> None:
        """The sums over a box of one tile, added to its totals."""
        fn, spec, shape = self.fn, self.spec, self.tile(rows, kind)
        sum_ = Sum(fn, self.fields, shape, RUNS)
        first = fn.gep(x, fn.mul(channel, channel_step(sum_, spec.source)))
        zeros = [fn.const(shape.vec, 0.0)] * (rows * kind.vectors)
        accs = spec.source.add(sum_, box, *tap, first, self._staged(box, staged, kind), zeros)
        for i, acc in enumerate(accs):
            at = i * spec.target.vector_bytes
            fn.store(fn.binary("fadd", fn.load(shape.vec, totals, at), acc), totals, at)

    def _staged(self, box: Box, staged: Value, kind: _Kind) -> Walker:
        """The staged gradient, which holds the pixels of the box and no others."""
        fn = self.fn
        steps: list[Index] = [self.width(kind)]
        for extent in reversed(box.extents):
            steps.insert(0, fn.mul(steps[0], extent))
        start = fn.gep(staged, fn.mul(fn.sub(0, box.images[0]), steps[0]))
        for (first, _), step in zip(box.ranges, steps[1:], strict=True):
            start = fn.gep(start, fn.mul(fn.sub(0, first), step))
        return Walker(start, steps[0], steps[1:])

    def _add_bias(self, kind: _Kind, box: Box, staged: Value, totals: Value) -> list[Value]:
        """The gradient of the bias: rows of the staged gradient, added up."""
        vec = self.tile(1, kind).vec
        add_staged(self.fn, box, vec, staged, totals, kind.vectors, self.spec.target.vector_bytes)
        return []

    def _store_bias(self, kind: _Kind, first: Value, totals: Value) -> list[Value]:
        """Write the gradient of the bias."""
        fn, fields = self.fn, self.fields
        bias = fn.gep(fields.buffer("bias"), fn.mul(self.indices["g"], fields["bias_g"]))
        bias = fn.gep(bias, fn.mul(first, self.item))
        for v in range(kind.vectors):
            value = fn.load(self.tile(1, kind).vec, totals, v * self.spec.target.vector_bytes)
            self._put(kind, value, fn.gep(bias, v * self.lanes * self.item), self.item, v)
        return []

    def _store(self, kind: _Kind, rows: int, tap: Sequence[Index], channel: Value, totals: Value, out: Value) -> None:
        """Write the totals of a tile to where they were asked for."""
        fn, fields, spec = self.fn, self.fields, self.spec
        place = fn.gep(out, fn.mul(channel, fields["o_c"]))
        for d, at in enumerate(tap):
            place = fn.gep(place, fn.mul(at, fields[f"o_{d}"]))
        for i in range(rows):
            line = fn.gep(place, fn.mul(fields["o_c"], i))
            for v in range(kind.vectors):
                at = (i * kind.vectors + v) * spec.target.vector_bytes
                value = fn.load(self.tile(1, kind).vec, totals, at)
                self._put(kind, value, fn.gep(line, fn.mul(fields["o_k"], v * self.lanes)), fields["o_k"], v)

    def _put(self, kind: _Kind, value: Value, place: Value, step: Index, vector: int) -> None:
        """Store the lanes of a vector that are output channels, `step` bytes apart."""
        count = kind.valid if vector == kind.vectors - 1 else self.lanes
        put_lanes(self.fn, value, place, step, count, accumulate=self.spec.accumulate)
