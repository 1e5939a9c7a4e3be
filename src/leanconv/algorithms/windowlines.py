"""The core on a window tensor line by line: along the dimension that windows slide in, where they overlap in memory.

A line is one output row of im2win, one output column of MEC.  Its windows lie evenly one behind the other, so tiles
read one run of memory from end to end, and what the next tile reads first is known: it is asked for.  That pays where
the tensor comes from beyond the second-level cache, and lines have pixels for several tiles.
"""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import blocking, panels_of, tile_heights
from leanconv.algorithms.dense import CoreInput, dense_phase, even_stride
from leanconv.algorithms.windowtensor import TENSOR, Tensor, runs_of
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import LINE
from leanconv.kernels.image import Rows
from leanconv.problem import Problem
from leanconv.program import Phase

LEAST = 3  # tiles of a line, at the least


def lines_of(problem: Problem, slide: int) -> Problem | None:
    """What the core is to do: as many images as there are lines, of a line of pixels each; None if they are apart."""
    p = problem
    others = [d for d in range(p.ndim) if d != slide]
    if not others:
        return None

    def turned(strides: tuple[int, ...]) -> tuple[int, int, int] | None:
        step = even_stride(tuple(strides[2 + d] for d in others), tuple(p.out_size[d] for d in others))
        return None if step is None else (step, strides[1], strides[2 + slide])

    out = turned(p.out_strides)
    residual = None if p.residual_strides is None else turned(p.residual_strides)
    if out is None or (residual is None) != (p.residual_strides is None):
        return None
    return replace(
        p,
        ndim=1,
        batch=math.prod(p.out_size[d] for d in others),
        in_size=(p.out_size[slide] + p.taps - 1,),
        kernel=(p.taps,),
        stride=(1,),
        dilation=(1,),
        pad_low=(0,),
        pad_high=(0,),
        out_strides=out,
        residual_strides=residual,
    )


def line_phase(
    problem: Problem, host: Host, threads: int, tensor: Tensor, image: int
) -> tuple[Phase, dict[str, int | str]] | None:
    """The core over one image's tensor, line by line; None if that gains nothing or cannot be.

    On Zen 5 MEC of 64 channels, 7x7 taps, stride 2, 224 x 224 takes 0.9 of the time so, and 3x3 taps on 112 x 112 0.97.
    """
    slide = tensor.slide
    lines = lines_of(problem, slide)
    if lines is None or problem.out_strides[1] != 1 or host.target.vector_bytes != LINE:
        return None
    pixels = lines.out_size[0]
    step = problem.stride[slide] * tensor.steps[slide]
    heights = tile_heights(pixels, host, panels_of(problem, host), apart=step)
    if pixels < LEAST * max(heights) or tensor.nbytes <= host.l2:
        return None
    runs, depth = runs_of(problem, tensor)
    last = max(d for d in range(problem.ndim) if d != slide)
    source = CoreInput(
        source=Rows(None, overlap=-(-runs * depth * problem.itemsize // step)),
        kernel=(runs,),
        channels=depth,
        unit_channel=True,
        merged=False,
        fields={
            "x_n": tensor.steps[last],
            "x_g": tensor.nbytes,
            "x_row": step,
            "tap0": problem.dilation[slide] * tensor.steps[slide],
        },
        buffer=TENSOR,
    )
    cut = blocking(lines, host, threads, heights, step)
    core, parameters = dense_phase(lines, host, source, heights, cut, threads=threads)
    offsets = {
        name: image * strides[0] * problem.itemsize
        for name, strides in (("out", problem.out_strides), ("residual", problem.residual_strides))
        if strides is not None
    }
    return core.shifted(offsets), parameters
