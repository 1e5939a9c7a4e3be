"""`leanconv run`, `leanconv warmup`, and `leanconv explain` of an ONNX model."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import ArgumentValueError, LeanconvError
from leanconv.onnx.waiting import waiting

if TYPE_CHECKING:
    from leanconv.arrays import Array
    from leanconv.onnx.session import Session

_RUN = """\
Run an ONNX model on arrays or images, under a ceiling of bytes.

Each INPUT is an image (for an input of 1 or 3 channels), a .npy file, or a .npz
file with an array for each input; NAME=PATH says for which input it is. Without
any the model runs on random numbers.
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands; nothing heavy is imported."""
    run = commands.add_parser(
        "run",
        help="run an ONNX model",
        description=_RUN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("model", metavar="MODEL", help="an .onnx file")
    run.add_argument("inputs", nargs="*", metavar="INPUT", help="images or arrays, see above")
    run.add_argument("--output", metavar="PATH", help="write the outputs: .npy (if there is one) or .npz")
    run.add_argument("--profile", action="store_true", help="show the time of each step")
    run.add_argument("--trace", metavar="PATH", help="write the profile for Perfetto or chrome://tracing")
    run.add_argument("--repeat", type=int, default=1, metavar="N", help="runs that a profile takes the median of")
    run.add_argument("--top", type=int, default=5, metavar="N", help="largest numbers of each output to show")
    run.add_argument("--json", action="store_true", help="print JSON")
    images = run.add_argument_group("images", "pixels become (pixel * scale - mean) / deviation, each 0 to 255 before")
    images.add_argument("--size", metavar="HxW", help="resize to this (default: what the model fixes, or as it is)")
    images.add_argument("--scale", type=float, default=1 / 255, metavar="X", help="default: 1/255")
    images.add_argument("--mean", metavar="A,B,C", default="0", help="one number, or one for each channel (default: 0)")
    images.add_argument("--std", metavar="A,B,C", default="1", help="likewise, the deviation (default: 1)")
    images.add_argument("--imagenet", action="store_true", help="ImageNet's mean and deviation")
    images.add_argument("--bgr", action="store_true", help="blue first (default: red first)")
    images.add_argument("--multiple", type=int, default=1, metavar="N", help="round free sizes to a multiple of N")
    add_model_options(run)
    run.add_argument("--lock", metavar="PATH", help="plans of this file (from warmup --lock) and no others")
    warmup = commands.add_parser(
        "warmup",
        help="compile what an ONNX model needs, so that its first run is fast",
        description="Plan an ONNX model for given shapes and compile its kernels into the cache on disk.",
    )
    warmup.add_argument("model", metavar="MODEL", help="an .onnx file")
    warmup.add_argument("--lock", metavar="PATH", help="write down how the model is computed, for run --lock")
    add_model_options(warmup)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that load a model."""
    add = parser.add_argument
    add(
        "--memory-limit", metavar="BYTES", help="bytes, or text such as 64MiB, that a run may take beside plain weights"
    )
    add("--threads", type=int, metavar="N", help="most threads (default: as leanconv chooses)")
    add(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="shape of an input, where the model leaves it free; the name may be left out if there is one input",
    )


def run(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    try:
        with waiting(quiet=bool(getattr(options, "json", False))) as options.progress:
            return {"run": _run, "warmup": _warmup}[options.command](options)
    except LeanconvError as error:
        print(f"leanconv: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def load_session(options: argparse.Namespace, path: str) -> Session:
    """The session that the options ask for; it tells a terminal how far it is."""
    from leanconv.onnx.session import load

    lock = options.lock if options.command == "run" else None
    return load(path, memory_limit=options.memory_limit, threads=options.threads, lock=lock, progress=options.progress)


def shapes_of(session: Session, words: list[str]) -> dict[str, tuple[int, ...]]:
    """Shape of each input: what `--shape` says, or the model fixes; one image where only the batch is free."""
    given: dict[str, tuple[int, ...]] = {}
    for word in words:
        name, _, extents = word.rpartition("=")
        if not name and len(session.inputs) == 1:
            name = session.inputs[0].name
        try:
            shape = tuple(int(extent) for extent in extents.split("x"))
        except ValueError:
            raise ArgumentValueError("--shape", word, "must be extents joined by x, such as x=1x3x224x224") from None
        if all(port.name != name for port in session.inputs):
            names = ", ".join(port.name for port in session.inputs)
            raise ArgumentValueError("--shape", word, f"must begin with the name of an input: {names}")
        given[name] = shape
    for port in session.inputs:
        if port.name in given or port.shape is None:
            continue
        extents_ = [1 if axis == 0 and not isinstance(n, int) else n for axis, n in enumerate(port.shape)]
        if not all(isinstance(n, int) for n in extents_):
            raise ArgumentValueError("--shape", words, f"must give the shape of {port}")
        given[port.name] = tuple(n for n in extents_ if isinstance(n, int))
    return given


def _run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    session = load_session(options, options.model)
    inputs = _inputs(session, options)
    loaded = time.perf_counter()
    network = session.prepare({name: array.shape for name, array in inputs.items()}) if _static(session) else None
    planned = time.perf_counter()
    outputs = session.run(inputs)
    first = time.perf_counter()
    profile = session.profile(inputs, options.repeat) if options.profile or options.trace else None
    if options.output:
        _write(options.output, outputs)
    if options.trace and profile is not None:
        Path(options.trace).write_text(profile.trace(), encoding="utf-8")
    seconds = {"load": loaded - start, "plan": planned - loaded, "run": first - planned}
    memory = {} if network is None else {"peak": network.peak_bytes, "kept": network.kept_bytes}
    if options.json:
        report = {
            "seconds": seconds,
            "bytes": memory,
            "outputs": {name: _facts(array, options.top) for name, array in outputs.items()},
        }
        print(json.dumps(report, indent=1))
        return 0
    for name, array in outputs.items():
        _show(name, array, options.top)
    from leanconv.sizes import format_bytes

    print("  ".join(f"{what} {1e3 * taken:.1f} ms" for what, taken in seconds.items()))
    if memory:
        print(f"peak {format_bytes(memory['peak'])} between the layers, kept {format_bytes(memory['kept'])}")
    if options.profile and profile is not None:
        print(profile)
    return 0


def _static(session: Session) -> bool:
    """Whether plans follow from shapes alone, as far as is known before a run."""
    return not session.shape_inputs


def _inputs(session: Session, options: argparse.Namespace) -> dict[str, Array]:
    import numpy as np

    from leanconv.onnx.images import image_input

    how = _preparation(options)
    free = [port for port in session.inputs]
    found: dict[str, Array] = {}
    for word in options.inputs:
        name, _, path = word.rpartition("=")
        port = next((port for port in free if (port.name == name if name else port.name not in found)), None)
        if port is None:
            names = ", ".join(port.name for port in session.inputs)
            raise ArgumentValueError("INPUT", word, f"is for no input that is left; the model's inputs are {names}")
        try:
            if path.endswith(".npz"):
                with np.load(path, allow_pickle=False) as arrays:
                    found.update({key: arrays[key] for key in arrays.files})
            elif path.endswith(".npy"):
                found[port.name] = np.load(path, allow_pickle=False)
            else:
                found[port.name] = image_input(path, port, how)
        except (OSError, ValueError) as error:
            if isinstance(error, LeanconvError):
                raise
            raise ArgumentValueError("INPUT", word, f"cannot be read: {error}") from error
    if not options.inputs:
        rng = np.random.default_rng(0)
        print("no input: running on random numbers", file=sys.stderr)
        for name, shape in shapes_of(session, options.shape).items():
            dtype = next(str(port.dtype) for port in session.inputs if port.name == name)
            numbers = rng.random(shape) if dtype.startswith("float") else np.zeros(shape)
            found[name] = numbers.astype(dtype)
    return found


def _preparation(options: argparse.Namespace) -> Any:
    from leanconv.onnx.images import IMAGENET, Preparation

    mean, deviation = (
        IMAGENET if options.imagenet else (_numbers("--mean", options.mean), _numbers("--std", options.std))
    )
    size = None
    if options.size:
        try:
            height, width = (int(n) for n in options.size.split("x"))
        except ValueError:
            raise ArgumentValueError("--size", options.size, "must be height and width, such as 224x224") from None
        size = height, width
    if options.multiple < 1 or (size is not None and min(size) < 1):
        raise ArgumentValueError("--size", (options.size, options.multiple), "sizes must be at least 1")
    return Preparation(options.scale, mean, deviation, size, options.bgr, options.multiple)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ArgumentValueError(name, text, "must be numbers joined by commas") from None


def _write(path: str, outputs: Mapping[str, Array]) -> None:
    import numpy as np

    try:
        if path.endswith(".npy"):
            if len(outputs) != 1:
                raise ArgumentValueError("--output", path, f"must end in .npz: there are {len(outputs)} outputs")
            np.save(path, next(iter(outputs.values())))
        else:
            with Path(path).open("wb") as file:
                np.savez(file, **dict(outputs))  # type: ignore[arg-type]
    except OSError as error:
        raise ArgumentValueError("--output", path, f"cannot be written: {error}") from error


def _facts(array: Array, top: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.size and array.dtype.kind in "fiu":
        flat = array.reshape(-1)
        order = flat.argsort()[::-1][:top]
        facts |= {"min": float(flat.min()), "max": float(flat.max()), "mean": float(flat.mean())}
        facts["largest"] = [[int(place), float(flat[place])] for place in order]
    return facts


def _show(name: str, array: Array, top: int) -> None:
    facts = _facts(array, top)
    print(f"{name}  {facts['dtype']} {'x'.join(map(str, facts['shape'])) or 'a number'}")
    if "largest" in facts:
        print(f"  min {facts['min']:.6g}  max {facts['max']:.6g}  mean {facts['mean']:.6g}")
        if facts["largest"]:
            print("  largest " + "  ".join(f"[{place}] {value:.6g}" for place, value in facts["largest"]))


def _warmup(options: argparse.Namespace) -> int:
    import numpy as np

    start = time.perf_counter()
    session = load_session(options, options.model)
    shapes = shapes_of(session, options.shape)
    network = session.prepare(shapes)
    session.run({name: np.zeros(shape, str(_dtype(session, name))) for name, shape in shapes.items()})
    seconds = time.perf_counter() - start
    print(f"{len(network.steps)} steps planned, compiled and run once in {seconds:.2f} s; the kernels are in the cache")
    if options.lock:
        session.save_lock(options.lock)
        print(f"how it is computed is written down in {options.lock}")
    return 0


def _dtype(session: Session, name: str) -> str | None:
    return next(port.dtype for port in session.inputs if port.name == name)


def explain(options: argparse.Namespace, path: str) -> int:
    """`leanconv explain model.onnx`."""
    from leanconv.onnx.explain import explain_model

    options.progress = None
    session = load_session(options, path)
    found = explain_model(session, shapes_of(session, options.shape), threads=options.threads)
    print(json.dumps(found.data(), indent=1) if options.json else found)
    if options.plot:
        found.plot(options.plot)
    return 0
