"""`python -m leanconv.bench.fused_blocks`: MobileNetV2's blocks in one pass, against their layers one after another.

Both run on the same arrays and weights, in turns. The layers are bound plans as `auto` chooses them, with outputs that
exist already; the image is added by the last of them, where a block does. What lies between layers is
`intermediate_bytes`, and what a block keeps in their place its workspace.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import leanconv
from leanconv import blocks
from leanconv.bench.command import progress_bar
from leanconv.bench.intervals import Interval, factor_interval
from leanconv.bench.sampling import sample
from leanconv.bench.table import format_seconds
from leanconv.sizes import format_bytes

_SAMPLE = 5e-3  # seconds


@dataclass(frozen=True)
class InvertedResidual:
    """Extent of the image, channels in, expanded and out, and the stride of the 3x3 depthwise layer."""

    size: int
    channels: int
    middle: int
    out: int
    stride: int = 1

    @property
    def residual(self) -> bool:
        """Whether the image is added."""
        return self.stride == 1 and self.channels == self.out

    @property
    def name(self) -> str:
        """Its sizes."""
        return f"{self.size}x{self.size} {self.channels}-{self.middle}-{self.out} s{self.stride}"


MOBILENET_V2 = (
    InvertedResidual(112, 16, 96, 24, 2),
    InvertedResidual(56, 24, 144, 24),
    InvertedResidual(56, 24, 144, 32, 2),
    InvertedResidual(28, 32, 192, 32),
    InvertedResidual(28, 32, 192, 64, 2),
    InvertedResidual(14, 64, 384, 64),
    InvertedResidual(14, 64, 384, 96),
    InvertedResidual(14, 96, 576, 96),
    InvertedResidual(14, 96, 576, 160, 2),
    InvertedResidual(7, 160, 960, 160),
    InvertedResidual(7, 160, 960, 320),
)
"""Those of MobileNetV2 that differ, for images of 224x224."""


@dataclass(frozen=True)
class BlockResult:
    """Times of a block and of its layers, and the bytes of either.

    `error`: largest difference between the two results, as a part of the largest output.
    """

    name: str
    apart: list[float]
    fused: list[float]
    intermediate_bytes: int
    workspace_bytes: int
    error: float

    @property
    def ratio(self) -> Interval:
        """The layers' time over the block's."""
        return factor_interval(self.apart, self.fused, 0.95)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all blocks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m leanconv.bench.fused_blocks", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each, taken in turns")
    parser.add_argument("--memory-limit", default=None, help="of a block, such as 256KiB")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    given = parser.parse_args(arguments)
    results = []
    with progress_bar() as step:
        for done, block in enumerate(MOBILENET_V2):
            if step is not None:
                step(block.name, done, len(MOBILENET_V2))
            results.append(compare(block, given.batch, given.threads, given.rounds, given.memory_limit))
    _show(results, given.threads)
    if given.json:
        found = {"settings": vars(given), "blocks": [asdict(result) for result in results]}
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def compare(
    block: InvertedResidual, batch: int, threads: int, rounds: int, memory_limit: int | str | None = None
) -> BlockResult:
    """Time one block, and its layers apart."""
    rng = np.random.default_rng(0)
    size, c, e, k = block.size, block.channels, block.middle, block.out
    x = leanconv.empty((batch, size, size, c))  # arrays on cache lines, or where they fall would decide
    x[...] = rng.standard_normal(x.shape, np.float32)
    weights = [
        rng.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[1:]))
        for shape in ((e, c, 1, 1), (e, 1, 3, 3), (k, e, 1, 1))
    ]
    biases = [rng.standard_normal(len(w), np.float32) for w in weights]
    plan = blocks.plan_inverted_residual(
        x.shape,
        *(w.shape for w in weights),
        biases=(True, True, True),
        stride=block.stride,
        padding=1,
        residual=block.residual,
        memory_limit=memory_limit,
        threads=threads,
    )
    fused, out = plan.bind(*weights, biases=biases), leanconv.empty(plan.out_shape)

    layers, arrays = [], [x]
    for number, (w, b) in enumerate(zip(weights, biases, strict=True)):
        more: dict[str, Any] = {"activation": "relu6"} if number < 2 else {"residual": block.residual}
        if number == 1:
            more |= {"stride": block.stride, "padding": 1, "groups": e}
        layer = leanconv.plan(arrays[-1].shape, w.shape, bias=True, layout="NHWC", threads=threads, **more)
        arrays.append(leanconv.empty(plan.layers[number].out_shape))
        layers.append(layer.bind(w, b))
    expand, depthwise, project = layers
    image = {"residual": x} if block.residual else {}

    def apart() -> None:
        expand(arrays[0], out=arrays[1])
        depthwise(arrays[1], out=arrays[2])
        project(arrays[2], out=arrays[3], **image)

    sides: tuple[Callable[[], object], ...] = apart, lambda: fused(x, out=out)
    times: tuple[list[float], list[float]] = [], []
    calls = [max(1, math.ceil(_SAMPLE / sample(call, 2))) for call in sides]
    for turn in range(rounds):
        for side in (turn % 2, 1 - turn % 2):
            times[side].append(sample(sides[side], calls[side]))
    error = float(np.abs(out - arrays[3]).max() / np.abs(arrays[3]).max())
    return BlockResult(block.name, *times, plan.intermediate_bytes, plan.workspace_bytes, error)


def _show(results: Sequence[BlockResult], threads: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Inverted residual blocks, threads: {threads}", caption="medians; intervals of 95 %")
    for column in (
        "block",
        "layers",
        "one pass",
        "layers / one pass",
        "between layers",
        "workspace",
        "part",
        "difference",
    ):
        table.add_column(column, justify="left" if column == "block" else "right")
    for one in results:
        ratio = one.ratio
        table.add_row(
            one.name,
            format_seconds(statistics.median(one.apart)),
            format_seconds(statistics.median(one.fused)),
            f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            format_bytes(one.intermediate_bytes),
            format_bytes(one.workspace_bytes),
            f"{one.workspace_bytes / one.intermediate_bytes:.0%}",
            f"{one.error:.0e}",
        )
    Console().print(table)
    means = [statistics.geometric_mean([f(one) for one in results]) for f in (_faster, _smaller)]
    print(f"geometric means: {means[0]:.2f} times as fast, in {means[1]:.0%} of the memory between layers")


def _faster(result: BlockResult) -> float:
    return result.ratio.ratio


def _smaller(result: BlockResult) -> float:
    return result.workspace_bytes / result.intermediate_bytes


if __name__ == "__main__":
    main()
