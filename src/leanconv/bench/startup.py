"""`leanconv startup`: what a new process waits for, and what a call costs beside its kernel.

Each figure is of processes of its own, over a folder of compiled kernels of its own: *cold* processes find it empty,
*warm* ones find what a process before has compiled. The machine has been measured before (`planning/figures.py`), which
each user's first process does once. Cold and warm processes take turns, so that what slows the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from leanconv.errors import LeanconvError

_LAYERS = """
import json, sys, time
start = time.perf_counter()
import numpy as np
found = {"import numpy": time.perf_counter() - start}
def timed(name, work):
    start = time.perf_counter()
    result = work()
    found[name] = time.perf_counter() - start
    return result
def library():
    import leanconv
    return leanconv
leanconv = timed("import leanconv", library)
rng = np.random.default_rng(0)
def array(*shape):
    return rng.standard_normal(shape, dtype=np.float32)
x, w3, w1 = array(1, 64, 56, 56), array(64, 64, 3, 3), array(128, 64, 1, 1)
timed("first layer", lambda: leanconv.conv2d(x, w3, padding=1))
found["import leanconv and first layer"] = found["import leanconv"] + found["first layer"]
timed("another layer", lambda: leanconv.conv2d(x, w1))
leanconv.conv2d(x, w3, padding=1)
timed("first layer again", lambda: leanconv.conv2d(x, w3, padding=1))
"""
_CALLS = """
x, w = array(1, 8, 1, 1), array(8, 8, 1, 1)
bound, out = leanconv.plan(x.shape, w.shape, threads=1).bind(w), np.empty((1, 8, 1, 1), np.float32)
def each(call):
    best = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(500):
            call()
        best.append((time.perf_counter() - start) / 500)
    return sorted(best)[len(best) // 2]
found["call of a bound plan, 64 products"] = each(lambda: bound(x, out=out))
found["call of conv2d, 64 products"] = each(lambda: leanconv.conv2d(x, w, out=out, threads=1))
"""
_MODEL = """
import json, sys, time
start = time.perf_counter()
import numpy as np, leanconv.onnx
found = {"imports": time.perf_counter() - start}
start = time.perf_counter()
session = leanconv.onnx.load(sys.argv[1])
inputs = {
    port.name: np.zeros([n if isinstance(n, int) else 224 if i else 1 for i, n in enumerate(port.shape)], port.dtype)
    for port in session.inputs
}
session.run(inputs)
found["load and first result"] = time.perf_counter() - start
start = time.perf_counter()
session.run(inputs)
found["second result"] = time.perf_counter() - start
"""
_STATE = """
found["llvm is loaded"] = bool({"leanconv.codegen.llvm", "llvmlite.binding"} & set(sys.modules))
try:
    with open("/proc/self/status") as status:
        found["peak memory"] = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
except (OSError, StopIteration):
    found["peak memory"] = None
"""
_END = """
print(json.dumps(found))
"""
_FIGURES = "from leanconv.planning.figures import figures; figures()"

Found = dict[str, dict[str, list[float]]]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; nothing heavy is imported."""
    startup = commands.add_parser(
        "startup",
        help="measure imports, first calls with and without compiled kernels, and what a call costs",
        description="Measure new processes: imports, first calls with (warm) and without (cold) compiled kernels, "
        "memory; and what calls cost beside their kernels.",
    )
    startup.add_argument("model", nargs="?", metavar="MODEL", help="an .onnx file to load instead of calling layers")
    startup.add_argument("--runs", type=int, default=7, metavar="N", help="processes of each kind (default: 7)")
    startup.add_argument("--json", action="store_true", help="print JSON: all times in seconds, memory in bytes")


def run(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit code."""
    if options.runs < 1:
        print("leanconv startup: --runs must be at least 1", file=sys.stderr)
        return 2
    try:
        found = measure(options.runs, options.model)
    except LeanconvError as error:
        print(f"leanconv startup: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found, options.runs)
    return 0


def measure(runs: int, model: str | None = None) -> Found:
    """Measure so many cold and as many warm processes, in turns; values of each figure by kind.

    Raises:
        LeanconvError: a process failed; its last words.
    """
    result: Found = {"cold": {}, "warm": {}}
    with tempfile.TemporaryDirectory(prefix="leanconv-startup-") as folder:
        environment = {**os.environ, "LEANCONV_CACHE_DIR": folder, "LEANCONV_CACHE": "rw"}
        # An installed package has its byte code on disk: sources compiled at each import take three times as long.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _process(_FIGURES, [], environment)
        for _ in range(runs):
            # Compiled kernels, and what is kept of models; what is known of the machine stays.
            for kept in ("objects", "models", "decisions"):
                shutil.rmtree(Path(folder, kept), ignore_errors=True)
            for kind, values in result.items():
                script = (_MODEL if model else _LAYERS) + _STATE
                if kind == "warm" and not model:
                    script += _CALLS
                for name, value in _process(script + _END, [model] if model else [], environment).items():
                    values.setdefault(name, []).append(value)
    return result


def _process(script: str, arguments: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LeanconvError(f"a process failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {}


def _show(found: Found, runs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from leanconv.bench.table import format_seconds

    table = Table(caption=f"median of {runs} processes, and the range", title="New processes")
    for column in ("", "cold", "warm"):
        table.add_column(column, justify="left" if not column else "right")
    for name in found["warm"]:
        cells = []
        for kind in ("cold", "warm"):
            values = [value for value in found[kind].get(name, []) if value is not None]
            form = _bytes if name == "peak memory" else format_seconds
            if not values:
                cells.append("-")
            elif name == "llvm is loaded":
                cells.append("yes" if any(values) else "no")
            else:
                middle, low, high = (form(value) for value in (statistics.median(values), min(values), max(values)))
                cells.append(f"{middle}  ({low} to {high})")
        table.add_row(name, *cells)
    Console().print(table)


def _bytes(value: float) -> str:
    from leanconv.sizes import format_bytes

    return format_bytes(int(value))
