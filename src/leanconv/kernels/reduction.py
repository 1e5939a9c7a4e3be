"""In which order the terms of a sum are added, and what a kernel is specialised for to add them.

Taps outermost, channels innermost, whatever the tile, the layout, the blocking or the number of threads, so none of
them changes a bit of the result.  Long sums are cut into sections of some 256 terms that are added up apart (on the
stack, once a section): the error grows with the square root of the section, not of the whole sum.
"""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.kernels.cursor import Cursor

UNROLL = Cursor.unroll
FEW = 8  # channels that are unrolled wholly
SHORT = 128  # channels of sums whose first step is apart: saves 10 of 115 cycles a tile of 6x2 sums of 16 terms
SECTION = 256  # terms summed in one run of the accumulators: errors of 5e-7 of the largest output, 1e-6 for 576


@dataclass(frozen=True, slots=True)
class Reduction:
    """The sum as the kernel is specialised for it.

    `kernel` taps per dimension; `channels` when few enough to unroll wholly, else None with `remainder` =
    channels mod UNROLL; `unit_channel`: channels are adjacent in memory; `merged`: the innermost dimension's
    taps follow its channels without a gap (dense NHWC, dilation 1), so both are one run; `flush` names the
    loop after which a section ends: a dimension's index (after each
    `every` turns of it), "channels" (chunks of SECTION channels), "blocks" (of channels) or None;
    `short`: one tap of so few channels that how a sum starts shows;
    `stream`: the weights come from beyond the first-level cache, so their lines are asked for AHEAD bytes before they
    are used.
    """

    kernel: tuple[int, ...]
    channels: int | None
    remainder: int
    unit_channel: bool
    merged: bool
    flush: int | str | None
    every: int
    short: bool
    stream: bool

    @staticmethod
    def of(
        kernel: tuple[int, ...], channels: int, *, unit_channel: bool, merged: bool, stream: bool, block: int = 0
    ) -> Reduction:
        """Choose unrolling and sections for a sum over `kernel` taps of `channels` channels each.

        `block` channels go through all taps before the next ones, where a source sums that way.
        """
        if block:
            terms = math.prod(kernel) * block
            ends = "blocks" if math.prod(kernel) * channels > SECTION else None
            return Reduction(kernel, None, 0, unit_channel, False, ends, max(1, SECTION // terms), False, stream)
        few = channels <= FEW
        flush: int | str | None = "channels" if channels > SECTION else None
        inner = channels
        if flush is None:
            for dim in reversed(range(len(kernel))):
                if inner * kernel[dim] > SECTION:
                    flush = dim
                    break
                inner *= kernel[dim]
        every = max(1, SECTION // inner)
        merged = merged and few and flush != len(kernel) - 1
        short = math.prod(kernel) == 1 and channels <= SHORT
        known = channels if few else None
        return Reduction(kernel, known, channels % UNROLL, unit_channel, merged, flush, every, short, stream)


def reduction_fields(channels: int) -> dict[str, int]:
    """The fields of a reduction over so many channels: whole rounds, and the length of a section."""
    sections = -(-channels // SECTION)
    return {
        "channels_whole": channels // UNROLL * UNROLL,
        "section": -(-channels // (sections * UNROLL)) * UNROLL,
    }
