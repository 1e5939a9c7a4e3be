"""im2row: the window of every output pixel becomes one row of a matrix.

Idea        row = pixel, columns = taps, then channels; with channels last a window is copied in runs of C elements
Workspace   taps * C * P * Q elements whole (one image), taps * C * strip per thread in strips
Good for    channels last, many output channels
Bad for     1x1 (a plain copy), depthwise, memory

    image        matrix [P * Q][R * S * C], 2 x 2 taps, one channel
    a b c d      pixel 0   | a b e f |
    e f g h            1   | b c f g |
    i j k l            2   | c d g h |
                       3   | e f i j |
                       4   | f g j k |
                       5   | g h k l |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.lowered import strips, whole
from leanconv.host import Host
from leanconv.problem import Problem

PAPER = "K. Chellapilla, S. Puri, P. Simard: High Performance CNNs for Document Processing, IWFHR 2006"


class Im2row(Algorithm):
    """Rows of windows in one matrix an image."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2row"
    title: ClassVar[str] = "im2row (copy-short), the whole patch matrix, then the core"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any problem."""
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: stage, then the core."""
        return whole(problem, host, threads, rows=True)


class Im2rowStrip(Algorithm):
    """Rows of windows in strips that stay in the cache."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "im2row_strip"
    title: ClassVar[str] = "im2row in strips of output rows, a thread's own"
    paper: ClassVar[str] = PAPER + "; in strips as in Caffe con Troll (Abuzaid et al., 2015) and MLAS"
    tunables: ClassVar[Mapping[str, str]] = {"strip": "output rows staged at one time by a thread"}

    def refusal(self, problem: Problem) -> str | None:
        """Any problem."""
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk stages its strip, then runs the core over it."""
        return strips(problem, host, threads, workspace, tunables.get("strip"), rows=True)
