"""MEC, memory-efficient convolution: only rows of windows are copied, and windows of neighbouring rows overlap.

Idea        for each output column a strip of the image as wide as the kernel is laid out row by row: [Q][H][S][C]; the
            windows of the column lie in it one stride of rows apart, each in one run of R * S * C elements
Workspace   Q * H * S * C elements (H with padding), one image at a time
Good for    channels last, kernels higher than their stride: im2row needs R / stride times as much
Bad for     1x1 kernels and strides as large as the kernel, where nothing overlaps

Solution B of the paper; each output element is stored once, at its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import output_refusal
from leanconv.algorithms.windowed import whole
from leanconv.host import Host
from leanconv.problem import Problem

PAPER = "M. Cho, D. Brand: MEC: Memory-efficient Convolution for Deep Neural Network, ICML 2017"


class Mec(Algorithm):
    """MEC image by image."""

    name: ClassVar[str] = "mec"
    title: ClassVar[str] = "MEC (solution B): strips of the image, one image at a time"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: copy, then the core."""
        return whole(problem, host, threads, 0, "MEC")
