"""How an inverted residual block is cut: sections of the middle channels, bands of rows, tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.reduction import SECTION
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem

FEWEST_ROWS = 4  # a band of fewer rows moves as many as it computes
FEWEST_CHANNELS = 32  # of a section: adding up the output takes a fifth of the projection's time


FEW_ROWS = 16  # of the output: threads that share so few expand several of them twice
FEWEST_SECTIONS = 6  # of which two threads take about equal parts


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels of a section, sections, output rows of a band, and of a chunk; parts that the sections are in."""

    section: int
    sections: int
    band: int
    block: int
    parts: int


def _rows(depthwise: Problem, band: int) -> int:
    """Input rows under a band."""
    p = depthwise
    return min(p.in_size[0], (band - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1)


def band_buffers(depthwise: Problem, section: int, band: int) -> tuple[Buffer, Buffer]:
    """What a thread keeps: expanded rows, and the outputs of the depthwise layer."""
    p = depthwise
    pixel = section * p.itemsize
    return (
        Buffer("expanded", _rows(p, band) * p.in_size[1] * pixel, per_thread=True),
        Buffer("filtered", band * p.out_size[1] * pixel, per_thread=True),
    )


def section_counts(layers: Sequence[Problem], host: Host) -> list[int]:
    """Numbers of sections, the one preferred first; what follows it is for memory limits that it does not meet.

    The section decides in which order sums are added up, so it may depend on the block and the caches, but not on the
    number of threads. It is the largest of which a low band stays in half the second-level cache, and takes, for four
    threads, less than a quarter of what the layers apart would write between them.
    """
    expand, p, _ = layers
    middle, lanes = p.in_channels, host.target.lanes(p.dtype)
    between = (math.prod(expand.out_shape[1:]) + math.prod(p.out_shape[1:])) * p.itemsize
    budget = min(host.l2 // 2, between // 16)
    counts = [d for d in range(1, middle + 1) if middle % d == 0 and (d == 1 or middle // d % lanes == 0)]
    # Sums of more terms than `SECTION` are cut anyway; each section adds up the output once more.
    usual = [d for d in counts if middle // d <= SECTION and (middle // d >= FEWEST_CHANNELS or d == 1)] or counts[:1]
    band = min(FEWEST_ROWS, p.out_size[0])
    fits = [d for d in usual if sum(b.nbytes for b in band_buffers(p, middle // d, band)) <= budget]
    chosen = fits[0] if fits else usual[-1]
    # Halves of the sections shall be equal; and panels are of two vectors: of three, every other one is narrow. Of 96
    # channels sections of 32 take 0.87 of the time of sections of 48.

    def uneven(d: int) -> tuple[bool, bool, int]:
        return part_count(layers, d) == 2 and d % 2 > 0, middle // d // lanes % 2 > 0, d

    chosen = min((d for d in fits if d <= 2 * chosen), key=uneven, default=chosen)
    return [chosen, *(d for d in counts if d > chosen)]


def part_count(layers: Sequence[Problem], sections: int) -> int:
    """Two if threads share the sections of an image of few rows, else one.

    Each part has sums of its own, added up at the end: so it may not depend on the number of threads, or bits would.
    """
    expand, p, project = layers
    between = math.prod(expand.out_shape) + math.prod(p.out_shape)
    few = p.batch == 1 and p.out_size[0] <= FEW_ROWS and sections >= FEWEST_SECTIONS
    return 2 if few and 6 * math.prod(project.out_shape) <= between else 1


def cut_into_bands(
    layers: Sequence[Problem], sections: int, host: Host, threads: int, workspace: int | None, parts: int
) -> Cut:
    """The highest bands that stay in half the second-level cache and in a quarter of what is saved."""
    expand, p, project = layers
    block, section = _block(p, -(-threads // parts)), p.in_channels // sections
    between = (math.prod(expand.out_shape) + math.prod(p.out_shape)) * p.itemsize
    second = (parts - 1) * math.prod(project.out_shape) * p.itemsize
    budget = min(host.l2 // 2 * threads, between // 4 - 64 * (threads + 1) - second)
    budget = budget if workspace is None else min(budget, workspace)
    fits = [b for b in range(1, block + 1) if arena_bytes(band_buffers(p, section, b), threads) <= budget]
    return Cut(section, sections, max(fits, default=1), block, parts)


def _block(depthwise: Problem, threads: int) -> int:
    """Output rows of a chunk: two chunks a thread where their common rows, expanded twice, are few."""
    p = depthwise
    wanted = -(-threads // max(1, p.batch)) if threads > 1 else 1
    twice = max(0, (p.kernel[0] - 1) * p.dilation[0] + 1 - p.stride[0])
    if threads > 1 and p.out_size[0] * p.stride[0] >= 2 * wanted * 8 * twice:
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
