"""im2win: the rows under a row of windows, interleaved column by column, so that each window is one run.

Idea        for each output row the R rows of the image under it are laid out column by column; the windows of the row
            lie in that one stride of columns apart, each in one run of R * S * C elements in [P][W][R][C] (channels
            last) or, in [C][P][W][R] (channels first), in one of R * S elements for each channel; with the batch last
            in [P][W][R][C][v], a run of R * S * C vectors of v images
Workspace   P * W * R * C elements (W with padding) whole, one image, or block of images, at a time; in bands as many
            bytes as wanted
Good for    kernels wider than their stride: im2row needs S / stride times as much; images last, where it makes
            channels, a plane apart, adjacent
Bad for     1x1 kernels and strides as large as the kernel, where nothing overlaps

    image        tensor [P][W][R][C], 2 x 2 taps, one channel
    a b c d      row 0   | a e b f c g d h |      windows a e b f, b f c g, c g d h: one column further on each
    e f g h          1   | e i f j g k h l |
    i j k l

Bands have the order [P][W][R][C] with channels first as well: they are transposed while they are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms import batchband
from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.batchwise import adjacent_refusal
from leanconv.algorithms.dense import output_refusal
from leanconv.algorithms.window_planes import planes
from leanconv.algorithms.windowed import bands, whole
from leanconv.host import Host
from leanconv.problem import BATCH_LAST, Problem

PAPER = (
    "S. Lu, J. Chu, X. T. Liu: Im2win: Memory Efficient Convolution On SIMD Architectures, HPEC 2022; with channels"
    " last: X. Fu et al.: High Performance Im2win and Direct Convolutions using Three Tensor Layouts, 2024"
)


class Im2win(Algorithm):
    """The whole window tensor of an image."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2win"
    title: ClassVar[str] = "im2win, the whole window tensor, then the core"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem) or (adjacent_refusal(problem) if problem.layout in BATCH_LAST else None)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: copy, then the core."""
        if problem.layout in BATCH_LAST:
            return batchband.whole(problem, host, threads)
        if problem.layout == "NCHW":
            return planes(problem, host, threads)
        return whole(problem, host, threads, problem.ndim - 1, "im2win")


class Im2winBand(Algorithm):
    """The window tensor in bands that stay in the cache."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2win_band"
    title: ClassVar[str] = "im2win in bands of output pixels, a thread's own"
    paper: ClassVar[str] = PAPER
    tunables: ClassVar[Mapping[str, str]] = {"band": "output rows staged at one time by a thread"}

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem) or (adjacent_refusal(problem) if problem.layout in BATCH_LAST else None)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk copies its band, then runs the core over it."""
        if problem.layout in BATCH_LAST:
            return batchband.bands(problem, host, threads, workspace, tunables.get("band"))
        return bands(problem, host, threads, workspace, tunables.get("band"))
