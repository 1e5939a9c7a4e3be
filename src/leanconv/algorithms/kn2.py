"""kn2row and kn2col: one product of all taps with the whole image, then shifted maps are added up.

Idea        the kernel, not the image, is laid out as a matrix: its K * taps rows times the C x H * W image give a
            map for every tap, and the output is the sum of the maps, each shifted by the place of its tap
Workspace   taps * K * H * W elements, the maps of one image (a residual after the activation: also partial sums of a
            block and a panel for each thread)
Good for    many channels, small kernels; the image is never copied
Bad for     memory, and few channels: every map is written and read once

    image        maps [tap][K][H * W]: of each tap and output channel, one number for each pixel
    a b c d      output 0, whose window is a b e f, is the sum of
    e f g h          map (0, 0) at a     map (0, 1) at b
    i j k l          map (1, 0) at e     map (1, 1) at f

A. Vasudevan, A. Anderson, D. Gregg: Parallel Multi Channel Convolution using General Matrix Multiplication, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import pack_weights
from leanconv.algorithms.tapwise import (
    PAPER_KN2,
    Walk,
    affordable,
    columns,
    cut,
    flat,
    phase,
    pixels_of,
    refusal,
    sum_bytes,
    sums,
)
from leanconv.host import Host
from leanconv.kernels.maps import ImageMaps, Product, ShiftAdd
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase


class _Kn2(Algorithm):
    """All maps of an image; `layout` says how they lie."""

    automatic: ClassVar[bool] = False
    layout: ClassVar[str]
    paper: ClassVar[str] = PAPER_KN2

    def refusal(self, problem: Problem) -> str | None:
        """Its layout, stride 1, padding by zeros."""
        return refusal(problem, self.layout)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: the maps, then their sum."""
        p = problem
        walk, pixels = Walk.of(p), math.prod(p.in_size)
        over = walk.over_image()
        maps = _map_fields(p, host)
        product = Product(pixels_of(p, host), ImageMaps(), flat(p))
        buffer = Buffer("maps", p.taps * p.out_channels * pixels * p.itemsize)
        most = affordable(workspace, threads, buffer, sum_bytes(p, host))
        image_blocks, blocks = cut(p, host, threads, over, 1), cut(p, host, threads, walk, 1, most)
        phases: list[Phase] = []
        parameters: dict[str, int | str] = {}
        for image in range(p.batch):
            core, parameters = phase(p, host, over, product, image_blocks, image, maps=maps)
            phases += [core, phase(p, host, walk, ShiftAdd(ImageMaps()), blocks, image, "shift and add", maps)[0]]
        return Lowering(
            tuple(phases),
            (buffer, *sums(p, host, blocks)),
            pack_weights(p, host),
            (
                f"core {parameters.get('tile', '')} multiplies the image by all taps: {p.taps} maps of "
                f"{p.out_channels} x {pixels}",
                "add the maps, each shifted by the place of its tap",
            ),
            parameters,
        )


def _map_fields(problem: Problem, host: Host) -> dict[str, int]:
    """Byte steps of [taps][channels][pixels] or, with channels last, of [pixels][taps][channels]."""
    p, item, pixels = problem, problem.itemsize, math.prod(problem.in_size)
    channel = pixels * item if columns(p) else item
    return {
        "t_row": p.taps * p.out_channels * item,
        "t_k": channel,
        "t_panel": panels_of(p, host).vectors * host.target.lanes(p.dtype) * channel,
        "t_g": p.group_out * channel,
        "t_tap": p.out_channels * channel,
    }


class Kn2row(_Kn2):
    """Maps are planes of pixels."""

    name: ClassVar[str] = "kn2row"
    title: ClassVar[str] = "one product of all taps with the image, then shift and add; channels first"
    layout: ClassVar[str] = "NCHW"


class Kn2col(_Kn2):
    """Maps are rows of channels."""

    name: ClassVar[str] = "kn2col"
    title: ClassVar[str] = "one product of all taps with the image, then shift and add; channels last"
    layout: ClassVar[str] = "NHWC"
