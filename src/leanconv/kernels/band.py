"""Bands of the image, copied with channels last and padding written out, for the core to read without edges.

The core wants the channels of a pixel side by side: with channels first every step of the reduction would touch a
cache line, and often a page, of its own.  A band holds the input rows that a block of output rows needs, each
element once (a patch matrix would hold it once for every tap), so copying costs next to nothing beside the sums:

    image  [C][H][W]   --8x8 transposes-->   band  [rows][W + pads][C]

Where stride and dilation of a dimension share a factor only every such row or column is read, and copied: a
kernel of one tap and stride 2 becomes one of stride 1.
"""

from __future__ import annotations

from functools import partial

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.copy import copy_run
from leanconv.kernels.epilogue import store_lanes, transpose
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position

LINE = 64  # bytes written to a pixel at one time: halves of a line, a pixel apart, would be evicted in between


@dataclass(frozen=True, slots=True)
class Band:
    """How a band is copied.

    `gather` is the distance, in pixels, between the positions that are copied; `pad_low` the padding; `first_stride`
    and `first_reach` the stride and the extent of the kernel, in copied positions, along the first dimension, which
    bands cut.  `unit_channel`, `unit_pixel`: channels, or pixels of a row, are adjacent in the image; `dense`: whole
    rows of it are one run; `tail` = channels mod lanes.

    Fields: `in{d} at{d}` input sizes and byte strides; `s_c` bytes between input channels; `channels`; `band{d}`
    positions copied of each dimension but the first; `plane` output pixels of a position of the first dimension.
    """

    target: Target
    dtype: str
    gather: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    first_stride: int
    first_reach: int
    unit_channel: bool
    unit_pixel: bool
    dense: bool
    tail: int

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.gather)

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.target.lanes(self.dtype)

    def emit(
        self, fn: Function, fields: Fields, x: Value, band: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Copy what the output pixels [first, end), whole rows of the first dimension, read; see `Stage`."""
        begin = fn.udiv(first, fields["plane"])
        rows = fn.sub(fn.udiv(end, fields["plane"]), begin)
        count = fn.add(fn.mul(fn.sub(rows, 1), self.first_stride), self.first_reach)
        self.copy(fn, fields, x, band, fn.mul(begin, self.first_stride), count)
        return band, 0

    def copy(self, fn: Function, fields: Fields, x: Value, band: Value, first: Index, count: Index) -> None:
        """Copy positions [first, first + count) of the first dimension; the first one to `band`."""
        pixel = fn.mul(fields["channels"], self.item)

        def rows(dim: int, source: Value, valid: Value, target: Value, first: Index, count: Index) -> Value:
            if dim == self.dims - 1:
                self._row(fn, fields, source, valid, target, first, count)
                return fn.gep(target, fn.mul(count, pixel))

            def row(position: Value, state: list[Value]) -> list[Value]:
                at, inside = self._place(fn, fields, dim, position)
                moved = fn.gep(source, fn.mul(at, fields[f"at{dim}"]))
                ok = valid if inside is None else fn.both(valid, inside)
                return [rows(dim + 1, moved, ok, state[0], 0, fields[f"band{dim + 1}"])]

            return fn.loop(first, fn.add(first, count), 1, [target], row, hint="row")[0]

        rows(0, x, Value("true", I1), band, first, count)

    def _place(self, fn: Function, fields: Fields, dim: int, position: Index) -> tuple[Index, Value | None]:
        """The input position that is copied to a position of the band, and whether it exists (None: it always does)."""
        at = fn.sub(fn.mul(position, self.gather[dim]), self.pad_low[dim])
        if not self.padded:
            return at, None
        if self.pad_mode == "zeros":
            return at, fn.cmp("ult", at, fields[f"in{dim}"])
        return mapped_position(fn, fn.i64(at), fields[f"in{dim}"], self.pad_mode), None

    def _row(
        self, fn: Function, fields: Fields, source: Value, valid: Value, target: Value, first: Index, count: Index
    ) -> None:
        """Positions [first, first + count) of one row: padding, pixels, padding."""
        last, gather = self.dims - 1, self.gather[-1]
        at_last, pixel = fields[f"at{last}"], fn.mul(fields["channels"], self.item)

        def pixels(low: Index, high: Index) -> None:
            at = fn.sub(fn.mul(low, gather), self.pad_low[last])
            place = fn.gep(target, fn.mul(fn.sub(low, first), pixel))
            self._pixels(fn, fields, fn.gep(source, fn.mul(at, at_last)), place, fn.sub(high, low))

        end = fn.add(first, count)
        if not self.padded:
            pixels(first, end)
            return
        # Positions [low, high) lie inside: 0 <= position * gather - pad < size.
        pad, size = self.pad_low[last], fields[f"in{last}"]
        low = fn.smin(fn.smax(-(-pad // gather), first), end)
        high = fn.smax(fn.smin(fn.udiv(fn.add(size, pad + gather - 1), gather), end), low)
        if self.pad_mode == "zeros":
            low, high = fn.select(valid, low, end), fn.select(valid, high, end)
            self._clear(fn, fields, target, fn.sub(low, first))
            pixels(low, high)
            self._clear(fn, fields, fn.gep(target, fn.mul(fn.sub(high, first), pixel)), fn.sub(end, high))
            return

        def mapped(begin: Index, stop: Index) -> None:
            def one(position: Value, _: list[Value]) -> list[Value]:
                at = self._place(fn, fields, last, position)[0]
                place = fn.gep(target, fn.mul(fn.sub(position, first), pixel))
                self._channels(fn, fields, fn.gep(source, fn.mul(at, at_last)), place)
                return []

            fn.loop(begin, stop, 1, [], one, guard=True, hint="pad")

        pixels(low, high)
        mapped(first, low)
        mapped(high, end)

    def _clear(self, fn: Function, fields: Fields, target: Value, count: Index) -> None:
        kind = vector(SCALARS[self.dtype], self.lanes)
        copy_run(fn, kind, fn.mul(count, fields["channels"]), None, target, (self.item, self.item), True)

    def _channels(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        """All channels of one pixel."""
        kind = vector(SCALARS[self.dtype], self.lanes)
        steps = (self.item if self.unit_channel else fields["s_c"], self.item)
        copy_run(fn, kind, fields["channels"], source, target, steps, self.unit_channel)

    def _pixels(self, fn: Function, fields: Fields, source: Value, target: Value, count: Index) -> None:
        """`count` pixels of a row, every `gather`-th of the image."""
        gather = self.gather[-1]
        pixel = fn.mul(fields["channels"], self.item)
        if self.dense and gather == 1:
            kind = vector(SCALARS[self.dtype], self.lanes)
            copy_run(fn, kind, fn.mul(count, fields["channels"]), source, target, (self.item, self.item), True)
        elif self.unit_pixel and not self.unit_channel and gather <= 2:
            self._transposed(fn, fields, source, target, count)
        else:
            step = fn.mul(fields[f"at{self.dims - 1}"], gather)

            def one(_: Value, state: list[Value]) -> list[Value]:
                self._channels(fn, fields, *state)
                return [fn.gep(state[0], step), fn.gep(state[1], pixel)]

            fn.loop(0, count, 1, [source, target], one, guard=True, hint="pixel")

    def _transposed(self, fn: Function, fields: Fields, source: Value, target: Value, count: Index) -> None:
        """Blocks of L channels by L pixels; the last block of a row that is wide enough overlaps the one before."""
        lanes, line = self.lanes, max(1, LINE // self.target.vector_bytes)
        state, done = [source, target], fn.i64(0)
        for vectors in (line, 1) if line > 1 else (1,):
            wide = vectors * lanes

            def block(_: Value, state: list[Value], vectors: int = vectors, wide: int = wide) -> list[Value]:
                self._blocks(fn, fields, state[0], state[1], count, [lanes] * vectors)
                return [fn.gep(state[0], fn.mul(fields["s_c"], wide)), fn.gep(state[1], wide * self.item)]

            whole = fn.i64(fn.mul(fn.udiv(fields["channels"], wide), wide))
            state = fn.loop(done, whole, wide, state, block, guard=True, hint="channels")
            done = whole
        if self.tail:
            self._blocks(fn, fields, state[0], state[1], count, [self.tail])

    def _blocks(
        self, fn: Function, fields: Fields, source: Value, target: Value, count: Index, channels: list[int]
    ) -> None:
        """All pixels of a row for some vectors of channels, each of so many."""
        lanes, gather = self.lanes, self.gather[-1]
        pixel = fn.mul(fields["channels"], self.item)
        kind = vector(SCALARS[self.dtype], lanes)

        def store(values: list[Value], place: Value) -> list[Value]:
            for v, value in enumerate(values):
                at = fn.gep(place, v * self.target.vector_bytes)
                store_lanes(fn, value, at, channels[v], masks=self.target.masks)
            return []

        def transposed(rows: list[Value]) -> list[list[Value]]:
            """Of every pixel, its vectors of channels."""
            first, columns = 0, []
            for part in channels:
                columns.append(transpose(fn, rows[first : first + part]))
                first += part
            return [list(pixel) for pixel in zip(*columns, strict=True)]

        def wide() -> list[Value]:
            def some(at: Value, _: list[Value]) -> list[Value]:
                begin = fn.smin(at, fn.sub(count, lanes))
                from_, to = fn.gep(source, fn.mul(begin, gather * self.item)), fn.gep(target, fn.mul(begin, pixel))
                rows = []
                for c in range(sum(channels)):
                    row = fn.gep(from_, fn.mul(fields["s_c"], c))
                    value = fn.load(kind, row)
                    if gather == 2:  # the second vector begins one early: it must not read behind the last pixel
                        late = fn.load(kind, row, (lanes - 1) * self.item)
                        value = fn.shuffle(value, late, [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)])
                    rows.append(value)
                for i, values in enumerate(transposed(rows)):
                    store(values, fn.gep(to, fn.mul(pixel, i)))
                return []

            fn.loop(0, count, lanes, [], some, hint="pixels")
            return []

        def narrow() -> list[Value]:
            reads = fn.sub(fn.mul(count, gather), gather - 1)
            masks = [fn.lane_mask(lanes, fn.sub(reads, lanes * part)) for part in range(gather)]
            rows = []
            for c in range(sum(channels)):
                row = fn.gep(source, fn.mul(fields["s_c"], c))
                parts = [
                    fn.masked_load(kind, fn.gep(row, part * lanes * self.item), mask) for part, mask in enumerate(masks)
                ]
                rows.append(parts[0] if gather == 1 else fn.shuffle(parts[0], parts[1], range(0, 2 * lanes, 2)))
            for i, values in enumerate(transposed(rows)[:-1]):
                place = fn.gep(target, fn.mul(pixel, i))
                fn.if_(fn.cmp("sgt", count, i), partial(store, values, place), hint="pixel")
            return []

        fn.if_(fn.cmp("sge", count, lanes), wide, narrow, hint="wide")


@dataclass(frozen=True, slots=True)
class BandSpec:
    """Copying as a phase of its own: a chunk is one group and some positions of the first dimension of one image.

    Buffers: x, band.  Fields besides those of `Band`: `g_* b_*` for the chunk, `n_first` the image, `rows` positions a
    chunk, `band0` in all, `row_bytes` bytes of a position, `x_n x_g m_g` bytes between images and groups.
    """

    band: Band

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.band.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, block = kernel.index("g"), kernel.index("b")
        first = fn.i64(fn.mul(block, fields["rows"]))
        count = fn.smin(fields["rows"], fn.sub(fields["band0"], first))
        offset = fn.add(fn.mul(fields["n_first"], fields["x_n"]), fn.mul(group, fields["x_g"]))
        band = fn.gep(fields.buffer("band"), fn.add(fn.mul(group, fields["m_g"]), fn.mul(first, fields["row_bytes"])))
        self.band.copy(fn, fields, fn.gep(fields.buffer("x"), offset), band, first, count)
        return kernel.finish()
