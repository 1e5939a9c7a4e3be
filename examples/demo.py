"""leanconv on pictures: filters that everybody knows, first layers of four image networks, and a network for text.

Each filter is one convolution by the algorithm that leanconv chooses. Each first layer, with its bias and
activation, is computed by every algorithm that applies. Each result is compared with the definition in
float64; the calls of a layer are timed in turns; their bytes are listed. The layers have the shapes of the
networks' first layers; the weights are not the trained ones but Gabor filters and colour blobs made by a
formula, which trained first layers resemble. Last comes a trained network under a memory limit, next to ONNX
Runtime, if the extra "demo" is installed: see text_detector.py.

The photograph is matplotlib's sample image: Commodore Grace M. Hopper in 1984, by the United States Navy, in
the public domain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray
from PIL import Image  # comes with matplotlib
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import leanconv
import text_detector
from filters import Filter, first_layer, photo_filters, shown_channels
from leanconv import oracle
from leanconv.bench import table
from leanconv.bench.layers import Layer
from leanconv.bench.report import NOT_APPLICABLE, WRONG, Report, Row, Sample
from leanconv.bench.sampling import sample
from leanconv.blas import blas_threads
from leanconv.doctor import machine_facts, versions
from pictures import Responses, feature_sheet, filter_sheet, time_against_memory

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = "NHWC"
# Largest error against float64, relative to the largest output. Typical are some 1e-7; a blur sums hundreds
# of terms of one sign and reaches 2e-6. A missing or wrong tap costs far more.
TOLERANCE = 1e-5
ROUNDS = 10
SLOW = 20e-3  # seconds; a call that takes longer is timed in every third round only
SHORTEST_SAMPLE = 2e-3  # seconds; fast calls are repeated until a sample is as long


@dataclass(frozen=True)
class FirstLayer:
    """The first convolution of a network: 3 channels to `outputs`, on 224 x 224 pixels."""

    network: str
    outputs: int
    size: int
    stride: int
    padding: int
    activation: str

    @property
    def layer(self) -> Layer:
        """The shape, as the benchmark's tables want it."""
        pads = (self.padding, self.padding)
        pair = (self.size, self.size), (self.stride, self.stride), (pads, pads)
        return Layer(self.network, 1, 3, (224, 224), self.outputs, *pair, (1, 1))


NETWORKS = (
    FirstLayer("ResNet", 64, size=7, stride=2, padding=3, activation="relu"),
    FirstLayer("MobileNetV2", 32, size=3, stride=2, padding=1, activation="relu6"),
    FirstLayer("VGG-16", 64, size=3, stride=1, padding=1, activation="relu"),
    FirstLayer("AlexNet", 64, size=11, stride=4, padding=2, activation="relu"),
)


def photograph() -> Array:
    """Return the photograph, (600, 512, 3), float32 from 0 to 1."""
    pixels = imread(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    photo: Array = np.divide(pixels, 255, dtype=np.float32)
    return photo


def network_input(photo: Array) -> Array:
    """Return the face at half the size, (1, 224, 224, 3), with ImageNet's mean and deviation taken out."""
    face = photo[10:458, 40:488].reshape(224, 2, 224, 2, 3).mean(axis=(1, 3))
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x: Array = ((face - mean) / deviation).astype(np.float32)
    return x[None]


def compare(row: Row, out: Array, expected: Array) -> None:
    """Fill in the error of a result; an element that was not written is NaN and makes it infinite."""
    error = np.abs(out - expected).max() / np.abs(expected).max()
    row.error, row.compared = float(np.nan_to_num(error, nan=np.inf)), f"all {out.size:,} outputs"
    if row.error > TOLERANCE:
        row.status, row.reason = WRONG, f"error {row.error:.1e}, {TOLERANCE:.0e} is allowed"


def prepare(
    row: Row, x: Array, w: Array, bias: Array | None, options: dict[str, Any]
) -> tuple[Callable[[], Any], Array]:
    """Plan a convolution and bind its weights; return the call and the array that it writes into."""
    plan = leanconv.plan(x.shape, w.shape, bias=bias is not None, algorithm=row.algorithm, **options)
    row.ran, row.parameters, row.flops = plan.algorithm, dict(plan.parameters), plan.problem.flops
    row.workspace_bytes, row.packed_weight_bytes = plan.workspace_bytes, plan.packed_weight_bytes
    layer, out = (
        plan.bind(w, bias),
        leanconv.empty(plan.problem.out_shape),
    )  # on cache lines, as other arrays may not be
    out.fill(np.nan)
    return lambda: layer(x, out=out), out


def take_turns(calls: list[tuple[Row, Callable[[], Any]]], threads: int) -> None:
    """Time the calls, A B C A B C ..., with the FMA peak in each round: only neighbours are compared."""
    slow = set()
    for row, call in calls:
        seconds = sample(call, 1)
        row.calls = max(1, round(SHORTEST_SAMPLE / seconds))
        if seconds > SLOW:
            slow.add(id(row))
    for turn in range(ROUNDS):
        peak = leanconv.fma_peak(threads=threads)
        for row, call in calls:
            if id(row) in slow and turn % 3:
                continue
            row.samples.append(Sample(turn, sample(call, row.calls), peak))
    for row, _ in calls:
        row.summarise()


def run_filter(item: Filter, photo: Array, threads: int) -> tuple[Layer, list[Row], Array]:
    """Filter the photograph with the algorithm that leanconv chooses; return also the picture."""
    x, (outputs, _, *kernel) = photo[None], item.weights.shape
    pads = tuple((size // 2, size // 2) for size in kernel)
    layer = Layer(item.name, 1, 3, photo.shape[:2], outputs, tuple(kernel), (1, 1), pads, (1, 1))
    options = {**layer.options(LAYOUT), "pad_mode": "reflect", "threads": threads}
    row = Row(item.name, "auto", LAYOUT, threads)
    call, out = prepare(row, x, item.weights, None, options)
    call()
    problem = leanconv.plan(x.shape, item.weights.shape, **options).problem
    compare(row, out, oracle.reference(problem, x, item.weights))
    take_turns([(row, call)], threads)
    picture = out[0]
    if item.gradient:
        picture = np.repeat(np.hypot(out[0, ..., :1], out[0, ..., 1:]), 3, axis=-1)
    return layer, [row], picture + item.offset


def run_network(network: FirstLayer, x: Array, threads: int) -> tuple[Layer, list[Row], Responses]:
    """Compute a first layer by every algorithm; return also what is shown of it."""
    layer, w = network.layer, first_layer(network.outputs, network.size)
    bias = np.full(network.outputs, -0.02, np.float32)  # hides the weakest responses
    options = {**layer.options(LAYOUT), "activation": network.activation, "threads": threads}
    problem = leanconv.plan(x.shape, w.shape, bias=True, **options).problem
    expected = oracle.reference(problem, x, w, bias)
    rows, calls = [], []
    for info in leanconv.algorithms(x.shape, w.shape, bias=True, **options):
        row = Row(layer.name, info.name, LAYOUT, threads)
        rows.append(row)
        if not info.applies:
            row.status, row.reason = NOT_APPLICABLE, info.reason or ""
            continue
        call, out = prepare(row, x, w, bias, options)
        call()
        compare(row, out, expected)
        calls.append((row, call))
    with blas_threads(threads):
        take_turns(calls, threads)
    shown = shown_channels(network.outputs)
    size = f"{network.size}x{network.size}"
    title = f"{network.network}: {size}, stride {network.stride}, 3 to {network.outputs} channels"
    return layer, rows, Responses(title, w[shown], np.moveaxis(out[0], -1, 0)[shown])


def save_small(picture: Path, path: Path) -> None:
    """Save a picture in 256 colours, at less than half the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


def new_report() -> Report:
    """Return an empty table."""
    return Report(sys.argv, {"dtype": "float32"}, machine_facts(), versions())


def add(report: Report, layer: Layer, rows: list[Row]) -> None:
    """Put the rows of a layer into a table."""
    report.layers.append({**asdict(layer), "shape": layer.short(), "flops": layer.problem(LAYOUT).flops})
    report.rows += rows


def main() -> int:
    """Run the demo; return 1 if any result was wrong."""
    parser = argparse.ArgumentParser(prog="./scripts/demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="folder for the pictures")
    parser.add_argument("--threads", type=int, default=leanconv.get_num_threads(), help="threads of a call")
    parser.add_argument("--docs", action="store_true", help="also renew the pictures in docs/images")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    console, threads = Console(), options.threads

    photo, filters = photograph(), photo_filters()
    tiles, layers = [("photograph", photo)], []
    known, first = new_report(), new_report()
    columns = (TextColumn("{task.description}"), BarColumn())
    # Redrawn only between measurements: a thread that draws would take time from what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(filters) + len(NETWORKS))
        for item in filters:
            progress.update(task, description=item.name, refresh=True)
            layer, rows, picture = run_filter(item, photo, threads)
            add(known, layer, rows)
            tiles.append((item.name, picture))
            progress.advance(task)
        x = network_input(photo)
        for network in NETWORKS:
            progress.update(task, description=f"{network.network}, by every algorithm", refresh=True)
            layer, rows, responses = run_network(network, x, threads)
            add(first, layer, rows)
            layers.append(responses)
            progress.advance(task)

    height, width = photo.shape[:2]
    console.print(f"[bold]Filters[/] of a photograph, {width} x {height} pixels, float32, edges reflected")
    table.results(known, console)
    console.print("\n[bold]First layers of networks[/] on 224 x 224 pixels, with bias and activation")
    table.show(first, console)

    wrong: list[str] = []
    detected = []
    console.print()
    if (sentence := text_detector.missing()) is None:
        try:
            picture, wrong = text_detector.detect(options.output, threads, text_detector.MEMORY_LIMIT, console)
            detected = [picture]
        except leanconv.LeanconvError as error:  # the pictures of the rest are still to be drawn
            wrong = [f"Text detector: {error}"]
    else:
        console.print(sentence)

    pictures = [options.output / name for name in ("filters.png", "feature-maps.png", "time-memory.png")]
    filter_sheet(tiles, pictures[0])
    feature_sheet(layers, pictures[1])
    facts = f"{machine_facts().get('cpu', '')}, {threads} thread{'s' if threads > 1 else ''}, float32"
    time_against_memory(first.rows, facts, pictures[2])
    console.print()
    for picture in [*pictures, *detected]:
        console.print(f"Wrote {picture}", highlight=False, soft_wrap=True)
        if options.docs:
            save_small(picture, ROOT / "docs" / "images" / picture.name)
    failures = known.failures + first.failures
    for row in failures:
        console.print(f"[red]{row.layer}, {row.algorithm}: {row.status}: {row.reason}[/]")
    for sentence in wrong:
        console.print(f"[red]{sentence}[/]")
    return 1 if failures or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
