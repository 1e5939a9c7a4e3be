"""`leanconv bench model.onnx`: whole networks beside other runtimes, each in a process of its own.

They take turns, round by round, so that what slows the machine slows all alike. Before each timed run the threads of
the one before come to rest, and other runs are made, for a process that has slept has cold caches and sleeping threads
(`sampling`). Memory is the rise of the process's resident memory from before the model is loaded to the highest point
of loading and three runs; the runtime itself is loaded by then.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.bench.ceilings import LEAST, least_ceiling
from leanconv.bench.conversions import Contestant, Conversions, ask
from leanconv.bench.intervals import factor_interval
from leanconv.bench.onnx_runtimes import OURS, RUNTIMES, Inputs, Request
from leanconv.bench.process_memory import PeakMemory
from leanconv.bench.processes import process
from leanconv.bench.sampling import sample
from leanconv.blas import use_all_instructions
from leanconv.errors import ArgumentValueError, LeanconvError

SETTLE = 0.25  # seconds; idle threads of the runtime whose turn it was spin for up to 0.2
SAMPLE = 0.02  # seconds; a shorter run is repeated: single ones of 2 to 4 ms differed by a third
DIFFERENT = 1e-3
"""Difference of outputs, relative to the largest, that means another network."""


def _serve(pipe: Any, runtime: str, request: Request) -> None:
    """The life of a runtime's process: load, answer with the outputs, then time a run whenever asked."""
    found = RUNTIMES[runtime]
    try:
        importlib.import_module(found.module)
        memory, begin = PeakMemory(), time.perf_counter()
        run = found.start(request)
        inputs = request.inputs
        outputs = run(inputs)
        loaded = time.perf_counter() - begin
        for _ in range(2):
            run(inputs)
        pipe.send((loaded, memory.extra_bytes(), outputs))
        while pipe.recv():
            time.sleep(SETTLE)
            begin = time.perf_counter()
            run(inputs)
            took = time.perf_counter() - begin
            pipe.send(sample(lambda: run(inputs), max(int(SAMPLE / took), 1)))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:500])


def compare(
    path: str,
    runtimes: Sequence[str],
    inputs: Inputs,
    threads: int,
    rounds: int,
    limit: str | None,
    made: Conversions | None = None,
) -> list[Contestant]:
    """Let runtimes take turns with a model; leanconv is the first. `made`: what was converted for others before."""
    contestants = [Contestant(name) for name in dict.fromkeys([OURS, *runtimes])]
    request = Request(path, inputs, output_names(path), threads, limit)
    with contextlib.ExitStack() as stack:
        made = made or Conversions(stack)
        pipes = {}
        ours: list[Array] = []
        for entry in contestants:
            mine = made.prepared(entry, request)
            if mine is None:
                continue
            pipe = stack.enter_context(process(_serve, entry.runtime, mine))
            answer = ask(pipe, entry)
            if answer is None:
                continue
            entry.load_seconds, entry.peak_bytes, outputs = answer
            ours = ours or outputs
            entry.difference = max(map(_difference, ours, outputs), default=0.0)
            if entry.difference > DIFFERENT:
                entry.reason = f"its outputs are others: by {entry.difference:.1e} of the largest"
                continue
            pipes[entry.runtime] = pipe
        for _ in range(rounds):
            for entry in contestants:
                if entry.runtime in pipes and not entry.reason:
                    pipes[entry.runtime].send(True)
                    seconds = ask(pipes[entry.runtime], entry)
                    entry.seconds += [] if seconds is None else [seconds]
    return contestants


def _difference(ours: Array, theirs: Array) -> float:
    if ours.size != theirs.size or not np.isfinite(theirs).all():
        return math.inf
    theirs = theirs.reshape(ours.shape)  # some drop axes of one element
    return float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-30)) if ours.size else 0.0


def output_names(path: str) -> tuple[str, ...]:
    """Names of the outputs of a model."""
    from leanconv.onnx import load

    return tuple(port.name for port in load(path).outputs)


def random_inputs(path: str, shapes: Sequence[str]) -> dict[str, Array]:
    """Normally distributed arrays of the model's input shapes, zeros where integers are wanted."""
    from leanconv.onnx import load
    from leanconv.onnx.commands import shapes_of

    session = load(path)
    found = shapes_of(session, list(shapes))
    draw = np.random.default_rng(0)
    result = {}
    for port in session.inputs:
        kind = np.dtype(port.dtype)
        array = draw.standard_normal(found[port.name]) if kind.kind == "f" else np.zeros(found[port.name])
        result[port.name] = array.astype(kind)
    return result


def show(path: str, threads: int, contestants: Sequence[Contestant], note: str = "") -> None:
    """Print a table, and a note under it."""
    from rich.console import Console
    from rich.table import Table

    from leanconv.bench.table import format_seconds
    from leanconv.sizes import format_bytes

    table = Table(box=None, pad_edge=False, title=f"{Path(path).name}, threads: {threads}", title_justify="left")
    for name in ("runtime", "time", "/ leanconv", "95 %", "memory", "first result", "difference"):
        table.add_column(name, justify="left" if name == "runtime" else "right")
    ours = contestants[0].seconds
    for entry in contestants:
        if entry.reason or not entry.seconds:
            table.add_row(entry.runtime, entry.reason or "no time")
            continue
        ratio = ("", "")
        if ours and entry.seconds is not ours:
            found = factor_interval(entry.seconds, ours, 0.95)
            ratio = (f"{found.ratio:.2f}", f"{found.low:.2f}-{found.high:.2f}")
        memory = "-" if entry.peak_bytes is None else format_bytes(entry.peak_bytes)
        times = (format_seconds(statistics.median(entry.seconds)), *ratio, memory, format_seconds(entry.load_seconds))
        table.add_row(entry.runtime, *times, f"{entry.difference:.0e}")
    Console().print(table)
    if note:
        print(note)


def summary(report: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each number of threads, leanconv's times over those of the best other runtime of each model."""
    ratios: dict[int, dict[str, float]] = {}
    for row in report:
        ours, *others = row["runtimes"]
        times = [statistics.median(entry["seconds"]) for entry in others if entry["seconds"] and not entry["reason"]]
        if ours["seconds"] and times:
            share = statistics.median(ours["seconds"]) / min(times)
            ratios.setdefault(row["threads"], {})[Path(row["model"]).stem] = share
    lines = []
    for threads, found in ratios.items():
        worst = max(found, key=lambda name: found[name])
        lines.append(
            f"threads: {threads}, models: {len(found)}, leanconv's time over the best other's: "
            f"geometric mean {statistics.geometric_mean(found.values()):.2f}, highest {found[worst]:.2f} ({worst})"
        )
    return lines


def _save(report: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write what has been measured so far, in one step."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(report, indent=1), encoding="utf-8")
    beside.replace(path)


def run(options: argparse.Namespace) -> int:
    """`leanconv bench` whose layers are ONNX files; returns the exit code."""
    use_all_instructions()
    others = [path for path in options.layers if not path.endswith(".onnx")]
    try:
        if others or options.net:
            raise ArgumentValueError("LAYERS", [*others, *options.net], "must all be .onnx files if one is")
        if options.append or options.every:
            option, value = ("--append", True) if options.append else ("--every", options.every)
            raise ArgumentValueError(option, value, "is for passes over layers; ONNX files have one")
        known = [name for name in RUNTIMES if name != OURS]
        wanted = known if "all" in options.peers else options.peers
        for name in wanted:
            if name not in known:
                raise ArgumentValueError("--peers", name, f"must be one of {', '.join(known)} for ONNX files, or all")
        report: list[dict[str, Any]] = []
        for path in options.layers:
            inputs = random_inputs(path, options.shape)
            with contextlib.ExitStack() as stack:
                made = Conversions(stack, Path(options.converted) if options.converted else None)
                for threads in options.threads:
                    limit = options.memory_limit
                    ceiling = least_ceiling(path, inputs, threads) if limit == LEAST else None
                    limit = limit if ceiling is None else str(ceiling.limit)
                    found = compare(path, wanted, inputs, threads, options.rounds, limit, made)
                    result = {"model": path, "threads": threads, "runtimes": [asdict(entry) for entry in found]}
                    report.append(result if ceiling is None else result | {"ceiling": asdict(ceiling)})
                    if options.json not in ("", None, "-"):
                        # Now and not at the end: who stops it keeps what was measured.
                        _save(report, Path(options.json))
                    if options.json != "-":
                        show(path, threads, found, "" if ceiling is None else str(ceiling))
    except LeanconvError as error:
        print(f"leanconv bench: {error}", file=sys.stderr)
        return 2
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        for line in summary(report):
            print(line)
    return (
        1
        if any(
            entry["reason"] and "not installed" not in entry["reason"] for row in report for entry in row["runtimes"]
        )
        else 0
    )
