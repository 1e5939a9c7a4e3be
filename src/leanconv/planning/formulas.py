"""The workspace that the papers state for their algorithms, beside what ours declare and what a call really takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from leanconv.algorithms import REGISTRY
from leanconv.allocation import AlignedBlock, set_allocator
from leanconv.classes import dataclass
from leanconv.memory import ALIGNMENT, Arena
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.staging import refusal

POINTER = 8  # bytes


@dataclass(frozen=True, slots=True)
class Formula:
    """What a paper states.

    Attributes:
        text: in the letters of the documentation; Hp and Wp are H and W with padding.
        elements: their number for a problem.
        pointers: whether they are addresses, of eight bytes each.
        exact: whether ours take just as many, on any layer.
        note: how ours differ if they do.
    """

    text: str
    elements: Callable[[Problem], int]
    pointers: bool = False
    exact: bool = True
    note: str = ""

    def nbytes(self, problem: Problem) -> int:
        """Bytes of a problem's workspace."""
        return self.elements(problem) * (POINTER if self.pointers else problem.itemsize)


def _padded(problem: Problem, dim: int) -> int:
    return problem.in_size[dim] + problem.pad_low[dim] + problem.pad_high[dim]


def _mec(p: Problem) -> int:
    return math.prod(p.out_size[1:]) * _padded(p, 0) * math.prod(p.kernel[1:]) * p.in_channels


def _im2win(p: Problem) -> int:
    return math.prod(p.out_size[:-1]) * _padded(p, -1) * math.prod(p.kernel[:-1]) * p.in_channels


_NONE = Formula("0", lambda p: 0)
_IM2 = Formula("R S C P Q", lambda p: p.taps * p.in_channels * math.prod(p.out_size))
_KN2 = Formula("R S K H W", lambda p: p.taps * p.out_channels * math.prod(p.in_size))
_ONE_MAP = Formula(
    "K H W",
    lambda p: p.out_channels * math.prod(p.in_size),
    exact=False,
    note="of the rows that are added: K P W, or K P Q",
)
_HOLES = Formula(
    "R W", lambda p: p.kernel[0] * p.in_size[-1], exact=False, note="no guards: a table of the holes, S W numbers"
)

FORMULAS: dict[str, Formula] = {
    "direct": _NONE,
    "pointwise": _NONE,
    **dict.fromkeys(("im2row", "im2col", "im2row_blas", "im2col_blas"), _IM2),
    **dict.fromkeys(("im2col_scan", "im2col_copy_self", "im2col_copy_long"), _IM2),
    **dict.fromkeys(("im2row_scan", "im2row_copy_self", "im2row_copy_long"), _IM2),
    "mec": Formula("Q Hp S C", _mec),
    "mec_a": Formula("N Q Hp S C", lambda p: p.batch * _mec(p)),
    "mec_rows": Formula("N P Wp R C", lambda p: p.batch * _im2win(p)),
    "im2win": Formula("P Wp R C", _im2win),
    **dict.fromkeys(("kn2row", "kn2col"), _KN2),
    **dict.fromkeys(("kn2row_as", "kn2col_as"), _ONE_MAP),
    **dict.fromkeys(("kn2row_aa", "kn2col_aa"), _HOLES),
    "kn2row_exact": _NONE,
    "indirect": Formula(
        "R S P Q pointers",
        lambda p: p.taps * math.prod(p.out_size),
        pointers=True,
        exact=False,
        note="offsets of 4 bytes, and C zeros",
    ),
}
"""Of one image unless N is in it, as published; of algorithms whose paper states no bytes there is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """An algorithm's workspace for a problem: stated by its paper, declared by its plan, and taken by a call."""

    name: str
    formula: Formula
    stated: int
    declared: int
    measured: int


def rows(problem: Problem, threads: int = 1) -> list[Row]:
    """One row for each algorithm with a published formula that applies; each is run once, on arrays of ones."""
    result = []
    for algorithm in REGISTRY:
        formula = FORMULAS.get(algorithm.name)
        if formula is not None and refusal(algorithm, problem) is None:
            plan = Plan(problem, algorithm, threads, None)
            result.append(
                Row(algorithm.name, formula, formula.nbytes(problem), plan.workspace_bytes, taken_bytes(plan))
            )
    return result


def taken_bytes(plan: Plan) -> int:
    """Bytes of all memory that is asked for while weights are bound and a call runs, but that of packed weights."""
    p = plan.problem
    sizes: list[int] = []

    def count(nbytes: int, alignment: int) -> AlignedBlock:
        sizes.append(-(-nbytes // ALIGNMENT) * ALIGNMENT)
        return AlignedBlock(nbytes, alignment)

    x, w, out = (np.ones(shape, p.dtype) for shape in (p.x_shape, p.w_shape, p.out_shape))
    plan.arena = Arena()
    before = set_allocator(count)
    try:
        bound = plan.bind(w)
        if plan.packing is not None:
            sizes.pop()  # packed weights are the last of what is made once
        bound(x, out=out)
    finally:
        set_allocator(before)
    return sum(sizes)
