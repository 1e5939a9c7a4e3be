"""What could run: a plan for each algorithm that may, with the bytes it takes and the time predicted for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.classes import dataclass, replace
from leanconv.errors import ArgumentValueError
from leanconv.plan import Plan
from leanconv.problem import Problem

_ALONE = 12  # times what it takes to start other threads, below which one thread may be as fast
_ROUNDED = 1 + 1e-9  # the least time of an algorithm may be its time, but for rounding


@dataclass(frozen=True, slots=True)
class Terms:
    """What plans for a problem keep to, and how they are called.

    Attributes:
        threads: the most threads.
        limit: bytes that workspace and packed weights beyond the plain ones may take together; None for any number.
        workspace: bytes of workspace that each thread may have, whatever weights take; None for any number.
        bound: whether weights are packed beforehand.
        parameters: settings of the algorithm.
        keep_threads: whether only a limit takes threads away, even if fewer would be faster.
    """

    threads: int
    limit: int | None = None
    workspace: int | None = None
    bound: bool = True
    parameters: Mapping[str, int] | None = None
    keep_threads: bool = False

    def on(self, threads: int) -> Terms:
        """The same on so many threads."""
        return replace(self, threads=threads)

    def needed(self, plan: Plan) -> int:
        """What a plan takes of the limit."""
        return plan.extra_bytes if self.bound else plan.unbound_extra_bytes

    def kept(self, plan: Plan) -> bool:
        """Whether a plan keeps to both numbers of bytes."""
        if self.workspace is not None and plan.workspace_bytes > self.workspace * plan.threads:
            return False
        return self.limit is None or self.needed(plan) <= self.limit

    def plan(self, problem: Problem, algorithm: Algorithm, staging: int | None) -> Plan:
        """The plan that stages in so many bytes (None: those of the limit), and in no more than threads may have."""
        if self.workspace is not None:
            free = self.workspace * self.threads
            staging = min(free if self.limit is None else self.limit, free) if staging is None else min(staging, free)
        return Plan(problem, algorithm, self.threads, self.limit, self.parameters, staging=staging)


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

    @staticmethod
    def of(plan: Plan, terms: Terms) -> Candidate:
        """A plan, with its bytes and its time."""
        from leanconv.planning.model import seconds  # only here: what was decided before needs no model

        return Candidate(plan, seconds(plan, bound=terms.bound), terms.needed(plan))

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


def candidate(problem: Problem, algorithm: Algorithm, terms: Terms) -> Candidate:
    """One algorithm on so many threads; its bytes may be more than the terms allow."""
    return Candidate.of(plan_within(problem, algorithm, terms), terms)


def plan_within(problem: Problem, algorithm: Algorithm, terms: Terms) -> Plan:
    """The plan of one algorithm on so many threads, in the bytes that the terms allow if it can be."""
    plan = terms.plan(problem, algorithm, None)
    if not terms.kept(plan):
        # Packed weights count too: what they leave is for staging, or else the least.
        rest = 0 if terms.limit is None else max(0, terms.limit - (terms.needed(plan) - plan.workspace_bytes))
        for staging in (rest, 0) if rest and plan.workspace_bytes else (0,):
            plan = terms.plan(problem, algorithm, staging)
            if terms.kept(plan):
                break
    return plan


def candidates(problem: Problem, names: Sequence[str], terms: Terms) -> list[Candidate]:
    """Each algorithm on as many threads as the terms allow and are worth it; the fastest that keeps to them first.

    Those that do not keep to them on one thread either come last, the one that needs least first.
    """
    found = [_best_of(problem, algorithm_named(name), terms) for name in names]

    def order(entry: Candidate) -> tuple[bool, float]:
        kept = terms.kept(entry.plan)
        return not kept, entry.predicted_seconds if kept else entry.needed_bytes

    return sorted(found, key=order)


def fastest_candidate(problem: Problem, names: Sequence[str], terms: Terms) -> Candidate | None:
    """The first of `candidates`, if it keeps to the terms; None if nothing does.

    Those whose least time is longer than what another one takes are not lowered: most, where their sums take the time.
    Nor are those whose least bytes are too many.
    """
    from leanconv.planning.model import least_bytes, least_seconds

    places = {name: place for place, name in enumerate(names)}
    # Without a second one there is nothing to compare.
    least = (
        {name: least_seconds(problem, algorithm_named(name), terms.threads) for name in names} if names[1:] else places
    )
    best: Candidate | None = None
    for name in sorted(names, key=least.__getitem__):
        if best is not None and least[name] > best.predicted_seconds * _ROUNDED:
            break
        if terms.limit is not None and least_bytes(problem, algorithm_named(name)) > terms.limit:
            continue
        entry = _best_of(problem, algorithm_named(name), terms)
        if terms.kept(entry.plan) and (best is None or _before(entry, best, places)):
            best = entry
    return best


def _before(entry: Candidate, other: Candidate, places: Mapping[str, int]) -> bool:
    """Whether a candidate is the faster one, or as fast and the preferred one."""
    return (entry.predicted_seconds, places[entry.name]) < (other.predicted_seconds, places[other.name])


def _best_of(problem: Problem, algorithm: Algorithm, terms: Terms) -> Candidate:
    """One algorithm on as many threads as the terms allow and are worth it."""
    from leanconv.planning.model import FORK, least_bytes, least_seconds

    if terms.limit is not None and least_bytes(problem, algorithm) > terms.limit:  # what comes nearest, at once
        return Candidate.of(terms.on(1).plan(problem, algorithm, 0), terms)
    best, count = candidate(problem, algorithm, terms), terms.threads
    while count > 1 and not terms.kept(best.plan):
        count //= 2
        best = candidate(problem, algorithm, terms.on(count))
    if terms.keep_threads or best.threads == 1 or best.predicted_seconds >= _ALONE * FORK:
        return best
    if terms.kept(best.plan) and least_seconds(problem, algorithm, 1) > best.predicted_seconds * _ROUNDED:
        return best
    alone = candidate(problem, algorithm, terms.on(1))
    return min(best, alone, key=lambda entry: (not terms.kept(entry.plan), entry.predicted_seconds))


def fits(entry: Candidate, limit: int | None) -> bool:
    """Whether a candidate stays within the limit."""
    return limit is None or entry.needed_bytes <= limit
