"""What could run: a plan for each algorithm that may, with the bytes it takes and the time predicted for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.classes import dataclass
from leanconv.errors import ArgumentValueError
from leanconv.plan import Plan
from leanconv.problem import Problem

_ALONE = 12  # times what it takes to start other threads, below which one thread may be as fast
_ROUNDED = 1 + 1e-9  # the least time of an algorithm may be its time, but for rounding


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that could run.

    Attributes:
        plan: the plan.
        predicted_seconds: of one call, by the cost model.
        needed_bytes: what counts against a memory limit.
    """

    plan: Plan
    predicted_seconds: float
    needed_bytes: int

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.plan.algorithm

    @property
    def threads(self) -> int:
        """How many threads it uses at most."""
        return self.plan.threads


def algorithm_named(name: str) -> Algorithm:
    """The algorithm of the registry that has a name."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise ArgumentValueError("algorithm", name, f"must be one of {', '.join(REGISTRY.names)}") from None


def candidate(
    problem: Problem,
    algorithm: Algorithm,
    threads: int,
    limit: int | None,
    *,
    bound: bool,
    parameters: Mapping[str, int] | None = None,
) -> Candidate:
    """One algorithm on so many threads; its bytes may be above the limit."""
    from leanconv.planning.model import seconds  # only here: what was decided before needs no model

    plan = plan_within(problem, algorithm, threads, limit, bound=bound, parameters=parameters)
    return Candidate(plan, seconds(plan, bound=bound), _needs(plan, bound))


def plan_within(
    problem: Problem,
    algorithm: Algorithm,
    threads: int,
    limit: int | None,
    *,
    bound: bool,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of one algorithm on so many threads, within the limit if it can be."""
    plan = Plan(problem, algorithm, threads, limit, parameters)
    if limit is not None and _needs(plan, bound) > limit:
        # Packed weights count too: what they leave is for staging, or else the least.
        rest = max(0, limit - (_needs(plan, bound) - plan.workspace_bytes))
        for staging in (rest, 0) if rest and plan.workspace_bytes else (0,):
            plan = Plan(problem, algorithm, threads, limit, parameters, staging=staging)
            if _needs(plan, bound) <= limit:
                break
    return plan


def _needs(plan: Plan, bound: bool) -> int:
    return plan.extra_bytes if bound else plan.unbound_extra_bytes


def candidates(
    problem: Problem,
    names: Sequence[str],
    threads: int,
    limit: int | None,
    *,
    bound: bool,
    parameters: Mapping[str, int] | None = None,
    keep_threads: bool = False,
) -> list[Candidate]:
    """Each algorithm on as many threads as fit the limit and are worth it; the fastest that fits first.

    With `keep_threads` only the limit takes threads away, even if fewer would be faster. Those that do not fit on one
    thread either come last, the one that needs least first.
    """
    found = [
        _best_of(problem, algorithm_named(name), threads, limit, bound, parameters, keep_threads) for name in names
    ]

    def order(entry: Candidate) -> tuple[bool, float]:
        fit = fits(entry, limit)
        return not fit, entry.predicted_seconds if fit else entry.needed_bytes

    return sorted(found, key=order)


def fastest_candidate(
    problem: Problem,
    names: Sequence[str],
    threads: int,
    limit: int | None,
    *,
    bound: bool,
    parameters: Mapping[str, int] | None = None,
    keep_threads: bool = False,
) -> Candidate | None:
    """The first of `candidates`, if it fits; None if nothing does.

    Those whose least time is longer than what another one takes are not lowered: most, where their sums take the time.
    Nor are those whose least bytes are too many.
    """
    from leanconv.planning.model import least_bytes, least_seconds

    places = {name: place for place, name in enumerate(names)}
    # Without a second one there is nothing to compare.
    least = {name: least_seconds(problem, algorithm_named(name), threads) for name in names} if names[1:] else places
    best: Candidate | None = None
    for name in sorted(names, key=least.__getitem__):
        if best is not None and least[name] > best.predicted_seconds * _ROUNDED:
            break
        if limit is not None and least_bytes(problem, algorithm_named(name)) > limit:
            continue
        entry = _best_of(problem, algorithm_named(name), threads, limit, bound, parameters, keep_threads)
        if fits(entry, limit) and (best is None or _before(entry, best, places)):
            best = entry
    return best


def _before(entry: Candidate, other: Candidate, places: Mapping[str, int]) -> bool:
    """Whether a candidate is the faster one, or as fast and the preferred one."""
    return (entry.predicted_seconds, places[entry.name]) < (other.predicted_seconds, places[other.name])


def _best_of(
    problem: Problem,
    algorithm: Algorithm,
    threads: int,
    limit: int | None,
    bound: bool,
    parameters: Mapping[str, int] | None,
    keep_threads: bool,
) -> Candidate:
    """One algorithm on as many threads as fit the limit and are worth it."""
    from leanconv.planning.model import FORK, least_bytes, least_seconds, seconds

    if limit is not None and least_bytes(problem, algorithm) > limit:  # what comes nearest, at once
        plan = Plan(problem, algorithm, 1, limit, parameters, staging=0)
        return Candidate(plan, seconds(plan, bound=bound), _needs(plan, bound))
    best, count = candidate(problem, algorithm, threads, limit, bound=bound, parameters=parameters), threads
    while count > 1 and limit is not None and best.needed_bytes > limit:
        count //= 2
        best = candidate(problem, algorithm, count, limit, bound=bound, parameters=parameters)
    if keep_threads or best.threads == 1 or best.predicted_seconds >= _ALONE * FORK:
        return best
    if fits(best, limit) and least_seconds(problem, algorithm, 1) > best.predicted_seconds * _ROUNDED:
        return best
    alone = candidate(problem, algorithm, 1, limit, bound=bound, parameters=parameters)
    return min(best, alone, key=lambda entry: (not fits(entry, limit), entry.predicted_seconds))


def fits(entry: Candidate, limit: int | None) -> bool:
    """Whether a candidate stays within the limit."""
    return limit is None or entry.needed_bytes <= limit
