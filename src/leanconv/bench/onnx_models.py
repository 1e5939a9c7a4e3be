"""`leanconv bench model.onnx`: whole networks beside the runtimes that read ONNX files, each in a process of its own.

They take turns, round by round, so that what slows the machine slows all alike. Before each timed run the threads of
the one before come to rest, and one more run is made, for a process that has slept has cold caches and sleeping
threads. Memory is the rise of the process's resident memory from before the model is loaded to the highest point of
loading and three runs; the runtime itself is loaded by then.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.bench.intervals import factor_interval
from leanconv.bench.process_memory import PeakMemory
from leanconv.errors import ArgumentValueError, LeanconvError

OURS = "leanconv"
SETTLE = 0.25  # seconds; idle threads of the runtime whose turn it was spin for up to 0.2
Inputs = Mapping[str, Array]


@dataclass(slots=True)
class Contestant:
    """What one runtime did with a model.

    Attributes:
        runtime: its name.
        load_seconds: from the file to the first result.
        peak_bytes: see the module; None if the system does not tell.
        difference: the largest from leanconv's outputs, relative to the largest output.
        seconds: of each timed run.
        reason: why there are no times, or "".
    """

    runtime: str
    load_seconds: float = math.nan
    peak_bytes: int | None = None
    difference: float = math.nan
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


def _leanconv(path: str, threads: int, limit: str | None) -> Callable[[Inputs], list[Array]]:
    from leanconv.onnx import load

    session = load(path, threads=threads, memory_limit=limit)
    return lambda inputs: list(session.run(inputs).values())


def _onnxruntime(path: str, threads: int, limit: str | None) -> Callable[[Inputs], list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, dict(inputs)))


def _openvino(path: str, threads: int, limit: str | None) -> Callable[[Inputs], list[Array]]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda inputs: list(request.infer(dict(inputs), share_outputs=True).values())


# The module that is loaded before memory is measured, and what loads a model.
RUNTIMES = {
    OURS: ("leanconv.onnx.session", _leanconv),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", _openvino),
}


def _serve(pipe: Any, runtime: str, path: str, inputs: Inputs, threads: int, limit: str | None) -> None:
    """The life of a runtime's process: load, answer with the outputs, then time a run whenever asked."""
    module, start = RUNTIMES[runtime]
    try:
        importlib.import_module(module)
        memory, begin = PeakMemory(), time.perf_counter()
        run = start(path, threads, limit)
        outputs = run(inputs)
        loaded = time.perf_counter() - begin
        for _ in range(2):
            run(inputs)
        pipe.send((loaded, memory.extra_bytes(), outputs))
        while pipe.recv():
            time.sleep(SETTLE)
            run(inputs)
            begin = time.perf_counter()
            run(inputs)
            pipe.send(time.perf_counter() - begin)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:500])


@contextlib.contextmanager
def _process(contestant: Contestant, *arguments: Any) -> Iterator[Any]:
    """The pipe to a runtime's process, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, contestant.runtime, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(5)
        process.kill()


def _ask(pipe: Any, contestant: Contestant) -> Any:
    """The process's answer; None, and the reason noted, if it has none to give."""
    try:
        answer = pipe.recv()
    except EOFError:
        answer = "its process ended"
    if isinstance(answer, str):
        contestant.reason = answer
        return None
    return answer


def compare(
    path: str, runtimes: Sequence[str], inputs: Inputs, threads: int, rounds: int, limit: str | None
) -> list[Contestant]:
    """Let runtimes take turns with a model; leanconv is the first."""
    contestants = [Contestant(name) for name in dict.fromkeys([OURS, *runtimes])]
    with contextlib.ExitStack() as stack:
        pipes = {}
        ours: list[Array] = []
        for entry in contestants:
            if importlib.util.find_spec(RUNTIMES[entry.runtime][0].partition(".")[0]) is None:
                entry.reason = "not installed"
                continue
            pipe = stack.enter_context(_process(entry, path, inputs, threads, limit))
            answer = _ask(pipe, entry)
            if answer is None:
                continue
            entry.load_seconds, entry.peak_bytes, outputs = answer
            ours = ours or outputs
            entry.difference = max(map(_difference, ours, outputs))
            pipes[entry.runtime] = pipe
        for _ in range(rounds):
            for entry in contestants:
                if entry.runtime in pipes and not entry.reason:
                    pipes[entry.runtime].send(True)
                    seconds = _ask(pipes[entry.runtime], entry)
                    entry.seconds += [] if seconds is None else [seconds]
    return contestants


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-30)) if ours.size else 0.0


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


def show(path: str, threads: int, contestants: Sequence[Contestant]) -> None:
    """Print a table."""
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


def run(options: argparse.Namespace) -> int:
    """`leanconv bench` whose layers are ONNX files; returns the exit code."""
    others = [path for path in options.layers if not path.endswith(".onnx")]
    try:
        if others or options.net:
            raise ArgumentValueError("LAYERS", [*others, *options.net], "must all be .onnx files if one is")
        known = [name for name in RUNTIMES if name != OURS]
        wanted = known if "all" in options.peers else options.peers
        for name in wanted:
            if name not in known:
                raise ArgumentValueError("--peers", name, f"must be one of {', '.join(known)} for ONNX files, or all")
        report = []
        for path in options.layers:
            inputs = random_inputs(path, options.shape)
            for threads in options.threads:
                found = compare(path, wanted, inputs, threads, options.rounds, options.memory_limit)
                report.append({"model": path, "threads": threads, "runtimes": [asdict(entry) for entry in found]})
                if options.json != "-":
                    show(path, threads, found)
    except LeanconvError as error:
        print(f"leanconv bench: {error}", file=sys.stderr)
        return 2
    if options.json == "-":
        print(json.dumps(report, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if any(entry["reason"] not in ("", "not installed") for row in report for entry in row["runtimes"]) else 0
