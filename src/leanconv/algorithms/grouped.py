"""Grouped convolution with few channels a group.

Idea        Channels last: several groups share a vector, each in its own lanes; a channel of every group
            is spread over the group's lanes by one shuffle (or a broadcast, if a group fills a vector),
            and the weights of a row of taps stay in registers. Channels first: vectors of pixels.
Workspace   Channels last: none. Channels first: the rows under a band of output rows of one group's
            channels, padded, a thread: about C/g * rows * (W + pads) elements. Packed weights: K * C/g *
            taps elements (and a bias), for channels last K filled up to whole vectors.
Good for    Groups of 2 to 8 channels (ResNeXt has 4 to 32), whatever their number.
Bad for     Groups that fill two vectors; they run on the register-tiled core as they are.

    channels last, 2 channels in and 4 out of each group, vectors of 8 lanes:
    outputs       k0 k1 k2 k3 | k4 k5 k6 k7
    channel 0     c0 c0 c0 c0 | c2 c2 c2 c2        times the weights of these lanes
    channel 1     c1 c1 c1 c1 | c3 c3 c3 c3

S. Xie et al.: Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017 (the layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.channelwise import few_channels
from leanconv.algorithms.dense import output_refusal
from leanconv.host import Host
from leanconv.problem import Problem

MOST_IN = 16  # channels of a group: all of them are written out in the code of one tap


class Grouped(Algorithm):
    """Grouped convolution on vectors that several groups share."""

    name: ClassVar[str] = "grouped"
    title: ClassVar[str] = "grouped convolution, groups side by side in a vector"
    paper: ClassVar[str] = (
        "S. Xie, R. Girshick, P. Dollar, Z. Tu, K. He: Aggregated Residual Transformations for Deep Neural Networks, "
        "CVPR 2017 (the layer)"
    )

    def refusal(self, problem: Problem) -> str | None:
        """Several groups with few input channels each."""
        if problem.groups == 1:
            return "the channels are one group"
        if problem.group_in == 1:
            return "each group has one input channel, which depthwise takes"
        if problem.group_in > MOST_IN:
            return f"each group has {problem.group_in} input channels, grouped takes {MOST_IN} at the most"
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: vectors of pixels where those are adjacent in the output, else vectors of channels."""
        return few_channels(problem, host, threads, workspace)
