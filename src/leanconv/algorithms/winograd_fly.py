"""Winograd with weights transformed on the fly: how many tiles and input channels go through all steps at once.

A thread's scratch holds V [point][tile][channel] and M [point][tile][NR], and of one panel of weights the taps
[channel][tap][NR] and a row of points U [point][channel][NR].  Each weight is transformed once for each block of tiles,
and each product is transformed back once for each block of channels, whose outputs are added up in the output itself.
So many tiles are good for weights, many channels for products, and what the scratch may hold is shared between them so
that both together cost least:

    slots of a tile = points * (products * tiles' rows + windows * C / 8 + weights * C * K / 8 / tiles
                                + outputs * splits * K / 8)                                            for 8 lanes
"""

from __future__ import annotations

import math
from typing import ClassVar

from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fields import odd_lines
from leanconv.host import Host
from leanconv.kernels.cost import issue_slots
from leanconv.kernels.reduction import SECTION
from leanconv.kernels.winograd_tiles import Tiling
from leanconv.memory import ALIGNMENT
from leanconv.problem import Problem

# Slots of a point of a vector in two dimensions, measured: of a window, of a filter, of a product with its way back
# to pixels, and of one that is added to outputs, which are read from farther away; and of a tap of a filter for each
# lane, which it is put into by itself: on 16 lanes a filter of 5x5 takes twice as long as its points.
WINDOW, FILTER, OUTPUT, ADDED = 9.7, 5.0, 12.0, 10.0
TAKEN = 0.94
_PASS, _MOVE = 0.3, 0.4  # the parts of them that each axis takes, and loads and stores

_FEWEST = 16  # channels of a block: with fewer, products are not worth their way to memory and back
MOST_TILES = 64  # of a block, if memory is no matter: weights are no longer what takes the time


def pass_slots(axes: int) -> float:
    """How much of these a transform along so many axes takes."""
    return _PASS * axes + _MOVE


def filter_slots(points: int, taps: int, axes: int, lanes: int) -> float:
    """What a vector of filters takes from its taps, as they lie in memory, to all points."""
    return FILTER * points * pass_slots(axes) + TAKEN * lanes * taps


def output_slots(splits: int) -> float:
    """What the products of all blocks of input channels take on their way back to pixels."""
    return OUTPUT + ADDED * (splits - 1)


class BlocksOnTheFly(BlocksOfTiles):
    """Sizes and phases; at least `wanted` blocks of input channels if that can be, or as many as cost least."""

    transform: ClassVar[bool] = True
    asks: ClassVar[bool] = False

    def __init__(
        self,
        problem: Problem,
        host: Host,
        tiling: Tiling,
        threads: int,
        workspace: int | None,
        wanted: int | None,
    ) -> None:
        super().__init__(problem, host, tiling)
        active = tiling.active
        self.row_points = self.points // tiling.sizes[active[0]]
        self._passes = pass_slots(len(active))
        self._filter = filter_slots(self.points, problem.taps, len(active), self.lanes) / self.points
        self.budget = self.near(threads)
        if workspace is not None:
            self.budget = min(self.budget, workspace // threads)
        if wanted is not None:
            possible = self._possible()
            self.splits = min((count for count in possible if count >= wanted), default=possible[-1])
        else:
            self.splits = min(self._promising(), key=self._slots)

    def near(self, threads: int) -> int:
        """Bytes that a block may take, if memory is no matter: the third level of cache is as near as need be.

        In 4.2 MiB of it 128 to 512 channels at 28x28 and 56x56 are one block of channels, not two to seven: 4 to 15 %.
        """
        return max(3 * self.host.l2 // 2, min(10 * self.host.l2, self.host.l3 // 6))

    @property
    def _free(self) -> int:
        """Bytes that a thread has, but for those that matrices of points are apart, and for zeros."""
        gaps = ALIGNMENT * (2 * self.points + self.row_points)
        return max(0, self.budget - gaps - SECTION * self.problem.itemsize)

    @property
    def _whole(self) -> bool:
        """Whether channels cannot be split: those that are not whole vectors, or whose sum is activated before more."""
        p = self.problem
        return p.group_in % self.lanes != 0 or (p.residual == "after" and p.activation is not None)

    def _possible(self) -> list[int]:
        """Numbers of blocks of channels: all of them whole vectors, and none too short or longer than a section."""
        if self._whole:
            return [1]
        vectors, fewest = self.problem.group_in // self.lanes, max(1, _FEWEST // self.lanes)
        counts = sorted({-(-vectors // size) for size in range(fewest, vectors)})
        return [1, *(n for n in counts if vectors // n >= fewest and -(-vectors // n) * self.lanes <= SECTION)]

    def _promising(self) -> list[int]:
        """One block of channels, the most that there can be, and those near the optimum of filters and sums.

        If t tiles and c channels of a panel n wide share D = (t + k) (c + n), filters / t + added / c is least where
        t + k is near the root of D * filters / added.
        """
        p = self.problem
        vectors, fewest = p.group_in // self.lanes, max(1, _FEWEST // self.lanes)
        most = vectors // fewest
        if self._whole or most < 2:
            return [1]
        wide = self.width // p.itemsize
        k = wide * (self.row_points + p.taps) / self.points
        shared = self._free / (self.points * p.itemsize) + k * wide
        best = math.sqrt(shared * self._filter / (ADDED * self._passes))
        least = -(-vectors // max(1, SECTION // self.lanes))  # of blocks, none of which is longer than a section
        counts, total = {1, most}, max(1, self.fields["tile_count"])
        for high in (0.7 * best, best, 1.4 * best, MOST_TILES + k):
            tiles = max(1, min(int(high - k), MOST_TILES))
            tiles = -(-total // -(-total // tiles))
            size = int(shared / (tiles + k) - wide) // self.lanes  # what blocks of so many tiles leave
            count = -(-vectors // max(size, fewest))
            size = -(-vectors // min(most, max(count, least, 2)))
            counts.add(-(-vectors // size))  # no more blocks than of that size
        return sorted(counts)

    def _slots(self, splits: int) -> tuple[bool, float]:
        """Whether not even a tile fits, and what one takes if the channels are split so (or how many must be held)."""
        p, target, points = self.problem, self.host.target, self.points
        vectors = -(-p.group_in // self.lanes)
        channels = -(-vectors // splits) * self.lanes
        free = self._free - channels * self.width * (self.row_points + p.taps)
        tiles = free // (points * (channels * p.itemsize + self.width))
        if tiles < 1:
            return True, channels
        total = max(1, self.fields["tile_count"])
        tiles = min(tiles, MOST_TILES, total)
        tiles = -(-total // -(-total // tiles))
        tall = -(-tiles // target.tile_rows(self.panels.vectors))
        issued = tall * issue_slots(tiles / tall, self.panels.vectors) / self.panels.vectors
        filters = (issued + self._filter) / tiles * p.group_in
        return False, filters + output_slots(splits) * self._passes

    def point_bytes(self, width: int) -> int:
        """Bytes of one point's weights in a panel `width` bytes wide."""
        channels = self.row // self.problem.itemsize if self.splits > 1 else self.problem.group_in
        return odd_lines(channels * width)

    @property
    def heavy(self) -> bool:
        """Weights are transformed where they are used."""
        return False

    def enough(self, threads: int) -> int:
        """Chunks that keep the threads busy: as few as that, since each block transforms all weights."""
        return 2 * threads

    def block(self, threads: int, workspace: int | None, wanted: int | None) -> int:
        """Tiles a block: as many as fit, and in any case so few that the scratch stays near."""
        total = max(1, self.fields["tile_count"])
        tiles = min(wanted or MOST_TILES, total)
        if wanted is None:
            tiles = self.fitting(tiles, 1, self.near(threads))
            if threads > 1:
                tiles = min(tiles, max(16, -(-total // threads)))
        if workspace is not None:
            tiles = self.fitting(tiles, threads, workspace)
        # Blocks of one size: one with the tiles left over would transform all weights for few.
        blocks = -(-total // tiles)
        if wanted is None and 1 < blocks < 4 * threads:
            blocks = -(-blocks // threads) * threads  # as many for each thread
        return -(-total // blocks)

    def steps(self, tiles: int) -> tuple[str, ...]:
        """What runs, in words."""
        first, *rest = super().steps(tiles)
        part = f", of 1 / {self.splits} of the channels at a time" if self.splits > 1 else ""
        add = ["add up the outputs of all channels"] if self.splits > 1 else []
        return (first + part, "transform the weights of a panel of output channels", *rest, *add)
