"""`python -m leanconv.bench.torch_models`: networks swapped by leanconv beside PyTorch, channels last: time and memory.

Each side has a process of its own, and they take turns round by round: the threads of one library, which spin for a
while after its last call, are not to slow the other down. Memory is measured in further processes, one for each figure:
how far resident memory rises at most above that with the model as it was built, over conversion or swap and two
calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.bench.command import progress_bar
from leanconv.bench.intervals import factor_interval
from leanconv.bench.models import MODELS
from leanconv.bench.torch_sides import SIDES, Timed, Work, peak_bytes
from leanconv.blas import use_all_instructions
from leanconv.sizes import format_bytes

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "vgg16", "unet")
FEWEST = 3  # rounds, however long they take


@dataclass(slots=True)
class Row:
    """A network with a number of images and of threads.

    Attributes:
        network: its name.
        batch: images.
        threads: of each side.
        difference: the largest of the outputs, relative to the largest output.
        seconds: of each timed call, by side.
        peak_bytes: beyond the model as it was built, by side; None if the system does not tell.
    """

    network: str
    batch: int
    threads: int
    difference: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    peak_bytes: dict[str, int | None] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """PyTorch's time over leanconv's."""
        return factor_interval(self.seconds["pytorch"], self.seconds["leanconv"], 0.95).ratio

    @property
    def less(self) -> bool | None:
        """Whether leanconv takes less memory."""
        theirs, ours = (self.peak_bytes[side] for side in SIDES)
        return None if theirs is None or ours is None else ours < theirs

    def __str__(self) -> str:
        """A line of the table."""
        interval = factor_interval(self.seconds["pytorch"], self.seconds["leanconv"], 0.95)
        around = f"[{interval.low:.2f}, {interval.high:.2f}]" if interval.bounded else "-"
        times = [statistics.median(self.seconds[side]) * 1e3 for side in SIDES]
        memory = ["-" if found is None else format_bytes(found) for found in map(self.peak_bytes.get, SIDES)]
        return (
            f"{self.network:<14}{self.batch:>5}{self.threads:>8}{times[0]:>10.2f}{times[1]:>10.2f}{interval.ratio:>7.2f}"
            f"  {around:<14}{self.difference:>7.0e}{memory[0]:>12}{memory[1]:>12}"
        )


TITLES = (
    f"{'network':<14}{'batch':>5}{'threads':>8}{'PyTorch':>10}{'leanconv':>10}{'ratio':>7}  {'95 %':<14}{'error':>7}"
    f"{'memory':>12}{'':>12}"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    use_all_instructions()
    parser = argparse.ArgumentParser(prog="python -m leanconv.bench.torch_models", description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; {', '.join(NETWORKS)} if none is named")
    parser.add_argument("--batch", type=_numbers, default=(1, 8), metavar="N,M", help="images (default: 1,8)")
    parser.add_argument("--threads", type=_numbers, default=(1, 2), metavar="N,M", help="(default: 1,2)")
    parser.add_argument("--rounds", type=_number, default=5, help="of turns (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help=f"after which a row has no more rounds than {FEWEST} (default: 6)"
    )
    parser.add_argument("--memory-limit", default=None, help='of each swapped model, such as "4MiB"')
    parser.add_argument("--release-weights", action="store_true", help="move plain weights to a file, see `swap`")
    parser.add_argument("--share-threads", action="store_true", help="run leanconv on PyTorch's threads")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    given = parser.parse_args(arguments)
    unknown = set(given.models) - set(MODELS)
    if unknown:
        parser.error(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    swap: dict[str, Any] = {"memory_limit": given.memory_limit, "release_weights": given.release_weights}
    words = ", ".join(f"{name}={value!r}" for name, value in swap.items() if value)
    print(f"swap(model, example_input=x{words and f', {words}'}); float32; milliseconds, medians\n{TITLES}", flush=True)
    rows: list[Row] = []
    work = list(itertools.product(given.models or NETWORKS, given.batch))
    with progress_bar() as step:
        for number, (name, batch) in enumerate(work):
            if step is not None:
                step(f"{name}, batch {batch}", number, len(work))
            sides = {side: Work(name, side, batch, swap, given.share_threads) for side in SIDES}
            for row in _timed(sides, given.threads, given.rounds, given.seconds):
                row.peak_bytes = {side: peak_bytes(one, row.threads) for side, one in sides.items()}
                rows.append(row)
                print(row, flush=True)
    summarise(rows)
    if given.json:
        found = {"swap": swap, "share_threads": given.share_threads, "rows": [asdict(row) for row in rows]}
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _timed(sides: dict[str, Work], counts: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Rows of a network for each number of threads, without memory."""
    most = max(counts)
    with Timed(sides["pytorch"], most) as theirs, Timed(sides["leanconv"], most) as ours:
        error = float(np.abs(ours.output - theirs.output).max() / np.abs(theirs.output).max())
        one = sides["leanconv"]
        rows = [Row(one.network, one.batch, threads, error) for threads in counts]
        for row in rows:
            start = time.monotonic()
            for number in range(rounds):
                if number >= FEWEST and time.monotonic() - start > seconds:
                    break
                turns = [("pytorch", theirs), ("leanconv", ours)]
                for side, process in turns if number % 2 else turns[::-1]:
                    row.seconds[side] += process.turn(row.threads)
    return rows


def summarise(rows: Sequence[Row]) -> None:
    """Print means, and the rows that stand out."""
    mean = math.exp(statistics.mean(math.log(row.ratio) for row in rows))
    print(f"geometric mean of the ratios: {mean:.2f}, least {min(row.ratio for row in rows):.2f}")
    for batch, threads in sorted({(row.batch, row.threads) for row in rows}):
        some = [math.log(row.ratio) for row in rows if (row.batch, row.threads) == (batch, threads)]
        print(f"  batch {batch}, threads {threads}: {math.exp(statistics.mean(some)):.2f}")
    known = [row for row in rows if row.less is not None]
    if known:
        print(f"less memory than PyTorch in {sum(bool(row.less) for row in known)} of {len(known)} rows")
    print(f"largest difference of the outputs: {max(row.difference for row in rows):.0e}")


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in text.split(","))


if __name__ == "__main__":
    main()
