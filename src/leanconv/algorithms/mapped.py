"""Mapped convolution: every tap of every output pixel reads where a map says, between pixels too.

Idea        a thread samples the windows of some output pixels into rows of a matrix, blending pixels, and the core
            multiplies them while they are in the cache; a regular map makes it im2row in strips
Workspace   taps * C/g * strip elements a thread
Good for    spheres, fish-eye and other distorted images; channels last
Bad for     regular grids, which other algorithms read in place; channels first, sampled one channel at a time
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import CoreInput, dense_phase, output_refusal, pack_weights
from leanconv.algorithms.lowered import fitting_strips, matrix_steps, strip_pixels
from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.gather import Gather
from leanconv.kernels.image import Rows
from leanconv.memory import Buffer
from leanconv.problem import Problem

FEW_CHANNELS = 8


@dataclass(frozen=True)
class Mapped(Algorithm):
    """Mapped convolution with one kind of map; not in the registry, because a problem alone does not describe it.

    The problem is that of the output's grid: its image is as large as its output, its strides are those of the real
    image, whose size is `in_size`.  `map_strides` count bytes along (P, Q, R, S, 2).
    """

    in_size: tuple[int, int]
    map_strides: tuple[int, ...]
    map_dtype: str
    interpolation: str
    pad_modes: tuple[str, str]

    name: ClassVar[str] = "mapped"
    title: ClassVar[str] = "mapped convolution: sampled where a map says"
    paper: ClassVar[str] = (
        "M. Eder, T. Price, T. Vu, A. Bapat, J.-M. Frahm: Mapped Convolutions, 2019, arXiv:1906.11096"
    )

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk samples its strip, then runs the core over it."""
        p, item, depth = problem, problem.itemsize, problem.taps * problem.group_in
        heights, cut = fitting_strips(p, host, *strip_pixels(p, host, threads, workspace, None, whole_rows=False))
        steps = matrix_steps(p, cut.block, rows=True)
        channel = p.x_strides[1] * item
        fields = {
            **steps,
            "x_row": steps["m_pixel"],
            "x_n": p.x_strides[0] * item,
            "x_g": p.group_in * channel,
            "s_c": channel,
            "channels": p.group_in,
            "out1": p.out_size[1],
            **{f"in{d}": size for d, size in enumerate(self.in_size)},
            **{f"at{d}": stride * item for d, stride in enumerate(p.x_strides[2:])},
            **dict(zip(("map_p", "map_q", "map_r", "map_s", "map_yx"), self.map_strides, strict=True)),
        }
        kernel = p.kernel
        stage = Gather(
            host.target,
            p.dtype,
            self.map_dtype,
            (kernel[0], kernel[1]),
            self.interpolation,
            self.pad_modes,
            p.x_strides[1] == 1,
            p.group_in if p.group_in <= FEW_CHANNELS else None,
        )
        source = CoreInput(Rows(None), (1,), depth, True, False, fields, "x", stage)
        core, parameters = dense_phase(p, host, source, heights, cut, threads=threads)
        return Lowering(
            (core,),
            (Buffer("scratch", cut.block * depth * item, per_thread=True),),
            pack_weights(p, host),
            (
                f"each thread samples the windows of {cut.block} output pixels ({self.interpolation})",
                f"core {parameters['tile']} multiplies them while they are in the cache",
            ),
            {**parameters, "strip": cut.block},
        )
