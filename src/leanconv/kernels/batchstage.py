"""im2win with vectors along the last axis: what the windows of some pixels of a row hold, copied side by side.

    band    [column][taps of the other axes][channel][vectors]

Windows slide along the columns, so the terms of a window are one run, and channels, a plane apart in the image, lie
side by side.  Padding is written as zeros or as the pixels that its mode names, so there are no edges left.  The band
is a thread's own, of some columns; or a tensor of all rows, written by a phase of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.batchpanels import each_line
from leanconv.kernels.cost import PAGE, Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position

VectorsBody = Callable[[Index, Index, int, Value | None], None]
"""Called with a number, the bytes into a pixel, how many vectors, and the elements that they hold (None: all)."""


@dataclass(frozen=True, slots=True)
class BatchStage:
    """How columns are copied; all tuples are of the axes but the last, the innermost of which is the columns'.

    `vectors` of one pixel stand beside each other.  Fields: `in{d} at{d}` sizes and bytes between pixels; `x_c` bytes
    between channels; `channels`; `column` bytes of a column.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    vectors: int

    @property
    def dims(self) -> int:
        """Axes but the last."""
        return len(self.kernel)

    @property
    def entry(self) -> int:
        """Bytes of one channel in the band."""
        return self.vectors * self.target.vector_bytes

    def cost(self, f: Mapping[str, int], columns: float, held: float | None) -> Cost:
        """So many columns of each row of outputs; what is written stays in `held` bytes of cache, or nowhere (None)."""
        item = 8 if self.dtype == "float64" else 4
        registers = f["length"] / self.target.lanes(self.dtype)
        entries = f["lines"] * columns * math.prod(self.kernel[:-1]) * f["channels"]
        counts = {"vector": 2 * entries * math.ceil(registers)}
        if f["x_c"] >= PAGE:
            counts["page"] = entries * math.ceil(registers / self.vectors)
        nbytes = entries * f["length"] * item
        return Cost(counts, ((nbytes, nbytes),), ((nbytes, held or nbytes),))

    def columns(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        band: Value,
        outer: list[Index],
        first: Index,
        count: Index,
        left: Value | None,
    ) -> None:
        """Copy `count` columns of a row of outputs at `outer`, from padded column `first` on.

        `x` addresses the vectors of pixel 0; `left` elements of them exist, None for all.
        """
        last = self.dims - 1

        def column(index: Value, state: list[Value]) -> list[Value]:
            where = fn.sub(fn.add(first, index), self.pad_low[last])
            at, inside = self._placed(fn, fields, last, where)
            self._taps(fn, fields, 0, fn.gep(x, fn.mul(at, fields[f"at{last}"])), inside, state[0], outer, left)
            return [fn.gep(state[0], fields["column"])]

        fn.loop(0, count, 1, [band], column, hint="column")

    def _placed(self, fn: Function, fields: Fields, dim: int, where: Index) -> tuple[Index, Value | None]:
        """The pixel that is read at a position, and whether it is one of the image (None: always)."""
        if not self.padded:
            return where, None
        size = fields[f"in{dim}"]
        if self.pad_mode == "zeros":
            return where, fn.cmp("ult", where, size)
        return mapped_position(fn, fn.i64(where), size, self.pad_mode), None

    def _taps(
        self,
        fn: Function,
        fields: Fields,
        dim: int,
        source: Value,
        inside: Value | None,
        target: Value,
        outer: list[Index],
        left: Value | None,
    ) -> Value:
        """The taps of the other axes in one column; returns the place behind them."""
        if dim < self.dims - 1:

            def tap(index: Value, state: list[Value]) -> list[Value]:
                corner = fn.sub(fn.mul(outer[dim], self.stride[dim]), self.pad_low[dim])
                where = fn.add(corner, fn.mul(index, self.dilation[dim]))
                at, ok = self._placed(fn, fields, dim, where)
                both = inside if ok is None else ok if inside is None else fn.both(inside, ok)
                moved = fn.gep(source, fn.mul(at, fields[f"at{dim}"]))
                return [self._taps(fn, fields, dim + 1, moved, both, state[0], outer, left)]

            return fn.loop(0, self.kernel[dim], 1, [target], tap, hint="tap")[0]

        def copy(read: bool) -> list[Value]:
            def channel(_: Value, state: list[Value]) -> list[Value]:
                self._entry(fn, state[0] if read else None, state[1], left)
                return [fn.gep(state[0], fields["x_c"]), fn.gep(state[1], self.entry)]

            fn.loop(0, fields["channels"], 1, [source, target], channel, hint="channel")
            return []

        if inside is None:
            copy(True)
        else:
            fn.if_(inside, lambda: copy(True), lambda: copy(False), hint="inside")
        return fn.gep(target, fn.mul(fields["channels"], self.entry))

    def _entry(self, fn: Function, source: Value | None, target: Value, left: Value | None) -> None:
        """The vectors of one channel."""
        lanes = self.target.lanes(self.dtype)
        kind = vector(SCALARS[self.dtype], lanes)
        for v in range(self.vectors):
            at = v * self.target.vector_bytes
            if source is None:
                value = fn.const(kind, 0.0)
            elif left is None:
                value = fn.load(kind, source, at)
            else:
                value = fn.masked_load(kind, fn.gep(source, at), fn.lane_mask(lanes, fn.sub(left, v * lanes)))
            fn.store(value, target, at)


@dataclass(frozen=True, slots=True)
class BatchStageSpec:
    """The whole tensor as a phase of its own; one chunk is one (group, block of rows) of an image or block of images.

    Buffers: x, windows.  Fields besides those of `BatchStage`: `g_* b_*`, `n_first`, `block lines out{d}`; `x_n x_g
    t_g` bytes between images and groups; `length`; `columns` of a row; `t_vectors t_line` bytes between vectors and
    rows of the tensor.
    """

    stage: BatchStage
    ragged: int

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.stage.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, stage = kernel.fn, kernel.fields, self.stage
        group, block = kernel.index("g"), kernel.index("b")
        offset = fn.add(fn.mul(fields["n_first"], fields["x_n"]), fn.mul(group, fields["x_g"]))
        x = fn.gep(fields.buffer("x"), offset)
        tensor = fn.gep(fields.buffer("windows"), fn.mul(group, fields["t_g"]))

        def line(outer: list[Index]) -> None:
            row = fn.mul(line_number(fn, fields, outer), fields["t_line"])

            def vectors(number: Index, shift: Index, _: int, left: Value | None) -> None:
                band = fn.gep(tensor, fn.add(fn.mul(number, fields["t_vectors"]), row))
                stage.columns(fn, fields, fn.gep(x, shift), band, outer, 0, fields["columns"], left)

            each_vectors(fn, fields, stage, self.ragged, vectors)

        each_line(fn, fields, block, stage.dims, line)
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """All columns of an image."""
        return replace(self.stage.cost(f, f["g_count"] * f["columns"], None), chunks=chunks)


def line_number(fn: Function, fields: Fields, outer: list[Index]) -> Index:
    """The number of a row of outputs at a position."""
    number: Index = 0
    for dim, at in enumerate(outer):
        number = fn.add(fn.mul(number, fields[f"out{dim}"]) if dim else 0, at)
    return number


def each_vectors(fn: Function, fields: Fields, stage: BatchStage, ragged: int, body: VectorsBody) -> None:
    """Run the body for all vectors of the last axis, as many at a time as stand beside each other in the band."""
    item = 8 if stage.dtype == "float64" else 4
    lanes = stage.target.lanes(stage.dtype)
    wide = stage.vectors * lanes
    count = fn.udiv(fields["length"], wide)

    def whole(number: Value, _: list[Value]) -> list[Value]:
        body(number, fn.mul(number, wide * item), stage.vectors, None)
        return []

    fn.loop(0, count, 1, [], whole, guard=True, hint="vectors")
    if ragged:
        rest = fn.i64(fn.sub(fields["length"], fn.mul(count, wide)))
        body(count, fn.mul(count, wide * item), ragged, rest)
