"""Which algorithm runs: those that apply and fit the memory limit, in the registry's order those first that suit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.checks import integer, one_of
from leanconv.errors import ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.host import this_host
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.staging import refusal

NOT_AUTOMATIC = frozenset({"reference"})  # never chosen unasked: it is there to compare with


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
                error_bound=algorithm.error_bound(problem) if plan else None,
            )
        )
    return result


def choose(
    problem: Problem,
    name: str,
    threads: int,
    memory_limit: int | None,
    *,
    bound: bool = True,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of the named algorithm, or of the best that fits.

    `bound`: whether weights are packed beforehand; if not, all packed weights count as workspace.
    `parameters` are settings of the named algorithm.

    Raises:
        ArgumentValueError: no algorithm of that name.
        NotApplicableError: the named algorithm cannot compute the problem.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    names = [algorithm.name for algorithm in REGISTRY]
    if one_of("algorithm", name, ["auto", *names]) != "auto":
        candidates = [REGISTRY[names.index(name)]]
        reason = refusal(candidates[0], problem)
        if reason is not None:
            raise NotApplicableError(name, reason)
    else:
        candidates = [a for a in REGISTRY if a.name not in NOT_AUTOMATIC and refusal(a, problem) is None]
        candidates.sort(key=lambda algorithm: not algorithm.suits(problem, this_host()))
    tunables = _tunables(name, candidates[0], parameters)
    least: int | None = None
    for algorithm in candidates:
        plan = Plan(problem, algorithm, threads, memory_limit, tunables)
        needed = plan.extra_bytes if bound else plan.unbound_bytes
        if memory_limit is None or needed <= memory_limit:
            return plan
        least = needed if least is None else min(least, needed)
    assert least is not None and memory_limit is not None  # direct applies to every problem
    raise MemoryLimitError(memory_limit, least, f"{name} for {problem.describe()}")


def _tunables(name: str, algorithm: Algorithm, parameters: Mapping[str, int] | None) -> dict[str, int]:
    """The caller's settings, checked against those that the algorithm declares."""
    if not parameters:
        return {}
    if name == "auto":
        raise ArgumentValueError("parameters", dict(parameters), "must be empty unless an algorithm is named")
    for key in parameters:
        if key not in algorithm.tunables:
            known = ", ".join(algorithm.tunables) or "none"
            raise ArgumentValueError("parameters", dict(parameters), f"{name} has no {key!r} (it has: {known})")
    return {key: integer(f"parameters[{key!r}]", value, 1) for key, value in parameters.items()}
