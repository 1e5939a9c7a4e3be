"""kn2row on exact regions: every tap adds to the outputs it reaches and to no others.

Idea        one 1x1 convolution a tap, as in the kn2row family, but over the rectangle of outputs whose pixel under
            the tap lies inside the image: row by row, at any stride, straight into the output.  A block of outputs
            goes through all taps while it is in the cache
Workspace   none (a residual after the activation: partial sums of a block and a panel for each thread)
Good for    many channels, no memory at all; wide padding, for which nothing is computed
Bad for     few channels: an output is read and written for C multiply-adds

    outputs (x) that taps of a 3 x 3 kernel reach, padding of 1:
    tap (0, 0)   . . . .        (1, 1)   x x x x        (2, 2)   x x x .
                 . x x x                 x x x x                 x x x .
                 . x x x                 x x x x                 . . . .

The exact form of the accumulating algorithm of A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based
convolution algorithms for deep neural networks, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import pack_weights
from leanconv.algorithms.tapwise import PAPER, Walk, affordable, cut, phase, pixels_of, refusal, sum_bytes, sums
from leanconv.host import Host
from leanconv.kernels.steps import Region
from leanconv.problem import Problem


class Kn2rowExact(Algorithm):
    """One tap after the other, over the outputs it reaches."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "kn2row_exact"
    title: ClassVar[str] = "one tap after the other, added to exactly the outputs it reaches"
    paper: ClassVar[str] = PAPER + "; on exact regions instead of holes"

    def refusal(self, problem: Problem) -> str | None:
        """Padding by zeros, any layout and stride."""
        return refusal(problem, None)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a block of outputs goes through all taps."""
        walk = Walk.of(problem)
        most = affordable(workspace, threads, None, sum_bytes(problem, host))
        blocks = cut(problem, host, threads, walk, problem.batch, most)
        core, parameters = phase(problem, host, walk, Region(pixels_of(problem, host)), blocks)
        return Lowering(
            phases=(core,),
            workspace=sums(problem, host, blocks),
            packing=pack_weights(problem, host),
            steps=(f"core {parameters['tile']} adds one tap after the other to the outputs it reaches",),
            parameters=parameters,
        )
