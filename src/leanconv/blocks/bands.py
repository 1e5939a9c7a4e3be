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

FEWEST_ROWS = 8  # of the output: threads would share so few unevenly, 7 as 4 and 3
FEW_ROWS = 16  # threads that share so few take one band each
MANY_SHARED = 5  # times the rows shared that a chunk has at most: for one of seven a phase more does not pay
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
    def least(self) -> int:
        """Channels of the last group."""
        return self.middle - (self.groups - 1) * self.channels

    @property
    def even(self) -> bool:
        """Whether all groups have as many sections."""
        return self.panels.total % self.sections == 0


@dataclass(frozen=True, slots=True)
class Cut:
    """Output rows of a band, and of a chunk; `shared` input rows under two chunks are expanded once for both."""

    band: int
    block: int
    shared: int = 0

    @property
    def single(self) -> bool:
        """Whether a chunk is one band, whose sections need no rows of the one before: one slab serves all."""
        return self.band == self.block

    def blocks(self, depthwise: Problem) -> int:
        """Chunks of an image."""
        return -(-depthwise.out_size[0] // self.block)

    def boundary(self, depthwise: Problem, number: int) -> int:
        """The first input row that the chunks `number` and the next one share."""
        return (number + 1) * self.block * depthwise.stride[0] - depthwise.pad_low[0]


def _under(depthwise: Problem, first: int, end: int) -> tuple[int, int]:
    """Input rows [low, high) under output rows."""
    p = depthwise
    bottom = (end - 1) * p.stride[0] - p.pad_low[0] + (p.kernel[0] - 1) * p.dilation[0] + 1
    high = min(max(bottom, 0), p.in_size[0])
    return min(max(first * p.stride[0] - p.pad_low[0], 0), high), high


def slab_bytes(depthwise: Problem, grouping: Grouping, cut: Cut) -> int:
    """Expanded rows of a section under a band."""
    p = depthwise
    rows = min(p.in_size[0], (cut.band - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1)
    if cut.single:
        spans = (
            _under(p, first, min(first + cut.block, p.out_size[0])) for first in range(0, p.out_size[0], cut.block)
        )
        rows = max((high - low for low, high in spans), default=0)
    return rows * p.in_size[1] * grouping.width * p.itemsize


def band_buffers(depthwise: Problem, grouping: Grouping, cut: Cut) -> tuple[Buffer, ...]:
    """Expanded rows that chunks share, and what a thread keeps.

    That is expanded rows of a group, a slab a section, and the outputs of the depthwise layer.
    """
    p, sections = depthwise, 1 if cut.single else min(grouping.sections, grouping.panels.total)
    own = (
        Buffer("expanded", sections * slab_bytes(p, grouping, cut), per_thread=True),
        Buffer("filtered", cut.band * p.out_size[1] * grouping.channels * p.itemsize, per_thread=True),
    )
    row = p.in_size[1] * grouping.panels.total * grouping.width * p.itemsize
    shared = p.batch * (cut.blocks(p) - 1) * cut.shared * row
    return (*own, Buffer("shared", shared)) if shared else own


def groupings(layers: Sequence[Problem], host: Host) -> Iterator[Grouping]:
    """Ways to group the middle channels, the one preferred first; others are for memory limits that it does not meet.

    The groups decide in which order sums are added up, so they may depend on the block and the caches, but not on the
    number of threads. A group is the largest of which bands of three rows on two threads, and of one row on four, take
    less than a quarter of what the layers apart would write between them, and half the second-level cache of each;
    all channels if possible, because each group adds up the output once more. Of few rows two threads take one band
    each: three rows of 14 pixels make low tiles.
    """
    p = layers[1]
    middle, lanes = p.in_channels, host.target.lanes(p.dtype)

    def wide(sections: int) -> Grouping:
        return Grouping(WIDE, sections, middle, lanes)

    half = -(-p.out_size[0] // 2)
    few = p.batch == 1 and p.out_size[0] <= FEW_ROWS and shares(p, half)

    def fits(grouping: Grouping) -> bool:
        room, high = min(host.l2, quarter_between(layers)), p.out_size[0]
        cuts = {2: Cut(min(3, high), high), 4: Cut(1, high)}
        if few:
            cuts = {2: Cut(half, half, twice(p))}
        return all(arena_bytes(band_buffers(p, grouping, cut), n) < room for n, cut in cuts.items())

    most = wide(1).panels.total
    if middle % lanes:  # groups are whole registers
        yield wide(most)
        return
    # Sums of few terms are unrolled wholly, and others have two rounds at least.
    some = [one for one in map(wide, range(1, most + 1)) if one.least > FEW or one.least == one.channels]
    chosen = next((one for one in reversed(some) if fits(one)), some[0])

    smaller = [one for one in some if one.sections <= chosen.sections]
    chosen = min(smaller, key=lambda one: (one.groups, not one.even))
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
    """The highest bands that stay in half the second-level cache and in a quarter of what is saved.

    Chunks share rows if those are many, and bands not much lower for it.
    """
    p = layers[1]
    block = _block(p, threads)
    budget = min(host.l2 // 2 * threads, quarter_between(layers) - 1)
    budget = budget if workspace is None else min(budget, workspace)

    def highest(shared: int) -> Cut:
        cuts = (Cut(band, block, shared) for band in range(1, block + 1))
        fits = [cut.band for cut in cuts if arena_bytes(band_buffers(p, grouping, cut), threads) <= budget]
        bands = -(-block // max(fits, default=1))
        return Cut(-(-block // bands), block, shared if fits else 0)

    apart = highest(0)
    if MANY_SHARED * twice(p) < block * p.stride[0] or block == p.out_size[0] or not shares(p, block):
        return apart
    together = highest(twice(p))
    return together if together.shared and 2 * together.band >= apart.band else apart


def shares(depthwise: Problem, block: int) -> bool:
    """Whether two chunks of so many rows share input rows, all inside the image, and three none."""
    p, cut = depthwise, Cut(block, block, twice(depthwise))
    first, last = cut.boundary(p, 0), cut.boundary(p, cut.blocks(p) - 2)
    apart = first >= 0 and last + cut.shared <= p.in_size[0] and cut.shared <= block * p.stride[0]
    return cut.shared > 0 and cut.blocks(p) > 1 and apart


def twice(depthwise: Problem) -> int:
    """Input rows under two neighbouring rows of outputs."""
    p = depthwise
    return max(0, (p.kernel[0] - 1) * p.dilation[0] + 1 - p.stride[0])


def _block(depthwise: Problem, threads: int) -> int:
    """Output rows of a chunk: one chunk a thread, since rows under two of them may be expanded twice."""
    return -(-depthwise.out_size[0] // -(-threads // max(1, depthwise.batch)))


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
    for number in range(cut.blocks(p)):
        first, have, own = number * cut.block, 0, (0, p.in_size[0])
        end = min(first + cut.block, p.out_size[0])
        if cut.shared:
            above = cut.boundary(p, number - 1) + cut.shared if number else 0
            own = above, cut.boundary(p, number) if end < p.out_size[0] else own[1]
        for row in range(first, end, cut.band):
            stop = min(row + cut.band, end)
            low, high = _under(p, row, stop)
            fresh = min(max(low, have), high)
            expanded.add((min(high, own[1]) - max(fresh, own[0])) * p.in_size[1])
            projected.add((stop - row) * p.out_size[1])
            have = high
    return {count for count in expanded if count > 0} or {1}, projected
