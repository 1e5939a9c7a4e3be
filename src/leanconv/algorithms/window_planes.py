"""im2win with channels first: a window tensor for each channel, whose windows the core sums channel by channel."""

from __future__ import annotations

import math

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.blocking import blocking, panels_of, tile_heights
from leanconv.algorithms.dense import CoreInput, dense_phase, pack_weights
from leanconv.algorithms.windowed import stage_phase, term_order
from leanconv.algorithms.windowtensor import TENSOR, Tensor, runs_of
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.reduction import SECTION
from leanconv.kernels.window_planes import PLANES, Planes
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

KNOWN = 64  # elements of a run up to which the core is made for their number


def planes(problem: Problem, host: Host, threads: int) -> Lowering:
    """The tensor of one image after the other, whole: [C][P][W][R]."""
    p = problem
    channels = replace(p, groups=p.in_channels, out_channels=p.in_channels)  # as far as copying goes
    slide = p.ndim - 1
    tensor = Tensor.of(channels, slide)
    runs, depth = runs_of(channels, tensor)
    ones, zeros = (1,) * p.ndim, (0,) * p.ndim
    steps = (*tensor.steps[:slide], tensor.steps[slide] * p.stride[slide])
    fields = {
        "x_n": 0,
        "x_g": p.group_in * tensor.nbytes,
        "x_plane": tensor.nbytes,
        "planes": p.group_in,
        "tap0": p.dilation[slide] * tensor.steps[slide],
        **{f"out{d}": size for d, size in enumerate(p.out_size)},
        **{f"step{d}": step for d, step in enumerate(steps)},
    }
    image = Planes(ones, ones, zeros, False, "zeros", None)
    source = CoreInput(image, (runs,), depth, True, False, fields, TENSOR)
    pixels = math.prod(p.out_size)
    heights = tile_heights(pixels, host, panels_of(p, host))
    cut = blocking(p, host, threads, heights, p.group_in * tensor.nbytes / pixels)
    phases: list[Phase] = []
    parameters: dict[str, int | str] = {}
    for number in range(p.batch):
        phases.append(stage_phase(channels, host, threads, tensor, number))
        core, parameters = dense_phase(p, host, source, heights, cut, number)
        phases.append(replace(core, spec=_summed(core, p.group_in, runs * depth)))
    return Lowering(
        tuple(phases),
        (Buffer(TENSOR, p.in_channels * tensor.nbytes),),
        pack_weights(p, host, (p.ndim, *term_order(p, slide)[:-1])),
        (
            f"im2win: copy an image into a window tensor of {p.in_channels} planes of"
            f" {' x '.join(map(str, tensor.extents))} entries of {tensor.entry}",
            f"core {parameters.get('tile', '')} reads windows where they overlap, channel by channel",
        ),
        parameters,
    )


def _summed(core: Phase, channels: int, terms: int) -> DenseSpec:
    """The core's kernel, told how many elements a run has, and to end a section of the sum after some channels."""
    assert isinstance(core.spec, DenseSpec)
    reduction = core.spec.reduction
    depth = terms // reduction.kernel[0]
    if depth <= KNOWN:
        reduction = replace(reduction, channels=depth)
    if reduction.flush is None and channels * terms > SECTION:
        reduction = replace(reduction, flush=PLANES, every=max(1, SECTION // terms))
    return replace(core.spec, reduction=reduction)
