"""The same patch matrices in other runs: element by element, from rows already written, in the longest runs there are.

The paper names the strategies; `Patches` itself is copy-short, a run for each row of the image (im2col) or for the
channels of each tap (im2row).  What a run is under each name:

              im2col, matrix (taps, channels) x pixels            im2row, matrix pixels x (taps, channels)
scan          one element, and a test for each                    the same
copy-self     the row of the tap above, moved by output rows;     the window above, moved by rows of taps;
              the image for the rows that come new                the image for the rows of taps that come new
copy-long     a whole plane, then zeros where it wrapped          a row of the window, all its taps and channels
"""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Value
from leanconv.kernels.copy import copy_run
from leanconv.kernels.fields import Fields
from leanconv.kernels.patches import Patches, each_pixel


def shared_rows(kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """The nearest windows of a column that share rows of the image: how many rows of taps and of outputs apart.

    The row of taps i of one is row i - first of the one `second` outputs further on.  None if none of them share any.
    """
    common = math.gcd(stride, dilation)
    return (stride // common, dilation // common) if stride // common < kernel else None


def copy_element(
    fn: Function,
    fields: Fields,
    patches: Patches,
    source: Value,
    target: Value,
    position: list[Value],
    tap: list[Value],
) -> None:
    """Copy one element: of the channel at `source`, for an output pixel and a tap; zero if it is padding."""
    scalar = SCALARS[patches.dtype]
    valid: Value | None = None
    for dim, (at, index) in enumerate(zip(position, tap, strict=True)):
        where, inside = patches.place(fn, fields, dim, at, index)
        source = fn.gep(source, fn.mul(where, fields[f"at{dim}"]))
        if inside is not None:
            valid = inside if valid is None else fn.both(valid, inside)
    if valid is None:
        value = fn.load(scalar, source)
    else:
        (value,) = fn.if_(valid, lambda: [fn.load(scalar, source)], lambda: [fn.const(scalar, 0.0)], hint="inside")
    fn.store(value, target)


def copy_elements(
    fn: Function,
    fields: Fields,
    patches: Patches,
    source: Value,
    target: Value,
    first: Index,
    end: Index,
    tap: list[Value],
) -> None:
    """One tap of one channel for the pixels [first, end), one by one."""

    def pixel(position: list[Value], state: list[Value]) -> list[Value]:
        copy_element(fn, fields, patches, source, state[0], position, tap)
        return [fn.gep(state[0], patches.itemsize)]

    each_pixel(fn, fields, patches.dims, first, end, [target], pixel)


@dataclass(frozen=True, slots=True)
class Scan(Patches):
    """Every element on its own, in the order of the matrix."""

    def window(self, fn: Function, fields: Fields, x: Value, row: Value, position: list[Value], first: int = 0) -> None:
        """The taps of one pixel, channel by channel."""

        def taps(dim: int, tap: list[Value], target: Value) -> Value:
            if dim < self.dims:

                def step(index: Value, state: list[Value]) -> list[Value]:
                    return [taps(dim + 1, [*tap, index], state[0])]

                return fn.loop(0 if dim else first, self.kernel[dim], 1, [target], step, hint="tap")[0]

            def channel(_: Value, state: list[Value]) -> list[Value]:
                copy_element(fn, fields, self, state[0], state[1], position, tap)
                return [fn.gep(state[0], fields["s_c"]), fn.gep(state[1], self.itemsize)]

            fn.loop(0, fields["channels"], 1, [x, target], channel, hint="channel")
            return fn.gep(target, fields["m_tap"])

        taps(0, [], row)

    def plane(
        self, fn: Function, fields: Fields, source: Value, target: Value, first: Index, end: Index, tap: list[Value]
    ) -> None:
        """One tap of one channel, pixel by pixel."""
        copy_elements(fn, fields, self, source, target, first, end, tap)


@dataclass(frozen=True, slots=True)
class CopySelf(Patches):
    """Runs of the matrix itself where they have been written before; only what is new comes from the image.

    A block is on its own: its first output rows come from the image.
    """

    @property
    def _apart(self) -> tuple[int, int]:
        apart = shared_rows(self.kernel[0], self.stride[0], self.dilation[0])
        assert apart is not None  # the algorithm refuses
        return apart

    def _outputs(self, fn: Function, fields: Fields) -> Index:
        """Output pixels between two windows that share rows."""
        count: Index = self._apart[1]
        for dim in range(1, self.dims):
            count = fn.mul(count, fields[f"out{dim}"])
        return count

    def _emit_rows(self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value) -> None:
        taps = self._apart[0]
        above = self._outputs(fn, fields)
        new = self.kernel[0] - taps
        row_bytes = fn.mul(fields["m_tap"], math.prod(self.kernel[1:]))

        def pixel(position: list[Value], state: list[Value]) -> list[Value]:
            row, number = state

            def written() -> list[Value]:
                source = fn.gep(row, fn.sub(fn.mul(row_bytes, taps), fn.mul(above, fields["m_pixel"])))
                count = fn.mul(fields["channels"], new * math.prod(self.kernel[1:]))
                copy_run(fn, self.lanes, count, source, row, (self.itemsize,) * 2, True)
                self.window(fn, fields, x, fn.gep(row, fn.mul(row_bytes, new)), position, new)
                return []

            def image() -> list[Value]:
                self.window(fn, fields, x, row, position)
                return []

            fn.if_(fn.cmp("sge", number, above), written, image, hint="written")
            return [fn.gep(row, fields["m_pixel"]), fn.i64(fn.add(number, 1))]

        each_pixel(fn, fields, self.dims, first, end, [matrix, fn.i64(0)], pixel)

    def plane(
        self, fn: Function, fields: Fields, source: Value, target: Value, first: Index, end: Index, tap: list[Value]
    ) -> None:
        """One tap of one channel: the row of an earlier tap but for the last outputs."""
        taps = self._apart[0]
        below = self._outputs(fn, fields)

        def image(begin: Index, place: Value) -> list[Value]:
            if self.dims == 1:  # what comes new is not a whole row
                copy_elements(fn, fields, self, source, place, begin, end, tap)
            else:
                Patches.plane(self, fn, fields, source, place, begin, end, tap)
            return []

        def written() -> list[Value]:
            count = fn.smax(fn.sub(fn.sub(end, first), below), 0)
            back = fn.mul(fields["m_tap"], taps * math.prod(self.kernel[1:]))
            earlier = fn.gep(target, fn.sub(fn.mul(below, self.itemsize), back))
            copy_run(fn, self.lanes, count, earlier, target, (self.itemsize,) * 2, True)
            return image(fn.add(first, count), fn.gep(target, fn.mul(count, self.itemsize)))

        fn.if_(fn.cmp("sge", tap[0], taps), written, lambda: image(first, target), hint="written")


@dataclass(frozen=True, slots=True)
class CopyLong(Patches):
    """The longest runs: planes (im2col), which need outputs as far apart as the inputs; rows of windows (im2row).

    Further field: `at_pixel` bytes between input pixels, all of which are evenly spaced (im2col).
    """

    def window(self, fn: Function, fields: Fields, x: Value, row: Value, position: list[Value], first: int = 0) -> None:
        """The taps of one pixel, row by row: zeros, taps inside with all their channels, zeros."""
        last = self.dims - 1
        size = self.kernel[last]
        corner = fn.sub(fn.mul(position[last], self.stride[last]), self.pad_low[last])
        low: Index = 0
        high: Index = size
        if self.padded:
            low = fn.smin(fn.smax(fn.sub(0, corner), 0), size)
            high = fn.smax(fn.smin(fn.sub(fields[f"in{last}"], corner), size), low)

        def elements(taps: Index) -> Index:
            return fn.mul(taps, fields["channels"])

        def rows(dim: int, source: Value, valid: Value, target: Value) -> Value:
            if dim < last:

                def step(index: Value, state: list[Value]) -> list[Value]:
                    at, ok = self.place(fn, fields, dim, position[dim], index)
                    moved = fn.gep(source, fn.mul(at, fields[f"at{dim}"]))
                    return [rows(dim + 1, moved, fn.both(valid, ok) if ok is not None else valid, state[0])]

                return fn.loop(0 if dim else first, self.kernel[dim], 1, [target], step, hint="tap")[0]

            def copy(begin: Index, stop: Index) -> list[Value]:
                if self.padded:
                    self.clear(fn, elements(begin), target)
                start = fn.gep(source, fn.mul(fn.add(corner, begin), fields[f"at{last}"]))
                to = fn.gep(target, fn.mul(elements(begin), self.itemsize))
                copy_run(fn, self.lanes, elements(fn.sub(stop, begin)), start, to, (self.itemsize,) * 2, True)
                if self.padded:
                    to = fn.gep(target, fn.mul(elements(stop), self.itemsize))
                    self.clear(fn, elements(fn.sub(size, stop)), to)
                return []

            copy(fn.select(valid, low, size), fn.select(valid, high, size)) if self.padded else copy(0, size)
            return fn.gep(target, fn.mul(fields["m_tap"], size))

        rows(0, x, Value("true", I1), row)

    def plane(
        self, fn: Function, fields: Fields, source: Value, target: Value, first: Index, end: Index, tap: list[Value]
    ) -> None:
        """One tap of one channel: the image moved by a number of pixels, and zeros for pixels of another row."""
        item, offset = self.itemsize, self._moved(fn, fields, tap)
        pixels: Index = 1
        for dim in range(self.dims):
            pixels = fn.mul(pixels, fields[f"in{dim}"])
        low = fn.smin(fn.smax(fn.sub(0, offset), first), end) if self.padded else first
        high = fn.smax(fn.smin(fn.sub(pixels, offset), end), low) if self.padded else end

        def place(pixel: Index) -> Value:
            return fn.gep(target, fn.mul(fn.sub(pixel, first), item))

        if self.padded:
            self.clear(fn, fn.sub(low, first), target)
        start = fn.gep(source, fn.mul(fn.add(low, offset), fields["at_pixel"]))
        self.copy_pixels(fn, fn.sub(high, low), start, fields["at_pixel"], place(low))
        if self.padded:
            self.clear(fn, fn.sub(end, high), place(high))
            if self.dims > 1:
                self._clear_wrapped(fn, fields, target, first, end, tap)

    def _moved(self, fn: Function, fields: Fields, tap: list[Value]) -> Index:
        """How many pixels the input pixel under a tap lies behind the output pixel's number."""
        offset: Index = 0
        for dim, index in enumerate(tap):
            if dim:
                offset = fn.mul(offset, fields[f"in{dim}"])
            offset = fn.add(offset, fn.sub(fn.mul(index, self.dilation[dim]), self.pad_low[dim]))
        return offset

    def _clear_wrapped(
        self, fn: Function, fields: Fields, target: Value, first: Index, end: Index, tap: list[Value]
    ) -> None:
        """Zeros for what belongs to another row of the image, or another plane of it."""
        last = self.dims - 1
        width = fields[f"out{last}"]
        shift = fn.sub(fn.mul(tap[last], self.dilation[last]), self.pad_low[last])
        low = fn.smin(fn.smax(fn.sub(0, shift), 0), width)
        high = fn.smax(fn.smin(fn.sub(fields[f"in{last}"], shift), width), low)

        def row(index: Value, state: list[Value]) -> list[Value]:
            stop: Index = low
            rest: Index = index
            for dim in reversed(range(1, last)):
                _, inside = self.place(fn, fields, dim, fn.urem(rest, fields[f"out{dim}"]), tap[dim])
                rest = fn.udiv(rest, fields[f"out{dim}"])
                if inside is not None:
                    stop = fn.select(inside, stop, width)
            self.clear(fn, stop, state[0])
            self.clear(fn, fn.sub(width, high), fn.gep(state[0], fn.mul(high, self.itemsize)))
            return [fn.gep(state[0], fn.mul(width, self.itemsize))]

        fn.loop(fn.udiv(first, width), fn.udiv(end, width), 1, [target], row, hint="wrapped")
