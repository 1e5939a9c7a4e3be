"""Direct convolution in place, a block of channels after the other under all taps of the kernel.

Idea        with channels first each channel of a tile lies in a line of cache of its own, and a plane apart from the
            next: summed tap by tap, all have left the nearest cache before the next tap reads them again. A block of
            channels that stays there goes through all taps before the next one; sums stay in registers all the while
Workspace   none; packed weights K * C/g * taps elements (and a bias), K filled up to whole vectors in each group unless
            a memory limit has no room for that
Good for    channels first with several taps, where no byte may be spent on a copy
Bad for     small maps with few output channels, which a copy with channels last costs little

    channels first, in place              the sum of a tile, in registers
    plane c0    ... x0 x1 x2 ...          c0 ... c15 under tap 0, tap 1, ... tap 8
    plane c1    ... x0 x1 x2 ...          c16 ... c31 under tap 0, tap 1, ... tap 8
    ...         one line of each          ...

The order of a sum follows from the problem alone, but is not that of `direct`, so neither are the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.batchjoin import joined, together
from leanconv.algorithms.dense import core_phase, image_input, pack_weights, without_gaps
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import PAGE
from leanconv.kernels.image import Image
from leanconv.kernels.planeblocks import PlaneBlocks
from leanconv.kernels.reduction import SECTION, UNROLL
from leanconv.problem import BATCH_LAST, Problem

MOST, MOST_PAGES = 32, 16  # channels of a block: by their lines, and where each lies in a page of its own
SHARING = 4  # lines of a block in one set of the first-level cache, which has eight ways
MOST_TAPS = 64  # whose addresses a tile keeps at the edge of the image


def channel_block(problem: Problem) -> int:
    """Channels of a block: so few that their lines stay in the first-level cache, and sections of a sum short.

    Planes a multiple of 4 KiB apart put all lines into one set of the cache (224 x 224, 64 channels: blocks of 4 take
    0.7 of the time of blocks of 16). Neither the machine nor the strides of the array count: the block orders the sum.
    """
    p = problem
    plane = math.prod(p.in_size) * p.itemsize
    sets = PAGE // math.gcd(plane, PAGE)
    terms = SECTION * 5 // 4 // p.taps // UNROLL * UNROLL
    most = max(UNROLL, min(MOST_PAGES if plane >= PAGE else MOST, SHARING * sets, terms))
    blocks = -(-p.group_in // most)
    even = -(-p.group_in // blocks // UNROLL) * UNROLL
    return min(most, even, p.group_in // UNROLL * UNROLL)


class DirectBlocks(Algorithm):
    """Direct convolution in place, by blocks of channels."""

    name: ClassVar[str] = "direct_blocks"
    title: ClassVar[str] = "direct convolution in place, by blocks of channels"
    paper: ClassVar[str] = (
        "J. Zhang, F. Franchetti, T. M. Low: High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018 (its "
        "loop over blocks of input channels, for an image that is not rearranged)"
    )

    def refusal(self, problem: Problem) -> str | None:
        """Channels apart, several taps and at least a round of channels."""
        p = problem
        if p.x_strides[1] == 1:
            return "the channels of the image are adjacent"
        if p.layout in BATCH_LAST:
            return f"the layout is {p.layout}: images are adjacent, and read as vectors"
        if p.group_in < UNROLL:
            return f"a group has {p.group_in} input channels, a block at least {UNROLL}"
        if not 1 < p.taps <= MOST_TAPS:
            return f"the kernel has {p.taps} taps, blocks are for 2 to {MOST_TAPS}"
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: the core over the image."""
        images, tight, block = joined(problem, host), without_gaps(problem, host, workspace), channel_block(problem)
        source = image_input(images)
        assert isinstance(source.source, Image)
        planes = PlaneBlocks.of(source.source, problem.group_in, block)
        fields = {**source.fields, "blocks": problem.group_in // block}
        source = replace(source, source=planes, fields=fields, block=block)
        phase, parameters = core_phase(images, host, threads, source, tight=tight)
        how = f"by blocks of {block} channels{together(problem, images)}"
        return Lowering(
            phases=(phase,),
            packing=pack_weights(problem, host, tight=tight, block=block),
            steps=(f"core {parameters['tile']} reads the image in place, {how}",),
            parameters={**parameters, "channels": block},
        )
