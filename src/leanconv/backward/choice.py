"""Which algorithm computes a gradient with respect to weights: the fastest by the cost model that fits the limit."""

from __future__ import annotations

from leanconv.algorithms.base import Algorithm
from leanconv.backward.plan import BackwardWeightsPlan
from leanconv.backward.registry import WEIGHTS
from leanconv.checks import one_of
from leanconv.classes import dataclass
from leanconv.errors import MemoryLimitError, NotApplicableError
from leanconv.planning.model import CALL, phases_seconds
from leanconv.problem import Problem


@dataclass(frozen=True, slots=True)
class GradientCandidate:
    """A plan that could run, and the seconds that the model predicts for a call."""

    plan: BackwardWeightsPlan
    predicted_seconds: float


def choose_gradient(problem: Problem, algorithm: str, threads: int, limit: int | None) -> BackwardWeightsPlan:
    """The plan that runs.

    Args:
        problem: the convolution, with direction "backward_weights".
        algorithm: "auto", or a name.
        threads: the most threads.
        limit: bytes of workspace, or None.

    Raises:
        ArgumentTypeError: the algorithm is no text.
        ArgumentValueError: no algorithm has that name.
        NotApplicableError: the algorithm cannot compute the problem.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    one_of("algorithm", algorithm, ("auto", *(entry.name for entry in WEIGHTS)))
    named = [entry for entry in WEIGHTS if (entry.weighed(problem) if algorithm == "auto" else entry.name == algorithm)]
    able = [entry for entry in named if entry.refusal(problem) is None]
    if not able:
        raise NotApplicableError(named[0].name, named[0].refusal(problem) or "")
    found = [gradient_candidate(problem, entry, threads, limit) for entry in able]
    fitting = [entry for entry in found if fits(entry, limit)]
    if not fitting:
        assert limit is not None
        least = min(entry.plan.workspace_bytes for entry in found)
        raise MemoryLimitError(limit, least, f"{algorithm} for {problem.describe()}")
    return min(fitting, key=lambda entry: entry.predicted_seconds).plan


def gradient_candidate(problem: Problem, algorithm: Algorithm, threads: int, limit: int | None) -> GradientCandidate:
    """An algorithm on as many threads as fit the limit; on one its bytes may be above it."""
    plan = BackwardWeightsPlan(problem, algorithm, threads, limit)
    while limit is not None and plan.workspace_bytes > limit and plan.threads > 1:
        plan = BackwardWeightsPlan(problem, algorithm, plan.threads // 2, limit)
    predicted = CALL + (phases_seconds(plan.phases, plan.threads) if problem.batch else 0.0)
    return GradientCandidate(plan, predicted)


def fits(entry: GradientCandidate, limit: int | None) -> bool:
    """Whether a candidate stays within the limit."""
    return limit is None or entry.plan.workspace_bytes <= limit
