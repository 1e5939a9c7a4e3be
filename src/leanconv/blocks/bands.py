"""How an inverted residual block is cut: sections and groups of the middle channels, bands of rows, tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import FEW
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem

FEW_ROWS = 16  # of the output: threads that share so few expand several of them twice
WIDE = 2  # registers of a section: what a row's window of it takes stays in the first-level cache


@dataclass(frozen=True, slots=True)
class Grouping:
    """Sections of `vectors` registers of the middle channels, and how many of them are projected at a time."""

    vectors: int
    sections: int
    middle: int
    lanes: int

    @property
    def panels(self) -> Panels:
        """Sections as panels of the expansion's weights."""
        registers = -(-self.middle // self.lanes)
        valid = self.middle - (registers - 1) * self.lanes
        count = registers // self.vectors
        if valid < self.lanes and count * self.vectors == registers:
            count -= 1
        return Panels(count, self.vectors, registers - count * self.vectors, valid)

    @property
    def groups(self) -> int:
        """How many groups there are; the last one may have fewer sections."""
        return -(-self.panels.total // self.sections)

    @property
    def width(self) -> int:
        """Channels of a section."""
        return min(self.middle, self.vectors * self.lanes)

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return min(self.middle, self.sections * self.vectors * self.lanes)

    @property
    def even(self) -> bool:
        """Whether all groups have as many sections."""
        return self.panels.total % self.sections == 0


@dataclass(frozen=True, slots=True)
class Cut:
    """Output rows of a band, and of a chunk."""

    band: int
    block: int


def _rows(depthwise: Problem, band: int) -> int:
    """Input rows under a band."""
    p = depthwise
    return min(p.in_size[0], (band - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1)


def slab_bytes(depthwise: Problem, grouping: Grouping, band: int) -> int:
    """Expanded rows of a section under a band."""
    return _rows(depthwise, band) * depthwise.in_size[1] * grouping.width * depthwise.itemsize


def band_buffers(depthwise: Problem, grouping: Grouping, band: int) -> tuple[Buffer, Buffer]:
    """What a thread keeps: expanded rows of a group, a slab a section, and the outputs of the depthwise layer."""
    p, sections = depthwise, min(grouping.sections, grouping.panels.total)
    return (
        Buffer("expanded", sections * slab_bytes(p, grouping, band), per_thread=True),
        Buffer("filtered", band * p.out_size[1] * grouping.channels * p.itemsize, per_thread=True),
    )


def groupings(layers: Sequence[Problem], host: Host) -> Iterator[Grouping]:
    """Ways to group the middle channels, the one preferred first; others are for memory limits that it does not meet.

    The groups decide in which order sums are added up, so they may depend on the block and the caches, but not on the
    number of threads. A group is the largest of which bands of three rows on two threads, and of one row on four, take
    less than a quarter of what the layers apart would write between them, and half the second-level cache of each;
    all channels if possible, because each group adds up the output once more.
    """
    p = layers[1]
    middle, lanes = p.in_channels, host.target.lanes(p.dtype)

    def wide(sections: int) -> Grouping:
        return Grouping(WIDE, sections, middle, lanes)

    def fits(grouping: Grouping) -> bool:
        room = quarter_between(layers)
        sizes = {rows: sum(b.nbytes for b in band_buffers(p, grouping, min(rows, p.out_size[0]))) for rows in (1, 3)}
        return sizes[3] <= min(host.l2 // 2, room // 2) and sizes[1] <= room // 4

    most = wide(1).panels.total
    if middle % lanes:  # groups are whole registers
        yield wide(most)
        return
    # Sums of few terms are unrolled wholly: then no group may have fewer.
    some = [one for one in map(wide, range(1, most + 1)) if one.channels > FEW or middle % one.channels == 0]
    some = some or [wide(2)]
    chosen = next((one for one in reversed(some) if fits(one)), some[0])

    smaller = [one for one in some if one.sections <= chosen.sections]
    few = (one for one in smaller if one.groups <= 2 * chosen.groups)
    chosen = min(few, key=lambda one: (not one.even, one.groups))
    yield chosen
    yield from (one for one in reversed(smaller) if one.sections < chosen.sections)
    yield Grouping(1, 1, middle, lanes)


def quarter_between(layers: Sequence[Problem]) -> int:
    """A quarter of the bytes that the layers apart would write between them."""
    expand, p, _ = layers
    return (math.prod(expand.out_shape) + math.prod(p.out_shape)) * p.itemsize // 4


def cut_into_bands(
    layers: Sequence[Problem], grouping: Grouping, host: Host, threads: int, workspace: int | None
) -> Cut:
    """The highest bands that stay in half the second-level cache and in a quarter of what is saved."""
    p = layers[1]
    block = _block(p, threads)
    budget = min(host.l2 // 2 * threads, quarter_between(layers) - 64 * (threads + 1))
    budget = budget if workspace is None else min(budget, workspace)
    fits = [b for b in range(1, block + 1) if arena_bytes(band_buffers(p, grouping, b), threads) <= budget]
    bands = -(-block // max(fits, default=1))
    return Cut(-(-block // bands), block)


def twice(depthwise: Problem) -> int:
    """Input rows under two neighbouring rows of outputs."""
    p = depthwise
    return max(0, (p.kernel[0] - 1) * p.dilation[0] + 1 - p.stride[0])


def _block(depthwise: Problem, threads: int) -> int:
    """Output rows of a chunk: two chunks a thread where their common rows, expanded twice, are few."""
    p = depthwise
    wanted = -(-threads // max(1, p.batch)) if threads > 1 else 1
    if threads > 1 and p.out_size[0] * p.stride[0] >= 2 * wanted * 8 * twice(p):
        wanted *= 2
    return -(-p.out_size[0] // wanted)


def tile_height(counts: set[int], most: int) -> int:
    """The greatest height of tiles of which, with others one row lower, any of the counts of pixels can be made."""

    def covered(pixels: int, height: int) -> bool:
        tiles = -(-pixels // height)
        return tiles * height - pixels <= tiles

    return max(height for height in range(1, most + 1) if height == 1 or all(covered(n, height) for n in counts))


def pixel_counts(depthwise: Problem, cut: Cut) -> tuple[set[int], set[int]]:
    """How many pixels are expanded, and how many are projected, at a time."""
    p = depthwise
    expanded, projected = set(), set()
    for first in range(0, p.out_size[0], cut.block):
        end, have = min(first + cut.block, p.out_size[0]), 0
        for row in range(first, end, cut.band):
            stop = min(row + cut.band, end)
            bottom = (stop - 1) * p.stride[0] - p.pad_low[0] + (p.kernel[0] - 1) * p.dilation[0] + 1
            high = min(max(bottom, 0), p.in_size[0])
            low = min(max(row * p.stride[0] - p.pad_low[0], 0), high)
            fresh = min(max(low, have), high)
            expanded.add((high - fresh) * p.in_size[1])
            projected.add((stop - row) * p.out_size[1])
            have = high
    return expanded - {0}, projected
