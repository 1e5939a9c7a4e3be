"""The measurements that claims are judged by: layers, their batch as memory allows, and the run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leanconv.bench.catalogue import resolve
from leanconv.bench.layers import Layer
from leanconv.bench.peers import named
from leanconv.bench.run import Progress, run
from leanconv.bench.settings import Engine, Settings, default_engine
from leanconv.classes import replace
from leanconv.errors import LeanconvError, MemoryLimitError
from leanconv.reproduce.checks import NOT_YET, Measured, Outcome
from leanconv.reproduce.claims import Claim, Experiment, Paper

# Part of the available memory that a measurement may take; the rest is left to the system and to other programs.
SHARE = 0.5


@dataclass(frozen=True)
class Effort:
    """How much is measured: `batch` instead of the papers', None for theirs; seconds and rounds as in the bench."""

    batch: int | None = None
    time: float = 0.2
    rounds: int = 10


QUICK = Effort(1, 0.05, 6)


def reproduce(
    paper: Paper,
    effort: Effort,
    *,
    command: Sequence[str] = (),
    engine: Engine | None = None,
    progress: Progress | None = None,
    available: int | None = None,
) -> tuple[dict[str, Measured], list[tuple[Claim, Outcome]]]:
    """Measure what a paper's claims need, and judge them.

    Args:
        paper: which.
        effort: how much to measure.
        command: the command line, for the reports.
        engine: what is measured; leanconv itself if None.
        progress: called with what is measured now.
        available: bytes of memory; what the system says if None.

    Returns:
        Measurements by the name of the experiment, and each claim with its outcome.

    Raises:
        MemoryLimitError: a layer does not fit even with one image.
    """
    engine = engine or default_engine()
    budget = int(SHARE * (available or available_memory()))
    measured: dict[str, Measured] = {}
    for experiment in paper.experiments:
        measured[experiment.name] = _measure(experiment, effort, engine, budget, command, progress)
        if measured[experiment.name].report.interrupted:
            break
    return measured, [(claim, _judge(claim, measured)) for claim in paper.claims]


def _judge(claim: Claim, measured: dict[str, Measured]) -> Outcome:
    known = known_algorithms()
    if claim.check.needs and not any(name in known for name in claim.check.needs):
        missing = " or ".join(claim.check.needs)
        return Outcome(NOT_YET, why=f"algorithm {missing} is not there")
    experiment = claim.check.experiment
    if experiment and experiment not in measured:
        return Outcome(NOT_YET, why="the measurement was interrupted")
    return claim.check.judge(measured[experiment] if experiment else next(iter(measured.values())))


def known_algorithms() -> set[str]:
    """Return the names of all algorithms."""
    from leanconv.algorithms import REGISTRY

    return set(REGISTRY.names)


def _measure(
    experiment: Experiment,
    effort: Effort,
    engine: Engine,
    budget: int,
    command: Sequence[str],
    progress: Progress | None,
) -> Measured:
    # What does not exist yet, or is not installed, is not measured, nor is memory kept for it.
    experiment = replace(
        experiment,
        algorithms=tuple(name for name in experiment.algorithms if name in known_algorithms()),
        peers=tuple(info.name for info in named(experiment.peers) if not info.missing),
    )
    # A batch that was asked for is for the papers that have one; naive loops over it would take hours.
    batch = experiment.batch if effort.batch is None else min(effort.batch, experiment.batch)
    layers = [fit(layer, batch, experiment, engine, budget) for layer in resolve(experiment.layers)]
    settings = Settings(
        algorithms=experiment.algorithms,
        layouts=experiment.layouts,
        threads=experiment.threads,
        time=effort.time,
        rounds=effort.rounds,
        peers=experiment.peers,
        bandwidth=True,
    )
    report = run(layers, settings, command=command, engine=engine, progress=progress)
    return Measured(report, {layer.name: layer.problem() for layer in layers})


def fit(layer: Layer, batch: int, experiment: Experiment, engine: Engine, budget: int) -> Layer:
    """Return the layer with the batch, halved until all that is measured fits into a number of bytes.

    Raises:
        MemoryLimitError: it does not fit with one image.
    """
    while True:
        tried = replace(layer, batch=batch)
        needed = needed_bytes(tried, experiment, engine)
        if needed <= budget:
            return tried
        if batch == 1:
            raise MemoryLimitError(budget, needed, f"measuring layer {layer.name!r}")
        batch //= 2


def needed_bytes(layer: Layer, experiment: Experiment, engine: Engine) -> int:
    """Return the most bytes that measuring a layer takes at a time."""
    problem = layer.problem("NCHW")
    largest = 0
    for layout in experiment.layouts:
        for name in experiment.algorithms:
            try:
                options = {**layer.options(layout), "dtype": problem.dtype, "bias": True}
                plan = engine.plan(*layer.shapes(layout), **options, algorithm=name, threads=max(experiment.threads))
            except LeanconvError:
                continue  # it does not apply, which the run will record
            largest = max(largest, plan.workspace_bytes)
    # The image in each order, one output, what is compared, and plans whose packed weights live side by side.
    arrays = (1 + len(experiment.layouts)) * problem.x_bytes + 3 * problem.out_bytes
    plans = len(experiment.algorithms) * len(experiment.layouts) * problem.w_bytes
    if experiment.peers:
        # The other process: image, output, and the batch lowered at once.
        lowered = problem.group_in * problem.groups * problem.taps * math.prod(problem.out_size) * problem.itemsize
        arrays += problem.x_bytes + problem.out_bytes + problem.batch * lowered
    # All plans borrow the same block for their workspace; while it grows there are two.
    return arrays + plans + 2 * largest


def available_memory() -> int:
    """Return how many bytes may be taken without pushing others out: what the system says, and a container's limit."""
    try:
        words = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(words["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        # No Linux: half of what there is, as nobody says what is in use.
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available  # no limit: there is no such file, or it says "max"
    return min(available, max(limit - used, 0))
