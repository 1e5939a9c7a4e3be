"""Convolution one tap at a time: a block of outputs starts at the bias, every tap adds to it, the activation ends it.

What one tap adds is left to a `Step`.  All steps see the same: the outputs that the tap reaches, as ranges of
rows and columns, and how far from them its pixels lie.  Images have three dimensions here (depth, rows, columns), the
missing ones of size 1.

The sum of a tap's channels is made apart, then added to the output, taps in the order of the kernel: the sections of
long sums come for free, and the order does not depend on blocks, tiles or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.lines import Line
from leanconv.kernels.output import Output
from leanconv.kernels.panels import PanelShape, each_panel
from leanconv.kernels.tile import Tile
from leanconv.problem import Activation

Span = tuple[Index, Index]
ADD = Epilogue(None, "before")  # the "residual" of a sum that is accumulated is the output itself


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of one block: its tile's width, the heights of its tiles, and the block's place in memory.

    `x` and `out` are the image and the panel's first channel; `plane` is the output's depth, `block` its rows and
    columns; `weights` behind the bias; `maps` and `sums` the thread's parts of these buffers, if there are any.
    """

    fn: Function
    fields: Fields
    spec: TapsSpec
    tile: Tile
    heights: tuple[int, ...]
    valid: int
    x: Value
    out: Value
    weights: Value
    plane: Index
    block: tuple[Span, Span]
    group: Index
    number: Index
    maps: Value | None
    sums: Value | None

    @property
    def columns(self) -> bool:
        """Whether what is added up has its pixels adjacent."""
        return self.spec.columns and self.sums is None

    def shaped(self, height: int) -> Tile:
        """The tile with another number of rows; its sums start from zero."""
        return Tile(self.tile.target, self.tile.dtype, height, self.tile.vectors, False)

    def output(self, tile: Tile, epilogue: Epilogue, extra: str = "r") -> Output:
        """How a tile is stored into the output."""
        return Output(self.fn, self.fields, tile, epilogue, self.valid, self.spec.columns, "o", extra)

    def add(self, tile: Tile, accs: list[Value], pixel: Value) -> None:
        """Add a tile to the output, or to the sums that stand for it."""
        self._place(tile, ADD, accs, pixel)

    def begin(self, tile: Tile, accs: list[Value], pixel: Value, residual: Value | None) -> None:
        """Store a tile there, and with it the residual if it comes first."""
        if residual is None:
            self._place(tile, Epilogue(), accs, pixel)
        else:
            self.output(tile, ADD).store(accs, self.out, residual, pixel)

    def _place(self, tile: Tile, epilogue: Epilogue, accs: list[Value], pixel: Value) -> None:
        if self.sums is None:
            self.output(tile, epilogue, "o").store(accs, self.out, self.out, pixel)
        else:
            lanes, step = tile.target.lanes(tile.dtype), {"s_row": tile.step_bytes}
            output = Output(self.fn, step, tile, epilogue, lanes, False, "s", "s")
            output.store(accs, self.sums, self.sums, pixel)

    def end(self, tile: Tile, activation: Activation, pixel: Value, out: Value, residual: Value | None) -> None:
        """Turn what was added up from `pixel` on into the output from its pixel `out` on."""
        fn, count = self.fn, tile.rows * tile.vectors
        if self.sums is None:
            nothing = [fn.const(tile.vec, -0.0)] * count  # what is added to a number without changing it
            self.output(tile, Epilogue(activation, "before"), "o").store(nothing, self.out, self.out, pixel)
        else:
            first, width = fn.gep(self.sums, fn.mul(pixel, tile.step_bytes)), tile.target.vector_bytes
            accs = [fn.load(tile.vec, first, i * width) for i in range(count)]
            self.output(tile, Epilogue(activation, "after")).store(accs, self.out, residual, out)

    def line(self, pixels: Index) -> Line:
        """A line of pixels in tiles of this panel."""
        return Line.of(self.fn, pixels, self.tile.target.tile_rows(self.tile.vectors))

    def pixel(self, row: Index, column: Index) -> Index:
        """The number of a pixel of the block's plane in what is added up: the output, or the sums of the block."""
        fn = self.fn
        at = self.pixel_of_output(row, column)
        if self.sums is None:
            return at
        return fn.sub(at, self.pixel_of_output(self.block[0][0], self.block[1][0]))

    def pixel_of_output(self, row: Index, column: Index) -> Index:
        """The number of an output pixel of the block's plane."""
        fn, fields = self.fn, self.fields
        at = fn.add(fn.mul(self.plane, fields["out1"]), row)
        return fn.add(fn.mul(at, fields["out2"]), column)

    def each_row(self, rows: Span, body: Callable[[Value], None]) -> None:
        """Emit a body for each row of a span that is not empty."""

        def row(at: Value, _: list[Value]) -> list[Value]:
            body(at)
            return []

        self.fn.loop(*rows, 1, [], row, hint="row")


@dataclass(frozen=True, slots=True)
class Tap:
    """One tap: its number, its column in the kernel, the outputs it reaches, and how far away its pixels are."""

    number: Index
    column: Index
    depth: Index
    rows: Span
    columns: Span
    down: Index
    right: Index


class Step(Protocol):
    """What one tap adds to a block of outputs."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels between the windows of neighbouring outputs."""

    @property
    def fills(self) -> bool:
        """Whether the block's outputs begin at the bias and end in the epilogue."""

    @property
    def maps(self) -> bool:
        """Whether it keeps products in the buffer "maps"."""

    @property
    def apart(self) -> bool:
        """Whether the rows that a tap reaches are lines."""

    @property
    def together(self) -> bool:
        """Whether all of them make one line, as wide as the image."""

    def tap(self, panel: Panel, tap: Tap) -> None:
        """Emit it; neither rows nor columns are empty."""


@dataclass(frozen=True, slots=True)
class TapsSpec:
    """A kernel that goes tap by tap; one chunk is one (image, group, plane, block of rows and columns, panels).

    `heights` are those of the tiles of whole panels and of the last one; `bias` whether packed weights hold one.
    A residual after the activation may be the output itself, which is then no place for partial sums: they have a
    buffer of their own, a panel of one block for each thread.

    Buffers: x, w (packed), out, residual, products (of a step that keeps them), sums.

    Fields: `{n,g,z,y,c,k}_div` and `_count` split the chunk's number (`n_first` the first image); `rows` and `cols` a
    block; `taps{d} in{d} out{d} dilation{d} pad{d}` extents, `at{d}` bytes between pixels of x; `channels`; `x_* o_*
    r_* w_*` as in `DenseSpec`.
    """

    target: Target
    dtype: str
    step: Step
    panels: PanelShape
    heights: tuple[tuple[int, ...], tuple[int, ...]]
    bias: bool
    columns: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        n, g, plane, y, c, k = (kernel.index(letter) for letter in "ngzyck")
        image = fn.add(n, fields["n_first"])

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(g, fields[f"{letter}_g"]))
            return fn.gep(fields.buffer(role), offset)

        x, out = moved("x", "x"), moved("out", "o")
        residual = moved("residual", "r") if self.epilogue.residual else None
        weights = fn.gep(fields.buffer("w"), fn.mul(g, fields["w_g"]))

        def own(role: str) -> Value:
            return fn.gep(fields.buffer(role), fn.mul(kernel.thread, fields[f"thread_{role}"]))

        maps = own("maps") if self.step.maps else None
        sums = own("sums") if self.epilogue.residual == "after" else None

        def span(index: Index, size: str, end: str) -> Span:
            first = fn.i64(fn.mul(index, fields[size]))
            return first, fn.i64(fn.smin(fn.add(first, fields[size]), fields[end]))

        block = span(y, "rows", "out1"), span(c, "cols", "out2")
        panels = fn.i64(fn.mul(k, fields["panels"]))
        end = fn.i64(fn.smin(fn.add(panels, fields["panels"]), fields["panel_count"]))

        def panel(at: Value, vectors: int, valid: int, last: bool) -> None:
            tile = Tile(self.target, self.dtype, 1, vectors, self.bias)
            w = fn.gep(weights, fn.mul(at, fields["w_panel"]))
            head = w
            if self.bias:
                w = fn.gep(w, tile.step_bytes)
            o = fn.gep(out, fn.mul(at, fields["o_panel"]))
            here = Panel(fn, fields, self, tile, self.heights[last], valid, x, o, w, plane, block, g, at, maps, sums)
            r = None
            if self.step.fills:
                r = fn.gep(residual, fn.mul(at, fields["r_panel"])) if residual is not None else None
                self._begin(here, head, r if sums is None else None)
            self._taps(here)
            if self.step.fills and self.epilogue.activation is not None:
                self._end(here, self.epilogue.activation, r)

        each_panel(fn, fields, self.panels, self.target.lanes(self.dtype), (panels, end), panel)
        return kernel.finish()

    def _whole_block(self, panel: Panel, body: Callable[[Tile, Value, Value], None]) -> None:
        """A body for tiles that cover the block, which is whole rows or a part of one: pixels without a gap."""
        fn, (rows, columns) = panel.fn, panel.block
        first = panel.pixel_of_output(rows[0], columns[0])
        last = panel.pixel_of_output(fn.sub(rows[1], 1), columns[1])

        def tile(height: int, state: list[Value]) -> list[Value]:
            body(panel.shaped(height), *state)
            return [fn.i64(fn.add(pixel, height)) for pixel in state]

        start = [fn.i64(panel.pixel(rows[0], columns[0])), fn.i64(first)]
        panel.line(fn.sub(last, first)).walk(panel.heights, start, tile)

    def _begin(self, panel: Panel, head: Value, residual: Value | None) -> None:
        """Bias (or zero), and the residual that comes before the activation."""
        fn, tile = panel.fn, panel.tile
        start = [fn.const(tile.vec, 0.0)] * tile.vectors
        if self.bias:
            start = [fn.load(tile.vec, head, v * self.target.vector_bytes) for v in range(tile.vectors)]
        self._whole_block(panel, lambda shape, at, _: panel.begin(shape, start * shape.rows, at, residual))

    def _end(self, panel: Panel, activation: Activation, residual: Value | None) -> None:
        """The activation, and the residual that comes after it."""
        self._whole_block(panel, lambda shape, at, out: panel.end(shape, activation, at, out, residual))

    def _taps(self, panel: Panel) -> None:
        """The step, for each tap that reaches outputs of the block."""
        fn, fields, stride = panel.fn, panel.fields, self.step.stride

        def shift(dim: int, tap: Index) -> Index:
            return fn.sub(fn.mul(tap, fields[f"dilation{dim}"]), fields[f"pad{dim}"])

        def reach(dim: int, shift: Index, block: Span) -> Span:
            """The outputs o of a block with 0 <= o * stride + shift < in."""

            def first_from(distance: Index) -> Index:
                return fn.udiv(fn.add(fn.smax(distance, 0), stride[dim] - 1), stride[dim])

            low = fn.smax(first_from(fn.sub(0, shift)), block[0])
            return low, fn.smin(first_from(fn.sub(fields[f"in{dim}"], shift)), block[1])

        def level(dim: int, number: Index, known: list[tuple[Index, Index, Span]]) -> None:
            if dim == 3:
                (_, back, _), (_, down, rows), (column, right, columns) = known
                depth = fn.add(fn.mul(panel.plane, stride[0]), back)
                self.step.tap(panel, Tap(number, column, depth, rows, columns, down, right))
                return
            spans: list[Span] = [(panel.plane, fn.add(panel.plane, 1)), *panel.block]

            def turn(tap: Value, _: list[Value]) -> list[Value]:
                moved = shift(dim, tap)
                found = reach(dim, moved, spans[dim])
                inner = fn.add(fn.mul(number, fields[f"taps{dim}"]), tap)

                def some() -> list[Value]:
                    level(dim + 1, inner, [*known, (tap, moved, found)])
                    return []

                fn.if_(fn.cmp("slt", *found), some, lambda: [], hint="reached")
                return []

            fn.loop(0, fields[f"taps{dim}"], 1, [], turn, hint="tap")

        level(0, 0, [])
