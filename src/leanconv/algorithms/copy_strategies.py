"""im2col and im2row with the copy strategies of low-memory kn2row's authors: scan, copy-self and copy-long.

Idea        one matrix, copied in runs of other lengths: elements (scan), rows of the matrix that are already written
            (copy-self), planes or rows of windows (copy-long); `im2col` and `im2row` themselves are copy-short
Workspace   taps * C * P * Q elements, the whole matrix of one image
Good for    comparing what staging costs: copy-long where rows are short, copy-self where a plane stays in the cache
Bad for     scan is slow everywhere; memory

    image        rows of the im2col matrix        (0, 0)   a b c e f g          (1, 0)   e f g i j k
    a b c d      scan         a, then b, then c, ...: each element is looked for on its own
    e f g h      copy-short   a b c, then e f g: a run for each row of the output
    i j k l      copy-self    e f g of (1, 0) from (0, 0), where they are written already; i j k from the image
                 copy-long    all of a plane at once, where rows of the output are as long as those of the image
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import even_stride, output_refusal
from leanconv.algorithms.lowered import whole
from leanconv.host import Host
from leanconv.kernels.patches import Patches
from leanconv.kernels.strategies import CopyLong, CopySelf, Scan, shared_rows
from leanconv.problem import Problem


class _Strategy(Algorithm):
    """A matrix and a strategy; the paper names the strategies, their definitions are ours."""

    automatic: ClassVar[bool] = False
    paper: ClassVar[str] = "A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution, 2017"
    rows: ClassVar[bool]
    kind: ClassVar[type[Patches]]

    def refusal(self, problem: Problem) -> str | None:
        """What the strategy needs of the problem."""
        reason = None
        if self.kind is CopySelf:
            reason = _self_refusal(problem)
        elif self.kind is CopyLong:
            reason = _window_refusal(problem) if self.rows else _plane_refusal(problem)
        return reason or output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: stage, then the core."""
        return whole(problem, host, threads, rows=self.rows, kind=self.kind)


def _self_refusal(p: Problem) -> str | None:
    """Copy-self: windows below each other must share rows of the image."""
    kernel, stride, dilation = p.kernel[0], p.stride[0], p.dilation[0]
    apart = shared_rows(kernel, stride, dilation)
    if apart is None:
        return f"no windows share rows of the image: {kernel} taps, stride {stride}, dilation {dilation}"
    if apart[1] >= p.out_size[0]:
        return f"windows share rows {apart[1]} outputs apart, the output has {p.out_size[0]}"
    return None


def _plane_refusal(p: Problem) -> str | None:
    """Copy-long into columns: output pixels as far apart as input pixels, in rows of the same length."""
    if any(s != 1 for s in p.stride):
        return f"planes are copied whole, the stride is {'x'.join(map(str, p.stride))}"
    if p.in_size[1:] != p.out_size[1:]:
        return f"rows of the output are not as long as those of the image: {p.out_size[1:]} and {p.in_size[1:]}"
    if p.pad_mode != "zeros":
        return f"planes are copied whole, which leaves nothing for pad_mode={p.pad_mode!r}"
    if even_stride(p.x_strides[2:], p.in_size) is None:
        return "the image's pixels are not evenly spaced in memory"
    return None


def _window_refusal(p: Problem) -> str | None:
    """Copy-long into rows: the taps of a row of the window, with their channels, side by side."""
    if p.dilation[-1] != 1:
        return f"taps of a row are {p.dilation[-1]} pixels apart"
    if p.pad_mode != "zeros":
        return f"rows of windows are copied whole, which leaves nothing for pad_mode={p.pad_mode!r}"
    channels_apart = p.x_strides[1] != 1 and p.group_in > 1
    if channels_apart or (p.in_size[-1] > 1 and p.x_strides[-1] != p.group_in):
        return "pixels of a row, with all their channels, are not adjacent in memory"
    return None


class Im2colScan(_Strategy):
    """im2col, scan."""

    name: ClassVar[str] = "im2col_scan"
    title: ClassVar[str] = "im2col, copied element by element (scan)"
    rows: ClassVar[bool] = False
    kind: ClassVar[type[Patches]] = Scan


class Im2colCopySelf(_Strategy):
    """im2col, copy-self."""

    name: ClassVar[str] = "im2col_copy_self"
    title: ClassVar[str] = "im2col, copied from its own rows (copy-self)"
    rows: ClassVar[bool] = False
    kind: ClassVar[type[Patches]] = CopySelf


class Im2colCopyLong(_Strategy):
    """im2col, copy-long."""

    name: ClassVar[str] = "im2col_copy_long"
    title: ClassVar[str] = "im2col, copied plane by plane (copy-long)"
    rows: ClassVar[bool] = False
    kind: ClassVar[type[Patches]] = CopyLong


class Im2rowScan(_Strategy):
    """im2row, scan."""

    name: ClassVar[str] = "im2row_scan"
    title: ClassVar[str] = "im2row, copied element by element (scan)"
    rows: ClassVar[bool] = True
    kind: ClassVar[type[Patches]] = Scan


class Im2rowCopySelf(_Strategy):
    """im2row, copy-self."""

    name: ClassVar[str] = "im2row_copy_self"
    title: ClassVar[str] = "im2row, copied from the window above (copy-self)"
    rows: ClassVar[bool] = True
    kind: ClassVar[type[Patches]] = CopySelf


class Im2rowCopyLong(_Strategy):
    """im2row, copy-long."""

    name: ClassVar[str] = "im2row_copy_long"
    title: ClassVar[str] = "im2row, copied in rows of windows (copy-long)"
    rows: ClassVar[bool] = True
    kind: ClassVar[type[Patches]] = CopyLong
