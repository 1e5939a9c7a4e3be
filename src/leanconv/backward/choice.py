"""Which algorithm computes a gradient with respect to weights: the fastest by the cost model that fits the limit."""

from __future__ import annotations

from leanconv.algorithms.base import Algorithm
from leanconv.backward.direct import weights_error_bound
from leanconv.backward.plan import BackwardWeightsPlan
from leanconv.backward.registry import WEIGHTS
from leanconv.checks import one_of
from leanconv.classes import dataclass
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.planning.model import CALL, phases_seconds
from leanconv.planning.wanted import ACCURACIES, STANDARD, AlgorithmLike, named
from leanconv.problem import Problem


@dataclass(frozen=True, slots=True)
class GradientCandidate:
    """A plan that could run, and the seconds that the model predicts for a call."""

    plan: BackwardWeightsPlan
    predicted_seconds: float


def choose_gradient(
    problem: Problem, algorithm: AlgorithmLike, threads: int, limit: int | None, accuracy: str = "standard"
) -> BackwardWeightsPlan:
    """The plan that runs.

    Args:
        problem: the convolution, with direction "backward_weights".
        algorithm: "auto", a name, several, or exclusions such as "!winograd".
        threads: the most threads.
        limit: bytes of workspace, or None.
        accuracy: "exact" (plain sums only), "standard" (error bounds of at most four times theirs) or "fast".

    Raises:
        ArgumentTypeError: the algorithm is no text.
        ArgumentValueError: no algorithm has that name, or none is left; an accuracy that does not exist.
        NotApplicableError: the algorithm cannot compute the problem.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    refused = excluded(problem, algorithm, accuracy)
    wanted = [entry for entry in WEIGHTS if entry.name not in refused]
    if not wanted:
        rule = f"leaves no algorithm to choose from ({'; '.join(f'{name}: {why}' for name, why in refused.items())})"
        raise ArgumentValueError("algorithm", algorithm, rule)
    able = [entry for entry in wanted if entry.refusal(problem) is None]
    if not able:
        raise NotApplicableError(wanted[0].name, wanted[0].refusal(problem) or "")
    found = [gradient_candidate(problem, entry, threads, limit) for entry in able]
    fitting = [entry for entry in found if fits(entry, limit)]
    if not fitting:
        assert limit is not None
        least = min(entry.plan.workspace_bytes for entry in found)
        raise MemoryLimitError(limit, least, f"{algorithm} for {problem.describe()}")
    return min(fitting, key=lambda entry: entry.predicted_seconds).plan


def excluded(problem: Problem, algorithm: AlgorithmLike, accuracy: str) -> dict[str, str]:
    """The algorithms that may not run, and why; checks both arguments. One that is named is not held to an accuracy."""
    level = one_of("accuracy", accuracy, ACCURACIES)
    automatic = tuple(entry.name for entry in WEIGHTS if entry.weighed(problem))
    names, insisted, _, pick = named(algorithm, automatic, tuple(entry.name for entry in WEIGHTS))
    if pick is not None:
        raise ArgumentTypeError("algorithm", algorithm, 'must be a name, several names, exclusions or "auto"')
    result = {}
    for entry in WEIGHTS:
        if entry.name not in names:
            result[entry.name] = "excluded" if entry.name in automatic else "taken by name only"
        elif not insisted and level != "fast" and entry.error_class not in ("plain", "float64"):
            reason = _inexact(entry, problem, level)
            if reason:
                result[entry.name] = reason
    return result


def _inexact(entry: Algorithm, problem: Problem, accuracy: str) -> str | None:
    """Why an algorithm whose sums are not plain ones does not meet an accuracy."""
    if accuracy == "exact":
        return f"accuracy 'exact': its error class is {entry.error_class}"
    if entry.refusal(problem) is not None:
        return None  # says so itself
    bound = entry.error_bound(problem)
    allowed = STANDARD * weights_error_bound(Algorithm.error_bound(entry, problem), problem)
    if bound > allowed:
        return f"accuracy 'standard': its error bound is {bound:.0e}, {allowed:.0e} is allowed"
    return None


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
