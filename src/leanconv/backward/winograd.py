"""Winograd for gradients with respect to weights: windows and tiles of the gradient, multiplied point by point.

Idea        of F(m, r) with the parts exchanged: dW = G^T [ sum over tiles (B^T d B) (.) (A dY A^T) ] G. A tile of m x m
            pixels of the gradient and its window are taken to (m + r - 1)^2 points; for each point the sum over tiles
            is a matrix product, of 3x3 taps with 4 times fewer multiplications for m = 4; one transform of the sums
            ends it. Products are summed in sections of tiles, added up one after the other, whatever fits the memory
Workspace   the points of windows and gradients of some sections, and of all sums:
            points * (tiles * (C + K) + C * K) elements; under a limit fewer tiles, then fewer channels, at a time
Good for    3x3 taps, many channels, many pixels
Bad for     few tiles (the sums are as large as transformed weights), few channels; rounding grows with m
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.winograd import ERROR_GROWTH, WinogradF4, tiling_of
from leanconv.backward.bias import bias_phase
from leanconv.backward.direct import weights_error_bound
from leanconv.backward.winograd_part import Part, Sizes
from leanconv.host import Host
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

MOST_PRODUCTS = 64  # of a tile: all of them are straight-line code
FEWEST, MOST_GROUPS = 8, 16  # channels of a group, and groups, for "auto"
MOST_POINTS = 8  # along one axis
# Bytes of the sums of channels by outputs at one time, which stay in a near cache: 128 by 128 of 36 points.
SUMS = 9 << 18
STAGED = 2 << 20  # bytes of windows and gradients at one time, likewise
MOST_TURNS = 128  # in which parts are staged, and four times as many under a limit: a plan lists them all
LEAST = 32  # channels, and outputs, below which a limit does not cut them: each part transforms the others' tiles anew


class _WinogradWeights(Algorithm):
    """Tiles of `outputs` pixels of the gradient along each axis."""

    error_class: ClassVar[str] = "transformed"
    paper: ClassVar[str] = WinogradF4.paper
    outputs: ClassVar[int]

    def weighed(self, problem: Problem) -> bool:
        """Where groups have some channels, and are not so many that each alone is too little."""
        return min(problem.group_in, problem.group_out) >= FEWEST and problem.groups <= MOST_GROUPS

    def refusal(self, problem: Problem) -> str | None:
        """Stride 1, dilation 1, a few taps along each axis."""
        p = problem
        if p.taps == 1:
            return "the kernel has one tap, there is nothing to save"
        if any(s != 1 for s in p.stride) or any(d != 1 for d in p.dilation):
            return (
                f"the stride is {'x'.join(map(str, p.stride))} and the dilation {'x'.join(map(str, p.dilation))}, "
                "both must be 1"
            )
        most = MOST_POINTS - self.outputs + 1
        if max(p.kernel) > most:
            return f"an axis has {max(p.kernel)} taps, tiles of {self.outputs} outputs take at most {most}"
        points = tiling_of(p, self.outputs).points
        if points > MOST_PRODUCTS:
            return f"a tile has {points} products, at most {MOST_PRODUCTS} are supported"
        return None

    def error_bound(self, problem: Problem) -> float:
        """That of plain sums over all pixels, times a growth for each axis."""
        growth = math.prod(ERROR_GROWTH[axis.transform.size] for axis in tiling_of(problem, self.outputs).axes)
        return weights_error_bound(super().error_bound(problem), problem) * growth

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """For each part of the channels: windows and gradients of some sections, products; and the sums to taps."""
        p, tiling = problem, tiling_of(problem, self.outputs)
        bias = bias_phase(p, host) if p.has_bias else None
        extra = (bias[1],) if bias else ()
        sizes = self._sizes(p, host, threads, workspace, extra)
        phases: list[Phase] = []
        parts: dict[tuple[int, int], Part] = {}
        starts = (range(p.groups), range(0, p.group_in, sizes.channels), range(0, p.group_out, sizes.outputs))
        for group, first_in, first_out in itertools.product(*starts):
            shape = min(sizes.channels, p.group_in - first_in), min(sizes.outputs, p.group_out - first_out)
            if shape not in parts:
                parts[shape] = Part(p, host, tiling, sizes, threads, *shape)
            output = group * p.group_out + first_out
            elements = {
                "x": (group * p.group_in + first_in) * p.x_strides[1],
                "weights": output * p.out_strides[1],
                "out": output * p.w_strides[0] + first_in * p.w_strides[1],
            }
            offsets = {role: count * p.itemsize for role, count in elements.items()}
            phases += parts[shape].phases(offsets, windows=first_out == 0 or sizes.slices > 1)
        if bias:
            phases.append(bias[0])
        outputs = "x".join(str(axis.transform.outputs) for axis in tiling.axes)
        return Lowering(
            phases=tuple(phases),
            workspace=(*sizes.buffers, *extra),
            steps=(
                f"transform windows and tiles of {outputs} pixels of the gradient to {tiling.points} points",
                f"{tiling.points} matrix products over the tiles, {sizes.sections} sections of {sizes.tiles} at a time",
                "transform the sums to taps",
            ),
            parameters={
                "tile": outputs,
                "points": tiling.points,
                "sections": sizes.sections,
                "channels": sizes.channels,
                "outputs": sizes.outputs,
            },
        )

    def _sizes(self, p: Problem, host: Host, threads: int, workspace: int | None, extra: tuple[Buffer, ...]) -> Sizes:
        """What goes through all steps at one time: all that fits, sections first to go, then channels."""
        tiling = tiling_of(p, self.outputs)
        lanes = host.target.lanes(p.dtype)
        panel = panels_of(p, host).vectors * lanes
        total = -(-max(1, Sizes.tile_count(p, tiling)) // Sizes.TILES)
        most = math.isqrt(SUMS // (tiling.points * p.itemsize))
        channels, outputs = _even(p.group_in, most, lanes), _even(p.group_out, most, panel)

        def sizes(sections: int) -> Sizes:
            return Sizes.of(p, host, tiling, sections, channels, outputs)

        def turns(sections: int, channels: int, outputs: int) -> int:
            """How often something is staged."""
            return p.groups * -(-p.group_in // channels) * -(-p.group_out // outputs) * -(-total // sections)

        found = sizes(total)
        while found.sections > 1 and found.staged_bytes > STAGED:
            fewer = -(-found.sections // 2)
            if turns(fewer, channels, outputs) > MOST_TURNS:
                break
            found = sizes(fewer)
        while workspace is not None and arena_bytes((*found.buffers, *extra), threads) > workspace:
            sections, inner, outer = max(1, found.sections // 2), channels, outputs
            if found.sections == 1:
                if max(channels, outputs) <= LEAST:
                    break
                if outputs >= channels:
                    outer = _even(p.group_out, outputs // 2, panel)
                else:
                    inner = _even(p.group_in, channels // 2, lanes)
            if turns(sections, inner, outer) > 4 * MOST_TURNS:
                break
            channels, outputs = inner, outer
            found = sizes(sections)
        return found


def _even(count: int, most: int, unit: int) -> int:
    """A part of so many channels, in whole units: of parts that are as even as can be, none larger than the most."""
    parts = -(-count // max(most, unit))
    return -(-count // (parts * unit)) * unit


class WinogradF2Weights(_WinogradWeights):
    """Tiles of 2 pixels."""

    name: ClassVar[str] = "winograd_f2"
    title: ClassVar[str] = "Winograd, tiles of 2 pixels of the gradient along each axis"
    outputs: ClassVar[int] = 2


class WinogradF4Weights(_WinogradWeights):
    """Tiles of 4 pixels."""

    name: ClassVar[str] = "winograd_f4"
    title: ClassVar[str] = "Winograd, tiles of 4 pixels of the gradient along each axis"
    outputs: ClassVar[int] = 4
