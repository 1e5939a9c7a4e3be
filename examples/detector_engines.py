"""One network in two engines; as a program, the memory that one of them takes for it.

    python examples/detector_engines.py {load,run} ENGINE MODEL INPUT.npy LIMIT THREADS

`load` prints how far the resident memory of the process rises (its high-water mark, in bytes) while the model is loaded
and run once, `run` while it is run once after it was loaded.  Packages have been imported by then.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.bench.process_memory import PeakMemory

Array = NDArray[Any]
Call = Callable[[Array], Array]

LEANCONV = "leanconv"
RUNTIME = "ONNX Runtime"
PACKAGES = {LEANCONV: ("llvmlite.binding", "onnx", "leanconv.onnx.session"), RUNTIME: ("onnxruntime",)}


def load_leanconv(model: Path, shape: tuple[int, ...], limit: str, threads: int) -> tuple[Call, Any]:
    """Load a model of one input and one output under a memory limit; return also the compiled network."""
    from leanconv.onnx import load

    session = load(model, memory_limit=limit, threads=threads)
    (name,), (result,) = ([port.name for port in ports] for ports in (session.inputs, session.outputs))
    network = session.prepare({name: shape})
    return lambda x: session.run({name: x})[result], network


def load_runtime(model: Path, threads: int) -> Call:
    """Load a model of one input and one output into ONNX Runtime, as it comes, with all its optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # warnings off
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def measured_rise(part: str, engine: str, model: Path, x: Path, limit: str, threads: int) -> int | None:
    """Measure in a process of its own; None where the system does not tell."""
    command = [sys.executable, __file__, part, engine, str(model), str(x), limit, str(threads)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return int(printed) if printed.isdigit() else None


def main() -> None:
    """Print the bytes."""
    part, engine, model, input_path, limit, threads = sys.argv[1:]
    x = np.load(input_path)
    for package in PACKAGES[engine]:
        import_module(package)
    memory = PeakMemory()
    if engine == LEANCONV:
        call, _ = load_leanconv(Path(model), x.shape, limit, int(threads))
    else:
        call = load_runtime(Path(model), int(threads))
    if part == "run":
        memory = PeakMemory()
    call(x)
    print(memory.extra_bytes())


if __name__ == "__main__":
    main()
