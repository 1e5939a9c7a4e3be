"""Timing all that "auto" weighs for layers, in turns, to see how far its choices are from the fastest.

The result is a report as `planning/error.py` reads it: JSON's types only, one row for each candidate, and the choice
that `choose="measure"` made from samples of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.bench.sampling import sample
from leanconv.errors import LeanconvError
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, Terms, algorithm_named, candidate, candidates
from leanconv.planning.choice import choose
from leanconv.planning.tuning import example_arrays, ready_call
from leanconv.planning.wanted import wanted
from leanconv.problem import Problem
from leanconv.staging import refusal

SAMPLE = 1e-3  # seconds that a sample lasts at least
SEVERAL, LONG = 4, 5e-3  # calls a sample has at least, so that threads are awake, unless a call lasts so many seconds
LEAST = 5  # rounds
HOPELESS = 2.5  # times the fastest after one sample: not sampled again


@dataclass
class _Turn:
    """A candidate, ready to be called, and its samples."""

    entry: Candidate
    call: Callable[[], object]
    calls: int = 1
    samples: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Time some calls, again if others used the CPUs meanwhile."""
        self.samples.append(sample(self.call, self.calls))


def measure_choices(
    layers: Iterable[Layer],
    layouts: Sequence[str],
    threads: Sequence[int],
    limits: Sequence[int | None] = (None,),
    *,
    dtype: str = "float32",
    seconds: float = 0.03,
    measure: bool = False,
    known: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time every candidate of every layer; gives a report of each layer, layout, number of threads and limit.

    Args:
        layers: what is measured; a layer that a layout cannot hold is left out there.
        layouts: of the arrays.
        threads: most threads, each number on its own.
        limits: memory limits in bytes, each on its own; None for none.
        dtype: element type.
        seconds: for each candidate, but for `LEAST` rounds.
        measure: whether to note what `choose="measure"` takes, too.
        known: a report; what it holds is not measured again.
    """
    rows = known["rows"] if known else ()
    done = {(row["layer"], row["layout"], row["threads"], row.get("limit")) for row in rows}
    for layer in layers:
        about = {**asdict(layer), "flops": layer.problem("NCHW", dtype).flops}
        for layout, most, limit in product(layouts, threads, limits):
            if (layer.name, layout, most, limit) in done:
                continue
            try:
                problem = layer.problem(layout, dtype, bias=True)
            except LeanconvError:
                continue
            at = {"layer": layer.name, "layout": layout, "threads": most, "limit": limit}
            rows, taken = _layer(problem, most, limit, seconds, measure)
            yield {
                "settings": {"dtype": dtype},
                "layers": [about],
                "rows": [{**at, **row} for row in rows],
                "measured": [{**at, **taken}] if taken else [],
            }


def contest(problem: Problem, threads: int, limit: int | None) -> list[Candidate]:
    """What "auto" chooses from, its choice first, and each of it on one thread too where that might be faster."""
    allowed = wanted("auto", "standard", False, problem)
    names = [name for name in allowed.names if refusal(algorithm_named(name), problem) is None]
    terms = Terms(threads, limit)
    found = [entry for entry in candidates(problem, names, terms) if terms.kept(entry.plan)]
    if threads > 1:
        seen = {(entry.name, entry.threads) for entry in found}
        for name in names:
            for count in (1, threads):
                entry = candidate(problem, algorithm_named(name), terms.on(count))
                near = entry.predicted_seconds < HOPELESS * found[0].predicted_seconds
                if near and terms.kept(entry.plan) and (entry.name, count) not in seen:
                    found.append(entry)
    return found


def _layer(
    problem: Problem, threads: int, limit: int | None, seconds: float, measure: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Rows of a layer, and what "measure" takes."""
    found = contest(problem, threads, limit)
    arrays = example_arrays(problem)
    turns: list[_Turn] = []
    for entry in found:
        turn = _Turn(entry, ready_call(entry.plan, arrays, bound=True))
        turn.call()
        turn.sample()
        turn.calls = max(SEVERAL if turn.samples[0] < LONG else 1, int(SAMPLE / turn.samples[0]))
        turn.sample()
        turns.append(turn)
    best = min(min(turn.samples) for turn in turns)
    running = [turn for turn in turns if min(turn.samples) <= HOPELESS * best]
    end, rounds = time.perf_counter() + seconds * len(running), 0
    while rounds < LEAST or time.perf_counter() < end:
        for turn in running:
            turn.sample()
        rounds += 1
    rows = [
        {
            **_about(turn.entry.plan),
            "seconds": min(turn.samples),
            "predicted": turn.entry.predicted_seconds,
            "needed_bytes": turn.entry.needed_bytes,
        }
        for turn in turns
    ]
    return rows, _about(choose(problem, "auto", threads, limit, how="measure")) if measure else None


def _about(plan: Plan) -> dict[str, Any]:
    """What tells a plan from the other candidates of its problem."""
    return {"algorithm": plan.algorithm, "ran": plan.algorithm, "used": plan.threads}
