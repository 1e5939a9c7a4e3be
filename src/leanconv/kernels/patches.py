"""Patch matrices: im2row and im2col staging, whole or a block of output pixels at a time.

im2row    row = output pixel, columns = taps, then channels: the window of each pixel laid out in one run
im2col    row = tap and channel, columns = output pixels

`channel_major` orders a window by channel, then tap, as the user's weights are; otherwise tap, then channel,
as packed weights are.  Padding is written as zeros (or as the pixels that another pad mode names).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.copy import copy_run
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import following, mapped_position, position_of


@dataclass(frozen=True, slots=True)
class Patches:
    """How windows are copied.

    Fields: `out{d} in{d} at{d}` output and input sizes and input byte strides; `s_c` bytes between input
    channels; `channels`; `m_pixel`, `m_c`, `m_tap` bytes in the matrix from pixel to pixel, channel to
    channel, tap to tap.

    `parts`: with columns, a block may begin and end within an output row.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    rows: bool
    unit_channel: bool
    unit_matrix: bool
    parts: bool

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def lanes(self) -> str:
        """LLVM's type of a vector register of elements."""
        return vector(SCALARS[self.dtype], self.target.lanes(self.dtype))

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel)

    def emit(
        self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Copy the windows of output pixels [first, end) to the matrix, whose first pixel is `first`; see `Stage`."""
        if self.rows:
            self._emit_rows(fn, fields, x, matrix, first, end)
        else:
            self._emit_columns(fn, fields, x, matrix, first, end)
        return matrix, 0

    def _emit_rows(self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value) -> None:
        def pixel(position: list[Value], state: list[Value]) -> list[Value]:
            self.window(fn, fields, x, state[0], position)
            return [fn.gep(state[0], fields["m_pixel"])]

        each_pixel(fn, fields, self.dims, first, end, [matrix], pixel)

    def window(self, fn: Function, fields: Fields, x: Value, row: Value, position: list[Value], first: int = 0) -> None:
        """The taps of one output pixel, those of the first dimension from `first` on; `row` is where they go."""

        def taps(dim: int, source: Value, valid: Value, target: Value) -> Value:
            if dim == self.dims:

                def copy() -> list[Value]:
                    return self._run(fn, fields, source, target)

                def clear() -> list[Value]:
                    return self._run(fn, fields, None, target)

                if self.padded and self.pad_mode == "zeros":
                    fn.if_(valid, copy, clear, hint="inside")
                else:
                    copy()
                return fn.gep(target, fields["m_tap"])

            def tap(index: Value, state: list[Value]) -> list[Value]:
                at, ok = self.place(fn, fields, dim, position[dim], index)
                moved = fn.gep(source, fn.mul(at, fields[f"at{dim}"]))
                return [taps(dim + 1, moved, fn.both(valid, ok) if ok is not None else valid, state[0])]

            return fn.loop(0 if dim else first, self.kernel[dim], 1, [target], tap, hint="tap")[0]

        taps(0, x, Value("true", I1), row)

    def place(self, fn: Function, fields: Fields, dim: int, at: Index, tap: Index) -> tuple[Index, Value | None]:
        """The input position under a tap, and whether it lies inside (None if it always does)."""
        corner = fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])
        where = fn.add(corner, fn.mul(tap, self.dilation[dim]))
        if not self.padded:
            return where, None
        size = fields[f"in{dim}"]
        if self.pad_mode == "zeros":
            return where, fn.cmp("ult", where, size)
        return mapped_position(fn, fn.i64(where), size, self.pad_mode), None

    def _run(self, fn: Function, fields: Fields, source: Value | None, target: Value) -> list[Value]:
        """The channels of one tap of one pixel; zeros without a source."""
        item = self.itemsize
        steps: tuple[Index, Index] = (
            item if self.unit_channel else fields["s_c"],
            item if self.unit_matrix else fields["m_c"],
        )
        copy_run(
            fn,
            self.lanes,
            fields["channels"],
            source,
            target,
            steps,
            self.unit_channel and self.unit_matrix,
        )
        return []

    def _emit_columns(self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value) -> None:
        def taps(dim: int, tap: list[Value], target: Value) -> Value:
            if dim < self.dims:

                def step(index: Value, state: list[Value]) -> list[Value]:
                    return [taps(dim + 1, [*tap, index], state[0])]

                return fn.loop(0, self.kernel[dim], 1, [target], step, hint="tap")[0]

            def channel(_: Value, state: list[Value]) -> list[Value]:
                source, target = state
                self.plane(fn, fields, source, target, first, end, tap)
                return [fn.gep(source, fields["s_c"]), fn.gep(target, fields["m_c"])]

            fn.loop(0, fields["channels"], 1, [x, target], channel, hint="channel")
            return fn.gep(target, fields["m_tap"])

        taps(0, [], matrix)

    def plane(
        self, fn: Function, fields: Fields, source: Value, target: Value, first: Index, end: Index, tap: list[Value]
    ) -> None:
        """One tap of one channel for the pixels [first, end), whole rows but for `parts`; `target` is the first's."""
        width = fields[f"out{self.dims - 1}"]

        def row(index: Value, state: list[Value]) -> list[Value]:
            low: Index = 0
            high: Index = width
            if self.parts:
                corner = fn.mul(index, width)
                low = fn.smax(fn.sub(first, corner), 0)
                high = fn.smin(fn.sub(end, corner), width)
            self._row_of_pixels(fn, fields, source, state[0], index, (low, high), tap)
            return [fn.gep(state[0], fn.mul(fn.sub(high, low), self.itemsize))]

        rows_end = fn.add(fn.udiv(fn.sub(end, 1), width), 1) if self.parts else fn.udiv(end, width)
        fn.loop(fn.udiv(first, width), rows_end, 1, [target], row, hint="row")

    def _row_of_pixels(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        target: Value,
        row: Value,
        part: tuple[Index, Index],
        tap: list[Value],
    ) -> None:
        """A part of an output row, from pixel to pixel, under one tap of one channel: zeros, pixels, zeros."""
        last = self.dims - 1
        item = self.itemsize
        begin, end = part
        at_last = fields[f"at{last}"]
        valid = Value("true", I1)
        rest: Index = row
        for dim in reversed(range(last)):
            at = rest if dim == 0 else fn.urem(rest, fields[f"out{dim}"])
            rest = rest if dim == 0 else fn.udiv(rest, fields[f"out{dim}"])
            where, ok = self.place(fn, fields, dim, at, tap[dim])
            source = fn.gep(source, fn.mul(where, fields[f"at{dim}"]))
            valid = fn.both(valid, ok) if ok is not None else valid
        if self.padded and self.pad_mode != "zeros":

            def pixel(q: Value, state: list[Value]) -> list[Value]:
                where, _ = self.place(fn, fields, last, q, tap[last])
                fn.store(fn.load(SCALARS[self.dtype], source, fn.mul(where, at_last)), state[0])
                return [fn.gep(state[0], item)]

            fn.loop(begin, end, 1, [target], pixel, hint="pixel")
            return
        # Output positions [low, high) read inside the image: 0 <= q * stride + offset < size.
        stride = self.stride[last]
        offset = fn.sub(fn.mul(tap[last], self.dilation[last]), self.pad_low[last])
        low, high = begin, end
        if self.padded:
            size = fields[f"in{last}"]
            low = fn.smin(fn.smax(fn.udiv(fn.smax(fn.sub(stride - 1, offset), 0), stride), begin), end)
            reach = fn.smax(fn.add(fn.sub(size, offset), stride - 1), 0)
            high = fn.smax(fn.smin(fn.udiv(reach, stride), end), low)
            low, high = fn.select(valid, low, end), fn.select(valid, high, end)
        start = fn.gep(source, fn.mul(fn.add(fn.mul(low, stride), offset), at_last))
        if self.padded:
            self.clear(fn, fn.sub(low, begin), target)
        first = fn.gep(target, fn.mul(fn.sub(low, begin), item))
        self.copy_pixels(fn, fn.sub(high, low), start, fn.mul(at_last, stride), first)
        if self.padded:
            self.clear(fn, fn.sub(end, high), fn.gep(target, fn.mul(fn.sub(high, begin), item)))

    def copy_pixels(self, fn: Function, count: Index, source: Value, step: Index, target: Value) -> None:
        """Copy pixels of one channel that lie `step` bytes apart to adjacent places."""
        item = self.itemsize

        def copy(adjacent: bool) -> list[Value]:
            copy_run(fn, self.lanes, count, source, target, (item if adjacent else step, item), adjacent)
            return []

        if self.unit_channel or self.stride[-1] != 1:
            copy(False)
        else:
            fn.if_(fn.cmp("eq", step, item), lambda: copy(True), lambda: copy(False), hint="adjacent")

    def clear(self, fn: Function, count: Index, target: Value) -> None:
        """Write `count` adjacent zeros."""
        copy_run(fn, self.lanes, count, None, target, (self.itemsize, self.itemsize), True)


def each_pixel(
    fn: Function,
    fields: Fields,
    dims: int,
    first: Index,
    end: Index,
    carried: list[Value],
    body: Callable[[list[Value], list[Value]], list[Value]],
) -> list[Value]:
    """Run `body(position, carried)` for the output pixels [first, end); returns what it carried.

    Fields: `out{d}` output sizes.
    """

    def pixel(_: Value, state: list[Value]) -> list[Value]:
        at, inner = state[:dims], state[dims:]
        inner = body(at, inner)
        return [*following(fn, fields, at), *inner]

    state = [*position_of(fn, fields, first, dims), *carried]
    return fn.loop(first, end, 1, state, pixel, hint="pixel")[dims:]


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """Staging as a phase of its own: one chunk is one group and block of pixels of one image.

    Buffers: x, matrix.  Fields besides those of `Patches`: `g_* b_*` for the chunk, `n_first` the image,
    `block` pixels a block, `pixels` in all, `x_n x_g m_g` bytes between images and groups.
    """

    patches: Patches

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.patches.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, block = kernel.index("g"), kernel.index("b")
        first = fn.i64(fn.mul(block, fields["block"]))
        end = fn.i64(fn.smin(fn.add(first, fields["block"]), fields["pixels"]))
        offset = fn.add(fn.mul(fields["n_first"], fields["x_n"]), fn.mul(group, fields["x_g"]))
        x = fn.gep(fields.buffer("x"), offset)
        matrix = fn.gep(fields.buffer("matrix"), fn.mul(group, fields["m_g"]))
        matrix = fn.gep(matrix, fn.mul(first, fields["m_pixel"]))
        self.patches.emit(fn, fields, x, matrix, first, end)
        return kernel.finish()
