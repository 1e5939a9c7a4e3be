"""Filters taken apart, against the whole convolution: the same results, timed in turns.

    python examples/decompositions.py [--threads N] [--rounds N] [--only TEXT]

For each filter and image every method of `leanconv.separable`, `leanconv.cp` and `leanconv.shift_conv2d` that applies,
and the ordinary convolution: median of the rounds, their spread (half the distance of the quartiles), and the
workspace. Each result is compared with the definition in float64 first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import leanconv
from leanconv import oracle
from leanconv.decomp import Decomposed, plan_shift

Array = NDArray[Any]
SHORTEST_SAMPLE = 4e-3  # seconds; fast calls are repeated until a sample is as long
TOLERANCE = 1e-5  # of the largest output


@dataclass(frozen=True)
class Way:
    """A method that is timed: its name, a call without arguments, and its bytes."""

    name: str
    call: Callable[[], Any]
    workspace: int


def gauss(size: int) -> Array:
    """A Gaussian filter of size x size pixels that reaches two sigmas."""
    line = np.exp(-(np.linspace(-2, 2, size) ** 2) / 2)
    return (np.outer(line, line) / line.sum() ** 2).astype(np.float32)


def methods(filters: Decomposed, x_shape: tuple[int, ...], layout: str, threads: int) -> list[Way]:
    """Every method of some filters on an image, checked."""
    size = filters.w.shape[-1]
    x = np.random.default_rng(0).standard_normal(x_shape).astype(np.float32)
    found, want = [], None
    for name in (*filters.methods, "whole"):
        plan = filters.plan(x_shape, padding=size // 2, layout=layout, method=name, threads=threads)
        bound, out = plan.bind(), np.empty(plan.out_shape, np.float32)
        if want is None:
            weights = np.broadcast_to(filters.w.reshape(-1, *plan.problem.w_shape[1:]), plan.problem.w_shape)
            want = oracle.reference(plan.problem, x, weights)
        assert np.abs(bound(x, out=out) - want).max() <= TOLERANCE * np.abs(want).max(), name
        found.append(Way(name, lambda bound=bound, out=out: bound(x, out=out), plan.workspace_bytes))
    return found


def shifted(channels: int, size: int, layout: str, threads: int) -> list[Way]:
    """Shift convolution, nine shifts of as many adjacent channels, and the 1x1 layer alone."""
    rng = np.random.default_rng(0)
    shape = (1, channels, size, size) if layout == "NCHW" else (1, size, size, channels)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((channels, channels, 1, 1)).astype(np.float32)
    each = -(-channels // 9)
    shifts = [(c // each // 3 - 1, c // each % 3 - 1) for c in range(channels)]
    plan = plan_shift(shape, shifts, channels, layout=layout, threads=threads)
    alone = leanconv.plan(shape, w.shape, layout=layout, threads=threads)
    out = np.empty(plan.problem.out_shape, np.float32)
    runs = [("shift", plan.bind(w), plan), ("1x1 layer alone", alone.bind(w), alone)]
    return [Way(n, lambda b=b: b(x, out=out), p.workspace_bytes) for n, b, p in runs]


def times(ways: list[Way], rounds: int) -> list[Array]:
    """Seconds of each method in each round; methods take turns."""
    repeats = []
    for way in ways:
        way.call()
        start = time.perf_counter()
        way.call()
        repeats.append(max(1, int(SHORTEST_SAMPLE / (time.perf_counter() - start))))
    samples: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, count, taken in zip(ways, repeats, samples, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                way.call()
            taken.append((time.perf_counter() - start) / count)
    return [np.array(taken) for taken in samples]


def cases(threads: int) -> dict[str, Callable[[], list[Way]]]:
    """What is timed, by title."""
    grey, colour = ((1, 1, 1080, 1920), "NCHW", threads), ((1, 1080, 1920, 3), "NHWC", threads)
    found: dict[str, Callable[[], list[Way]]] = {}
    for size in (5, 9, 31):
        blur = leanconv.separable(gauss(size))
        found[f"Gaussian {size}x{size}, 1080p grey"] = partial(methods, blur, *grey)
        found[f"Gaussian {size}x{size}, 1080p RGB, channels last"] = partial(methods, blur, *colour)
    for size in (9, 31, 101):
        box = leanconv.separable(np.full((size, size), 1 / size**2, np.float32))
        found[f"box {size}x{size}, 1080p grey"] = partial(methods, box, *grey)
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((7, 32, 16)), rng.standard_normal((7, 16, 32))
    dense = leanconv.separable(np.einsum("rcq,sqk->kcrs", *factors).astype(np.float32))
    title = f"7x7, 32 to 32 channels of rank {dense.rank}, 56x56, channels last"
    found[title] = partial(methods, dense, (1, 56, 56, 32), "NHWC", threads)
    layer = leanconv.Cp([rng.standard_normal((n, 32)).astype(np.float32) for n in (64, 64, 3, 3)])
    title = "CP rank 32 of a 3x3, 64 to 64 channels, 56x56, channels last"
    found[title] = partial(methods, layer, (1, 56, 56, 64), "NHWC", threads)
    for layout, where in (("NHWC", "last"), ("NCHW", "first")):
        found[f"shift, 64 to 64 channels, 56x56, channels {where}"] = partial(shifted, 64, 56, layout, threads)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", metavar="TEXT", help="only those whose title contains this")
    options = parser.parse_args()
    print("| filter and image | method | ms | spread | times the last | workspace |\n|---|---|---|---|---|---|")
    for title, prepare in cases(options.threads).items():
        if options.only not in title:
            continue
        ways = prepare()
        taken = times(ways, options.rounds)
        last = float(np.median(taken[-1]))
        for way, samples in zip(ways, taken, strict=True):
            low, middle, high = np.percentile(samples, [25, 50, 75])
            spread = f"{(high - low) / 2 / middle:.0%}"
            kib = f"{way.workspace / 1024:.0f} KiB"
            print(f"| {title} | {way.name} | {middle * 1e3:.2f} | {spread} | {last / middle:.1f} | {kib} |", flush=True)


if __name__ == "__main__":
    main()
