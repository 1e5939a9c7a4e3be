"""Implicit GEMM: the packing of a matrix product reads the image instead of a patch matrix.

Idea        a GEMM packs blocks of its operand into panels that stay in the cache; here the packing step finds the
            windows in the image itself, so that the patch matrix exists in a panel at a time only
Workspace   taps * C/g * block elements a thread (and a vector), block pixels as the cache or the limit has room for
Good for    channels first (pixels of a channel are packed in runs), odd geometries; no edges in the core
Bad for     1x1 with few output channels, where packing is a large part of the work

    image        a tile of three pixels, packed [tap, channel][pixel of the tile], 2 x 2 taps, one channel
    a b c d      a b c    tap (0, 0)
    e f g h      b c d        (0, 1)
    i j k l      e f g        (1, 0)
                 f g h        (1, 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import CoreInput, dense_phase, image_input, lies_well, output_refusal, pack_weights
from leanconv.algorithms.lowered import fitting_strips, patch_fields, patches, strip_pixels
from leanconv.host import Host
from leanconv.kernels.micropanels import Micropanels, PackTiles
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem


class ImplicitGemm(Algorithm):
    """A matrix product whose packing step reads windows of the image."""

    name: ClassVar[str] = "implicit_gemm"
    title: ClassVar[str] = "GEMM whose packing step reads the image"
    paper: ClassVar[str] = (
        "P. San Juan, A. Castello, M. F. Dolz, P. Alonso-Jorda, E. S. Quintana-Orti: High Performance and Portable "
        "Convolution Operators for Multicore Processors, SBAC-PAD 2020"
    )
    tunables: ClassVar[Mapping[str, str]] = {"strip": "output rows packed at one time by a thread"}

    def weighed(self, problem: Problem) -> bool:
        """Wherever a copy may lie better than the image does."""
        return not lies_well(problem)

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def least_bytes(self, problem: Problem, host: Host) -> int:
        """A scratch."""
        return ALIGNMENT

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk packs its block of pixels in tiles, then runs the core over them."""
        p, depth = problem, problem.taps * problem.group_in
        size, unit = strip_pixels(p, host, threads, workspace, tunables.get("strip"), whole_rows=False)
        heights, cut = fitting_strips(p, host, size, unit)
        height = heights[0] if panels_of(p, host).count else heights[1]  # the tiles are packed for all panels alike
        image = image_input(p).fields
        fields = patch_fields(p, {}) | {"x_n": image["x_n"], "x_g": image["x_g"], "depth": depth}
        lanes, joint = host.target.lanes(p.dtype), _joint_taps(p, host)
        tails = p.group_in % lanes, joint * p.group_in % lanes
        stage = PackTiles(patches(p, host, True, True), height, tails[0], joint, tails[1])
        source = CoreInput(Micropanels(p.dtype), (1,), depth, True, False, fields, "x", stage)
        core, parameters = dense_phase(p, host, source, (height, height), cut, threads=threads)
        return Lowering(
            (core,),
            (Buffer("scratch", cut.block * depth * p.itemsize + host.target.vector_bytes, per_thread=True),),
            pack_weights(p, host),
            (
                f"each thread packs the windows of {cut.block} output pixels, interleaved tile by tile",
                f"core {parameters['tile']} multiplies the panel while it is in the cache",
            ),
            {**parameters, "strip": cut.block},
        )


def _joint_taps(problem: Problem, host: Host) -> int:
    """Taps of the last dimension that are packed as one: all, if they make a run and channels do not fill vectors.

    11x11 taps of 3 channels, 96 outputs: 87 % of the peak instead of 75, 3x3 taps: 76 instead of 63 (AVX-512).
    """
    p = problem
    run = p.x_strides[1] == 1 and p.x_strides[-1] == p.group_in and p.dilation[-1] == 1
    return p.kernel[-1] if run and p.group_in % host.target.lanes(p.dtype) else 1
