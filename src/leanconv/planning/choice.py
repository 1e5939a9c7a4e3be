"""Which plan runs: the fastest, by the model or by measurement, of those that the caller and the memory limit allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What most algorithms are made of: imported with what every call needs, not by the first layers that use it.
from leanconv.algorithms import columns, dense  # noqa: F401
from leanconv.checks import flag, integer, one_of
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, algorithm_named, candidates, fastest_candidate, fits, plan_within
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
    asked = question(problem, threads, memory_limit, bound=bound) if pins is not None else ""
    if pins is not None and not pins.recording:
        plan = decided(pins, asked, problem, memory_limit, bound=bound)
        if plan is not None:
            return plan
    plan = _decide(
        problem, algorithm, threads, memory_limit, bound, parameters, (accuracy, deterministic), (how, budget)
    )
    if pins is not None and pins.recording:
        pins.note(asked, plan)
    return plan


def _decide(
    problem: Problem,
    algorithm: Any,
    threads: int,
    memory_limit: int | None,
    bound: bool,
    parameters: Mapping[str, int] | None,
    requirements: tuple[str, bool],
    measuring: tuple[str, float],
) -> Plan:
    """The plan that runs; arguments as those of `choose`."""
    accuracy, deterministic = requirements
    how, budget = measuring
    asked: Question | None = None
    if how == "model" and not parameters and _weighs(algorithm):
        words = algorithm if isinstance(algorithm, str) else tuple(algorithm)
        level, same_bits = one_of("accuracy", accuracy, ACCURACIES), flag("deterministic", deterministic)
        asked = (problem, words, level, same_bits, threads, memory_limit, bound)
        known = recalled(asked)
        if known is not None:
            name, count = known
            return plan_within(problem, algorithm_named(name), count, memory_limit, bound=bound)
    allowed = wanted(algorithm, accuracy, deterministic, problem)
    reasons = {name: refusal(algorithm_named(name), problem) for name in allowed.names}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        name, reason = next(iter(reasons.items()))
        raise NotApplicableError(name, reason or "")
    tunables = _tunables(allowed.names[0] if len(allowed.names) == 1 else "auto", parameters)
    weighing: dict[str, Any] = {"bound": bound, "parameters": tunables, "keep_threads": allowed.insisted}
    if how == "model" and allowed.pick is None:
        best = fastest_candidate(problem, names, threads, memory_limit, **weighing)
        if best is not None:
            if asked is not None:
                keep(asked, (best.name, best.threads))
            return best.plan
    found = candidates(problem, names, threads, memory_limit, **weighing)
    fitting = [entry for entry in found if fits(entry, memory_limit)]
    if not fitting:
        assert memory_limit is not None
        least = min(entry.needed_bytes for entry in found)
        raise MemoryLimitError(memory_limit, least, f"{allowed.text} for {problem.describe()}")
    if allowed.pick is not None:
        return _picked(allowed.pick, problem, fitting)
    if how != "model" and (len(fitting) > 1 or how == "exhaustive"):
        from leanconv.planning.tuning import fastest

        return fastest(problem, fitting, memory_limit, bound=bound, exhaustive=how == "exhaustive", budget=budget)
    return fitting[0].plan


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
