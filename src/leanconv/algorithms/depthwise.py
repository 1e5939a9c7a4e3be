"""Depthwise convolution: every channel has filters of its own.

Idea        Lanes of a vector are channels (or pixels of a row, channels first), so that no lane is
            ever idle; the weights of a row of taps stay in registers, and every pixel is loaded once
            for all outputs of a tile that it is under.
Workspace   Channels last: none. Channels first: the rows under a band of output rows, padded, a
            thread: about rows * (W + pads) elements. Packed weights: K * taps elements (and a bias),
            for channels last K filled up to whole vectors.
Good for    One input channel a group, any number of outputs of it.
Bad for     Nothing else is accepted.

    channels last     pixel   c0 c1 ... c7    *   weights of a tap   c0 c1 ... c7    added to   c0 c1 ... c7
    channels first    a row   x0 x1 ... x7    *   one weight of the channel          added to   y0 y1 ... y7

L. Sifre, S. Mallat: Rigid-Motion Scattering for Texture Classification, 2014 (the layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.channelwise import few_channels
from leanconv.algorithms.dense import output_refusal
from leanconv.host import Host
from leanconv.problem import Problem


class Depthwise(Algorithm):
    """Depthwise convolution on vectors of channels or of pixels."""

    name: ClassVar[str] = "depthwise"
    title: ClassVar[str] = "depthwise convolution, a channel a lane"
    paper: ClassVar[str] = (
        "L. Sifre, S. Mallat: Rigid-Motion Scattering for Texture Classification, 2014 (the layer); "
        "tiles as in P. Zhang, E. Lo, B. Lu: High Performance Depthwise and Pointwise Convolutions on Mobile Devices, "
        "AAAI 2020"
    )

    def refusal(self, problem: Problem) -> str | None:
        """One input channel in each group."""
        if problem.group_in != 1:
            return f"each group has {problem.group_in} input channels, depthwise takes one"
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: vectors of pixels where those are adjacent in the output, else vectors of channels."""
        return few_channels(problem, host, threads, workspace)
