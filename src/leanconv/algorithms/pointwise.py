"""Pointwise (1x1) convolution as a matrix product of the image itself.

Idea        with one tap every pixel is a row of the matrix to be multiplied: nothing to stage, nothing to look up
Workspace   none; packed weights K * C/g elements (and a bias), K filled up to whole vectors in each group unless a
            memory limit has no room for that
Good for    every 1x1 layer
Bad for     nothing else is accepted

    image [H * W][C], where it lies   *   weights [C][K]   ->   output [H * W][K]         channels last
    weights [K][C]   *   image [C][H * W], where it lies   ->   output [K][H * W]         channels first
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms import columns
from leanconv.algorithms.base import TAPS, Algorithm, Lowering
from leanconv.algorithms.batchjoin import joined, one_matrix, together
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import (
    CoreInput,
    core_phase,
    image_input,
    pack_weights,
    panel_fields,
    rows_input,
    without_gaps,
)
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import LINE
from leanconv.kernels.image import Rows
from leanconv.problem import Problem

LEAST_FILLED = 0.85  # of vectors of pixels: 160 to 960 channels on 7 x 7 reach 71 % of the peak so, 87 % the other way
FEW_PANELS = 8  # which read a block of the image so often; only the first has it from afar


class Pointwise(Algorithm):
    """A 1x1 convolution as one matrix product."""

    name: ClassVar[str] = "pointwise"
    sum_order: ClassVar[str | None] = TAPS
    title: ClassVar[str] = "1x1 convolution as a matrix product in place"
    paper: ClassVar[str] = "M. Lin, Q. Chen, S. Yan: Network In Network, ICLR 2014 (the layer); no staging is needed"

    def refusal(self, problem: Problem) -> str | None:
        """Kernels of one tap without padding."""
        if problem.taps != 1:
            return f"the kernel has {problem.taps} taps, pointwise takes one"
        if any(problem.pad_low) or any(problem.pad_high):
            return "the image is padded"
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: the core over rows of the image if they are evenly spaced, else pixel by pixel."""
        images, tight = joined(problem, host), without_gaps(problem, host, workspace)
        if images is problem:
            images = one_matrix(problem, host, threads)
        rows = rows_input(images) if all(s == 1 for s in problem.stride) else None
        # Vectors of pixels while a tile of them, a line of cache a channel, stays in half the first-level cache beside
        # the weights, or where no tile has parts of two lines to be asked for again and again.
        line = 2 * host.target.vector_bytes
        few = problem.group_in * line < host.l1 // 2
        beside = few or (rows is not None and rows.fields["x_c"] % LINE == 0)
        if rows and columns.applies(problem, rows) and beside and _filled(problem, host) >= LEAST_FILLED:
            cut = columns.blocking(problem, host, threads)
            phase, parameters = columns.column_phase(problem, host, rows, cut)
            return Lowering(
                phases=(phase,),
                packing=columns.pack_rows(problem, host),
                steps=(f"core {parameters['tile']} reads the image in place as columns of a matrix",),
                parameters=parameters,
            )
        source = _asked_ahead(images, host, rows) if rows else image_input(images)
        phase, parameters = core_phase(images, host, threads, source, tight=tight)
        how = ("rows of a matrix" if rows else "strided pixels") + together(problem, images)
        return Lowering(
            phases=(phase,),
            packing=pack_weights(problem, host, tight=tight),
            steps=(f"core {parameters['tile']} reads the image in place as {how}",),
            parameters=parameters,
        )


def _filled(problem: Problem, host: Host) -> float:
    """The part of the lanes of vectors of pixels that pixels fill: of 49 three quarters in vectors of sixteen."""
    pixels, lanes = math.prod(problem.out_size), host.target.lanes(problem.dtype)
    return pixels / (-(-pixels // lanes) * lanes)


def _asked_ahead(problem: Problem, host: Host, rows: CoreInput) -> CoreInput:
    """The matrix, whose next lines are asked for if they come from afar and little else is read.

    A tile reads six rows side by side, which the processor does not foresee, although they lie one behind the other:
    eight images of 144 channels, 56 x 56, to 24 take half the time so, of 256 to 64 four fifths. Asked for while panels
    of weights stream through the first-level cache as well, lines displace them (1024 channels: 1.05 times the time).
    """
    p, row = problem, problem.group_in * problem.itemsize
    if p.x_strides[1] != 1 or rows.fields["x_row"] != row or row < LINE:
        return rows
    nbytes, panel = p.batch * math.prod(p.in_size) * row, panel_fields(p, host)["w_panel"]
    if panel > host.l1 * 3 // 4 or panels_of(p, host).total > FEW_PANELS:
        return rows
    # Panels that fill more of that cache: eight images of 256 channels, 56 x 56, to 64 on AVX-512 take 0.9 of the time
    # so, one image, which the last-level cache holds, 1.02.
    far = nbytes > (host.l2 if panel <= host.l1 * 2 // 3 else host.l3 // 2)
    return replace(rows, source=Rows(None, ahead=far), asks=True)
