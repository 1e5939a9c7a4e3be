"""What each algorithm says of a problem: whether it applies, in how many bytes, or why not."""

from __future__ import annotations

from leanconv.algorithms import REGISTRY
from leanconv.classes import dataclass
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.staging import error_bound as stated_bound
from leanconv.staging import refusal


@dataclass(frozen=True, slots=True)
class AlgorithmInfo:
    """What one algorithm would need for a problem.

    Attributes:
        name: what to pass as `algorithm=`.
        applies: whether it can compute the problem.
        reason: a sentence that says why not, or None.
        workspace_bytes: exact bytes of workspace of a bound call; None if it does not apply.
        packed_weight_bytes: bytes of its packed weights; None if it does not apply.
        title: what it is, in a few words.
        paper: where it was published.
        error_class: how its rounding compares with a plain sum ("plain", "float64", "transformed").
        error_bound: largest error to expect relative to the largest output; None if it does not apply.
    """

    name: str
    applies: bool
    reason: str | None
    workspace_bytes: int | None
    packed_weight_bytes: int | None
    title: str
    paper: str
    error_class: str
    error_bound: float | None


def list_algorithms(problem: Problem, threads: int) -> list[AlgorithmInfo]:
    """One entry per algorithm, in the registry's order."""
    result = []
    for algorithm in REGISTRY:
        reason = refusal(algorithm, problem)
        plan = None if reason else Plan(problem, algorithm, threads)
        result.append(
            AlgorithmInfo(
                name=algorithm.name,
                applies=plan is not None,
                reason=reason,
                workspace_bytes=plan.workspace_bytes if plan else None,
                packed_weight_bytes=plan.packed_weight_bytes if plan else None,
                title=algorithm.title,
                paper=algorithm.paper,
                error_class=algorithm.error_class,
                error_bound=stated_bound(algorithm, problem) if plan else None,
            )
        )
    return result
