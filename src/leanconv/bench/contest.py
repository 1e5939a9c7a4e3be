"""One layer on some threads: its rows, and the passes in which they take turns.

The first pass checks every result in full and measures memory and cold start. Each further one prepares all anew
(plans, packed weights, images, models of peers), a while after the one before. It is this while that matters: on a
shared machine eight processes that ran a layer side by side moved together by up to 16 % from one ten seconds to the
next, by another part on another layer, and lay within 2 % of one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.bench.check import TOLERANCE, Expectation, Trial
from leanconv.bench.contestants import Contestant
from leanconv.bench.layers import Layer, LayerError
from leanconv.bench.peers import PeerInfo
from leanconv.bench.peers.client import Clients
from leanconv.bench.process_memory import PeakMemory
from leanconv.bench.report import FAILED, NOT_APPLICABLE, OK, PEER, WRONG, Row, fastest, ratio
from leanconv.bench.sampling import sample
from leanconv.bench.settings import ALL, LIMITED, Engine, Settings, limits_of
from leanconv.bench.turns import CLOSE, Schedule, mark, take_turns
from leanconv.blas import blas_threads
from leanconv.errors import LeanconvError, NotApplicableError
from leanconv.layouts import channels_first
from leanconv.memory import trim_arenas
from leanconv.outputs import empty, release_outputs

# Named by `all` if they apply, except the one that is there to be right and not to be fast.
_NOT_IN_ALL = ("reference",)
_PEAK_SECONDS = 0.005  # of each round, to measure the peak in


class Contest:
    """One layer on some threads.

    Attributes:
        layer: which.
        threads: how many.
        rows: one an algorithm and layout, then one a peer; empty before the first pass.
    """

    def __init__(
        self, engine: Engine, layer: Layer, threads: int, settings: Settings, peers: Sequence[PeerInfo]
    ) -> None:
        """Prepare nothing yet."""
        self.layer, self.threads, self.rows = layer, threads, list[Row]()
        self._engine, self._settings, self._peers = engine, settings, {info.name: info for info in peers}

    def run(self, trial: Trial, clients: Clients, number: int, chosen: Sequence[Row] | None = None) -> None:
        """Take turns once more.

        Args:
            trial: the layer's arrays, the same in each pass.
            clients: processes of peers.
            number: of the pass, from 0.
            chosen: rows that take part; all that were right so far if None.
        """
        with blas_threads(self.threads):
            if not self.rows:
                contestants = self._first(trial, clients)
            else:
                contestants = self._again(trial, clients, self.timed if chosen is None else chosen)
            settings = self._settings
            longest = settings.longest if settings.passes == 1 and number == 0 else 0.0
            schedule = Schedule(settings.time / settings.passes, settings.rounds, longest, settings.precision)
            take_turns(contestants, schedule, self._peak, _attempt, number=number, first=self._next_round())
        clients.unload()
        self.settle()

    @property
    def timed(self) -> list[Row]:
        """The rows that have times and did not fail."""
        return [row for row in self.rows if row.status == OK and row.samples]

    def settle(self) -> None:
        """Fill in what follows from all samples so far; what failed has no times."""
        for row in self.rows:
            if row.status == OK and row.samples:
                row.summarise()
            else:
                row.seconds = row.spread = row.gflops = row.peak_gflops = row.percent_of_peak = None
        mark(self.timed, self._settings.precision)

    def uncertain(self) -> list[Row]:
        """Return the fastest row and those close to it that are uncertain, unless their time is used up."""
        best = fastest(self.timed)
        if best is None or not self._may_go_on(best):
            return []
        close = [row for row in self.timed if row is not best and row.undecided and ratio(row, best) < CLOSE]
        others = [row for row in close if self._may_go_on(row)]
        return [best, *others] if others else []

    def _may_go_on(self, row: Row) -> bool:
        """Whether another pass of its usual number of samples still fits into the time."""
        spent = sum(entry.seconds for entry in row.samples) * row.calls
        return (
            spent + max(self._settings.time / self._settings.passes, row.samples[-1].seconds) <= self._settings.longest
        )

    def _next_round(self) -> int:
        return 1 + max((entry.round for row in self.rows for entry in row.samples), default=-1)

    def _peak(self) -> float:
        return self._engine.fma_peak(threads=self.threads, dtype=self._settings.dtype, seconds=_PEAK_SECONDS)

    def _first(self, trial: Trial, clients: Clients) -> list[Contestant]:
        """Make the rows, check each, and return those that can be timed."""
        contestants: list[Contestant] = []
        layer, settings = self.layer, self._settings
        for layout in settings.layouts:
            try:
                problem = layer.problem(layout, settings.dtype, bias=True)
            except LayerError as error:
                self.rows.append(Row(layer.name, ALL, layout, self.threads, NOT_APPLICABLE, str(error)))
                continue
            names, refusal = self._names(layout)
            if refusal:
                self.rows.append(Row(layer.name, ALL, layout, self.threads, NOT_APPLICABLE, refusal))
            arrays = self._arrays(trial, layout)
            for name in names:
                row = Row(layer.name, name, layout, self.threads, flops=problem.flops)
                self.rows.append(row)
                with recorded(row):
                    call = self._prepare(row, arrays, trial.expected)
                    if not row.reason:
                        contestants.append(_own(row, call))
        flops = layer.problem("NCHW", settings.dtype).flops
        for info in self._peers.values():
            version = info.version or ""
            row = Row(layer.name, info.name, info.layout, self.threads, flops=flops, kind=PEER, version=version)
            self.rows.append(row)
            with recorded(row):
                contestant = self._load(row, trial, clients, first=True)
                if not row.reason:
                    contestants.append(contestant)
        return contestants

    def _again(self, trial: Trial, clients: Clients, chosen: Sequence[Row]) -> list[Contestant]:
        """Prepare rows anew, check them, and return those that can be timed."""
        trim_arenas()
        release_outputs()
        contestants: list[Contestant] = []
        arrays = {row.layout: self._arrays(trial, row.layout) for row in chosen if row.kind != PEER}
        for row in chosen:
            with recorded(row):
                if row.kind == PEER:
                    contestant = self._load(row, trial, clients, first=False)
                else:
                    x, w, bias, out = arrays[row.layout]
                    _, call = self._ready(row, x, w, bias, out)
                    out.fill(np.nan)
                    call()
                    _check(row, channels_first(out, row.layout), trial.expected, str(out.dtype))
                    contestant = _own(row, call)
                if not row.reason:
                    contestants.append(contestant)
        return contestants

    def _arrays(self, trial: Trial, layout: str) -> list[NDArray[Any]]:
        problem = self.layer.problem(layout, self._settings.dtype, bias=True)
        return [trial.image(layout), trial.w, trial.bias, empty(problem.out_shape, self._settings.dtype)]

    def _options(self, layout: str) -> dict[str, Any]:
        return {**self.layer.options(layout), "dtype": self._settings.dtype, "bias": True}

    def _names(self, layout: str) -> tuple[list[str], str]:
        """Return the algorithms to measure, and why there are none if `all` finds none."""
        wanted = self._settings.algorithms
        names = [name for name in wanted if name != ALL]
        if ALL not in wanted:
            return names, ""
        found = self._engine.algorithms(*self.layer.shapes(layout), **self._options(layout))
        names += [i.name for i in found if i.applies and i.name not in (*names, *_NOT_IN_ALL)]
        reasons = [f"{i.name}: {i.reason}" for i in found if not i.applies]
        return names, "" if names else "no algorithm applies; " + "; ".join(reasons)

    def _ready(
        self, row: Row, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any], out: NDArray[Any]
    ) -> tuple[Any, Callable[[], object]]:
        """Plan and bind, and return the plan and the call that is timed."""
        name, _, _ = row.algorithm.partition(LIMITED)
        asked = self._options(row.layout) | limits_of(row.algorithm)
        plan = self._engine.plan(*self.layer.shapes(row.layout), **asked, algorithm=name, threads=row.threads)
        bound = plan.bind(w, bias)
        return plan, lambda: bound(x, out=out)

    def _prepare(self, row: Row, arrays: list[NDArray[Any]], expected: Expectation) -> Callable[[], object]:
        """Plan and bind twice, fill in what the plan says, check, and return the call that is timed.

        The first time counts as the cold start. The memory is that of the second: the compiler has finished then, as in
        a program whose kernels are on disk, and what it used is no part of the algorithm.
        """
        out = arrays[-1]
        start = time.perf_counter()
        plan, call = self._ready(row, *arrays)
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
        _, call = self._ready(row, *arrays)
        call()
        row.extra_peak_bytes = memory.extra_bytes()
        return call

    def _load(self, row: Row, trial: Trial, clients: Clients, *, first: bool) -> Contestant:
        """Load the layer in a peer's process, check its result, and return it ready to be timed.

        What the first pass says of cold start, memory and settings stands.
        """
        info = self._peers[row.algorithm]
        if self._settings.dtype != "float32":
            raise NotApplicableError(info.name, "peers are measured in float32")
        client = clients.client(info, row.threads)
        ready = client.load(self.layer, trial)
        if first:
            row.ran, row.parameters = info.name, ready.parameters
            row.prepare_seconds, row.cold_seconds = ready.prepare_seconds, ready.cold_seconds
            row.extra_peak_bytes = ready.extra_peak_bytes
        _check(row, ready.result, trial.expected, self._settings.dtype)
        return Contestant(row, client.sample)


def _own(row: Row, call: Callable[[], object]) -> Contestant:
    return Contestant(row, lambda calls: sample(call, calls))


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


def _attempt(row: Row, action: Callable[[], None]) -> None:
    with recorded(row):
        action()


def _check(row: Row, result: NDArray[Any], expected: Expectation, dtype: str) -> None:
    """Compare a result (N, K, *spatial) with what is right."""
    if result.shape != expected.shape:
        row.status, row.reason = WRONG, f"the result's shape is {result.shape}, {expected.shape} is right"
        return
    error = expected.error(result)
    row.error, row.compared = max(error, row.error or 0.0), row.compared or expected.compared
    if not row.error <= TOLERANCE[dtype]:
        unwritten = int(np.isnan(result).sum())
        row.status = WRONG
        row.reason = (
            f"{unwritten:,} of {result.size:,} outputs are NaN"
            if unwritten
            else (f"largest error is {row.error:.1e} of the largest output, {TOLERANCE[dtype]:.0e} is allowed")
        )
