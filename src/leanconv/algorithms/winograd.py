"""Winograd convolution: tiles of outputs by fewer multiplications, in a transformed domain.

Idea        F(m, r) computes m outputs of r taps with m + r - 1 products, along each axis: of 3x3 taps 2.25 times
            fewer for m = 2, 4 times for m = 4; windows, weights and products are transformed by small constant
            matrices; blocks of tiles go through all steps while they are in the cache; a stride makes several
            interleaved filters of one, a dilation several interleaved images
Workspace   a thread: points * block * (C/g + NR) elements, where points is the product of the m + r - 1 and block
            the tiles staged at one time; for several threads and few tiles points * tiles * C in all and points *
            block * NR a thread; with weights on the fly points * block * (c + NR) + (row + taps) * c * NR, where c
            are the input channels staged at one time, and row the points but for those of the first axis
Weights     points / taps times as large as plain ones (4 times for F(4, 3)); with AVX-512, where tiles are few, only
            the points of all axes but the last (twice for F(4, 3)), or with weights on the fly plain ones, transformed
            anew for each block, some channels after others
Good for    3x3 and 5x5, stride 1, many channels in and out
Bad for     few channels, images of few tiles (their time goes into weights); rounding grows with m

    F(2, 3) along a row          image     0 1 2 3 4 5 6 7 ...
                                 tile 0    0 1 2 3           ->   outputs 0 1
                                 tile 1        2 3 4 5       ->   outputs 2 3
    V [point][tile][C/g]   *   U [point][C/g][K]   ->   M [point][tile][K]        16 points in two dimensions

S. Winograd: Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural
Networks, CVPR 2016.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fields import tile_fields, tiles_along
from leanconv.algorithms.winograd_fly import (
    MOST_TILES,
    OUTPUT,
    WINDOW,
    BlocksOnTheFly,
    filter_slots,
    output_slots,
    pass_slots,
)
from leanconv.algorithms.winograd_lines import LinesOfPoints, SharedWindowsInLines, pays, possible, slots, stored
from leanconv.algorithms.winograd_staged import SharedWindows, SharedWindowsOnTheFly
from leanconv.host import Host
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.cost import Cost, issue_slots
from leanconv.kernels.polyphase import Strided
from leanconv.kernels.winograd_tiles import Axis, Tiling
from leanconv.memory import ALIGNMENT
from leanconv.problem import Problem

MOST_POINTS = 8  # along one axis: with more, rounding errors pass 1e-4 of the largest output
MOST_PRODUCTS = 256  # in one tile: all of F(4, 3) in three dimensions, whose windows still fit the first-level cache


# What each axis adds to the error of a plain sum, by its number of points. Measured: 1.1 times for 4 points, 1.4 for 6,
# 3.5 for 8 (two axes of 3 taps, 256 channels); the rest is margin for single outputs.
ERROR_GROWTH = {1: 1.0, 2: 1.25, 3: 1.25, 4: 1.25, 5: 2.0, 6: 2.0, 7: 5.0, 8: 5.0}


# For the cost model: how much more of a byte's time shows than with the plain core, of windows: they are used for a
# panel and not again until the next. Plain filters are read twice as slowly: they lie apart, and of the lines that are
# fetched half is used in time. Less than a vector of channels (RGB images) is loaded in pieces, and its products are
# too short to hide the rest.
_WINDOWS, _FILTERS, _NARROW = 6.0, 2.0, 3.0

_TILES = {"tiles": "tiles that a thread takes through all steps at one time"}
_TILES_AND_LINES = _TILES | {
    "together": "points of a line whose weights are transformed in registers, summed at one time; 1: all beforehand"
}
_TILES_AND_SPLITS = _TILES | {"splits": "blocks of input channels that go through all steps one after another"}


def tiling_of(problem: Problem, outputs: int) -> Tiling:
    """Tiles of at most `outputs` outputs along each axis that has taps, and of fewer where as many tiles will do."""
    p = problem
    return _tiling(outputs, p.out_size, p.kernel, p.stride, p.dilation, p.pad_low)


@functools.lru_cache(maxsize=1024)  # a plan asks some twenty times
def _tiling(outputs: int, *by_axis: tuple[int, ...]) -> Tiling:
    return Tiling(tuple([_axis(outputs, *axis) for axis in zip(*by_axis, strict=True)]))


@functools.lru_cache(maxsize=1024)
def _counted(outputs: int, *by_axis: tuple[int, ...]) -> tuple[int, float, int, int]:
    """Tiles of an image, products that one keeps on average, products of a whole one, axes that have a transform."""
    tiling = _tiling(outputs, *by_axis)
    numbers = [tiles_along(axis, out) for axis, out in zip(tiling.axes, by_axis[0], strict=True)]
    sizes = {f"tiles{d}": count for d, (count, _) in enumerate(numbers)}
    sizes |= {f"last{d}": last for d, (_, last) in enumerate(numbers)}
    kept = sum(number * part for number, part in tiling.counted(sizes))
    return math.prod(count for count, _ in numbers), kept, tiling.points, len(tiling.active)


@functools.lru_cache(maxsize=4096)
def _axis(outputs: int, out: int, taps: int, stride: int, dilation: int, pad: int) -> Axis:
    longest = -(-out // dilation)  # outputs of the first of the interleaved problems
    # As many tiles, no larger than need be: nine outputs are three tiles of three, not two of four and one of one. The
    # products are as many, the weights fewer.
    size = -(-longest // -(-longest // outputs)) if taps > 1 else 1
    edge = longest - (-(-longest // size) - 1) * size
    transform = Strided.of(size, taps, stride) if 1 < stride <= taps else CookToom.of(size, taps)
    return Axis(transform, edge, stride, dilation, pad)


class Winograd(Algorithm):
    """Winograd convolution with tiles of `outputs` outputs along each axis."""

    paper: ClassVar[str] = (
        "A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016; in blocks as in "
        "Z. Jia et al.: Optimizing N-dimensional, Winograd-based convolution for manycore CPUs, PPoPP 2018"
    )
    error_class: ClassVar[str] = "transformed"
    tunables: ClassVar[Mapping[str, str]] = _TILES_AND_LINES
    outputs: ClassVar[int]
    transform: ClassVar[bool] = False

    def refusal(self, problem: Problem) -> str | None:
        """A few taps along each axis, a stride that is no larger, and no dilation with a stride."""
        if problem.taps == 1:
            return "the kernel has one tap, there is nothing to save"
        most = MOST_POINTS - self.outputs + 1
        for taps, stride, dilation in zip(problem.kernel, problem.stride, problem.dilation, strict=True):
            if taps > 1 and stride > taps:
                return f"the stride of {stride} is larger than the kernel of {taps} taps, no products are saved"
            if stride > 1 and dilation > 1:
                return f"an axis has stride {stride} and dilation {dilation}, one of them must be 1"
            if -(-taps // stride) > most:
                return (
                    f"an axis has {taps} taps at stride {stride}, tiles of {self.outputs} outputs take at most {most} "
                    "taps a phase"
                )
        points = tiling_of(problem, self.outputs).points
        if points > MOST_PRODUCTS:
            return f"a tile has {points} products, at most {MOST_PRODUCTS} are supported"
        return None

    def error_bound(self, problem: Problem) -> float:
        """That of a plain sum, times a growth for each axis; 4e-6 for F(4x4, 3x3) in float32."""
        axes = zip(tiling_of(problem, self.outputs).axes, problem.kernel, strict=True)
        sizes = (axis.transform.outputs - 1 + -(-taps // axis.stride) for axis, taps in axes)
        return super().error_bound(problem) * math.prod(ERROR_GROWTH[size] for size in sizes)

    def least(self, problem: Problem, host: Host) -> Cost | None:
        """What `cost` counts if tiles wait for nothing, and each window is transformed once."""
        p = problem
        total, kept, points, active = _counted(self.outputs, p.out_size, p.kernel, p.stride, p.dilation, p.pad_low)
        lanes, slots, tiles = host.target.lanes(p.dtype), pass_slots(active), p.groups * p.batch * total
        inner, outer = -(-p.group_in // lanes), -(-p.group_out // lanes)
        vectors = tiles * (WINDOW * inner + OUTPUT * outer) * kept * slots
        if p.group_in < lanes:
            vectors *= _NARROW
        weights = p.groups * p.group_in * p.group_out * p.itemsize
        if self.transform:
            blocks = -(-p.batch * total // MOST_TILES)
            vectors += p.groups * blocks * p.group_in * outer * filter_slots(points, p.taps, active, lanes)
            weights, fetched = weights * p.taps, _FILTERS * blocks
        else:
            weights, fetched = weights * stored(p, host, tiling_of(p, self.outputs)), 1.0
        counts = {"multiply": kept * tiles * p.group_in * outer, "vector": vectors}
        return Cost(counts, streams=((fetched * weights, weights),))

    def least_bytes(self, problem: Problem, host: Host) -> int:
        """A scratch, and transformed weights beyond the plain ones."""
        p, tiling = problem, tiling_of(problem, self.outputs)
        beyond = 0 if self.transform else (stored(p, host, tiling) - p.taps) * p.group_in - p.has_bias
        return ALIGNMENT + max(0, beyond) * p.out_channels * p.itemsize

    def cost(self, problem: Problem, host: Host, threads: int, lowering: Lowering) -> Cost | None:
        """Products, transforms, and weights that each block of tiles reads once."""
        p, tiling = problem, tiling_of(problem, self.outputs)
        lanes, points = host.target.lanes(p.dtype), tiling.points
        sizes = tile_fields(p, tiling)
        tiles = p.groups * sizes["tile_count"]
        inner, outer = -(-p.group_in // lanes), -(-p.group_out // lanes)
        blocks, splits = int(lowering.parameters["blocks"]), int(lowering.parameters["splits"])
        # Small tiles leave points out; register tiles of few rows wait for their sums.
        kept, issued = 0.0, 0.0
        wide = min(2, outer)
        for number, part in tiling.counted(sizes):
            rows = part * tiles / p.groups / max(1, blocks)
            high = rows / max(1.0, math.ceil(rows / host.target.tile_rows(wide)))
            kept += number * part
            issued += number * part * tiles * (issue_slots(high, wide) / (high * wide) if high else 0.0)
        lines = "together" in lowering.parameters
        if lines:
            together = int(lowering.parameters["together"])
            issued = kept * tiles * slots(together, tiles / p.groups / max(1, blocks), wide)
        point = kept * pass_slots(len(tiling.active))
        parts = 1.0
        if len(lowering.phases) == 1:  # each part of the panels transforms the windows of its block anew
            parts = lowering.phases[0].chunks / max(1, blocks * p.groups)
        moved = WINDOW * inner * parts + output_slots(splits) * outer
        counts = {"multiply": issued * p.group_in * outer, "vector": tiles * moved * point}
        if p.group_in < lanes:
            counts["vector"] *= _NARROW
        weights = p.groups * p.group_in * p.group_out * p.itemsize
        if self.transform:
            filters = p.groups * blocks * p.group_in * outer
            counts["vector"] += filters * filter_slots(points, p.taps, len(tiling.active), lanes)
            weights, fetched = weights * p.taps, _FILTERS
        else:
            weights, fetched = weights * (stored(p, host, tiling) if lines else points), 1.0
        if p.x_strides[1] != 1:
            counts["block"] = tiles * kept * inner
        if p.out_strides[1] != 1:
            counts["turn"] = splits * p.batch * math.prod(p.out_size) * p.groups * outer
        out = p.batch * p.out_channels * math.prod(p.out_size) * p.itemsize
        reads: tuple[tuple[float, float], ...] = ()
        scratch = lowering.workspace[0].nbytes
        if len(lowering.phases) > 1:  # windows of all blocks
            scratch //= max(1, blocks)
        if scratch > host.l2:  # each panel reads the windows anew
            reads = ((_WINDOWS * tiles * kept * p.group_in * p.itemsize * -(-outer // 2), scratch),)
        writes = ((out, out), ((splits - 1) * out, out / blocks))
        streams = ((fetched * blocks * weights, weights),)
        return Cost(counts, reads, writes, lowering.phases[-1].chunks, streams, len(lowering.phases))

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase, a chunk for each block of tiles, group and group of panels; or windows in a phase before."""
        tiling, tiles = tiling_of(problem, self.outputs), tunables.get("tiles")
        if self.transform:
            splits = tunables.get("splits")
            fly = BlocksOnTheFly(problem, host, tiling, threads, workspace, splits)
            both = SharedWindowsOnTheFly(problem, host, tiling, threads, workspace, fly.splits)
            return both.shared(threads, workspace, tiles) or fly.lowering(threads, workspace, tiles)
        together = tunables.get("together")
        lines = pays(problem, host, tiling) if together is None else together > 1 and possible(problem, host, tiling)
        if lines:
            with_buffer = SharedWindowsInLines(problem, host, tiling, together).shared(threads, workspace, tiles)
            alone = LinesOfPoints(problem, host, tiling, together)
            return with_buffer or alone.lowering(threads, workspace, tiles)
        shared = SharedWindows(problem, host, tiling).shared(threads, workspace, tiles)
        return shared or BlocksOfTiles(problem, host, tiling).lowering(threads, workspace, tiles)


class WinogradF2(Winograd):
    """Tiles of 2 outputs; near the accuracy of plain sums."""

    name: ClassVar[str] = "winograd_f2"
    title: ClassVar[str] = "Winograd, tiles of 2 outputs along each axis"
    outputs: ClassVar[int] = 2


class WinogradF2OnTheFly(WinogradF2):
    """The same with weights as they are, transformed anew for each block of tiles."""

    name: ClassVar[str] = "winograd_f2_on_the_fly"
    title: ClassVar[str] = "Winograd, tiles of 2, weights transformed block by block"
    tunables: ClassVar[Mapping[str, str]] = _TILES_AND_SPLITS
    transform: ClassVar[bool] = True


class WinogradF4(Winograd):
    """Tiles of 4 outputs."""

    name: ClassVar[str] = "winograd_f4"
    title: ClassVar[str] = "Winograd, tiles of 4 outputs along each axis"
    outputs: ClassVar[int] = 4


class WinogradF4OnTheFly(WinogradF4):
    """The same with weights as they are, transformed anew for each block of tiles."""

    name: ClassVar[str] = "winograd_f4_on_the_fly"
    title: ClassVar[str] = "Winograd, tiles of 4, weights transformed block by block"
    tunables: ClassVar[Mapping[str, str]] = _TILES_AND_SPLITS
    transform: ClassVar[bool] = True


class WinogradF6(Winograd):
    """Tiles of 6 outputs."""

    name: ClassVar[str] = "winograd_f6"
    title: ClassVar[str] = "Winograd, tiles of 6 outputs along each axis"
    outputs: ClassVar[int] = 6


class WinogradF6OnTheFly(WinogradF6):
    """The same with weights as they are, transformed anew for each block of tiles."""

    name: ClassVar[str] = "winograd_f6_on_the_fly"
    title: ClassVar[str] = "Winograd, tiles of 6, weights transformed block by block"
    tunables: ClassVar[Mapping[str, str]] = _TILES_AND_SPLITS
    transform: ClassVar[bool] = True
