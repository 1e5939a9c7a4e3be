"""Measuring: every algorithm and every peer on every layer, in turns, each result checked.

Clocks drift and machines are shared, so nothing is compared that was not measured side by side. All algorithms and
peers of a layer take turns, A B C, B C A ..., in several rounds (`turns`); each round also measures the peak of fused
multiply-adds on as many threads, and the part of the peak is computed round by round. Inputs and weights are normally
distributed (never zeros, which some processors multiply faster). The output array is the same for all algorithms, and
is filled with NaN before the result that is checked; peers write to memory that is mapped already, too. Images and
outputs begin with a cache line, as those that the peers make do. What is timed is the call of a bound plan: weights
are rearranged before, and that memory is reported.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from leanconv.bench.check import TOLERANCE, Expectation, Trial, make_trial
from leanconv.bench.contestants import Contestant
from leanconv.bench.layers import Layer, LayerError
from leanconv.bench.peers import PeerInfo, named
from leanconv.bench.peers.client import Clients
from leanconv.bench.process_memory import PeakMemory
from leanconv.bench.report import FAILED, NOT_APPLICABLE, PEER, WRONG, Report, Row
from leanconv.bench.sampling import sample
from leanconv.bench.turns import Schedule, take_turns
from leanconv.blas import blas_threads
from leanconv.errors import LeanconvError, NotApplicableError
from leanconv.layouts import channels_first
from leanconv.memory import trim_arenas
from leanconv.outputs import empty

ALL = "all"
LIMITED = "@"
"""Between an algorithm and a memory limit of its own: `auto@256KiB`."""
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

    def memory_bandwidth(self, threads: int = 1) -> float:
        """Return GB/s."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        algorithms: names, or "all" for every one that applies to a layer.
        layouts: "NHWC", "NCHW", "CHWN", "CHWN8".
        threads: numbers of threads, each measured on its own.
        dtype: "float32" or "float64".
        time: seconds for each algorithm and peer on each layer; one that takes longer than that for a call is
            timed once.
        rounds: how often they take turns.
        longest: seconds with further rounds for those whose ratio to the fastest is uncertain; none if not above
            `time`.
        precision: a ratio is certain if the ends of its interval are within this part of it.
        peers: names of peers, or "all".
        peer_timeout: seconds until a peer that does not answer is ended.
        bandwidth: whether to measure the speed of memory, too.
        seed: of the random arrays.
    """

    algorithms: tuple[str, ...] = (ALL,)
    layouts: tuple[str, ...] = ("NHWC",)
    threads: tuple[int, ...] = (1,)
    dtype: str = "float32"
    time: float = 0.2
    rounds: int = 10
    longest: float = 0.0
    precision: float = 0.03
    peers: tuple[str, ...] = ()
    peer_timeout: float = 120.0
    bandwidth: bool = False
    seed: int = 0


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

    An algorithm or peer that fails on a layer, or computes something wrong there, becomes a row that says so. An
    interrupt (Ctrl-C) ends the run; the report then holds the layers that were finished.

    Raises:
        PeerError: `settings.peers` names a peer that does not exist; nothing was measured.
    """
    from leanconv.doctor import machine_facts, versions

    engine = engine or default_engine()
    peers = named(settings.peers)
    report = Report(list(command), asdict(settings), machine_facts(), versions(), started=_now())
    steps = len(layers) * len(settings.threads)
    clients = Clients(settings.peer_timeout)
    try:
        if settings.bandwidth:
            for threads in settings.threads:
                speed = engine.memory_bandwidth(threads=threads)
                report.bandwidth.append({"threads": threads, "gb_per_s": speed})
        for number, layer in enumerate(layers):
            trial = make_trial(layer, settings.dtype, settings.seed)
            for part, threads in enumerate(settings.threads):
                if progress:
                    progress(layer.name, number * len(settings.threads) + part, steps)
                with blas_threads(threads):
                    rows = _measure(engine, layer, trial, threads, settings, peers, clients)
                if part == 0:
                    flops = layer.problem("NCHW", settings.dtype).flops
                    report.layers.append({**asdict(layer), "shape": layer.short(), "flops": flops})
                report.rows += rows
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        clients.close()
    if progress:
        progress("", steps, steps)
    report.finished = _now()
    return report


def _measure(
    engine: Engine,
    layer: Layer,
    trial: Trial,
    threads: int,
    settings: Settings,
    peers: Sequence[PeerInfo],
    clients: Clients,
) -> list[Row]:
    """Return the rows of one layer on some threads."""
    rows: list[Row] = []
    contestants: list[Contestant] = []
    for layout in settings.layouts:
        try:
            problem = layer.problem(layout, settings.dtype, bias=True)
        except LayerError as error:
            rows.append(Row(layer.name, ALL, layout, threads, NOT_APPLICABLE, str(error)))
            continue
        options = {**layer.options(layout), "dtype": settings.dtype, "bias": True}
        x = trial.image(layout)
        out = empty(problem.out_shape, settings.dtype)
        names, refusal = _names(engine, layer, layout, options, settings.algorithms)
        if refusal:
            rows.append(Row(layer.name, ALL, layout, threads, NOT_APPLICABLE, refusal))
        for name in names:
            row = Row(layer.name, name, layout, threads, flops=problem.flops)
            rows.append(row)
            with recorded(row):
                call = _prepare(engine, layer, row, [x, trial.w, trial.bias, out], options, trial.expected)
                if not row.reason:
                    contestants.append(Contestant(row, lambda calls, call=call: sample(call, calls)))  # type: ignore[misc]
    flops = layer.problem("NCHW", settings.dtype).flops
    for info in peers:
        row = Row(layer.name, info.name, info.layout, threads, flops=flops, kind=PEER, version=info.version or "")
        rows.append(row)
        with recorded(row):
            contestant = _load(clients, info, layer, row, trial, settings.dtype)
            if not row.reason:
                contestants.append(contestant)

    def attempt(row: Row, action: Callable[[], None]) -> None:
        with recorded(row):
            action()

    schedule = Schedule(settings.time, settings.rounds, settings.longest, settings.precision)
    take_turns(contestants, schedule, lambda: engine.fma_peak(threads=threads, dtype=settings.dtype), attempt)
    clients.unload()
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
def recorded(row: Row) -> Iterator[None]:
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
    engine: Engine,
    layer: Layer,
    row: Row,
    arrays: list[NDArray[Any]],
    options: dict[str, Any],
    expected: Expectation,
) -> Callable[[], object]:
    """Plan and bind twice, fill in what the plan says, check, and return the call that is timed.

    The first time counts as the cold start. The memory is that of the second: the compiler has finished then, as in a
    program whose kernels are on disk, and what it used is no part of the algorithm.
    """
    x, w, bias, out = arrays

    def ready() -> tuple[Any, Callable[[], object]]:
        name, _, limit = row.algorithm.partition(LIMITED)
        asked = options | ({"memory_limit": limit} if limit else {})
        plan = engine.plan(*layer.shapes(row.layout), **asked, algorithm=name, threads=row.threads)
        bound = plan.bind(w, bias)
        return plan, lambda: bound(x, out=out)

    start = time.perf_counter()
    plan, call = ready()
    row.prepare_seconds = time.perf_counter() - start
    row.ran = plan.algorithm
    row.parameters = dict(plan.parameters)
    row.workspace_bytes = plan.workspace_bytes
    row.packed_weight_bytes = plan.packed_weight_bytes
    out.fill(np.nan)
    call()
    row.cold_seconds = time.perf_counter() - start
    _check(row, channels_first(out, row.layout), expected, str(out.dtype))
    del plan, call
    trim_arenas()
    memory = PeakMemory()
    _, call = ready()
    call()
    row.extra_peak_bytes = memory.extra_bytes()
    return call


def _load(clients: Clients, info: PeerInfo, layer: Layer, row: Row, trial: Trial, dtype: str) -> Contestant:
    """Load a layer in a peer's process, fill in what it says, check its result, and return it ready to be timed."""
    if dtype != "float32":
        raise NotApplicableError(info.name, "peers are measured in float32")
    client = clients.client(info, row.threads)
    ready = client.load(layer, trial)
    row.ran, row.parameters = info.name, ready.parameters
    row.prepare_seconds, row.cold_seconds = ready.prepare_seconds, ready.cold_seconds
    row.extra_peak_bytes = ready.extra_peak_bytes
    _check(row, ready.result, trial.expected, dtype)
    return Contestant(row, client.sample)


def _check(row: Row, result: NDArray[Any], expected: Expectation, dtype: str) -> None:
    """Compare a result (N, K, *spatial) with what is right."""
    if result.shape != expected.shape:
        row.status, row.reason = WRONG, f"the result's shape is {result.shape}, {expected.shape} is right"
        return
    row.error, row.compared = expected.error(result), expected.compared
    if not row.error <= TOLERANCE[dtype]:
        unwritten = int(np.isnan(result).sum())
        row.status = WRONG
        row.reason = (
            f"{unwritten:,} of {result.size:,} outputs are NaN"
            if unwritten
            else (f"largest error is {row.error:.1e} of the largest output, {TOLERANCE[dtype]:.0e} is allowed")
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
