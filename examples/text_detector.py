"""A pretrained network on a page of text under a memory limit, next to ONNX Runtime.

    python examples/text_detector.py [--memory-limit SIZE] [--threads N] [--output FOLDER]

The network is the text detector of PP-OCRv4, as the package rapidocr-onnxruntime brings it.  That package also prepares
the page and makes boxes of what the network says, the same way for each engine.  Outputs and boxes are compared; calls
are timed in turns; memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

import leanconv
from detector_engines import LEANCONV, RUNTIME, Call, load_leanconv, load_runtime, measured_rise
from leanconv.bench.report import spread
from leanconv.sizes import format_bytes
from text_page import draw_boxes, text_page

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("onnx", "onnxruntime", "rapidocr_onnxruntime")
MODEL = "ch_PP-OCRv4_det_infer.onnx"
MEMORY_LIMIT = "40MiB"
TOLERANCE = 1e-4  # of outputs between 0 and 1
ROUNDS = 9
PAUSE = 0.05  # seconds before each turn: threads of the one before must not wait for work any more


@dataclass
class Result:
    """What an engine found, and took.

    Attributes:
        output: of the network, (1, 1, H, W).
        boxes: (n, 4, 2), corners as x and y.
        seconds: of each timed call.
        known: bytes known before the run, if any.
        run_rise: bytes by which a run raised the process's memory; None where the system does not tell.
        total_rise: the same for loading and the first run.
    """

    output: Array
    boxes: Array
    seconds: list[float] = field(default_factory=list)
    known: int | None = None
    run_rise: int | None = None
    total_rise: int | None = None


def missing() -> str | None:
    """Return a sentence that says which packages cannot be imported, and why; None if all can."""
    reasons = []
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    return f"The text detector is left out: {'; '.join(reasons)}." if reasons else None


def differences(results: dict[str, Result]) -> dict[str, str]:
    """Say for each engine in what it differs from the first by more than it may."""
    (first, want), *others = results.items()
    found = {}
    for name, result in others:
        if want.output.shape != result.output.shape:
            found[name] = f"outputs {result.output.shape}, {first} {want.output.shape}"
        elif not largest_difference(want, result) <= TOLERANCE:  # NaN neither
            found[name] = f"outputs differ from {first}'s by {largest_difference(want, result):.1e}"
        elif not np.array_equal(want.boxes, result.boxes):
            found[name] = f"boxes differ from {first}'s"
    return found


def largest_difference(one: Result, other: Result) -> float:
    """Return the largest difference of the outputs."""
    return float(np.abs(one.output - other.output).max())


def take_turns(calls: dict[str, Call], x: Array, results: dict[str, Result]) -> None:
    """Time the calls, A B C A B C ...; before each an untimed one fetches into the caches what others displaced."""
    for _ in range(ROUNDS):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call(x)
            start = time.perf_counter()
            call(x)
            results[name].seconds.append(time.perf_counter() - start)


def show(results: dict[str, Result], console: Console) -> None:
    """Print a table: a column for each engine."""

    def size(nbytes: int | None) -> str:
        return "-" if nbytes is None else format_bytes(nbytes)

    first, *others = results.values()
    rows = {
        f"time, median of {len(first.seconds)} calls in turns": [
            f"{1e3 * median(r.seconds):.1f} ms" for r in results.values()
        ],
        "its spread (interquartile range)": [f"{spread(r.seconds) or 0:.1%}" for r in results.values()],
        "memory of a run, known before it": [size(r.known) for r in results.values()],
        "measured: rise in the first run": [size(r.run_rise) for r in results.values()],
        "measured: rise in loading and the first run": [size(r.total_rise) for r in results.values()],
        "boxes": [str(len(r.boxes)) for r in results.values()],
        "largest difference of outputs": ["", *(f"{largest_difference(first, r):.1e}" for r in others)],
    }
    table = Table("", *(Column(name, justify="right") for name in results))
    for what, cells in rows.items():
        table.add_row(what, *cells)
    console.print(table)


def detect(output: Path, threads: int, limit: str, console: Console) -> tuple[Path, list[str]]:
    """Run the detector in each engine and print what came out.

    Args:
        output: folder for the picture.
        threads: of each engine.
        limit: the most that leanconv may take, such as "40MiB".
        console: where the table goes.

    Returns:
        The picture, and a sentence for everything that was wrong.

    Raises:
        MemoryLimitError: the network needs more than the limit; says the least that would do.
    """
    import rapidocr_onnxruntime
    import yaml
    from rapidocr_onnxruntime.ch_ppocr_det import TextDetector

    folder = Path(rapidocr_onnxruntime.__file__).parent
    model = folder / "models" / MODEL
    config = yaml.safe_load((folder / "config.yaml").read_text())["Det"] | {"model_path": str(model)}
    detector = TextDetector(config)
    page = text_page()
    blue_first = np.ascontiguousarray(page[..., ::-1])  # as OpenCV reads images
    x = detector.get_preprocess(max(page.shape[:2]))(blue_first)

    lean, network = load_leanconv(model, x.shape, limit, threads)
    calls = {LEANCONV: lean, RUNTIME: load_runtime(model, threads)}
    results = {}
    for name, call in calls.items():
        detector.infer = lambda x, call=call: [call(x)]
        results[name] = Result(call(x), detector(blue_first)[0])
    ours = results[LEANCONV]
    # What a run takes besides weights: the arena, and the output that the caller gets.
    ours.known = network.peak_bytes + ours.output.nbytes
    height, width = page.shape[:2]
    console.print(
        f"[bold]Text detector[/] of PP-OCRv4 on a page of {width} x {height} pixels, float32, threads: {threads}; "
        f"leanconv with memory_limit={limit}: {format_bytes(network.peak_bytes)} between the layers and "
        f"{format_bytes(network.extra_bytes)} of packed weights beyond the plain ones, exactly"
    )
    take_turns(calls, x, results)
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "input.npy"
        np.save(saved, x)
        for name, result in results.items():
            run, both = (measured_rise(part, name, model, saved, limit, threads) for part in ("run", "load"))
            result.run_rise, result.total_rise = run, both
    show(results, console)
    wrong = [f"Text detector, {name}: {what}" for name, what in differences(results).items()]
    if not len(ours.boxes):
        wrong.append("Text detector: no boxes were found")
    picture = output / "text-detector.png"
    draw_boxes(page, ours.output[0, 0], {name: result.boxes for name, result in results.items()}, picture)
    return picture, wrong


def main() -> int:
    """Run the detector; return 1 if engines differ, 2 if it can't run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="folder for the picture")
    parser.add_argument("--threads", type=int, default=leanconv.get_num_threads(), help="threads of each engine")
    parser.add_argument("--memory-limit", default=MEMORY_LIMIT, metavar="SIZE", help="ceiling of leanconv's bytes")
    options = parser.parse_args()
    console = Console()
    if (sentence := missing()) is not None:
        console.print(sentence)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        picture, wrong = detect(options.output, options.threads, options.memory_limit, console)
    except leanconv.LeanconvError as error:
        console.print(f"[red]{error}[/]")
        return 2
    console.print(f"Wrote {picture}", highlight=False, soft_wrap=True)
    for sentence in wrong:
        console.print(f"[red]{sentence}[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
