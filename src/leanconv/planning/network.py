"""Layers planned together: one workspace for all, packed weights for each, layouts and their conversions for a chain.

The workspace of a network is the largest of its layers', for one runs after the other; packed weights add up. Under a
limit L each level of workspace V that some candidate needs is tried: candidates of at most V remain, and L - V is left
for weights beyond their plain size, spent by a price for a byte that is bisected (near the best, and never above L).
For a chain the layout of every tensor is chosen by the shortest path through two states a layer (Anderson and Gregg,
CGO 2018, solve general graphs by PBQP; on a chain dynamic programming is exact).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from leanconv.classes import dataclass, replace
from leanconv.errors import ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.memory import Arena
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, algorithm_named, candidates
from leanconv.planning.figures import figures
from leanconv.planning.wanted import wanted
from leanconv.problem import BATCH_LAST, Problem, dense_strides
from leanconv.registry import forget_with
from leanconv.staging import refusal

LAYOUTS = ("NHWC", "NCHW")
BUDGETS = (None, 1 << 20, 256 << 10, 64 << 10, 0)  # limits of single layers that are tried
BYTE = 1e-10  # seconds that a byte saved may cost at most: its first touch, 0.1 us a KiB
CONVERTED = 4.0  # slots of an element that changes its layout, as measured for transposes and copies


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of a network.

    Attributes:
        name: of the layer.
        layout: of its tensors.
        plan: what computes it.
        predicted_seconds: of the layer.
        conversion_seconds: of turning its input into this layout; 0 if it lies so.
    """

    name: str
    layout: str
    plan: Plan
    predicted_seconds: float
    conversion_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Plans of all layers.

    Attributes:
        steps: one for each layer.
        workspace_bytes: one block for all layers, the largest that one needs.
        packed_weight_bytes: of all layers together.
        needed_bytes: workspace, and what packed weights take beyond the plain ones.
        predicted_seconds: of one pass, conversions included.
    """

    steps: tuple[Step, ...]
    workspace_bytes: int
    packed_weight_bytes: int
    needed_bytes: int
    predicted_seconds: float

    @property
    def tensor_bytes(self) -> int:
        """Image and output of the layer that has most; tensors that later layers still need are not among them."""
        problems = (step.plan.problem for step in self.steps)
        return max((problem.x_bytes + problem.out_bytes for problem in problems), default=0)

    def __str__(self) -> str:
        """A table."""
        from leanconv.planning.text import network_text

        return network_text(self)


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


def plan_layers(
    layers: Sequence[tuple[str, Problem]],
    threads: int,
    limit: int | None,
    *,
    chain: bool = False,
    algorithm: Any = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    leaner: float = 0.0,
) -> NetworkPlan:
    """Plan layers under one limit.

    Args:
        layers: names and problems. In a chain the layouts of the problems are free, but for the first input.
        threads: the most threads of a layer.
        limit: bytes of workspace and of packed weights beyond the plain ones, or None.
        chain: whether each layer reads what the one before wrote, so that layouts may be chosen.
        algorithm: what may run, as in `plan`; so are accuracy and deterministic.
        accuracy: see there.
        deterministic: see there.
        leaner: without a limit, the part of the shortest time predicted by which the network may take longer if that
            saves packed weights.

    Raises:
        ArgumentValueError: a chain of layers with the batch last, which has no layouts to choose between.
        NotApplicableError: no algorithm that may run can compute a layer.
        MemoryLimitError: no plans fit the limit; says the least that would do.
    """
    for name, problem in layers if chain else ():
        if problem.layout in BATCH_LAST:
            rule = f"must be in NCHW or NHWC, between which a chain chooses; {name} is in {problem.layout}"
            raise ArgumentValueError("layers", [problem.describe() for _, problem in layers], rule)
    table = _options(layers, threads, limit, chain, (algorithm, accuracy, deterministic))
    first = layers[0][1].layout if layers else "NHWC"
    best: tuple[float, list[LayerOption]] | None = None
    least: int | None = None
    for level in _levels(table):
        allowed = [[option for option in row if option.workspace <= level] for row in table]
        if not all(allowed):
            continue
        spare = None if limit is None else limit - level
        chosen = _within(layers, allowed, spare, chain, first)
        if chosen is None:
            need = level + sum(min(option.weights for option in row) for row in allowed)
            least = need if least is None else min(least, need)
            continue
        seconds = _total(layers, chosen, first, chain)
        if best is None or seconds < best[0]:
            best = seconds, chosen
    if best is None:
        if not layers:
            return NetworkPlan((), 0, 0, 0, 0.0)
        assert limit is not None and least is not None
        raise MemoryLimitError(limit, least, f"the network of {len(layers)} layers")
    if limit is not None or not leaner:
        return _network(layers, best[1], first, chain)
    level = max(option.workspace for option in best[1])
    rows = [[option for option in row if option.workspace <= level] for row in table]
    return _network(layers, _leaner(rows, best[1], leaner * best[0]), first, chain)


def frontier(layers: Sequence[tuple[str, Problem]], threads: int, **options: Any) -> list[tuple[int, float]]:
    """Time against memory: (bytes needed, seconds), fewest bytes first, each point faster than those before.

    Args:
        layers: as in `plan_layers`; so are threads and the options.
        threads: see there.
        **options: chain, algorithm, accuracy, deterministic.
    """
    points: list[tuple[int, float]] = []
    found = plan_layers(layers, threads, None, **options)
    limit = found.needed_bytes
    points.append((limit, found.predicted_seconds))
    while limit > 0:
        try:
            found = plan_layers(layers, threads, limit * 3 // 4 if limit > 4096 else 0, **options)
        except MemoryLimitError as error:
            if error.needed >= limit:
                break
            found = plan_layers(layers, threads, error.needed, **options)
        if found.needed_bytes >= limit:
            break
        limit = found.needed_bytes
        points.append((limit, found.predicted_seconds))
    points.reverse()
    kept: list[tuple[int, float]] = []
    for nbytes, seconds in points:
        if not kept or seconds < kept[-1][1]:
            kept.append((nbytes, seconds))
    return kept


def _options(
    layers: Sequence[tuple[str, Problem]],
    threads: int,
    limit: int | None,
    chain: bool,
    requirements: tuple[Any, str, bool],
) -> list[list[LayerOption]]:
    """All that may compute each layer: unlimited, and within some limits that make staging smaller."""
    known: dict[Problem, list[LayerOption]] = {}
    result = []
    for _, given in layers:
        row: list[LayerOption] = []
        for problem in [in_layout(given, layout) for layout in LAYOUTS] if chain else [given]:
            if problem not in known:
                known[problem] = layer_options(problem, threads, limit, requirements)
            row += known[problem]
        result.append(row)
    return result


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
    budgets = (None,) if limit is None else BUDGETS
    bias = problem.out_channels * problem.itemsize if problem.has_bias else 0
    found: dict[tuple[str, int, int], LayerOption] = {}
    for budget in budgets:
        for entry in _candidates(problem, tuple(names), threads, budget):
            plan = entry.plan
            weights = max(0, plan.packed_weight_bytes - problem.w_bytes - bias)
            option = LayerOption(entry, problem.layout, plan.workspace_bytes, weights, entry.predicted_seconds)
            found.setdefault((entry.name, option.workspace, weights), option)
    # What is slower and larger than another can never be chosen; of equals the first is kept.
    kept: list[LayerOption] = []
    for option in sorted(found.values(), key=lambda option: (option.seconds, option.workspace, option.weights)):
        if not any(other.workspace <= option.workspace and other.weights <= option.weights for other in kept):
            kept.append(option)
    return kept


@lru_cache(maxsize=4096)
def _candidates(problem: Problem, names: tuple[str, ...], threads: int, budget: int | None) -> list[Candidate]:
    """Kept, because a frontier asks again and again."""
    return candidates(problem, names, threads, budget, bound=True)


forget_with(_candidates.cache_clear)


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


def _levels(table: list[list[LayerOption]]) -> list[int]:
    return sorted({option.workspace for row in table for option in row})


def _within(
    layers: Sequence[tuple[str, Problem]], rows: list[list[LayerOption]], spare: int | None, chain: bool, first: str
) -> list[LayerOption] | None:
    """The fastest choice whose weights take at most `spare` bytes beyond the plain ones, nearly; None if none does."""
    if spare is not None and sum(min(option.weights for option in row) for row in rows) > spare:
        return None
    # A price for a byte turns the limit into a sum: the dearer, the fewer bytes (Lagrange); bisected.
    chosen = _path(layers, rows, 0.0, chain, first)
    if spare is None or sum(option.weights for option in chosen) <= spare:
        return chosen
    low, high = 0.0, 1.0
    best = _path(layers, rows, high, chain, first)
    if sum(option.weights for option in best) > spare:
        best = [min(row, key=lambda option: (option.weights, option.seconds)) for row in rows]
    for _ in range(24):
        middle = (low * high) ** 0.5 if low else high / 64
        chosen = _path(layers, rows, middle, chain, first)
        if sum(option.weights for option in chosen) <= spare:
            best, high = chosen, middle
        else:
            low = middle
    return _filled(rows, best, spare)


def _leaner(rows: list[list[LayerOption]], chosen: list[LayerOption], spare: float) -> list[LayerOption]:
    """A choice less what its bytes are not worth: most bytes for a second first, so many seconds in all."""
    chosen = list(chosen)
    while True:
        swaps = [
            ((now.weights - option.weights) / max(option.seconds - now.seconds, 1e-12), at, option)
            for at, (now, row) in enumerate(zip(chosen, rows, strict=True))
            for option in row
            if option.layout == now.layout and option.weights < now.weights and option.seconds - now.seconds <= spare
        ]
        worth, at, option = max(swaps, key=lambda swap: swap[0], default=(0.0, 0, None))
        if option is None or worth * BYTE < 1:
            return chosen
        spare -= option.seconds - chosen[at].seconds
        chosen[at] = option


def _filled(rows: list[list[LayerOption]], chosen: list[LayerOption], spare: int) -> list[LayerOption]:
    """A choice with what a price for a byte left unspent: the swap that saves most time first, layouts as they are."""
    chosen, left = list(chosen), spare - sum(option.weights for option in chosen)
    while True:
        swaps = [
            (now.seconds - option.seconds, at, option)
            for at, (now, row) in enumerate(zip(chosen, rows, strict=True))
            for option in row
            if option.layout == now.layout and option.seconds < now.seconds and option.weights - now.weights <= left
        ]
        if not swaps:
            return chosen
        _, at, option = max(swaps, key=lambda swap: swap[0])
        left -= option.weights - chosen[at].weights
        chosen[at] = option


def _path(
    layers: Sequence[tuple[str, Problem]], rows: list[list[LayerOption]], price: float, chain: bool, first: str
) -> list[LayerOption]:
    """The cheapest choice at a price in seconds for each byte of weights; over layouts if it is a chain."""

    def cost(option: LayerOption) -> float:
        return option.seconds + price * option.weights

    if not chain:
        return [min(row, key=cost) for row in rows]
    states: dict[str, tuple[float, list[LayerOption]]] = {first: (0.0, [])}
    for (_, problem), row in zip(layers, rows, strict=True):
        after: dict[str, tuple[float, list[LayerOption]]] = {}
        for layout in {option.layout for option in row}:
            option = min((o for o in row if o.layout == layout), key=cost)
            total, path = min(
                ((t + conversion(problem, before, layout), p) for before, (t, p) in states.items()),
                key=lambda entry: entry[0],
            )
            after[layout] = total + cost(option), [*path, option]
        states = after
    return min(states.values(), key=lambda entry: entry[0])[1]


def conversion(problem: Problem, before: str, after: str) -> float:
    """Seconds of turning a layer's input from one layout into another."""
    if before == after or problem.in_channels == 1:
        return 0.0
    return problem.x_bytes / problem.itemsize * CONVERTED * figures().slot


def _total(layers: Sequence[tuple[str, Problem]], chosen: list[LayerOption], first: str, chain: bool) -> float:
    total, layout = 0.0, first
    for (_, problem), option in zip(layers, chosen, strict=True):
        total += option.seconds + (conversion(problem, layout, option.layout) if chain else 0.0)
        layout = option.layout
    return total


def _network(layers: Sequence[tuple[str, Problem]], chosen: list[LayerOption], first: str, chain: bool) -> NetworkPlan:
    workspace = max(option.workspace for option in chosen)
    arena = Arena(workspace)  # one for all layers: each on its own would keep what it had
    steps, layout = [], first
    for (name, problem), option in zip(layers, chosen, strict=True):
        turned = conversion(problem, layout, option.layout) if chain else 0.0
        entry = option.candidate.plan
        plan = copy.copy(entry)  # candidates are kept for other networks
        plan.arena = arena
        steps.append(Step(name, option.layout, plan, option.seconds, turned))
        layout = option.layout
    return NetworkPlan(
        steps=tuple(steps),
        workspace_bytes=workspace,
        packed_weight_bytes=sum(step.plan.packed_weight_bytes for step in steps),
        needed_bytes=workspace + sum(option.weights for option in chosen),
        predicted_seconds=sum(step.predicted_seconds + step.conversion_seconds for step in steps),
    )
