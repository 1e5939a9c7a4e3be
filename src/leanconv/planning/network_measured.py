"""A network at its least memory, at twice that and without a limit, timed in turns.

The memory meant here is what a pass works in: image and output of the layer that has most, workspace, and what packed
weights take beyond the plain ones. Plain weights, which every way needs, are not part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from leanconv.classes import dataclass
from leanconv.errors import MemoryLimitError
from leanconv.planning.network import NetworkPlan, plan_layers
from leanconv.planning.text import seconds_text, table_text
from leanconv.planning.tuning import example_arrays, ready_call
from leanconv.problem import Problem
from leanconv.sizes import format_bytes

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Pass:
    """A network under a limit.

    Attributes:
        name: of the row.
        limit: in bytes, or None.
        plan: the plans of its layers.
        seconds: measured, of one call of every layer, the shortest of some rounds.
    """

    name: str
    limit: int | None
    plan: NetworkPlan
    seconds: float

    @property
    def memory(self) -> int:
        """Image and output of the layer that has most, and what counts against the limit."""
        return self.plan.tensor_bytes + self.plan.needed_bytes


def passes(
    layers: Sequence[tuple[str, Problem]],
    threads: int,
    limit: int | None,
    *,
    rounds: int = ROUNDS,
    leaner: float = 0.0,
    **options: Any,
) -> list[Pass]:
    """Time the network at its least memory, at twice that, at the limit if there is one, and without a limit.

    Args:
        layers: as in `plan_layers`, at least one; so are threads and the options.
        threads: see there.
        limit: a limit of the caller's, or None.
        rounds: how often the ways take turns.
        leaner: as in `plan_layers`; timed apart if it is another way.
        **options: algorithm, accuracy, deterministic.

    Raises:
        NotApplicableError: no algorithm that may run can compute a layer.
        MemoryLimitError: no plans fit the caller's limit.
    """
    free = plan_layers(layers, threads, None, **options)
    lean = plan_layers(layers, threads, None, **options, leaner=leaner)
    least = _least(layers, threads, options)
    twice = least.tensor_bytes + 2 * least.needed_bytes  # twice tensors and needed bytes, less the tensors
    ways: list[tuple[str, int | None, NetworkPlan]] = [("least memory", least.needed_bytes, least)]
    ways.append(("twice that", twice, plan_layers(layers, threads, twice, **options)))
    if limit is not None:
        ways.append(("the limit", limit, plan_layers(layers, threads, limit, **options)))
    if lean.needed_bytes < free.needed_bytes:
        ways.append(("leaner", None, lean))
    ways.append(("no limit", None, free))
    calls = [_calls(plan) for _, _, plan in ways]
    best = [float("inf")] * len(ways)
    for number in range(rounds + 1):
        for at, layer_calls in enumerate(calls):
            begin = time.perf_counter()
            for call in layer_calls:
                call()
            if number:  # the first round warms up
                best[at] = min(best[at], time.perf_counter() - begin)
    return [Pass(name, bound, plan, took) for (name, bound, plan), took in zip(ways, best, strict=True)]


def passes_text(found: Sequence[Pass]) -> str:
    """A table, with the speed beside that without a limit."""
    free = found[-1].seconds
    rows = [
        (
            entry.name,
            "-" if entry.limit is None else f"{entry.limit:,}",
            format_bytes(entry.plan.needed_bytes),
            format_bytes(entry.memory),
            seconds_text(entry.plan.predicted_seconds),
            seconds_text(entry.seconds),
            f"{free / entry.seconds:.0%}",
        )
        for entry in found
    ]
    titles = ("", "limit", "needed", "with tensors", "predicted", "measured", "speed")
    return table_text(titles, rows)


def _least(layers: Sequence[tuple[str, Problem]], threads: int, options: Any) -> NetworkPlan:
    try:
        return plan_layers(layers, threads, 0, **options)
    except MemoryLimitError as error:
        return plan_layers(layers, threads, error.needed, **options)


def _calls(plan: NetworkPlan) -> list[Callable[[], object]]:
    """A call of each layer; equal layers have weights of their own, as in the network, but share the other arrays."""
    arrays: dict[Problem, Any] = {}
    calls = []
    for step in plan.steps:
        problem = step.plan.problem
        if problem not in arrays:
            arrays[problem] = example_arrays(problem)
        calls.append(ready_call(step.plan, arrays[problem], bound=True))
    return calls
