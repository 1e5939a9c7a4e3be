"""The ways to compute a layer of a network, in the bytes that add up and those of which the largest counts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from leanconv.classes import dataclass, replace
from leanconv.errors import NotApplicableError
from leanconv.planning.candidates import Candidate, algorithm_named, candidates, fits
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
    problem: Problem, threads: int, limit: int | None, requirements: tuple[Any, str, bool]
) -> list[LayerOption]:
    """The ways to compute a layer of which none is both slower and larger than another.

    Args:
        problem: the layer.
        threads: the most threads.
        limit: bytes, or None; with any limit, ways that stage less are among them.
        requirements: algorithm, accuracy and deterministic, as in `plan_layers`.

    Raises:
        NotApplicableError: no algorithm that may run can compute it.
    """
    allowed = wanted(*requirements, problem)
    reasons = {name: refusal(algorithm_named(name), problem) for name in allowed.names}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        name, reason = next(iter(reasons.items()))
        raise NotApplicableError(name, f"{reason} ({problem.describe()})")
    return list(_options(problem, tuple(names), threads, (None,) if limit is None else BUDGETS))


@lru_cache(maxsize=4096)
def _options(
    problem: Problem, names: tuple[str, ...], threads: int, budgets: tuple[int | None, ...]
) -> tuple[LayerOption, ...]:
    """The ways of these algorithms within each budget; kept, because a frontier asks again and again."""
    from leanconv.planning.model import least_seconds

    bias = problem.out_channels * problem.itemsize if problem.has_bias else 0
    least = {name: least_seconds(problem, algorithm_named(name), threads) for name in names}
    found: list[LayerOption] = []
    free = math.inf  # seconds of the fastest way that takes no bytes
    for name in sorted(names, key=least.__getitem__):
        if least[name] > free:  # slower, and no smaller
            break
        entry: Candidate | None = None
        for budget in budgets:
            if entry is not None and fits(entry, budget):
                continue  # what fits already need not be smaller
            (entry,) = candidates(problem, (name,), threads, budget, bound=True)
            plan = entry.plan
            weights = max(0, plan.packed_weight_bytes - problem.w_bytes - bias)
            option = LayerOption(entry, problem.layout, plan.workspace_bytes, weights, entry.predicted_seconds)
            found.append(option)
            if not option.workspace and not weights:
                free = min(free, option.seconds)
    # What is slower and larger than another can never be chosen; of equals the first of the registry is kept.
    places = {name: place for place, name in enumerate(names)}
    found.sort(key=lambda o: (o.seconds, o.workspace, o.weights, places[o.candidate.name]))
    kept: list[LayerOption] = []
    for option in found:
        if not any(other.workspace <= option.workspace and other.weights <= option.weights for other in kept):
            kept.append(option)
    return tuple(kept)


forget_with(_options.cache_clear)


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
