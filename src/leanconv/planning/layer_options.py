"""The ways to compute a layer of a network, in the bytes that add up and those of which the largest counts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from leanconv.classes import dataclass, replace
from leanconv.errors import NotApplicableError
from leanconv.planning.candidates import Candidate, Terms, algorithm_named, candidates
from leanconv.planning.wanted import wanted
from leanconv.problem import Problem, dense_strides
from leanconv.registry import forget_with
from leanconv.staging import refusal

BUDGETS = (None, 1 << 20, 256 << 10, 64 << 10, 0)  # limits of single layers that are tried


@dataclass(frozen=True, slots=True)
class LayerOption:
    """A candidate of a layer, in the bytes that add up and those of which the largest counts.

    Attributes:
        candidate: the plan and its time.
        layout: of its tensors.
        workspace: bytes of workspace.
        weights: bytes of packed weights beyond the plain ones.
        seconds: predicted.
    """

    candidate: Candidate
    layout: str
    workspace: int
    weights: int
    seconds: float


def layer_options(
    problem: Problem,
    threads: int,
    limit: int | None,
    requirements: tuple[Any, str, bool],
    most: int | None = None,
) -> list[LayerOption]:
    """The ways to compute a layer of which none is both slower and larger than another.

    Args:
        problem: the layer.
        threads: the most threads.
        limit: bytes, or None; with any limit, ways that stage less are among them.
        requirements: algorithm, accuracy and deterministic, as in `plan_layers`.
        most: bytes that no layer may pass by itself, if there are such.

    Raises:
        NotApplicableError: no algorithm that may run can compute it.
    """
    allowed = wanted(*requirements, problem)
    reasons = {name: refusal(algorithm_named(name), problem) for name in allowed.names}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        name, reason = next(iter(reasons.items()))
        raise NotApplicableError(name, f"{reason} ({problem.describe()})")
    budgets: tuple[int | None, ...] = (None,) if limit is None else BUDGETS
    if most is not None:
        budgets = (most, *(budget for budget in BUDGETS if budget is not None and budget < most))
    return list(_options(problem, tuple(names), threads, budgets))


@lru_cache(maxsize=4096)
def _options(
    problem: Problem, names: tuple[str, ...], threads: int, budgets: tuple[int | None, ...]
) -> tuple[LayerOption, ...]:
    """The ways of these algorithms within each budget."""
    from leanconv.planning.model import least_seconds

    least = {name: least_seconds(problem, algorithm_named(name), threads) for name in names}
    found: list[LayerOption] = []
    free = math.inf  # seconds of the fastest way that takes no bytes
    for name in sorted(names, key=least.__getitem__):
        if least[name] > free:  # slower, and no smaller
            break
        option: LayerOption | None = None
        for budget in budgets:
            if option is not None and budget is not None and 2 * option.candidate.needed_bytes <= budget:
                continue  # what takes half of it already need not be smaller
            option = _option(problem, name, threads, budget)
            found.append(option)
            if not option.workspace and not option.weights:
                free = min(free, option.seconds)
    # What is slower and larger than another can never be chosen; of equals the first of the registry is kept.
    places = {name: place for place, name in enumerate(names)}
    found.sort(key=lambda o: (o.seconds, o.workspace, o.weights, places[o.candidate.name]))
    kept: list[LayerOption] = []
    for option in found:
        if not any(other.workspace <= option.workspace and other.weights <= option.weights for other in kept):
            kept.append(option)
    return tuple(kept)


@lru_cache(maxsize=8192)
def _option(problem: Problem, name: str, threads: int, budget: int | None) -> LayerOption:
    """One algorithm within one budget; kept, because a frontier asks again and again."""
    (entry,) = candidates(problem, (name,), Terms(threads, budget))
    bias = problem.out_channels * problem.itemsize if problem.has_bias else 0
    weights = max(0, entry.plan.packed_weight_bytes - problem.w_bytes - bias)
    return LayerOption(entry, problem.layout, entry.plan.workspace_bytes, weights, entry.predicted_seconds)


forget_with(_options.cache_clear)
forget_with(_option.cache_clear)


def in_layout(problem: Problem, layout: str) -> Problem:
    """The same layer on dense arrays of a layout."""
    x = (problem.batch, problem.in_channels, *problem.in_size)
    out = (problem.batch, problem.out_channels, *problem.out_size)
    return replace(
        problem,
        layout=layout,
        x_strides=dense_strides(x, layout),
        out_strides=dense_strides(out, layout),
        residual_strides=dense_strides(out, layout) if problem.residual else None,
    )
