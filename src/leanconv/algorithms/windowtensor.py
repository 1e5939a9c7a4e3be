"""The window tensor of MEC and im2win: its shape, where entries and taps lie, and how long the runs of windows are."""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.problem import Problem

TENSOR = "window tensor"


@dataclass(frozen=True, slots=True)
class Tensor:
    """The window tensor of one group of one image: sizes count elements, `steps` and `taps` are bytes.

    `extents` are its positions (output positions, or padded ones where windows slide), `steps` the distance between
    them, `taps` that between the taps of an entry; `entry` elements are copied for a position.
    """

    slide: int
    extents: tuple[int, ...]
    steps: tuple[int, ...]
    taps: tuple[int, ...]
    entry: int
    itemsize: int

    @staticmethod
    def of(problem: Problem, slide: int) -> Tensor:
        """Positions of the dimension that slides inside those of the others, the last of them first."""
        p, item = problem, problem.itemsize
        others = [d for d in range(p.ndim) if d != slide]
        padded = p.in_size[slide] + p.pad_low[slide] + p.pad_high[slide]
        extents = tuple(padded if d == slide else p.out_size[d] for d in range(p.ndim))
        taps, steps = [0] * p.ndim, [0] * p.ndim
        entry = p.group_in
        for d in reversed(others):
            taps[d] = entry * item
            entry *= p.kernel[d]
        step = entry * item
        for d in [slide, *reversed(others)]:
            steps[d] = step
            step *= extents[d]
        return Tensor(slide, extents, tuple(steps), tuple(taps), entry, item)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.extents) * self.entry * self.itemsize


def runs_of(problem: Problem, tensor: Tensor) -> tuple[int, int]:
    """Runs of a window, and elements of each: one, or one for each tap if these are dilated."""
    taps = problem.kernel[tensor.slide]
    return (taps, tensor.entry) if problem.dilation[tensor.slide] > 1 else (1, taps * tensor.entry)
