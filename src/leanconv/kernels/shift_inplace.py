"""Pixels whose channels lie apart: each channel is read where its own shift says, in place.

A table has the shift (rows, columns) of each channel.  Where all of a tile's pixels lie so far inside the image that
every shift does too, one offset for each channel serves all pixels: a load from the table and two multiplications
beside the multiply-adds of a step.  Tiles at the edges ask for every pixel and channel whether it lies inside; what
does not reads a zero, or the pixel that the pad mode names.  Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, Function, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import ZERO_BYTES, Addresses, Cursor
from leanconv.kernels.epilogue import row_addresses
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import Image, mapped_position

ENTRY = 16  # bytes of the table for a channel: rows, columns


@dataclass(frozen=True, slots=True)
class Shifted(Image):
    """Output pixels of a 1x1 kernel, read through a table of shifts.

    Buffer: shifts.  Fields: those of `Image`, where `low{d}`, `high{d}` are the output positions [low, high) for which
    every shift lies inside.
    """

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """Choose between evenly spaced pixels well inside the image and the general form."""
        fn, fields, rows = sum_.fn, sum_.fields, sum_.tile.rows
        even = fn.cmp("slt", fn.add(state[1], rows - 1), fields["high1"])
        tests = [("sge", state[1], "low1"), ("sge", state[0], "low0"), ("slt", state[0], "high0")]
        for predicate, at, bound in tests:
            even = fn.both(even, fn.cmp(predicate, at, fields[bound]))

        def place(position: Sequence[Value]) -> Value:
            offset = fn.add(*(fn.mul(at, self.step(fields, dim)) for dim, at in enumerate(position)))
            return fn.gep(base, offset)

        def inside() -> list[Value]:
            pixels = row_addresses(fn, place(state), rows, self.step(fields, 1))
            pixels = [fn.opaque(pixel) for pixel in pixels]
            return self._sum(sum_, weights, _Together(fn, fields, pixels, fields.buffer("shifts"), fn.i64(0)))

        def edge() -> list[Value]:
            corners = [
                [fn.i64(fn.mul(at, stride)) for at, stride in zip(position, self.stride, strict=True)]
                for position in self.positions(sum_, state)
            ]
            apart = _Apart(fn, fields, base, corners, self.pad_mode, fields.buffer("shifts"), fn.i64(0))
            return self._sum(sum_, weights, apart)

        return fn.if_(even, inside, edge, hint="even")

    def _sum(self, sum_: Sum, weights: Value, cursor: Cursor) -> list[Value]:
        weights, accs = sum_.start(weights)
        return sum_.finish(sum_.run(cursor, sum_.reduction.channels, weights, accs)[1])


class _Walk(Cursor):
    """Goes from channel to channel: an entry of the table, and the channel's bytes from the pixel."""

    def __init__(self, fn: Function, fields: Fields, table: Value, channel: Value) -> None:
        self._fn, self._fields = fn, fields
        self.state = [table, channel]

    def advanced(self, count: int) -> list[Value]:
        """`count` channels further on."""
        fn, (table, channel) = self._fn, self.state
        return [fn.gep(table, count * ENTRY), fn.i64(fn.add(channel, fn.mul(self._fields["x_c"], count)))]

    def _entries(self, count: int) -> list[tuple[Value, Value, Index]]:
        """Of the next channels: rows, columns, bytes of the channel."""
        fn, (table, channel) = self._fn, self.state
        found: list[tuple[Value, Value, Index]] = []
        for u in range(count):
            down, along = (fn.load(I64, table, u * ENTRY + 8 * part) for part in range(2))
            found.append((down, along, fn.add(channel, fn.mul(self._fields["x_c"], u))))
        return found


class _Together(_Walk):
    """All pixels' shifts lie inside: one offset serves them."""

    def __init__(self, fn: Function, fields: Fields, pixels: Sequence[Value], table: Value, channel: Value) -> None:
        super().__init__(fn, fields, table, channel)
        self._pixels = pixels

    def at(self, state: list[Value]) -> _Together:
        """The same pixels at another channel."""
        return _Together(self._fn, self._fields, self._pixels, state[0], state[1])

    def addresses(self, count: int) -> Addresses:
        """The pixels, and each channel's offset."""
        fn, fields = self._fn, self._fields
        return [
            (self._pixels, fn.add(channel, fn.add(fn.mul(down, fields["at0"]), fn.mul(along, fields["at1"]))))
            for down, along, channel in self._entries(count)
        ]


class _Apart(_Walk):
    """Each pixel's shift may lie outside the image."""

    def __init__(
        self,
        fn: Function,
        fields: Fields,
        base: Value,
        corners: list[list[Value]],
        pad_mode: str,
        table: Value,
        channel: Value,
    ) -> None:
        super().__init__(fn, fields, table, channel)
        self._base, self._corners, self._pad_mode = base, corners, pad_mode
        self.unroll = self.longest = 1

    def at(self, state: list[Value]) -> _Apart:
        """The same pixels at another channel."""
        return _Apart(self._fn, self._fields, self._base, self._corners, self._pad_mode, state[0], state[1])

    def addresses(self, count: int) -> Addresses:
        """An address for each pixel and channel."""
        return [([self._pixel(corner, entry) for corner in self._corners], 0) for entry in self._entries(count)]

    def _pixel(self, corner: list[Value], entry: tuple[Value, Value, Index]) -> Value:
        fn, fields = self._fn, self._fields
        *shift, channel = entry
        offset, ok = channel, None
        for dim in range(2):
            assert isinstance(shift[dim], Value)
            at, size = fn.i64(fn.add(corner[dim], shift[dim])), fields[f"in{dim}"]
            if self._pad_mode == "zeros":
                inside = fn.cmp("ult", at, size)
                ok = inside if ok is None else fn.both(ok, inside)
            else:
                at = mapped_position(fn, at, size, self._pad_mode)
            offset = fn.add(offset, fn.mul(at, fields[f"at{dim}"]))
        place = fn.gep(self._base, offset)
        return place if ok is None else fn.select(ok, place, fn.module.zeros(ZERO_BYTES))
