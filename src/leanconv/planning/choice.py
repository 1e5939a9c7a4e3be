"""Which plan runs: the fastest, by the model or by measurement, of those that the caller and the memory limit allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What most algorithms are made of: imported with what every call needs, not by the first layers that use it.
from leanconv.algorithms import columns, dense  # noqa: F401
from leanconv.checks import flag, integer, one_of
from leanconv.classes import replace
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, Terms, algorithm_named, candidates, fastest_candidate, plan_within
from leanconv.planning.decisions import Question, keep, recalled
from leanconv.planning.pins import active, decided, question
from leanconv.planning.wanted import ACCURACIES, CHOICES, wanted
from leanconv.problem import Problem
from leanconv.staging import refusal


def choose(
    problem: Problem,
    algorithm: Any,
    threads: int,
    memory_limit: int | None,
    *,
    workspace_limit: int | None = None,
    bound: bool = True,
    parameters: Mapping[str, int] | None = None,
    accuracy: str = "standard",
    deterministic: bool = False,
    how: str = "model",
    budget: float = 1.0,
) -> Plan:
    """The plan that runs.

    Args:
        problem: what is to be computed.
        algorithm: a name, several, exclusions such as "!mec", a function or "auto".
        threads: the most threads.
        memory_limit: bytes, or None.
        workspace_limit: bytes of workspace that each thread may have, or None.
        bound: whether weights are packed beforehand; if not, packing them counts as time.
        parameters: settings of the algorithm named.
        accuracy: "exact", "standard" or "fast".
        deterministic: only sums in the order that is the same for all such algorithms.
        how: "model", "measure" or "exhaustive".
        budget: seconds that "measure" may take.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: no algorithm of that name, or a value that is not allowed.
        NotApplicableError: the named algorithm cannot compute the problem.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    one_of("choose", how, CHOICES)
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget > 0:
        raise ArgumentValueError("budget", budget, "must be a number of seconds above 0")
    pins = active()
    terms = Terms(threads, memory_limit, workspace_limit, bound, parameters)
    asked = question(problem, terms) if pins is not None else ""
    if pins is not None and not pins.recording:
        plan = decided(pins, asked, problem, terms)
        if plan is not None:
            return plan
    plan = _decide(problem, algorithm, terms, (accuracy, deterministic), (how, budget))
    if pins is not None and pins.recording:
        pins.note(asked, plan)
    return plan


def _decide(
    problem: Problem,
    algorithm: Any,
    terms: Terms,
    requirements: tuple[str, bool],
    measuring: tuple[str, float],
) -> Plan:
    """The plan that runs; accuracy and determinism, and how to measure, as those of `choose`."""
    accuracy, deterministic = requirements
    how, budget = measuring
    asked: Question | None = None
    if how == "model" and not terms.parameters and _weighs(algorithm):
        words = algorithm if isinstance(algorithm, str) else tuple(algorithm)
        level, same_bits = one_of("accuracy", accuracy, ACCURACIES), flag("deterministic", deterministic)
        limits = terms.limit if terms.workspace is None else (terms.limit, terms.workspace)
        asked = (problem, words, level, same_bits, terms.threads, limits, terms.bound)
        known = recalled(asked)
        if known is not None:
            name, count = known
            return plan_within(problem, algorithm_named(name), terms.on(count))
    allowed = wanted(algorithm, accuracy, deterministic, problem)
    reasons = {name: refusal(algorithm_named(name), problem) for name in allowed.names}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        name, reason = next(iter(reasons.items()))
        raise NotApplicableError(name, reason or "")
    tunables = _tunables(allowed.names[0] if len(allowed.names) == 1 else "auto", terms.parameters)
    terms = replace(terms, parameters=tunables, keep_threads=allowed.insisted)
    if how == "model" and allowed.pick is None:
        best = fastest_candidate(problem, names, terms)
        if best is not None:
            if asked is not None:
                keep(asked, (best.name, best.threads))
            return best.plan
    found = candidates(problem, names, terms)
    fitting = [entry for entry in found if terms.kept(entry.plan)]
    if not fitting:
        raise _too_little(found, terms, f"{allowed.text} for {problem.describe()}")
    if allowed.pick is not None:
        return _picked(allowed.pick, problem, fitting)
    if how != "model" and (len(fitting) > 1 or how == "exhaustive"):
        from leanconv.planning.tuning import fastest

        return fastest(problem, fitting, terms, exhaustive=how == "exhaustive", budget=budget)
    return fitting[0].plan


def _too_little(found: Sequence[Candidate], terms: Terms, what: str) -> MemoryLimitError:
    """The error of a limit that nothing keeps to, with the least that would do."""
    least = min(entry.needed_bytes for entry in found)
    if terms.limit is not None and least > terms.limit:
        return MemoryLimitError(terms.limit, least, what)
    assert terms.workspace is not None
    least = min(-(-entry.plan.workspace_bytes // entry.threads) for entry in found)
    return MemoryLimitError(terms.workspace, least, f"the workspace of a thread of {what}")


def _weighs(algorithm: Any) -> bool:
    """Whether several algorithms are to be weighed by what can be written down: "auto", an exclusion or a list."""
    if isinstance(algorithm, str):
        return algorithm == "auto" or algorithm.startswith("!")
    return isinstance(algorithm, tuple | list) and all(isinstance(word, str) for word in algorithm)


def _picked(pick: Any, problem: Problem, fitting: list[Candidate]) -> Plan:
    """What the caller's function chooses: a candidate, or the name of one."""
    result = pick(problem, tuple(fitting))
    for entry in fitting:
        if result is entry or (isinstance(result, str) and result == entry.name):
            return entry.plan
    if isinstance(result, str):
        rule = f"must return one of {', '.join(entry.name for entry in fitting)}, not {result!r}"
        raise ArgumentValueError("algorithm", pick, rule)
    raise ArgumentTypeError("algorithm", pick, f"must return a candidate or its name, not {type(result).__name__}")


def _tunables(name: str, parameters: Mapping[str, int] | None) -> dict[str, int]:
    """The caller's settings, checked against those that the algorithm declares."""
    if not parameters:
        return {}
    if name == "auto":
        raise ArgumentValueError("parameters", dict(parameters), "must be empty unless an algorithm is named")
    declared = algorithm_named(name).tunables
    for key in parameters:
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise ArgumentValueError("parameters", dict(parameters), f"{name} has no {key!r} (it has: {known})")
    return {key: integer(f"parameters[{key!r}]", value, 1) for key, value in parameters.items()}
