"""kn2row for gradients with respect to weights: one matrix product a tap, over the pixels that exist for both.

Idea        under one tap the gradient is that of a pointwise layer between the pixels of the image that the tap reads
            and the outputs they belong to, both regions of the arrays as they are: no patch matrix, and no padding
Workspace   that of `direct` for a pointwise layer, whatever the number of taps
Good for    comparison; few taps
Bad for     many taps: each one stages the gradient of the output anew

    tap 0 of 3, padding 1        image     [0 1 2 3] 4          outputs 1 to 4 read image 0 to 3 under it
                                 gradient   0 [1 2 3 4]
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.tapwise import PAPER
from leanconv.backward.bias import bias_phase
from leanconv.backward.direct import DirectWeights, gradient_phase, weights_error_bound
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase


class Kn2rowWeights(Algorithm):
    """A product for each tap."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "kn2row"
    title: ClassVar[str] = "kn2row, one matrix product a tap over the pixels that exist for both"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any padding by zeros."""
        return DirectWeights().refusal(problem)

    def error_bound(self, problem: Problem) -> float:
        """That of `direct`."""
        return weights_error_bound(super().error_bound(problem), problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase a tap."""
        found = _products(problem, host, threads, workspace)
        if workspace is not None and arena_bytes(found.workspace, threads) > workspace:
            found = _products(problem, host, threads, 0)  # the most of two buffers are those of different taps
        return found


def _products(problem: Problem, host: Host, threads: int, workspace: int | None) -> Lowering:
    """All taps, and the bias."""
    phases: list[Phase] = []
    buffers: dict[str, Buffer] = {}
    parameters: dict[str, int | str] = {}
    for tap in itertools.product(*map(range, problem.kernel)):
        phase, needed, found = _product(problem, host, threads, workspace, tap)
        phases.append(phase)
        parameters = parameters or found
        for buffer in needed:
            buffers[buffer.name] = max(buffer, buffers.get(buffer.name, buffer), key=lambda each: each.nbytes)
    if problem.has_bias:
        phase, buffer = bias_phase(problem, host)
        phases.append(phase)
        buffers[buffer.name] = max(buffer, buffers[buffer.name], key=lambda each: each.nbytes)
    return Lowering(
        phases=tuple(phases),
        workspace=tuple(buffers.values()),
        steps=(f"{problem.taps} matrix products, core {parameters['tile']}, each over the pixels that its tap reads",),
        parameters=parameters,
    )


def _product(
    problem: Problem, host: Host, threads: int, workspace: int | None, tap: tuple[int, ...]
) -> tuple[Phase, tuple[Buffer, ...], dict[str, int | str]]:
    """The product of one tap; zeros where it reads no pixel."""
    p, ones = problem, (1,) * problem.ndim
    size: list[int] = []
    image = grad = 0  # elements before the first pixel, and before its output
    for d, (at, stride) in enumerate(zip(tap, p.stride, strict=True)):
        shift = at * p.dilation[d] - p.pad_low[d]  # output q reads pixel q * stride + shift
        first = max(0, -(shift // stride))
        size.append(min(p.out_size[d], -((shift - p.in_size[d]) // stride)) - first)
        image += (first * stride + shift) * p.x_strides[2 + d]
        grad += first * p.out_strides[2 + d]
    empty = min(size) <= 0
    inner = replace(
        p,
        batch=1 if empty else p.batch,
        in_size=ones if empty else tuple(size),
        kernel=ones,
        stride=ones,
        dilation=ones,
        pad_low=(0,) * p.ndim,
        pad_high=(0,) * p.ndim,
        x_strides=(*p.x_strides[:2], *(step * s for step, s in zip(p.x_strides[2:], p.stride, strict=True))),
        w_strides=(*p.w_strides[:2], *ones),
        has_bias=False,
    )
    phase, buffers, parameters = gradient_phase(inner, host, threads, workspace)
    result = sum(at * step for at, step in zip(tap, p.w_strides[2:], strict=True)) * p.itemsize
    if empty:  # one output, which reads an image without pixels
        phase = replace(phase, fields={**phase.fields, **{f"in{d}": 0 for d in range(p.ndim)}})
        return phase.shifted({"out": result}), buffers, parameters
    moved = {"x": image * p.itemsize, "weights": grad * p.itemsize, "out": result}
    return phase.shifted(moved), buffers, parameters
