"""Where the core finds the pixels of a tile: rows of a matrix, or windows of an image with its edges."""

from __future__ import annotations

from typing import Protocol

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, Function, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import Cursor, PointerCursor, SharedCursor
from leanconv.kernels.epilogue import row_addresses
from leanconv.kernels.fields import Fields
from leanconv.kernels.wholewindows import whole_windows


class Source(Protocol):
    """Where the pixels of an output tile are read."""

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """What has to be carried from tile to tile, at a given output pixel."""

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The sums of one tile whose first pixel is where `state` says."""

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """The state `rows` output pixels further on."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Output pixel i reads row i: a patch matrix, or an image under a pointwise kernel of stride 1.

    `row_bytes` is the distance between rows if the kernel is made for it (adjacent pixels, whose loads then
    share one address register).  Fields: `x_row` that distance otherwise, `x_c` bytes between channels
    (unless adjacent).  `ahead`: rows lie one behind the other, and those `x_ahead` bytes behind a tile are asked for.
    `overlap`: rows are windows so many times as long as the distance between them, and what the next tile is the first
    to read is asked for (0: it is not).
    """

    row_bytes: int | None
    ahead: bool = False
    overlap: int = 0

    def _step(self, fields: Fields) -> Index:
        return fields["x_row"] if self.row_bytes is None else self.row_bytes

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """The byte offset of the row."""
        return [fn.i64(fn.mul(pixel, self._step(fields)))]

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """Every row is inside."""
        fn = sum_.fn
        first = fn.gep(base, state[0])
        pixels = row_addresses(fn, first, sum_.tile.rows, self._step(sum_.fields))
        later = fn.gep(first, sum_.fields["x_ahead"]) if self.ahead else None
        step = self._step(sum_.fields)
        if self.overlap:
            later = fn.gep(first, fn.mul(step, sum_.tile.rows - 1 + self.overlap))
        return whole_windows(sum_, pixels, weights, later=later, step=step, overlap=max(1, self.overlap))

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """Rows are evenly spaced."""
        return [fn.i64(fn.add(state[0], fn.mul(self._step(fields), rows)))]


@dataclass(frozen=True, slots=True)
class Image:
    """Output pixels are windows of an image, counted along the last dimension first.

    Windows inside the image along one output row are evenly spaced (the usual case, no work per pixel); other
    tiles may wrap from row to row and hang over the edges: every pixel then gets an address per tap, and one
    outside the image reads zeros (or, in another pad mode, the pixel that the mode names).

    Fields: `out{d}` output size, `in{d}` input size, `at{d}` bytes between input pixels, `step{d}` = stride *
    at, `tap{d}` = dilation * at, `low{d}`/`high{d}` the output positions [low, high) whose windows lie
    inside, `w_rows{d}` rows of packed weights per tap, `x_c` bytes between channels (unless adjacent).
    `width_bytes` is the distance between pixels of the last dimension if the kernel is made for it (adjacent
    pixels).
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    width_bytes: int | None

    def step(self, fields: Fields, dim: int) -> Index:
        """Bytes of input between neighbouring output positions."""
        if dim == self.dims - 1 and self.width_bytes is not None:
            return self.width_bytes * self.stride[dim]
        return fields[f"step{dim}"]

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.stride)

    @property
    def apart(self) -> int | None:
        """Bytes between the evenly spaced pixels of a tile, if the kernel is made for them."""
        return None if self.width_bytes is None else self.width_bytes * self.stride[-1]

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """The output position of a pixel, first dimension first."""
        return position_of(fn, fields, pixel, self.dims)

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """Rows further on; divides only where an output row ends."""
        *outer, column = state
        moved = fn.i64(fn.add(column, rows))
        if not outer:
            return [moved]
        width = fields[f"out{self.dims - 1}"]

        def wrap() -> list[Value]:
            position = [
                *outer[:-1],
                fn.i64(fn.add(outer[-1], fn.udiv(moved, width))),
                fn.i64(fn.urem(moved, width)),
            ]
            for dim in reversed(range(1, self.dims - 1)):
                size = fields[f"out{dim}"]
                position[dim - 1] = fn.i64(fn.add(position[dim - 1], fn.udiv(position[dim], size)))
                position[dim] = fn.i64(fn.urem(position[dim], size))
            return position

        return fn.if_(fn.cmp("slt", moved, width), lambda: [*outer, moved], wrap, hint="wrap")

    def even(self, sum_: Sum, state: list[Value]) -> Value:
        """Whether the windows of a tile are evenly spaced, and inside the image along its rows."""
        fn, fields, rows, last = sum_.fn, sum_.fields, sum_.tile.rows, self.dims - 1
        tests = [fn.cmp("slt", fn.add(state[last], rows - 1), fields[f"high{last}" if self.padded else f"out{last}"])]
        if self.padded:
            tests.append(fn.cmp("sge", state[last], fields[f"low{last}"]))
            for dim, at in enumerate(() if self._clips(sum_) else state[:last]):
                tests += [fn.cmp("sge", at, fields[f"low{dim}"]), fn.cmp("slt", at, fields[f"high{dim}"])]
        even = tests[0]
        for test in tests[1:]:
            even = fn.both(even, test)
        return even

    def first_window(self, sum_: Sum, base: Value, state: list[Value]) -> Value:
        """The address of the first tap of the first window of a tile."""
        fn, fields = sum_.fn, sum_.fields
        offset: Index = 0
        for dim, at in enumerate(state):
            offset = fn.add(offset, fn.mul(at, self.step(fields, dim)))
        return fn.gep(base, fn.sub(offset, fields["pad_bytes"]) if self.padded else offset)

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """Choose between evenly spaced windows inside the image and the general form."""
        fn, even = sum_.fn, self.even(sum_, state)

        def evenly() -> list[Value]:
            first = self.first_window(sum_, base, state)
            return row_addresses(fn, first, sum_.tile.rows, self.step(sum_.fields, self.dims - 1))

        if not self.padded:
            pixels = fn.if_(even, evenly, lambda: self._windows(sum_, base, state), hint="even")
            return self.total(sum_, pixels, weights)
        return fn.if_(
            even,
            lambda: whole_windows(
                sum_,
                evenly(),
                weights,
                self.ranges(sum_, state),
                self.apart,
                step=self.step(sum_.fields, self.dims - 1),
            ),
            lambda: self._edge(sum_, base, weights, state),
            hint="even",
        )

    def total(self, sum_: Sum, pixels: list[Value], weights: Value) -> list[Value]:
        """The sums over windows that lie inside the image; `pixels` address their first taps."""
        return whole_windows(sum_, pixels, weights)

    def _clips(self, sum_: Sum) -> bool:
        """Whether tiles that hang over the image above or below leave those taps out.

        With few channels a tile takes some 200 cycles, and working out the range would cost more than it saves.
        """
        return self.pad_mode == "zeros" and self.dims > 1 and sum_.reduction.channels is None

    def ranges(self, sum_: Sum, state: list[Value]) -> list[tuple[Index, Index]] | None:
        """Of each dimension but the innermost, the taps that read inside the image for the output row of a tile."""
        if not self._clips(sum_):
            return None
        fn = sum_.fn
        result: list[tuple[Index, Index]] = []
        for dim, at in enumerate(state[:-1]):
            dilation = self.dilation[dim]
            corner = fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])

            def reach(distance: Index, dilation: int = dilation) -> Index:
                return fn.udiv(fn.add(fn.smax(distance, 0), dilation - 1), dilation)

            end = reach(fn.sub(sum_.fields[f"in{dim}"], corner))
            result.append((reach(fn.sub(0, corner)), fn.smin(end, sum_.reduction.kernel[dim])))
        return result

    def positions(self, sum_: Sum, state: list[Value]) -> list[list[Value]]:
        """The output position of every row of the tile."""
        positions = [state]
        for _ in range(1, sum_.tile.rows):
            positions.append(following(sum_.fn, sum_.fields, positions[-1]))
        return positions

    def _windows(self, sum_: Sum, base: Value, state: list[Value]) -> list[Value]:
        """Addresses of the first taps of windows that all lie inside the image but not in one row."""
        fn = sum_.fn
        result = []
        for position in self.positions(sum_, state):
            offset: Index = 0
            for dim, at in enumerate(position):
                offset = fn.add(offset, fn.mul(at, self.step(sum_.fields, dim)))
            result.append(fn.gep(base, offset))
        return result

    def _edge(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The general form: an address per pixel and tap."""
        fn, red, fields = sum_.fn, sum_.reduction, sum_.fields
        corners = [
            [fn.i64(fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])) for dim, at in enumerate(position)]
            for position in self.positions(sum_, state)
        ]
        first, accs = sum_.start(weights)
        true = Value("true", I1)

        def taps(dim: int, offsets: list[Index], valid: list[Value], weights: Value, accs: list[Value]) -> list[Value]:
            if dim == self.dims:
                cursor = self._cursor(sum_, base, offsets, valid)
                return sum_.run(cursor, red.channels, weights, accs)[1]

            def body(tap: Value, accs: list[Value]) -> list[Value]:
                here: list[Index] = []
                inside: list[Value] = []
                for corner, offset, ok in zip(corners, offsets, valid, strict=True):
                    at = fn.i64(fn.add(corner[dim], fn.mul(tap, self.dilation[dim])))
                    if self.pad_mode == "zeros":
                        inside.append(fn.both(ok, fn.cmp("ult", at, fields[f"in{dim}"])))
                    else:
                        at, ok = mapped_position(fn, at, fields[f"in{dim}"], self.pad_mode), true
                        inside.append(ok)
                    here.append(fn.add(offset, fn.mul(at, fields[f"at{dim}"])))
                w = fn.gep(weights, fn.mul(fn.mul(tap, fields[f"w_rows{dim}"]), sum_.tile.step_bytes))

                def inner() -> list[Value]:
                    return taps(dim + 1, here, inside, w, accs)

                if self.pad_mode != "zeros":
                    return sum_.end_section(dim, inner(), tap)
                some = inside[0]
                for ok in inside[1:]:
                    some = fn.either(some, ok)
                accs_after = fn.if_(some, inner, lambda: accs, hint="taps")  # nothing but padding adds nothing
                # A section ends at the same tap whether it was skipped or not: which other pixels share the tile
                # must not show in the bits of the sum.
                return sum_.end_section(dim, accs_after, tap)

            return fn.loop(0, red.kernel[dim], 1, accs, body, hint="edge")

        return sum_.finish(taps(0, [0] * len(corners), [true] * len(corners), first, accs))

    def _cursor(self, sum_: Sum, base: Value, offsets: list[Index], valid: list[Value]) -> Cursor:
        fn, unit = sum_.fn, sum_.reduction.unit_channel
        pixels = [fn.gep(base, offset) for offset in offsets]
        stride: Index = sum_.tile.itemsize if unit else sum_.fields["x_c"]
        if self.pad_mode != "zeros":
            return SharedCursor(fn, pixels, 0, stride)
        return PointerCursor.punched(fn, pixels, valid, stride)


def following(fn: Function, fields: Fields, position: list[Value]) -> list[Value]:
    """The output position behind another one, counted along the last dimension first."""
    after = list(position)
    grown = fn.i64(fn.add(position[-1], 1))
    for dim in reversed(range(1, len(position))):
        carry = fn.cmp("eq", grown, fields[f"out{dim}"])
        after[dim] = fn.select(carry, 0, grown)
        grown = fn.select(carry, fn.add(position[dim - 1], 1), position[dim - 1])
    after[0] = grown
    return after


def position_of(fn: Function, fields: Fields, pixel: Index, dims: int) -> list[Value]:
    """The output position of a pixel, first dimension first."""
    position: list[Value] = []
    rest: Index = pixel
    for dim in reversed(range(1, dims)):
        position.insert(0, fn.i64(fn.urem(rest, fields[f"out{dim}"])))
        rest = fn.udiv(rest, fields[f"out{dim}"])
    return [fn.i64(rest), *position]


def mapped_position(fn: Function, at: Value, size: Value, pad_mode: str) -> Value:
    """The pixel that a position outside the image stands for (pads are at most one image wide)."""
    last = fn.sub(size, 1)
    if pad_mode == "replicate":
        return fn.i64(fn.smin(fn.smax(at, 0), last))
    below, above = fn.cmp("slt", at, 0), fn.cmp("sge", at, size)
    if pad_mode == "circular":
        return fn.select(below, fn.add(at, size), fn.select(above, fn.sub(at, size), at))
    mirrored = fn.sub(fn.mul(last, 2), at)
    return fn.select(below, fn.sub(0, at), fn.select(above, mirrored, at))
