"""Direct convolution on a register tile, with nothing staged.

Idea        a tile of pixels by output channels stays in registers while all taps and channels are summed; pixels are
            read where they lie in the image, through one address each, so that tiles run on from row to row and any
            stride, dilation, padding and memory order is read in place
Workspace   none; packed weights K * C/g * taps elements (and a bias), K filled up to whole vectors in each group unless
            a memory limit has no room for that
Good for    nearly everything dense with channels last
Bad for     channels first (a line of cache an element); groups with few channels, where vectors stay partly empty

    pixels, where they lie      weights, packed                 sums of a tile, in registers
    x0   c0 c1 c2 ...           tap 0   c0   k0 ... k15         x0   k0 ... k15
    x1   c0 c1 c2 ...       *           c1   k0 ... k15    ->   x1   k0 ... k15
    ...                         tap 1   ...                     ...      (6 x 16 on AVX2)

Images of so few output pixels that they do not fill a tile share tiles, if the pixels of all of them are evenly spaced
in the output: channels last, or one pixel an image.

With the batch last, and along any last axis on which the kernel has one tap, vectors are of images (or pixels) instead
of output channels, and a tap outside the image is left out for all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from leanconv.algorithms import batchwise
from leanconv.algorithms.base import TAPS, Algorithm, Lowering
from leanconv.algorithms.batchjoin import joined, together
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import core_phase, dense_phase, image_input, pack_weights, without_gaps
from leanconv.algorithms.rowtiles import in_rows
from leanconv.algorithms.rowwindows import by_rows
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.problem import Problem


class Direct(Algorithm):
    """Direct convolution."""

    name: ClassVar[str] = "direct"
    sum_order: ClassVar[str | None] = TAPS
    title: ClassVar[str] = "direct convolution on register tiles"
    paper: ClassVar[str] = (
        "J. Zhang, F. Franchetti, T. M. Low: High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018"
    )

    def refusal(self, problem: Problem) -> str | None:
        """Any problem."""
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: the core over the image."""
        if problem.bias_apart:
            return _beside_bias(problem, host, threads)
        if batchwise.applies(problem, host):
            return batchwise.lower(problem, host, threads)
        images, tight = joined(problem, host), without_gaps(problem, host, workspace)
        lines = by_rows(images, host, threads) or in_rows(images, host, threads)
        if lines is None:
            phase, parameters = core_phase(images, host, threads, image_input(images), tight=tight)
        else:
            phase, parameters = dense_phase(images, host, *lines, tight=tight, threads=threads)
        return Lowering(
            phases=(phase,),
            packing=pack_weights(problem, host, tight=tight),
            steps=(f"core {parameters['tile']} reads the image in place{together(problem, images)}",),
            parameters=parameters,
        )


def _beside_bias(problem: Problem, host: Host, threads: int) -> Lowering:
    """The core over the image, which reads the one bias of several problems; nothing is packed beside the weights."""
    p = replace(problem, has_bias=False, bias_apart=False)
    images = joined(p, host)
    phase, parameters = core_phase(images, host, threads, image_input(images), tight=True)
    spec = replace(cast(DenseSpec, phase.spec), bias_apart=True)
    outputs = panels_of(p, host).vectors * host.target.lanes(p.dtype)
    fields = {**phase.fields, "bias_g": p.group_out * p.itemsize, "bias_panel": outputs * p.itemsize}
    return Lowering(
        phases=(replace(phase, spec=spec, fields=fields),),
        packing=replace(pack_weights(p, host, tight=True), bias_apart=True),
        steps=(f"core {parameters['tile']} reads the image in place{together(p, images)}, and the bias where it is",),
        parameters=parameters,
    )
