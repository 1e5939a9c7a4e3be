"""im2col: the window of every output pixel becomes one column of a matrix.

Idea        row = tap and channel, column = pixel; with channels first rows of the image are copied in runs
Workspace   taps * C * P * Q elements whole (one image), taps * C * strip per thread in strips
Good for    channels first, many output channels
Bad for     1x1 (a plain copy), depthwise, memory

    image        matrix [R * S * C][P * Q], 2 x 2 taps, one channel
    a b c d      tap (0, 0)   | a b c e f g |
    e f g h          (0, 1)   | b c d f g h |
    i j k l          (1, 0)   | e f g i j k |
                     (1, 1)   | f g h j k l |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import output_refusal
from leanconv.algorithms.lowered import strips, whole
from leanconv.host import Host
from leanconv.problem import Problem

PAPER = "K. Chellapilla, S. Puri, P. Simard: High Performance CNNs for Document Processing, IWFHR 2006"


class Im2col(Algorithm):
    """Columns of windows in one matrix an image."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2col"
    title: ClassVar[str] = "im2col (copy-short), the whole patch matrix, then the core"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: stage, then the core."""
        return whole(problem, host, threads, rows=False)


class Im2colStrip(Algorithm):
    """Columns of windows in strips that stay in the cache."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2col_strip"
    title: ClassVar[str] = "im2col in strips of output rows, a thread's own"
    paper: ClassVar[str] = PAPER + "; in strips as in Caffe con Troll (Abuzaid et al., 2015) and MLAS"
    tunables: ClassVar[Mapping[str, str]] = {"strip": "output rows staged at one time by a thread"}

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk stages its strip, then runs the core over it."""
        return strips(problem, host, threads, workspace, tunables.get("strip"), rows=False)
