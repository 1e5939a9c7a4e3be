"""`leanconv bench LAYERS --scaling`: the time on one thread over that on several, which take turns in one run.

Times of different numbers of threads that were measured one after the other compare the machine's minutes as much as
the threads. Here every round takes a sample of each. All numbers of threads run the same algorithm: the one that was
named, or the one that is chosen for the largest number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from leanconv.bench.check import Trial, make_trial
from leanconv.bench.contest import recorded
from leanconv.bench.contestants import Contestant
from leanconv.bench.grid import print_grid
from leanconv.bench.intervals import factor_interval
from leanconv.bench.layers import Layer
from leanconv.bench.report import Row
from leanconv.bench.sampling import sample
from leanconv.bench.settings import ALL, Engine, default_engine
from leanconv.bench.table import format_seconds
from leanconv.bench.turns import Schedule, take_turns
from leanconv.errors import ArgumentValueError
from leanconv.outputs import empty

GROUPS = ((50.0, float("inf")), (2.0, 50.0), (0.0, 2.0))  # MFLOP: small layers are told apart, for waking counts there


@dataclass(slots=True)
class Scaling:
    """One layer in one layout.

    Attributes:
        layer: its name.
        algorithm: what ran.
        layout: of the arrays.
        mflop: 1e6 operations of a call.
        threads: the numbers of threads, rising.
        seconds: of each sample, by number of threads; samples of the same place are of the same round.
        reason: why there are no times, or "".
    """

    layer: str
    algorithm: str
    layout: str
    mflop: float
    threads: Sequence[int]
    seconds: dict[int, list[float]] = field(default_factory=dict)
    reason: str = ""

    def speedup(self, threads: int) -> tuple[float, float, float]:
        """Return the time on the fewest threads over that on these, between the ends of its 95 % interval."""
        found = factor_interval(self.seconds[self.threads[0]], self.seconds[threads], 0.95)
        return found.low, found.ratio, found.high


def measure(
    layers: Sequence[Layer],
    algorithm: str,
    layouts: Sequence[str],
    threads: Sequence[int],
    schedule: Schedule,
    engine: Engine | None = None,
) -> list[Scaling]:
    """Measure each layer in each layout; what does not apply or fails has a reason in place of times."""
    engine = engine or default_engine()
    results = []
    for layer in layers:
        trial = make_trial(layer, "float32", 0)
        results += [_layer(engine, layer, trial, algorithm, layout, sorted(threads), schedule) for layout in layouts]
    return results


def _layer(
    engine: Engine,
    layer: Layer,
    trial: Trial,
    algorithm: str,
    layout: str,
    threads: Sequence[int],
    schedule: Schedule,
) -> Scaling:
    result = Scaling(layer.name, algorithm, layout, layer.problem().flops / 1e6, threads)
    rows = [Row(layer.name, algorithm, layout, count) for count in threads]

    def attempt(row: Row, action: Callable[[], None]) -> None:
        with recorded(row):
            action()

    contestants: list[Contestant] = []

    def ready() -> None:
        problem = layer.problem(layout, "float32", bias=True)
        options: dict[str, Any] = {**layer.options(layout), "dtype": "float32", "bias": True}
        x, out = trial.image(layout), empty(problem.out_shape, "float32")
        for row in reversed(rows):
            plan = engine.plan(*layer.shapes(layout), **options, algorithm=result.algorithm, threads=row.threads)
            result.algorithm = plan.algorithm
            bound = plan.bind(trial.w, trial.bias)

            def call(bound: Any = bound) -> object:
                return bound(x, out=out)

            call()
            contestants.insert(0, Contestant(row, lambda calls, call=call: sample(call, calls)))  # type: ignore[misc]

    attempt(rows[0], ready)
    if not rows[0].reason:
        take_turns(contestants, schedule, lambda: engine.fma_peak(threads=1), attempt)
    result.reason = next((row.reason for row in rows if row.reason), "")
    common = set.intersection(*({entry.round for entry in row.samples} for row in rows))
    if not result.reason:
        for row in rows:
            result.seconds[row.threads] = [entry.seconds for entry in row.samples if entry.round in common]
    return result


def command(layers: Sequence[Layer], options: argparse.Namespace, engine: Engine | None = None) -> int:
    """`leanconv bench --scaling` on layers that are known; returns the exit code.

    Raises:
        ArgumentValueError: one number of threads only, or not one algorithm.
    """
    if len(set(options.threads)) < 2:
        raise ArgumentValueError("--threads", ",".join(map(str, options.threads)), "must be two numbers or more: 1,2")
    algorithms = ("auto",) if options.algorithms == (ALL,) else options.algorithms
    if len(algorithms) != 1 or "@" in algorithms[0]:
        raise ArgumentValueError("--algorithms", ",".join(algorithms), "must be one algorithm, or auto")
    schedule = Schedule(options.time, options.rounds, 0.0, 0.03)
    results = measure(layers, algorithms[0], options.layout, options.threads, schedule, engine)
    show(results, Console(stderr=options.json == "-"))
    text = json.dumps([asdict(result) for result in results], indent=1)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    elif options.json:
        Path(options.json).write_text(text, encoding="utf-8")
    return int(any(result.reason for result in results))


def show(results: Sequence[Scaling], console: Console) -> None:
    """Print a line a layer, and the geometric means over layers of about a size."""
    counts = sorted({count for result in results for count in result.threads})
    lines = []
    for result in results:
        cells = [result.layer, result.algorithm, result.layout, f"{result.mflop:.1f}"]
        if result.reason:
            lines.append([*cells, result.reason])
            continue
        cells += [format_seconds(statistics.median(result.seconds[count])) for count in counts]
        for count in counts[1:]:
            low, ratio, high = result.speedup(count)
            cells.append(f"{ratio:.2f} ({low:.2f}-{high:.2f})")
        lines.append(cells)
    headings = ["layer", "algorithm", "layout", "MFLOP"]
    headings += [f"{count} thread{'s' if count > 1 else ''}" for count in counts] + [
        f"x {count}" for count in counts[1:]
    ]
    grid = [[Text(cell) for cell in cells] for cells in lines]
    print_grid(console, headings, [grid], left=3)
    for low, high in GROUPS:
        part = [result for result in results if result.seconds and low <= result.mflop < high]
        for count in counts[1:] if part else []:
            ratios = [result.speedup(count)[1] for result in part]
            size = f"above {low:g} MFLOP" if high == float("inf") else f"{low:g} to {high:g} MFLOP"
            mean = statistics.geometric_mean(ratios)
            console.print(f"{size}: {mean:.2f} on {count} threads, lowest {min(ratios):.2f}, {len(part)} layers")
