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
from typing import Any

from leanconv.classes import dataclass
from leanconv.errors import ArgumentValueError, MemoryLimitError
from leanconv.memory import Arena
from leanconv.plan import Plan
from leanconv.planning.frontier import Frontier
from leanconv.planning.layer_choices import cheapest_path, choice_within, conversion, leaner_choice, total_seconds
from leanconv.planning.layer_options import LayerOption, in_layout, layer_options
from leanconv.problem import BATCH_LAST, Problem

LAYOUTS = ("NHWC", "NCHW")


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
    for level in reversed(_levels(table)):
        allowed = [[option for option in row if option.workspace <= level] for row in table]
        if not all(allowed):
            continue
        if best is not None:  # weights that cost nothing are a bound, and the less workspace the higher it is
            fastest = cheapest_path(layers, allowed, 0.0, chain, first)
            if total_seconds(layers, fastest, first, chain) > best[0]:
                break
        spare = None if limit is None else limit - level
        chosen = choice_within(layers, allowed, spare, chain, first)
        if chosen is None:
            need = level + sum(min(option.weights for option in row) for row in allowed)
            least = need if least is None else min(least, need)
            continue
        seconds = total_seconds(layers, chosen, first, chain)
        if best is None or seconds <= best[0]:
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
    return _network(layers, leaner_choice(rows, best[1], leaner * best[0]), first, chain)


def frontier(layers: Sequence[tuple[str, Problem]], threads: int, **options: Any) -> Frontier:
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
    kept = Frontier()
    kept.threads = threads
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
                known[problem] = layer_options(problem, threads, limit, requirements, limit)
            row += known[problem]
        result.append(row)
    return result


def _levels(table: list[list[LayerOption]]) -> list[int]:
    return sorted({option.workspace for row in table for option in row})


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
