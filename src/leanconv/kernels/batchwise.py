"""The core with images as vectors: a tile is output channels by vectors along the last axis, which has one tap.

With the batch last, and wherever else the last axis has a kernel of one tap, stride 1 and no padding, its elements go
through the convolution side by side.  They are loaded as vectors, weights are broadcast, and a tile is stored as it
stands, as in `kernels/columns.py`; what is new are the taps, and that only some of them lie inside the image:

    channel 0 --w0-->  acc[0][0]  acc[0][1]       two vectors of one pixel, or one each of two pixels of a row
    channel 1 --w1-->  acc[1][0]  acc[1][1]
      ...

A tap outside the image is left out for all lanes at once, so edges need no zeros.  Weights are packed as for columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.batchcost import core_cost
from leanconv.kernels.batchpanels import Place, each_line
from leanconv.kernels.batchsum import BatchSum, Range
from leanconv.kernels.cost import PAGE, Cost, part_inside
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.tile import Tile

TAP = 8  # times what a tap costs where all of a window's are summed


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """A kernel over the outputs of all axes but the last; one chunk is one (image, group, block of rows, panels).

    `reduction.kernel`, `stride`, `dilation` and `pad_low` are those of the axes but the last, the innermost of which
    makes the rows.  `across`: a tile takes the same vector of two neighbouring pixels, instead of two of one; `tail`:
    vectors that the last tile of a pixel takes under masks (0: none).  `rows`, `short`: heights of panels as in
    `ColumnSpec`.

    Buffers: x, w (packed), out, residual.  Fields: `{n,g,b,k}_*`, `n_first`, `panels panel_count panel_long w_g w_row
    x_n x_g x_c o_n o_g o_k r_n r_g r_k` as in `ColumnSpec`; `block` rows a block, `lines` rows in all; `out{d} in{d}
    at{d} oat{d} rat{d}` extents, and bytes between pixels of image, output and residual; `low{d} high{d}` output
    positions whose windows lie inside; `w_rows{d}` channels of weights a tap; `length` elements of the last axis.
    """

    target: Target
    dtype: str
    reduction: Reduction
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    across: bool
    tail: int
    rows: int
    short: bool
    bias: bool
    epilogue: Epilogue

    @property
    def dims(self) -> int:
        """Axes but the last."""
        return len(self.stride)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Emitter(self, kernel).emit()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Tiles read the image in place, but for taps outside it."""
        taps, inside = self.reduction.kernel, 1.0
        if self.padded and self.pad_mode == "zeros":
            for d in range(self.dims):
                shape = (self.stride[d], self.dilation[d], self.pad_low[d], taps[d])
                inside *= part_inside(f[f"out{d}"], *shape, f[f"in{d}"])
        terms = inside * (f["w_row"] // self.itemsize - self.bias)
        pages = f["channels"] * math.prod(taps[:-1]) * min(1.0, abs(f["x_c"]) / PAGE)
        held = terms * 2 * self.target.vector_bytes
        # Each axis's taps are a loop of its own whose ends are looked up, short where channels are few.
        return core_cost(self, f, chunks, self.dims, terms, TAP * math.prod(taps), pages=pages, held=held)


class _Emitter(Place):
    """The loops of one kernel: rows of output pixels, pixels, vectors of a pixel."""

    def __init__(self, spec: BatchSpec, kernel: KernelFunction) -> None:
        super().__init__(spec, kernel)
        self.spec = spec

    def emit(self) -> None:
        """All rows of the chunk."""
        each_line(self.fn, self.fields, self.index["b"], self.spec.dims, self._line)

    def _line(self, outer: list[Index]) -> None:
        """One row of output pixels; `outer` is its position."""
        fn, fields, spec = self.fn, self.fields, self.spec
        last = spec.dims - 1
        width = fields[f"out{last}"]

        def single(at: Value, _: list[Value]) -> list[Value]:
            self._pixels([*outer, at], 1)
            return []

        if not spec.across:
            fn.loop(0, width, 1, [], single, hint="pixel")
            return
        low: Index = fields[f"low{last}"] if spec.padded else 0
        inside = fn.smax(fn.sub(fields[f"high{last}"], low), 0) if spec.padded else width
        paired = fn.add(low, fn.mul(fn.udiv(inside, 2), 2))

        def pair(at: Value, _: list[Value]) -> list[Value]:
            self._pixels([*outer, at], 2)
            return []

        fn.loop(low, paired, 2, [], pair, guard=True, hint="pair")

        def part(number: Value, _: list[Value]) -> list[Value]:
            before = fn.cmp("eq", number, 0)
            fn.loop(fn.select(before, 0, paired), fn.select(before, low, width), 1, [], single, guard=True, hint="edge")
            return []

        fn.loop(0, 2, 1, [], part, hint="edges")

    def _pixels(self, position: list[Index], pixels: int) -> None:
        """All vectors of one pixel, or the one vector of two."""
        fn, fields, spec = self.fn, self.fields, self.spec
        width = spec.target.vector_bytes
        if spec.across:
            apart = fn.mul(fields[f"at{spec.dims - 1}"], spec.stride[-1])
            left = fields["length"] if spec.tail else None
            self._panels(position, 0, pixels, apart, left, pixels > 1)
            return
        wide = 2 * spec.target.lanes(spec.dtype)
        whole = fn.mul(fn.udiv(fields["length"], wide), wide)

        def full(at: Value, _: list[Value]) -> list[Value]:
            self._panels(position, fn.mul(at, spec.itemsize), 2, width, None, False)
            return []

        fn.loop(0, whole, wide, [], full, guard=True, hint="vectors")
        if spec.tail:
            rest = fn.i64(fn.sub(fields["length"], whole))

            def masked() -> list[Value]:
                self._panels(position, fn.mul(whole, spec.itemsize), spec.tail, width, rest, False)
                return []

            fn.if_(fn.cmp("ne", rest, 0), masked, lambda: [], hint="tail")

    def _panels(
        self, position: list[Index], shift: Index, vectors: int, apart: Index, left: Value | None, inside: bool
    ) -> None:
        """All panels of the chunk for `vectors` vectors, `shift` bytes into a pixel; `inside` along the row."""
        spec = self.spec
        window = ImageWindow(spec, self.fn, self.fields, self.x, position, shift, inside)

        def sum_of(tile: Tile) -> BatchSum:
            channel = self.fields["x_c"]
            return BatchSum(
                self.fn,
                self.fields,
                tile,
                spec.reduction,
                left=left,
                apart=apart,
                channel=channel,
                shared=spec.across,
            )

        self.all_panels(position, shift, vectors, window, sum_of)


class ImageWindow:
    """The window of an output pixel in the image itself: taps outside are left out."""

    def __init__(
        self, spec: BatchSpec, fn: Function, fields: Fields, x: Value, position: list[Index], shift: Index, inside: bool
    ) -> None:
        self.fn, self.fields, self.spec, self.inside = fn, fields, spec, inside
        self.corner = [fn.sub(fn.mul(at, spec.stride[d]), spec.pad_low[d]) for d, at in enumerate(position)]
        self.base = fn.gep(x, shift)

    def mapped(self, dim: int) -> bool:
        """Whether taps outside stand for other pixels."""
        last = dim == self.spec.dims - 1
        return self.spec.padded and self.spec.pad_mode != "zeros" and not (self.inside and last)

    def taps(self, dim: int) -> Range:
        """The taps of one axis [first, end) that are to be summed."""
        spec, fn = self.spec, self.fn
        size, step = spec.reduction.kernel[dim], spec.dilation[dim]
        if not spec.padded or spec.pad_mode != "zeros" or (self.inside and dim == spec.dims - 1):
            return 0, size

        def reach(distance: Index) -> Index:
            return fn.udiv(fn.add(fn.smax(distance, 0), step - 1), step)

        end = reach(fn.sub(self.fields[f"in{dim}"], self.corner[dim]))
        return reach(fn.sub(0, self.corner[dim])), fn.smin(end, size)

    def place(self, base: Value, dim: int, tap: Index) -> Value:
        """The address of a tap of one axis, from that of the axes before it."""
        at = self.fn.add(self.corner[dim], self.fn.mul(tap, self.spec.dilation[dim]))
        if self.mapped(dim):
            at = mapped_position(self.fn, self.fn.i64(at), self.fields[f"in{dim}"], self.spec.pad_mode)
        return self.fn.gep(base, self.fn.mul(at, self.fields[f"at{dim}"]))
