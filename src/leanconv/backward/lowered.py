"""im2col and im2row for gradients with respect to weights: the patch matrix of each image, times its gradient.

Idea        all windows of an image are copied to a matrix, as in the forward pass; its product with the gradient, an
            ordinary matrix product with sums over pixels, is added to what the images before gave
Workspace   the matrix of one image, C * taps * pixels elements, and what `direct` needs for a pointwise layer
Good for    comparison: the form in which frameworks have it
Bad for     memory; the matrix is as many times larger than the image as the kernel has taps
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.lowered import MATRIX, patches, stage_phase
from leanconv.backward.direct import gradient_phase, weights_error_bound
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.patches import PatchSpec
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase


class _Lowered(Algorithm):
    """Both forms; `rows` says whether a window is a row of the matrix or a column."""

    automatic: ClassVar[bool] = False
    paper: ClassVar[str] = (
        "K. Chellapilla, S. Puri, P. Simard: High Performance Convolutional Neural Networks for Document Processing, "
        "2006"
    )
    rows: ClassVar[bool]

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose result has the weights of an output channel side by side."""
        p = problem
        dense = dense_strides((p.out_channels, p.group_in, *p.kernel), "NCHW")
        if any(s != d and n > 1 for s, d, n in zip(p.w_strides[1:], dense[1:], (p.group_in, *p.kernel), strict=True)):
            return "the weights of an output channel are not adjacent in memory"
        return None

    def error_bound(self, problem: Problem) -> float:
        """That of `direct`."""
        return weights_error_bound(super().error_bound(problem), problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image."""
        p = problem
        pixels, depth, item = math.prod(p.out_size), p.taps * p.group_in, p.itemsize
        matrix = Buffer(MATRIX, p.groups * depth * pixels * item)
        column, pixel = (1, depth) if self.rows else (pixels, 1)
        # A window is ordered by channel and then tap, as the weights of an output channel are.
        steps = {"m_pixel": pixel * item, "m_c": p.taps * column * item, "m_tap": column * item}
        inner = replace(
            p,
            ndim=p.ndim,
            in_channels=p.groups * depth,
            in_size=p.out_size,
            kernel=(1,) * p.ndim,
            stride=(1,) * p.ndim,
            dilation=(1,) * p.ndim,
            pad_low=(0,) * p.ndim,
            pad_high=(0,) * p.ndim,
            pad_mode="zeros",
            batch=1,
            x_strides=(0, column, *(pixel * s for s in dense_strides((1, 1, *p.out_size), "NCHW")[2:])),
            w_strides=(p.w_strides[0], 1, *(1,) * p.ndim),
        )
        rest = None if workspace is None else max(0, workspace - arena_bytes((matrix,)))
        first, buffers, parameters = gradient_phase(inner, host, threads, rest)
        later, _, _ = gradient_phase(inner, host, threads, rest, accumulate=True)
        copies = PatchSpec(patches(p, host, self.rows, self.rows and p.taps == 1))
        phases: list[Phase] = []
        for image in range(p.batch):
            stage = stage_phase(p, host, threads, image, rows=self.rows)
            phases.append(replace(stage, spec=copies, fields={**stage.fields, **steps}))
            core = later if image else first
            product = replace(core, fields={**core.fields, "x_g": depth * pixels * item}, roles={"x": MATRIX})
            phases.append(product.shifted({"weights": image * p.out_strides[0] * item}))
        name = self.name
        return Lowering(
            phases=tuple(phases),
            workspace=(matrix, *buffers),
            steps=(
                f"{name}: copy all windows of an image into a matrix of {p.groups * depth} x {pixels}",
                f"core {parameters['tile']} multiplies it with the gradient, and adds to what earlier images gave",
            ),
            parameters=parameters,
        )


class Im2colWeights(_Lowered):
    """The patch matrix by columns."""

    name: ClassVar[str] = "im2col"
    title: ClassVar[str] = "im2col, the patch matrix of an image at a time, then sums over pixels"
    rows: ClassVar[bool] = False


class Im2rowWeights(_Lowered):
    """The patch matrix by rows."""

    name: ClassVar[str] = "im2row"
    title: ClassVar[str] = "im2row, the patch matrix of an image at a time, then sums over pixels"
    rows: ClassVar[bool] = True
