"""Measuring: every algorithm and every peer on every layer, in turns, each result checked.

Clocks drift and machines are shared, so nothing is compared that was not measured side by side. All algorithms and
peers of a layer take turns, A B C, B C A ..., in several rounds (`turns`); each round also measures the peak of fused
multiply-adds on as many threads, and the part of the peak is computed round by round. A neighbour on a shared machine
stays for longer than a layer's rounds take, so the list of layers is gone through in several passes (`contest`).

Inputs and weights are normally distributed (never zeros, which some processors multiply faster). The output array is
the same for all algorithms, and is filled with NaN before the result that is checked; peers write to memory that is
mapped already, too. Images and outputs begin with a cache line, as those that the peers make do. What is timed is the
call of a bound plan: weights are rearranged before, and that memory is reported.
"""

from __future__ import annotations

import datetime
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from leanconv.bench.check import Expectation, make_trial
from leanconv.bench.contest import Contest
from leanconv.bench.layers import Layer
from leanconv.bench.load import ResultsError
from leanconv.bench.peers import named
from leanconv.bench.peers.client import Clients
from leanconv.bench.report import Report, Row
from leanconv.bench.settings import Engine, Settings, default_engine
from leanconv.blas import use_all_instructions

# Called with what is measured now, and how many of all steps are done.
Progress = Callable[[str, int, int], None]

# Called with the report so far, after each layer.
Save = Callable[[Report], None]


# Contests of a layer, each with the rows that take part; all if None.
Pairs = list[list[tuple[Contest, list[Row] | None]]]


def run(
    layers: Sequence[Layer],
    settings: Settings,
    *,
    command: Sequence[str] = (),
    engine: Engine | None = None,
    progress: Progress | None = None,
    save: Save | None = None,
    earlier: Report | None = None,
) -> Report:
    """Measure the layers and return the report; further passes of an earlier one, if it is given.

    An algorithm or peer that fails on a layer, or computes something wrong there, becomes a row that says so. An
    interrupt (Ctrl-C) ends the run; the report then holds the layers that were finished, with the samples so far.
    Variables that keep libraries from instructions of the CPU are taken out of the process's environment, for good.

    Raises:
        ResultsError: what was measured earlier is another comparison; nothing was measured.
        PeerError: `settings.peers` names a peer that does not exist; nothing was measured.
    """
    from leanconv.doctor import machine_facts, versions

    use_all_instructions()
    engine = engine or default_engine()
    peers = named(settings.peers)
    report = Report(list(command), asdict(settings), machine_facts(), versions(), started=_now())
    contests = [[Contest(engine, layer, threads, settings, peers) for threads in settings.threads] for layer in layers]
    if earlier is not None:
        _go_on(report, earlier, layers, [contest for group in contests for contest in group])
    going = _Run(report, settings, contests, progress, save)
    gc.freeze()  # collections, one for each measurement of memory, need not look at what was imported before
    try:
        if settings.bandwidth and not report.bandwidth:
            for threads in settings.threads:
                speed = engine.memory_bandwidth(threads=threads)
                report.bandwidth.append({"threads": threads, "gb_per_s": speed})
        going.all_passes()
    except KeyboardInterrupt:
        report.interrupted = True
        for contest in going.contests:
            contest.settle()
    finally:
        gc.unfreeze()
    if progress:
        progress("", going.steps, going.steps)
    report.finished = _now()
    return report


def _go_on(report: Report, earlier: Report, layers: Sequence[Layer], contests: Sequence[Contest]) -> None:
    """Take over what was measured earlier, if it is the same comparison."""
    same = ("algorithms", "layouts", "threads", "dtype", "peers", "seed")
    known = [(layer.name, layer.short()) for layer in layers]
    for where, old, new in (
        *((f"settings.{name}", earlier.settings.get(name), report.settings[name]) for name in same),
        *((f"machine.{name}", earlier.machine.get(name), report.machine.get(name)) for name in ("cpu", "target")),
        ("versions", earlier.versions, report.versions),
        # An earlier run that was interrupted has the first ones only.
        ("layers", [(layer["name"], layer["shape"]) for layer in earlier.layers], known[: len(earlier.layers)]),
    ):
        if json.dumps(old) != json.dumps(new):  # as a file holds them: lists and tuples are the same
            raise ResultsError("earlier results", where, f"is {old}, and now {new}: passes of one comparison only")
    report.started, report.bandwidth, report.layers, report.rows = (
        *(earlier.started, earlier.bandwidth, earlier.layers, earlier.rows),
    )
    for contest in contests:
        contest.rows = [r for r in report.rows if (r.layer, r.threads) == (contest.layer.name, contest.threads)]
        contest.settle()


class _Run:
    """The passes of a run; `contests` are by layer, then by threads."""

    def __init__(
        self,
        report: Report,
        settings: Settings,
        contests: list[list[Contest]],
        progress: Progress | None,
        save: Save | None,
    ) -> None:
        self._report, self._settings, self._progress, self._save = report, settings, progress, save
        self._layers = contests
        self._expected: dict[str, Expectation] = {}
        self.contests = [contest for group in contests for contest in group]
        self.done, self.steps = 0, len(self.contests) * settings.passes
        self._due = time.monotonic()  # when the next pass may begin

    def all_passes(self) -> None:
        """Go through the layers, then through those again where something is uncertain."""
        everything: Pairs = [[(contest, None) for contest in group] for group in self._layers]
        clients = Clients(self._settings.peer_timeout)  # for all passes: a library that is imported anew is as fast
        try:
            begin = 1 + max((sample.visit for row in self._report.rows for sample in row.samples), default=-1)
            missed: Pairs = [[(contest, None) for contest in group if not contest.rows] for group in self._layers]
            if begin and any(missed):
                # The earlier run was interrupted in its first pass.
                self.steps += sum(map(len, missed))
                self._pass(missed, clients, begin - 1)
            for number in range(begin, begin + self._settings.passes):
                self._pass(everything, clients, number)
            while self._settings.passes > 1:
                number += 1
                found = [[(contest, contest.uncertain()) for contest in group] for group in self._layers]
                again: Pairs = [[(contest, rows) for contest, rows in group if rows] for group in found]
                if not any(again):
                    break
                self.steps = self.done + sum(map(len, again))
                self._pass(again, clients, number)
        finally:
            clients.close()

    def _wait(self, number: int) -> None:
        """Wait until a pass is due: what disturbs this one shall have gone, or come, by the next."""
        while (left := self._due - time.monotonic()) > 0:
            if self._progress:
                self._progress(f"pass {number + 1} in {left:.0f} s", self.done, self.steps)
            time.sleep(min(left, 1.0))
        self._due = time.monotonic() + self._settings.every

    def _pass(self, layers: Pairs, clients: Clients, number: int) -> None:
        self._wait(number)
        for group in layers:
            if not group:
                continue
            layer, settings = group[0][0].layer, self._settings
            trial = make_trial(layer, settings.dtype, settings.seed, self._expected.get(layer.name))
            for contest, chosen in group:
                if self._progress:
                    title = layer.name if settings.passes == 1 else f"{layer.name}, pass {number + 1}"
                    self._progress(title, self.done, self.steps)
                fresh = not contest.rows
                contest.run(trial, clients, number, chosen)
                if fresh:
                    self._first(contest)
                self.done += 1
                if self._save:
                    self._save(self._report)
            if settings.passes > 1:
                self._expected[layer.name] = trial.expected.thinned(settings.seed)

    def _first(self, contest: Contest) -> None:
        """Add to the report what is new after a contest's first pass."""
        layer = contest.layer
        if all(known["name"] != layer.name for known in self._report.layers):
            flops = layer.problem("NCHW", self._settings.dtype).flops
            self._report.layers.append({**asdict(layer), "shape": layer.short(), "flops": flops})
        self._report.rows += contest.rows


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
