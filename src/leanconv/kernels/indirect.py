"""Pixels found through a table: for every output pixel and tap, how far behind the image's start the input pixel lies.

    table   [output pixel][tap]      4 bytes each; 8 if the image reaches further than 2 GiB

A tile reads one entry a pixel and tap, then runs through all channels there, so the cost of looking up is shared by
channels.  The table knows neither image nor group: those only move the start.  An entry of `NOWHERE` is padding;
it stands for a row of zeros as long as a pixel, so that all pixels of a tile move alike.  Where the channels of a
pixel are not adjacent no row can stand for one, and a tile with such an entry is read pixel by pixel.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import Cursor, PointerCursor, SharedCursor
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.patches import Patches, each_pixel

# LLVM loads all that belongs to an address as soon as it has it, if the channels of a tap are one block of code. Of the
# twelve addresses of a tile (x86-64 has 15 registers) 54 elements were put on the stack beside 72 multiply-adds, for 3
# channels; of four at a time none. Tiles with no more than ten have registers enough, and so has AArch64.
MOST_ADDRESSES, ADDRESSES = 10, 4


def nowhere(entry_bytes: int) -> int:
    """The entry that means padding: the least number, which is no offset of an image."""
    return -(1 << (8 * entry_bytes - 1))


@dataclass(frozen=True, slots=True)
class Indirect:
    """Output pixels read where a table says.

    `taps` entries of `entry_bytes` for each output pixel; `padded` whether some mean padding.  Buffers: offsets and,
    if padded with adjacent channels, zeros.  Fields: `x_c` bytes between channels (unless adjacent).
    """

    taps: int
    entry_bytes: int
    padded: bool

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """The address of the pixel's entries."""
        return [fn.gep(fields.buffer("offsets"), fn.mul(pixel, self.taps * self.entry_bytes))]

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """The entries of pixels follow each other."""
        return [fn.gep(state[0], rows * self.taps * self.entry_bytes)]

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The sums of a tile, one tap after the other."""
        fn = sum_.fn

        def body(tap: Value, state: list[Value]) -> list[Value]:
            entry, weights, *accs = state
            weights, accs = self._tap(sum_, base, entry, weights, accs)
            if not sum_.splits(0):
                accs = sum_.end_section(0, accs, tap)
            return [fn.gep(entry, self.entry_bytes), weights, *accs]

        weights, accs = sum_.start(weights, spans=True)
        carried = [state[0], weights, *accs]
        for first, end in sum_.spans(0):
            carried = fn.loop(first, end, 1, carried, body, hint="tap")
            carried = [*carried[:2], *sum_.end_span(0, carried[2:], (first, end))]
        return sum_.finish(carried[2:])

    def _tap(
        self, sum_: Sum, base: Value, entry: Value, weights: Value, accs: list[Value]
    ) -> tuple[Value, list[Value]]:
        """All channels of one tap; returns the weights' new address and the sums."""
        fn, red = sum_.fn, sum_.reduction
        block = red.channels is not None and red.channels <= Cursor.longest
        if block and sum_.tile.rows > MOST_ADDRESSES and (red.unit_channel or not self.padded):
            after = weights
            for first in range(0, sum_.tile.rows, ADDRESSES):
                rows = range(first, min(first + ADDRESSES, sum_.tile.rows))
                pixels, _ = self._pixels(sum_, base, entry, rows)
                after, accs = self._together(sum_, pixels, weights, accs, first)
            return after, accs
        pixels, outside = self._pixels(sum_, base, entry, range(sum_.tile.rows))
        if not self.padded or red.unit_channel:
            return self._together(sum_, pixels, weights, accs)

        def together() -> list[Value]:
            after, sums = self._together(sum_, pixels, weights, accs)
            return [after, *sums]

        def apart() -> list[Value]:
            inside = [fn.negate(pad) for pad in outside]
            cursor = PointerCursor.punched(fn, pixels, inside, sum_.fields["x_c"])
            after, sums = sum_.run(cursor, red.channels, weights, accs)
            return [after, *sums]

        some = outside[0]
        for pad in outside[1:]:
            some = fn.either(some, pad)
        after, *sums = fn.if_(some, apart, together, hint="padding")
        return after, sums

    def _pixels(self, sum_: Sum, base: Value, entry: Value, rows: range) -> tuple[list[Value], list[Value]]:
        """The addresses that the entries of some rows of a tile name, and which of them mean padding.

        With adjacent channels padding has the address of the row of zeros.
        """
        fn = sum_.fn
        offsets = [fn.load_integer(self.entry_bytes, entry, i * self.taps * self.entry_bytes) for i in rows]
        pixels = [fn.gep(base, offset) for offset in offsets]
        if not self.padded:
            return pixels, []
        outside = [fn.cmp("eq", offset, nowhere(self.entry_bytes)) for offset in offsets]
        if sum_.reduction.unit_channel:
            zeros = sum_.fields.buffer("zeros")
            pixels = [fn.select(pad, zeros, pixel) for pad, pixel in zip(outside, pixels, strict=True)]
        return pixels, outside

    def _together(
        self, sum_: Sum, pixels: list[Value], weights: Value, accs: list[Value], first: int = 0
    ) -> tuple[Value, list[Value]]:
        """The sums of pixels that move alike, the tile's `first` one and those behind it."""
        red = sum_.reduction
        step: Index = sum_.tile.itemsize if red.unit_channel else sum_.fields["x_c"]
        cursor = SharedCursor(sum_.fn, [sum_.fn.opaque(pixel) for pixel in pixels], 0, step)
        cursor.first = first
        return sum_.run(cursor, red.channels, weights, accs)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """Fills the table; one chunk is a block of output pixels, and the first one clears the row of zeros as well.

    Buffers: offsets and, with `zero_row`, zeros.  Fields: `block` pixels a block, `pixels` in all; `out{d} in{d}
    at{d}` output and input sizes and bytes between input pixels; `channels` elements in the row of zeros.
    """

    windows: Patches
    entry_bytes: int
    zero_row: bool

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.windows.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        windows, nbytes = self.windows, self.entry_bytes
        first = fn.i64(fn.mul(kernel.chunk, fields["block"]))
        end = fn.i64(fn.smin(fn.add(first, fields["block"]), fields["pixels"]))

        def taps(dim: int, position: list[Value], offset: Index, valid: Value, entry: Value) -> Value:
            if dim == windows.dims:
                where = fn.select(valid, offset, nowhere(nbytes)) if valid.name != "true" else offset
                fn.store_integer(where, nbytes, entry)
                return fn.gep(entry, nbytes)

            def tap(index: Value, state: list[Value]) -> list[Value]:
                at, inside = windows.place(fn, fields, dim, position[dim], index)
                moved = fn.add(offset, fn.mul(at, fields[f"at{dim}"]))
                ok = valid if inside is None else fn.both(valid, inside)
                return [taps(dim + 1, position, moved, ok, state[0])]

            return fn.loop(0, windows.kernel[dim], 1, [entry], tap, hint="tap")[0]

        def pixel(position: list[Value], state: list[Value]) -> list[Value]:
            return [taps(0, position, 0, Value("true", I1), state[0])]

        table = fn.gep(fields.buffer("offsets"), fn.mul(first, windows.taps * nbytes))
        each_pixel(fn, fields, windows.dims, first, end, [table], pixel)
        if self.zero_row:
            fn.if_(fn.cmp("eq", kernel.chunk, 0), lambda: self._clear(fn, fields), lambda: [], hint="zeros")
        return kernel.finish()

    def _clear(self, fn: Function, fields: Fields) -> list[Value]:
        zero = fn.const(SCALARS[self.windows.dtype], 0.0)
        item = 8 if self.windows.dtype == "float64" else 4

        def element(_: Value, state: list[Value]) -> list[Value]:
            fn.store(zero, state[0])
            return [fn.gep(state[0], item)]

        fn.loop(0, fields["channels"], 1, [fields.buffer("zeros")], element, hint="clear")
        return []
