"""Winograd convolution, fused: a block of tiles goes through all steps while it is in the cache.

A chunk is one (block of tiles, group, group of panels):

    for each block of input channels (all of them, or with `split` several, whose outputs are added up)
      input step    windows of the block's tiles  ->  V [point][tile][channel]
      for each panel of output channels
        products    V times the panel's weights, a matrix product a point, on the register-tiled core  ->  M
        output step M [point][tile][NR]  ->  pixels, bias, residual, activation

V and M are a thread's own.  With `staged` a phase before has written V of all blocks, for all threads: several chunks
read the same.  With `transform` the panel's weights are transformed here as well, each time, a row of points before its
products (`winograd_fly.py`), instead of beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction, Overlaid
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.winograd_ahead import Asks
from leanconv.kernels.winograd_fly import FlyStep
from leanconv.kernels.winograd_lines import Lines
from leanconv.kernels.winograd_products import Heights, Products
from leanconv.kernels.winograd_tiles import Bits, Counters, Place, Tiling
from leanconv.kernels.winograd_weights import WeightStep, copy_bias


class WindowEmitter(Protocol):
    """An input step inside a kernel."""

    def tile(self, place: Place, rows: Counters) -> None:
        """Transform one tile's window; `rows` are its rows in the matrices of each class."""


class ReadStep(Protocol):
    """An input step; `winograd_input.py` has Winograd's."""

    @property
    def padded(self) -> bool:
        """Whether windows lie partly outside the image."""

    @property
    def adjacent(self) -> bool:
        """Whether channels are adjacent."""

    def emit(self, fn: Function, fields: Fields, x: Value, zeros: Value | None, target: Value) -> WindowEmitter:
        """An emitter of the step."""


class PixelEmitter(Protocol):
    """An output step inside a kernel, for panels of one shape."""

    def tile(self, place: Place, rows: Counters, channel: Index, bias: Value) -> None:
        """Write one tile's outputs of the panel whose first output channel is `channel`."""


class WriteStep(Protocol):
    """An output step; `winograd_output.py` has Winograd's."""

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""

    @property
    def epilogue(self) -> Epilogue:
        """What follows it."""

    def emit(
        self, fn: Function, fields: Fields, source: Value, out: Value, residual: Value | None, vectors: int, valid: int
    ) -> PixelEmitter:
        """An emitter of the step."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk inside the kernel: block, group, part of the panels, tiles [first, end), and the thread's scratch."""

    block: Index
    group: Index
    part: Index
    first: Value
    end: Value
    start: list[Value]
    scratch: Value


@dataclass(frozen=True, slots=True)
class WinogradSpec:
    """Everything the kernel is specialised for.

    Fields besides those of the steps: `b_* g_* k_*` for the chunk; `tile_count` tiles, `b_count` blocks of them;
    `panels` a chunk, `panel_count`; `x_g o_g r_g` bytes between groups; `w_g w_panel` bytes of weights a group and
    whole panel; `u_point u_last` from point to point in whole panels and the last; `v_at m_at u_at t_at zero_at` where
    in the scratch V, M, transformed weights, biases with taps, and zeros are.  With `split`: `c_count` blocks of the
    `c_vectors` whole vectors of input channels.  With `staged`: `block_tiles` a block, the last one perhaps fewer,
    `section_bytes` from one to the next in the buffer "windows".  `sections` and `asked` are those of `Products`;
    `ahead`: sections of channels, if `winograd_ahead.py` asks for pixels, and its fields.
    """

    target: Target
    dtype: str
    tiling: Tiling
    read: ReadStep
    write: WriteStep
    reduction: Reduction
    panels: PanelShape
    transform: bool
    split: bool = False
    sections: bool = False
    asked: int = 0
    staged: bool = False
    together: int = 0
    ahead: int = 0

    @property
    def lanes(self) -> int:
        """Channels in a vector."""
        return self.target.lanes(self.dtype)

    def stand_in(self, fields: Mapping[str, int]) -> tuple[WinogradSpec, Mapping[str, int]] | None:
        """A kernel that computes the same for images of other extents too, and its fields; None if there is none."""
        from leanconv.kernels.winograd_clipped import clipped  # only here: few networks run at several sizes

        found = clipped(self)
        return None if found is None else (found, fields)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        # Ten heights of tiles: LLVM's strength reduction took half of 180 ms (Zen 5, 64 channels), and gained nothing.
        module.hides = True
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        index = {letter: kernel.index(letter) for letter in "gbk"}
        scratch = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        if self.staged:
            first = fn.i64(fn.mul(index["b"], fields["block_tiles"]))
            end = fn.i64(fn.smin(fn.add(first, fields["block_tiles"]), fields["tile_count"]))
        else:
            first = fn.i64(fn.udiv(fn.mul(index["b"], fields["tile_count"]), fields["b_count"]))
            end = fn.i64(fn.udiv(fn.mul(fn.add(index["b"], 1), fields["tile_count"]), fields["b_count"]))
        place = Chunk(index["b"], index["g"], index["k"], first, end, self.tiling.start(fn, fields, first), scratch)
        if not self.split:
            self._channels(kernel, fields, place, 0)
            return kernel.finish()

        def some(at: Value, _: list[Value]) -> list[Value]:
            low, high = (
                fn.mul(fn.udiv(fn.mul(n, fields["c_vectors"]), fields["c_count"]), self.lanes)
                for n in (at, fn.add(at, 1))
            )
            count = fn.i64(fn.sub(high, low))
            here = dict.fromkeys(("channels", "channels_vec", "channels_whole"), count)
            here |= {"c_before": fn.i64(low), "c_after": fn.i64(fn.sub(fields["channels"], high))}
            self._channels(kernel, Overlaid(fields, here), place, low)
            return []

        fn.loop(0, fields["c_count"], 1, [], some, hint="split")
        return kernel.finish()

    def _channels(self, kernel: KernelFunction, fields: Fields, chunk: Chunk, before: Index) -> None:
        """All steps for the channels that `fields` tell of; `before` channels come before them."""
        fn = kernel.fn
        products = fn.gep(chunk.scratch, fields["m_at"])

        def group_of(role: str, letter: str) -> Value:
            return fn.gep(fields.buffer(role), fn.mul(chunk.group, fields[f"{letter}_g"]))

        def each(body: Callable[[Place, Counters], None]) -> Counters:
            return self.tiling.each(fn, fields, chunk.first, chunk.end, chunk.start, body)

        if self.staged:
            source = fn.gep(fields.buffer("windows"), fn.mul(chunk.block, fields["section_bytes"]))
            counts = each(lambda place, rows: None)
        else:
            source = fn.gep(chunk.scratch, fields["v_at"])
            zeros = self._zeros(fn, fields, chunk.scratch)
            image = group_of("x", "x")
            if self.split:
                image = fn.gep(image, fn.mul(before, fields["x_c"]))
            counts = each(self.read.emit(fn, fields, image, zeros, source).tile)

        asks = None
        if self.ahead:
            asks = Asks.of(kernel, fields, self.tiling, self.item, chunk.block, each, self.ahead)
        out = group_of("out", "o")
        residual = group_of("residual", "r") if self.write.epilogue.residual else None
        low = fn.i64(fn.mul(chunk.part, fields["panels"]))
        high = fn.i64(fn.smin(fn.add(low, fields["panels"]), fields["panel_count"]))

        def shape(vectors: int, valid: int) -> Callable[[Value], None]:
            writer = self.write.emit(fn, fields, products, out, residual, vectors, valid)
            product = Products(self.target, self.dtype, self.reduction, vectors, self.sections, self.asked)
            heights: dict[Bits, tuple[Value, ...]] = {
                bits: (count,) if self.together else product.heights(fn, fields, count)
                for bits, count in counts.items()
            }

            def panel(at: Value) -> None:
                bias, weights = self._weights(fn, fields, chunk, at, before, vectors, valid)
                fly = self._fly(vectors, valid) if self.transform else None
                channel = fn.mul(at, self.panels.vectors * self.lanes)
                mine = product
                if asks is not None:
                    last = fn.cmp("eq", fn.add(at, 1), high)
                    mine = replace(product, ahead=asks.panel(channel, vectors, self.target.vector_bytes, last))
                self._products(fn, fields, chunk, mine, heights, [source, weights, products], fly)
                each(lambda place, rows: writer.tile(place, rows, channel, bias))

            return panel

        if self.panels.whole:
            whole = shape(self.panels.vectors, self.lanes)

            def body(at: Value, _: list[Value]) -> list[Value]:
                whole(at)
                return []

            fn.loop(low, fn.smin(high, fields["panel_whole"]), 1, [], body, guard=True, hint="panel")
        if self.panels.last:

            def last() -> list[Value]:
                shape(self.panels.last, self.panels.valid)(fn.i64(fn.sub(fields["panel_count"], 1)))
                return []

            fn.if_(fn.cmp("eq", high, fields["panel_count"]), last, lambda: [], hint="last")

    def _zeros(self, fn: Function, fields: Fields, scratch: Value) -> Value | None:
        """A row of zeros as long as the channels, that padding is read from; None if a few zeros will do."""
        if not (self.read.padded and self.read.adjacent):
            return None
        zeros = fn.gep(scratch, fields["zero_at"])

        def clear(c: Value, _: list[Value]) -> list[Value]:
            fn.store(fn.const(SCALARS[self.dtype], 0.0), fn.gep(zeros, fn.mul(c, self.item)))
            return []

        fn.loop(0, fields["channels"], 1, [], clear, hint="zero")
        return zeros

    def _weights(
        self, fn: Function, fields: Fields, chunk: Chunk, panel: Value, before: Index, vectors: int, valid: int
    ) -> tuple[Value, Value]:
        """Where the biases of a panel are, and its transformed weights, or the taps that they are made from."""
        width = vectors * self.lanes
        row = width * self.item
        if not self.transform:
            bias = fn.gep(fields.buffer("w"), fn.mul(chunk.group, fields["w_g"]))
            bias = fn.gep(bias, fn.mul(panel, fields["w_panel"]))
            weights = fn.gep(bias, row) if self.write.bias else bias
            return self._bias(fn, fields, bias, row), fn.gep(weights, fn.mul(before, row))
        fly = self._fly(vectors, valid)
        channel = fn.mul(panel, self.panels.vectors * self.lanes)
        bias = fn.gep(chunk.scratch, fields["t_at"])
        weights = bias
        if self.write.bias:
            shift = fn.gep(fields.buffer("bias"), fn.mul(chunk.group, fields["bias_g"]))
            copy_bias(fn, fly.step.kind, fn.gep(shift, fn.mul(channel, self.item)), bias, width, fly.count)
            weights = fn.gep(bias, row)
        filters = fn.gep(fields.buffer("weights"), fn.mul(chunk.group, fields["w_g"]))
        filters = fn.gep(filters, fn.mul(channel, fields["w_k"]))
        if self.split:
            filters = fn.gep(filters, fn.mul(before, fields["w_c"]))
        fly.take(fn, fields, filters, weights)
        return self._bias(fn, fields, bias, row), weights

    def _fly(self, vectors: int, valid: int) -> FlyStep:
        """How the weights of a panel are transformed on the fly."""
        step = WeightStep(self.target, self.dtype, self.tiling)
        return FlyStep(step, vectors * self.lanes, (vectors - 1) * self.lanes + valid)

    def _bias(self, fn: Function, fields: Fields, bias: Value, row: int) -> Value:
        """The biases: of all blocks of input channels the first one adds them, the others zeros."""
        if not (self.split and self.write.bias):
            return bias
        return fn.select(fn.cmp("eq", fields["c_before"], 0), bias, fn.module.zeros(row))

    def _lines(self, product: Products) -> Lines:
        """The products of lines of points, as those of points."""
        p, axis = product, self.tiling.axes[-1]
        return Lines(p.target, p.dtype, p.reduction, p.vectors, p.sections, p.asked, axis, self.together)

    def _point_bytes(self, fields: Fields, vectors: int) -> Value:
        """Bytes of weights from point to point."""
        return fields["u_point" if vectors == self.panels.vectors else "u_last"]

    def _products(
        self,
        fn: Function,
        fields: Fields,
        chunk: Chunk,
        product: Products,
        heights: dict[Bits, tuple[Value, ...]],
        begin: list[Value],
        fly: FlyStep | None,
    ) -> None:
        """The matrix product of every point, whose V, U and M `begin` there; with `fly` taps in place of U."""
        steps = [fields["v_point"], self._point_bytes(fields, product.vectors), fields["m_point"]]

        last = len(self.tiling.axes) - 1

        def axis(d: int, table: dict[Bits, tuple[Value, ...]], state: list[Value]) -> list[Value]:
            if self.together and d == last:
                self._lines(product).line(fn, fields, {bits: count for bits, (count,) in table.items()}, state)
                far = [fn.mul(step, self.tiling.sizes[last]) for step in (steps[0], steps[2])]
                return [fn.gep(at, step) for at, step in zip(state, (far[0], steps[1], far[1]), strict=True)]
            if d > last:
                (height,) = table.values()
                product.point(fn, fields, Heights(*height), state)
                return [fn.gep(pointer, step) for pointer, step in zip(state, steps, strict=True)]
            here = self.tiling.axes[d]

            def turn(point: Value, state: list[Value]) -> list[Value]:
                kept = {bits[1:]: value for bits, value in table.items() if not bits[0]}
                if here.ragged:
                    dropped = fn.cmp("uge", point, here.kept)
                    others = {bits[1:]: value for bits, value in table.items() if bits[0]}
                    kept = {
                        bits: tuple(fn.select(dropped, b, a) for a, b in zip(value, others[bits], strict=True))
                        for bits, value in kept.items()
                    }
                if fly is None or d != self.tiling.active[0]:
                    return axis(d + 1, kept, state)
                fresh = fn.gep(chunk.scratch, fields["u_at"])
                fly.row(fn, fields, begin[1], fresh, self._point_bytes(fields, product.vectors), point)
                return axis(d + 1, kept, [state[0], fresh, state[2]])

            if here.transform.size == 1:
                return turn(fn.i64(0), state)
            return fn.loop(0, here.transform.size, 1, state, turn, hint="point")

        axis(0, heights, begin)
