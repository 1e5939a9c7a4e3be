"""Measuring: every algorithm on every layer, in turns, each result checked.

Clocks drift and machines are shared, so nothing is compared that was not measured side by side. All
algorithms of a layer take turns, A B C A B C ..., in several rounds; each round also measures the peak of
fused multiply-adds on as many threads, and the part of the peak is computed round by round. Inputs and
weights are normally distributed (never zeros, which some processors multiply faster). The output array is the
same for all, and is filled with NaN before the result that is checked. What is timed is the call of a bound
plan: weights are rearranged before, and that memory is reported.
"""

from __future__ import annotations

import datetime
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from leanconv.bench.check import TOLERANCE, Expectation, Trial, make_trial
from leanconv.bench.layers import Layer
from leanconv.bench.report import FAILED, NOT_APPLICABLE, WRONG, Report, Row, Sample
from leanconv.blas import blas_threads
from leanconv.errors import LeanconvError, NotApplicableError

# One sample lasts at least this long, so that the clock's resolution and one interrupt do not matter.
SHORTEST_SAMPLE = 2e-3

ALL = "all"
# Named by `all` if they apply, except the one that is there to be right and not to be fast.
_NOT_IN_ALL = ("reference",)

# Called with what is measured now, and how many of all steps are done.
Progress = Callable[[str, int, int], None]


class Engine(Protocol):
    """What is measured: these functions of `leanconv`."""

    def plan(self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **options: Any) -> Any:
        """Return a plan."""

    def algorithms(self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **options: Any) -> Sequence[Any]:
        """Return what each algorithm says about a problem."""

    def fma_peak(self, threads: int = 1, dtype: str = "float32") -> float:
        """Return GFLOP/s."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        algorithms: names, or "all" for every one that applies to a layer.
        layouts: "NHWC", "NCHW".
        threads: numbers of threads, each measured on its own.
        dtype: "float32" or "float64".
        time: seconds for each algorithm on each layer; one that takes longer than that for a call is timed
            once.
        rounds: how often the algorithms take turns, at most.
        seed: of the random arrays.
    """

    algorithms: tuple[str, ...] = (ALL,)
    layouts: tuple[str, ...] = ("NHWC",)
    threads: tuple[int, ...] = (1,)
    dtype: str = "float32"
    time: float = 0.2
    rounds: int = 10
    seed: int = 0


@dataclass
class _Candidate:
    """An algorithm that is ready to be timed."""

    row: Row
    call: Callable[[], object]
    rounds: int = 0


def default_engine() -> Engine:
    """Return leanconv itself."""
    import leanconv

    return cast(Engine, leanconv)


def run(
    layers: Sequence[Layer],
    settings: Settings,
    *,
    command: Sequence[str] = (),
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure the layers and return the report.

    An algorithm that fails on a layer, or computes something wrong there, becomes a row that says so. An
    interrupt (Ctrl-C) ends the run; the report then holds the layers that were finished.
    """
    from leanconv.doctor import machine_facts, versions

    engine = engine or default_engine()
    report = Report(list(command), asdict(settings), machine_facts(), versions(), started=_now())
    steps = len(layers) * len(settings.threads)
    try:
        for number, layer in enumerate(layers):
            trial = make_trial(layer, settings.dtype, settings.seed)
            for part, threads in enumerate(settings.threads):
                if progress:
                    progress(layer.name, number * len(settings.threads) + part, steps)
                with blas_threads(threads):
                    rows = _measure(engine, layer, trial, threads, settings)
                if part == 0:
                    flops = layer.problem("NCHW", settings.dtype).flops
                    report.layers.append({**asdict(layer), "shape": layer.short(), "flops": flops})
                report.rows += rows
    except KeyboardInterrupt:
        report.interrupted = True
    if progress:
        progress("", steps, steps)
    report.finished = _now()
    return report


def _measure(engine: Engine, layer: Layer, trial: Trial, threads: int, settings: Settings) -> list[Row]:
    """Return the rows of one layer on some threads."""
    rows: list[Row] = []
    candidates: list[_Candidate] = []
    for layout in settings.layouts:
        problem = layer.problem(layout, settings.dtype, bias=True)
        options = {**layer.options(layout), "dtype": settings.dtype, "bias": True}
        x = trial.image(layout)
        out = np.empty(problem.out_shape, dtype=settings.dtype)
        names, refusal = _names(engine, layer, layout, options, settings.algorithms)
        if refusal:
            rows.append(Row(layer.name, ALL, layout, threads, NOT_APPLICABLE, refusal))
        for name in names:
            row = Row(layer.name, name, layout, threads, flops=problem.flops)
            rows.append(row)
            with _recorded(row):
                call = _prepare(engine, layer, row, [x, trial.w, trial.bias, out], options)
                _check(row, call, out, trial.expected, settings.dtype)
                if not row.reason:
                    candidates.append(_Candidate(row, call))
    _take_turns(engine, candidates, threads, settings)
    return rows


def _names(
    engine: Engine, layer: Layer, layout: str, options: dict[str, Any], wanted: Sequence[str]
) -> tuple[list[str], str]:
    """Return the algorithms to measure, and why there are none if `all` finds none."""
    names = [name for name in wanted if name != ALL]
    if ALL not in wanted:
        return names, ""
    found = engine.algorithms(*layer.shapes(layout), **options)
    names += [i.name for i in found if i.applies and i.name not in (*names, *_NOT_IN_ALL)]
    reasons = [f"{i.name}: {i.reason}" for i in found if not i.applies]
    return names, "" if names else "no algorithm applies; " + "; ".join(reasons)


@contextmanager
def _recorded(row: Row) -> Iterator[None]:
    """Turn an exception into the row's status and reason."""
    try:
        yield
    except NotApplicableError as error:
        row.status, row.reason = NOT_APPLICABLE, error.reason
    except LeanconvError as error:
        row.status, row.reason = FAILED, str(error)
    except Exception as error:
        # A run over a hundred layers must not end because one kernel is broken in a way nobody thought of.
        row.status, row.reason = FAILED, f"{type(error).__name__}: {error}"


def _prepare(
    engine: Engine, layer: Layer, row: Row, arrays: list[NDArray[Any]], options: dict[str, Any]
) -> Callable[[], object]:
    """Plan and bind, fill in what the plan says, and return the call that is timed."""
    x, w, bias, out = arrays
    start = time.perf_counter()
    plan = engine.plan(*layer.shapes(row.layout), **options, algorithm=row.algorithm, threads=row.threads)
    bound = plan.bind(w, bias)
    row.prepare_seconds = time.perf_counter() - start
    row.ran = plan.algorithm
    row.parameters = dict(plan.parameters)
    row.workspace_bytes = plan.workspace_bytes
    row.packed_weight_bytes = plan.packed_weight_bytes
    return lambda: bound(x, out=out)


def _check(row: Row, call: Callable[[], object], out: NDArray[Any], expected: Expectation, dtype: str) -> None:
    """Run once into an output full of NaN and compare."""
    out.fill(np.nan)
    call()
    canonical = out if row.layout == "NCHW" else np.moveaxis(out, -1, 1)
    row.error, row.compared = expected.error(canonical), expected.compared
    if not row.error <= TOLERANCE[dtype]:
        unwritten = int(np.isnan(out).sum())
        row.status = WRONG
        row.reason = (
            f"{unwritten:,} of {out.size:,} outputs are NaN"
            if unwritten
            else (f"largest error is {row.error:.1e} of the largest output, {TOLERANCE[dtype]:.0e} is allowed")
        )


def _take_turns(engine: Engine, candidates: list[_Candidate], threads: int, settings: Settings) -> None:
    """Time the candidates in turns and fill in their rows."""
    for candidate in candidates:
        with _recorded(candidate.row):
            _calibrate(candidate, settings)
    candidates = [candidate for candidate in candidates if candidate.rounds]
    with _no_collection():
        for turn in range(settings.rounds if candidates else 0):
            peak = engine.fma_peak(threads=threads, dtype=settings.dtype)
            for candidate in candidates:
                # A slow candidate takes part in some rounds only, spread evenly over the run.
                if turn * candidate.rounds % settings.rounds < candidate.rounds:
                    with _recorded(candidate.row):
                        seconds = _sample(candidate)
                        candidate.row.samples.append(Sample(turn, seconds, peak))
    for candidate in candidates:
        if not candidate.row.reason:
            candidate.row.summarise()


def _calibrate(candidate: _Candidate, settings: Settings) -> None:
    """Choose how many calls make a sample, and how many samples fit into the time."""
    calls, seconds = 1, _time(candidate.call, 1)
    while seconds * calls < SHORTEST_SAMPLE / 4:
        calls *= 4
        seconds = _time(candidate.call, calls)
    wanted = max(SHORTEST_SAMPLE, settings.time / settings.rounds)
    # Rounded up where the shortest sample asks for it, else down: the time is a bound.
    candidate.row.calls = max(math.ceil(SHORTEST_SAMPLE / seconds), int(wanted / seconds), 1)
    affordable = int(settings.time / (seconds * candidate.row.calls) + 0.01)
    candidate.rounds = min(max(affordable, 1), settings.rounds)


def _sample(candidate: _Candidate) -> float:
    """Return the seconds of one call."""
    calls = candidate.row.calls
    if calls >= 4:
        candidate.call()  # fetches into the caches what the others displaced; cheap next to the sample
    return _time(candidate.call, calls)


def _time(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return max(time.perf_counter() - start, 1e-9) / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in a sample."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
