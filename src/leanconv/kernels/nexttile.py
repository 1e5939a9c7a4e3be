"""Asking for what the next tile of pixels will read and overwrite (see `channelwise`).

What lies in the last-level cache does not come by itself in time: the processor fetches ahead along a line of memory,
while a tile reads a few bytes each of many pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leanconv.codegen.ir import Function, Value
from leanconv.kernels.fields import Fields
from leanconv.kernels.rowtile import Tile

if TYPE_CHECKING:
    from leanconv.kernels.channelwise import ChannelwiseSpec

LINE = 64  # bytes of a line of cache
LINEAR = 2  # the field `asks`, where what is asked for comes in the order of memory


def fetch_next(
    fn: Function, fields: Fields, spec: ChannelwiseSpec, tile: Tile, unit: Value, x: Value, out: Value | None
) -> None:
    """Ask for the pixels under the next tile that no row before has read, and for its outputs if `out` is given.

    `x` is the pixel at the corner of this tile, `out` its first output, for the channels of unit number `unit`. If a
    chunk takes all channels (`spec.linear`) each unit asks for one piece of what comes, in the order in which it lies
    in memory, as the processor expects it. Else each asks for its own channels, and those that share a line for some
    of the pixels. Behind the last tile of a row this is the next row, where it begins if the image has no gaps; nothing
    is read, so it may lie behind the image.
    """
    window, item = spec.window, 8 if spec.dtype == "float64" else 4
    inner = window.dims - 1

    def ask(base: Value, pitch: Value, pixels: int, channels: int, *, write: bool) -> None:
        nbytes = spec.lanes.groups * channels * item
        if spec.linear:
            base = fn.opaque(fn.gep(base, fn.mul(unit, (pixels - 1) * nbytes)))  # `base` has moved once for each unit
            for line in range(-(-pixels * nbytes // LINE)):
                fn.prefetch(base, line * LINE, write=write)
            return
        sharing = max(1, LINE // nbytes)
        count = -(-pixels // sharing)
        base = fn.opaque(fn.gep(base, fn.mul(fn.urem(unit, sharing), fn.mul(pitch, count))))
        for pixel in range(count):
            fn.prefetch(fn.gep(base, fn.mul(pitch, pixel)), write=write)

    at = fields[f"at{inner}"]
    ahead = fn.gep(x, fn.mul(at, spec.width * window.stride[inner] + window.pad_low[inner]))
    taps, fresh = 1, 1
    if inner:
        taps, fresh = window.kernel[inner - 1], -(-window.stride[inner - 1] // window.dilation[inner - 1])
    for tap in range(max(0, taps - fresh), taps):
        row = fn.gep(ahead, fn.mul(fields[f"tap{inner - 1}"], tap)) if inner else ahead
        ask(row, at, tile.width * window.stride[inner], spec.lanes.group_in, write=False)
    if out is not None:
        pitch = fields["o_row"]
        ask(fn.gep(out, fn.mul(pitch, spec.width)), pitch, tile.width, spec.lanes.group_out, write=True)
