"""Winograd for few tiles: weights are packed as transformed along all axes but the last, that one in registers.

What is read of weights is then 18 numbers a filter for F(4, 3), not 36, and so is what they take in memory.  The
products do somewhat more: one multiply-add and two additions for each pair of points of a vector of filters.  So this
is for layers whose weights take longer to read than to multiply.
"""

from __future__ import annotations

import functools
from typing import ClassVar

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fields import odd_lines, tile_fields
from leanconv.algorithms.winograd_staged import SharedWindows
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.cost import LATENCY, LINE
from leanconv.kernels.reduction import SECTION, UNROLL
from leanconv.kernels.winograd import WinogradSpec
from leanconv.kernels.winograd_lines import TapsOf, line_rows
from leanconv.kernels.winograd_tiles import Tiling
from leanconv.kernels.winograd_weights import LineWeightStep, WeightStep
from leanconv.problem import Problem

# Issue slots of a multiply-add: of 24, two more go into points; sections are short, and some groups of points have few
# tiles. Measured with all weights near: 1.17 (16 tiles) to 1.3 (4).
_SLOTS = 1.2

_MOST_TAPS = 3  # along the last axis: the points of more take more than the sums of few tiles hide
_WAIT = 0.5  # cycles of a multiply-add on AVX-512
# Bytes of weights a cycle that products read ahead of use, if all of them are in half of the third level of cache, or
# beyond. Measured 8 to 12; of two forms as fast this one is the smaller, and after other layers all weights
# come from memory. Of weights in the second level reading is not what takes the time.
_FAR, _BEYOND = 16.0, 6.0
_MOST_POINTS = 3  # summed at one time: LLVM spills with four of three tiles, and six of two
_TILES = 6  # of which two points are summed at one time, and more points of fewer


def possible(problem: Problem, host: Host, tiling: Tiling) -> bool:
    """Whether the last axis can be transformed in registers, which takes many, and multiply-adds that broadcast."""
    last, active = len(tiling.axes) - 1, tiling.active
    inside = len(active) <= 2 and last in active and tiling.axes[last].transform.taps <= _MOST_TAPS
    return inside and host.target.masks


def stored(problem: Problem, host: Host, tiling: Tiling) -> int:
    """The fewest numbers a filter that can be packed."""
    if not possible(problem, host, tiling):
        return tiling.points
    return tiling.points // tiling.sizes[-1] * tiling.axes[-1].transform.taps


@functools.lru_cache(maxsize=1024)
def pays(problem: Problem, host: Host, tiling: Tiling) -> bool:
    """Whether to read transformed weights would take longer than all products, and lines are a third shorter.

    Those of F(2, 3) have three numbers for four: 1024 to 1024 channels at 7x7 take 2.7 ms with lines, 2.2 without.
    """
    if not possible(problem, host, tiling) or 3 * tiling.axes[-1].transform.taps > 2 * tiling.sizes[-1]:
        return False
    p, fields = problem, tile_fields(problem, tiling)
    numbers = p.groups * p.group_in * p.group_out
    nbytes = numbers * tiling.points * p.itemsize
    if nbytes <= host.l2:
        return False
    rate = _FAR if nbytes <= host.l3 // 2 else _BEYOND
    kept = sum(number * part for number, part in tiling.counted(fields)) * fields["tile_count"]
    return kept * numbers / host.target.lanes(p.dtype) * _WAIT * _SLOTS < nbytes / rate


def slots(together: int, tiles: float, vectors: int) -> float:
    """Issue slots of a multiply-add where so many points of so many tiles are summed at one time, or latency."""
    return _SLOTS * max(1.0, LATENCY / (together * max(1.0, min(tiles, _TILES)) * vectors))


class LinesOfPoints(BlocksOfTiles):
    """Sizes and phases; at most `wanted` points of a line are summed at one time."""

    asks: ClassVar[bool] = False

    def __init__(self, problem: Problem, host: Host, tiling: Tiling, wanted: int | None = None) -> None:
        *others, last = tiling.axes
        if isinstance(last.transform, CookToom):
            last = replace(last, transform=replace(last.transform, bare=True))
        super().__init__(problem, host, Tiling((*others, last)))
        self.wanted = wanted

    @property
    def vectors(self) -> int:
        """Registers of a row of weights, of the widest panels."""
        return self.width // self.host.target.vector_bytes

    @property
    def taps(self) -> int:
        """Numbers of a line that are packed."""
        return self.tiling.axes[-1].transform.taps

    @property
    def matrices(self) -> int:
        """Lines of points."""
        return self.points // self.tiling.sizes[-1]

    def point_bytes(self, width: int) -> int:
        """Bytes of one line's weights in a panel `width` bytes wide."""
        return odd_lines(self.problem.group_in * self.taps * width)

    @property
    def most_channels(self) -> int:
        """Channels of a section: their weights take half of the first level of cache."""
        fitting = self.host.l1 // 2 // (self.taps * self.width) // self.lanes * self.lanes
        return max(self.lanes, UNROLL, min(SECTION, fitting))

    def weight_step(self) -> WeightStep:
        """How filters are transformed: along the last axis they are multiplied with what its points have in common."""
        *others, last = super().weight_step().tiling.axes
        axes = (*others, replace(last, transform=TapsOf(last.transform), edge=last.transform.outputs))
        return LineWeightStep(self.host.target, self.problem.dtype, Tiling(axes))

    def together(self, tiles: int) -> int:
        """Points that are summed at one time: the most whose sums of so many tiles, up to six, fit the registers."""
        size, most = min(_MOST_POINTS, self.tiling.sizes[-1]), line_rows(self.host.target, 1, self.vectors)
        if self.wanted is not None:
            return max(2, min(self.wanted, size, most))
        fits = (n for n in range(size, 2, -1) if n * min(tiles, _TILES) <= most)
        return next(fits, 2)

    def spec(self, tiles: int) -> WinogradSpec:
        """The kernel for blocks of so many tiles."""
        together = self.together(tiles)
        groups = -(-self.tiling.sizes[-1] // together)
        runs = groups * -(-tiles // line_rows(self.host.target, together, self.vectors))
        nbytes = UNROLL * self.taps * self.width
        return replace(super().spec(tiles), together=together, asked=-(-nbytes // (LINE * runs)))

    def program(self, tiles: int, blocks: int, parts: int) -> Lowering:
        """One phase: so many blocks of tiles, and about so many parts of the panels."""
        low = super().program(tiles, blocks, parts)
        return replace(low, parameters={**low.parameters, "together": self.together(tiles)})

    def steps(self, tiles: int) -> tuple[str, ...]:
        """What runs, in words."""
        first, products, last = super().steps(tiles)
        return first, f"{products}, weights transformed along the last axis in registers", last


class SharedWindowsInLines(SharedWindows, LinesOfPoints):
    """The same for several threads, which read one buffer of windows."""
