"""The kernel of one phase: a block of output pixels by a group of panels of output channels, tile by tile.

A chunk is one (image, group, block of pixels, group of panels).  Inside it the panels are the outer loop and
the tiles the inner one, so that one panel of weights stays in the nearest cache that holds it while the block
of pixels goes by.

Fields: `{n,g,b,k}_div` and `{n,g,b,k}_count` split the chunk's number (`n_first` is the first image); `block`
pixels a block (the last one takes the rest), `pixels` in all, `panels` a group of panels, `panel_count` in
all; `x_n x_g o_n o_g o_k o_row r_n r_g r_k r_row` bytes between images, groups, output channels (panels in
the "rows" layout) and pixels; `w_g`, `w_panel` bytes of packed weights per group and panel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import I64, Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.groups import Group, group_parts
from leanconv.kernels.image import Rows, Source
from leanconv.kernels.micropanels import PackTiles
from leanconv.kernels.output import Output
from leanconv.kernels.packahead import Ahead
from leanconv.kernels.panels import PanelShape, each_panel
from leanconv.kernels.reduction import UNROLL, Reduction
from leanconv.kernels.rowtiles import InRows, RowTiles
from leanconv.kernels.scatter import ScatteredOutput
from leanconv.kernels.stage import Stage
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """Everything a dense kernel is specialised for; equal specs share one kernel, whatever the layer's extents.

    `rows` are the tile heights of the whole panels and of the last one; `ragged` adds tiles one row shorter,
    so that any number of pixels splits into whole tiles (without it every block is a multiple of the height);
    `columns` stores with pixels adjacent (NCHW) instead of channels; `stage` copies a block's windows to the
    thread's part of the buffer "scratch" first, where the core then reads; `fetch` asks for
    the lines of a tile of the output some tiles before it is stored (fields: `o_ahead`, bytes); `past`: the output is
    stored past the caches if it begins at a multiple of a register's size; `scattered` dimensions
    of an output whose pixels are not evenly spaced (0: they are); `tight`: the weights of the last panel are packed
    without a gap; `bias_apart`: the bias is not at the head of panels but in a buffer of its own, without a gap either
    (fields: `bias_g`, `bias_panel`, bytes); `later` lines of the next panel of weights that each round of a tile asks
    for (fields: `w_later` bytes to that panel, `w_back` for threads that take chunks from the back); `ahead`: tiles are
    staged while others are summed (see `packahead`); `grouped`: sums have one of several groups of their terms (fields:
    `terms_before` it, `is_first`, `is_last`; see `groups`).
    """

    target: Target
    dtype: str
    source: Source
    reduction: Reduction
    panels: PanelShape
    rows: tuple[int, int]
    ragged: bool
    bias: bool
    columns: bool
    epilogue: Epilogue
    stage: Stage | None = None
    fetch: bool = False
    past: bool = False
    scattered: int = 0
    tight: bool = False
    bias_apart: bool = False
    later: int = 0
    ahead: bool = False
    grouped: bool = False

    @property
    def pairs(self) -> bool:
        """Whether the last register of the last panel holds two pixels: most of it would be empty.

        24 channels are three multiply-adds for two pixels in place of four on AVX-512. Where registers hold fewer
        lanes such a part of a panel is smaller, and a broadcast more costs as much.
        """
        half = 2 * self.panels.valid <= self.target.lanes(self.dtype)
        return self.target.masks and half and self.panels.last > 1 and not (self.tight or self.bias_apart)

    def for_any_extents(self) -> DenseSpec:
        """The kernel that computes the same, with the same fields, for any number of pixels."""
        return replace(self, ragged=True, past=False)

    def stand_in(self, fields: Mapping[str, int]) -> tuple[DenseSpec, Mapping[str, int]] | None:
        """A kernel for rows of the image that are asked for ahead or not, or are of another width."""
        if isinstance(self.source, RowTiles):
            return replace(self.for_any_extents(), source=self.source.anywhere()), fields
        if not isinstance(self.source, Rows) or "x_ahead" not in fields:
            return None
        other = replace(self.source, ahead=not self.source.ahead)
        return replace(self.for_any_extents(), source=other), fields

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit this kernel into a module; returns the names of its fields in order."""
        return emit_dense(module, self, name)


def emit_dense(module: Module, spec: DenseSpec, name: str) -> tuple[str, ...]:
    """Emit the kernel; returns the names of its fields in order. Buffers: x, w (packed), bias, out, residual."""
    kernel = KernelFunction(module, name)
    fn, fields = kernel.fn, kernel.fields
    index = {letter: kernel.index(letter) for letter in "ngbk"}

    image = fn.add(index["n"], fields["n_first"])

    def moved(role: str, letter: str) -> Value:
        offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(index["g"], fields[f"{letter}_g"]))
        return fn.gep(fields.buffer(role), offset)

    x, out = moved("x", "x"), moved("out", "o")
    residual = moved("residual", "r") if spec.epilogue.residual else None
    weights = fn.gep(fields.buffer("w"), fn.mul(index["g"], fields["w_g"]))
    first = fn.mul(index["b"], fields["block"])
    is_last = fn.cmp("eq", fn.add(index["b"], 1), fields["b_count"])
    end = fn.select(is_last, fields["pixels"], fn.add(first, fields["block"]))
    panel0 = fn.i64(fn.mul(index["k"], fields["panels"]))
    panel1 = fn.i64(fn.smin(fn.add(panel0, fields["panels"]), fields["panel_count"]))
    origin = first
    if spec.stage is not None:
        scratch = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        if spec.ahead:
            assert isinstance(spec.stage, PackTiles)
            tiles, span = split(fn, first, end, spec.rows[0]), (panel0, panel1)
            Ahead(fn, fields, spec, spec.stage, x, scratch, weights, out, residual, fn.i64(first), tiles, span).emit()
            return kernel.finish()
        x, origin = spec.stage.emit(fn, fields, x, scratch, fn.i64(first), end)
    start = spec.source.start(fn, fields, origin)
    if spec.grouped:
        is_first, is_last = (fn.cmp("ne", fields[name], 0) for name in ("is_first", "is_last"))
        group = Group(is_first, is_last, fields["terms_before"])
    later = None
    if spec.later:
        back = fn.cmp("ne", fn.urem(kernel.thread, 2), 0)  # as in `job`
        later = fn.i64(fn.select(back, fields["w_back"], fields["w_later"]))

    def panel(form: DenseSpec, at: Value, vectors: int, valid: int, last: bool) -> None:
        gap = spec.tight and valid < spec.target.lanes(spec.dtype)
        pairs = last and spec.pairs
        tile = Tile(spec.target, spec.dtype, spec.rows[last], vectors, spec.bias, valid if gap else 0, pairs)
        w = fn.gep(weights, fn.mul(at, fields["w_panel"]))
        parts: tuple[Callable[[Tile], Sum], Callable[[Tile], Output] | None] | None = None
        if spec.grouped:
            parts = group_parts(fn, fields, spec.reduction, spec.epilogue, valid, group)
        if spec.bias_apart:
            of_group = fn.gep(fields.buffer("bias"), fn.mul(index["g"], fields["bias_g"]))
            bias = fn.gep(of_group, fn.mul(at, fields["bias_panel"]))
            parts = (lambda shape: Sum(fn, fields, shape, spec.reduction, head=bias), None)
        panel_tiles(fn, fields, form, tile, valid, x, w, out, residual, at, fn.i64(first), end, start, parts, later)

    def panels(form: DenseSpec) -> list[Value]:
        lanes = spec.target.lanes(spec.dtype)
        each_panel(fn, fields, spec.panels, lanes, (panel0, panel1), functools.partial(panel, form))
        return []

    def past() -> list[Value]:
        panels(replace(spec, fetch=False))
        fn.stream_end(spec.target.triple)
        return []

    near = replace(spec, past=False)
    if spec.past:
        address = fn.op(I64, f"ptrtoint ptr {out.name} to i64")
        whole = fn.cmp("eq", fn.urem(address, spec.target.vector_bytes), 0)
        fn.if_(whole, past, lambda: panels(near), hint="past")
    else:
        panels(near)
    return kernel.finish()


def split(fn: Function, first: Index, end: Index, height: int) -> tuple[Index, Index]:
    """Tiles that cover the pixels [first, end), and how many of them are whole: the last ones are a row shorter.

    n pixels make t = ceil(n / height) tiles, height * t - n of them short.
    """
    count = fn.sub(end, first)
    number = fn.udiv(fn.add(count, height - 1), height)
    return number, fn.sub(number, fn.sub(fn.mul(number, height), count))


def panel_tiles(
    fn: Function,
    fields: Fields,
    spec: DenseSpec,
    tile: Tile,
    valid: int,
    x: Value,
    weights: Value,
    out: Value,
    residual: Value | None,
    panel: Value,
    first: Value,
    end: Value,
    start: list[Value],
    parts: tuple[Callable[[Tile], Sum], Callable[[Tile], Output] | None] | None = None,
    later: Value | None = None,
) -> None:
    """All tiles of one panel over one block of pixels [first, end); `parts` make other sums and outputs than usual.

    `later`: bytes to the next panel, of whose lines each tile asks for some, the next tile for others.
    """

    def sums(shape: Tile) -> Sum:
        return parts[0](shape) if parts else Sum(fn, fields, shape, spec.reduction)

    def outputs(shape: Tile) -> Output:
        if parts and parts[1]:
            return parts[1](shape)
        if spec.scattered:
            return ScatteredOutput(fn, fields, shape, spec.epilogue, valid, spec.columns, dims=spec.scattered)
        return Output(fn, fields, shape, spec.epilogue, valid, spec.columns, past=spec.past)

    asks = int(later is not None)  # values that tiles pass on for it
    output = outputs(tile)
    o = output.panel(out, panel, "o")
    r = output.panel(residual, panel, "r") if residual is not None else None

    def tiles(shape: Tile, begin: Value, stop: Index, state: list[Value], shaped: Output) -> list[Value]:
        sum_ = sums(shape)
        sum_.late = not (isinstance(shaped, ScatteredOutput) or shaped.columns or shape.pairs)

        def body(pixel: Value, state: list[Value]) -> list[Value]:
            place, after = state[:asks], list[Value]()
            if later is not None:
                sum_.later = fn.i64(fn.add(later, place[0])), spec.later
                moved = fn.add(place[0], spec.later * LINE)
                after = [fn.i64(fn.select(fn.cmp("slt", moved, UNROLL * shape.step_bytes), moved, 0))]
            accs = spec.source.tile(sum_, x, weights, state[asks:])
            if sum_.late:
                shaped.store_rows(accs, o, r, pixel, sum_.last_term())
            else:
                shaped.store(accs, o, r, pixel)
            if spec.fetch:
                shaped.fetch(o, pixel)
            return [*after, *spec.source.next(fn, fields, shape.rows, state[asks:])]

        return fn.loop(begin, stop, shape.rows, state, body, guard=spec.ragged, hint="tile")

    def cover(first: Value, end: Index, start: list[Value]) -> list[Value]:
        if not spec.ragged:
            return tiles(tile, first, end, start, output)
        # The planner sees to it that there are as many tiles as are to be shorter: none is ever partly empty.
        turn = fn.i64(fn.add(first, fn.mul(split(fn, first, end, tile.rows)[1], tile.rows)))
        state = tiles(tile, first, turn, start, output)
        lower = replace(tile, rows=tile.rows - 1)
        return tiles(lower, turn, end, state, outputs(lower))

    first_line = [fn.i64(0)] * asks
    if isinstance(spec.source, InRows):
        width = fields[f"out{spec.source.dims - 1}"]

        def line(begin: Value, state: list[Value]) -> list[Value]:
            at, *place = state
            place = cover(begin, fn.add(begin, width), [*place, at, fn.i64(0)])[:asks]
            return [fn.i64(fn.add(at, 1)), *place]

        fn.loop(first, end, width, [start[0], *first_line], line, hint="line")
    else:
        cover(first, end, [*first_line, *start])
