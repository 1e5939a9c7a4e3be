"""Why is im2col with a matrix product faster than plain loops, and what does it cost? In this machine's figures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import field
from functools import partial

import numpy as np

from leanconv.classes import dataclass
from leanconv.host import this_host
from leanconv.options import make_problem
from leanconv.plan import Plan
from leanconv.planning.candidates import algorithm_named
from leanconv.planning.choice import choose
from leanconv.planning.counters import counted, counters_text
from leanconv.planning.figures import figures
from leanconv.problem import Problem
from leanconv.sizes import format_bytes

_NAMES = ("reference", "im2col", "im2row_strip", "direct")
_LINE = 64
COUNTED = 5  # calls of which the processor's counters are read


@dataclass(frozen=True, slots=True)
class Rate:
    """One algorithm on the layer of the lesson: bytes of workspace and measured GFLOP/s on one thread.

    `counters` are what the processor counted in a call, if it counts here.
    """

    name: str
    workspace_bytes: int
    gflops: float
    counters: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What readers call it."""
        return "plain loops" if self.name == "reference" else self.name


@dataclass(frozen=True, slots=True)
class Lesson:
    """The figures of the lesson.

    Attributes:
        problem: the layer, described.
        flops: its operations.
        redundancy: how often an element of the image stands in the patch matrix.
        image_bytes: of the image.
        matrix_bytes: of the patch matrix.
        loop_lines: cache lines that plain loops touch for one output, weights not counted.
        loop_intensity: operations of plain loops for each byte they load.
        tile_intensity: operations of a register tile for each byte it loads.
        peak_gflops: measured peak of one thread.
        rates: measured, in the order of the lesson.
        counters_missing: why the processor's counters are not among them, or "".
    """

    problem: str
    flops: int
    redundancy: float
    image_bytes: int
    matrix_bytes: int
    loop_lines: int
    loop_intensity: float
    tile_intensity: float
    peak_gflops: float
    rates: tuple[Rate, ...]
    counters_missing: str = ""

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the rates, and what loops and tiles do for each byte, into a PNG, SVG or PDF.

        Raises:
            PlotError: matplotlib is missing, or the file's format is not known.
        """
        from leanconv.planning.explain_plot import draw_lesson

        draw_lesson(self, os.fspath(path))

    def __str__(self) -> str:
        """The lesson in words."""
        loops = next(rate.gflops for rate in self.rates if rate.name == "reference")
        wide = max(len(rate.title) for rate in self.rates) + 2
        lines = [
            f"The layer: {self.problem}, {self.flops / 1e6:.1f} MFLOP, one thread.",
            "",
            "Plain loops add one product at a time, and each sum waits for the one before. For each product they load",
            f"two numbers: {self.loop_intensity:.2f} operations a byte. One output touches {self.loop_lines} cache "
            "lines of the image.",
            "A register tile loads a row of weights and a few pixels, and uses each many times: "
            f"{self.tile_intensity:.1f} operations a byte.",
            "im2col makes that easy: all windows stand side by side in a matrix, and a matrix product has such tiles.",
            f"The price is the matrix: each pixel stands in it {self.redundancy:.1f} times, "
            f"{format_bytes(self.matrix_bytes)} for an image of {format_bytes(self.image_bytes)}.",
            "In strips the matrix stays in the cache; direct convolution has the tiles without it.",
            "",
            f"{'measured':<{wide}}{'workspace':>12}{'GFLOP/s':>10}{'% of peak':>11}{'times the loops':>17}",
        ]
        for rate in self.rates:
            percent = 100 * rate.gflops / self.peak_gflops
            lines.append(
                f"{rate.title:<{wide}}{format_bytes(rate.workspace_bytes):>12}{rate.gflops:>10.1f}{percent:>10.1f}%"
                f"{rate.gflops / loops:>16.0f}x"
            )
        lines.append(
            "(The plain loops are the algorithm called reference, which adds in float64. Winograd's rate counts"
        )
        lines.append("the operations of the definition, of which it multiplies fewer: that may pass the peak.)")
        counted_ = [rate for rate in self.rates if rate.counters]
        lines += ["", "counted in a call:"] if counted_ else []
        lines += [f"{rate.title:<{wide}}{counters_text(rate.counters, '')}" for rate in counted_]
        if self.counters_missing:
            lines += ["", f"Of the processor's counters {counters_text({}, self.counters_missing)}."]
        return "\n".join(lines)


def lesson(problem: Problem | None = None) -> Lesson:
    """Measure the lesson's algorithms, and what "auto" takes, on a layer; 64 channels, 28 x 28, 3 x 3 taps if None."""
    if problem is None:
        problem = make_problem(2, (1, 64, 28, 28), (64, 64, 3, 3), dtype="float32", padding=1)
    p = problem
    rng = np.random.default_rng(0)
    x = rng.standard_normal(p.x_shape).astype(p.dtype)
    w = rng.standard_normal(p.w_shape).astype(p.dtype)
    bias = np.zeros(p.out_channels, p.dtype) if p.has_bias else None
    rates, missing = [], ""
    fastest = choose(p, "auto", 1, None).algorithm
    for name in _NAMES if fastest in _NAMES else (*_NAMES, fastest):
        plan = Plan(p, algorithm_named(name), 1)
        call = plan.bind(w, bias)
        out = np.empty(p.out_shape, p.dtype)
        call(x, out=out)
        best, rounds = float("inf"), 0
        end = time.perf_counter() + 0.1
        while rounds < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            call(x, out=out)
            best, rounds = min(best, time.perf_counter() - begin), rounds + 1
        counters, missing = counted(partial(call, x, out=out), COUNTED)
        rates.append(Rate(name, plan.workspace_bytes, p.flops / best / 1e9, counters))
    target = this_host().target
    rows, lanes = target.tile_rows(2), target.lanes(p.dtype)
    matrix = p.taps * p.in_channels * int(np.prod(p.out_size)) * p.batch * p.itemsize
    row = (p.kernel[-1] - 1) * abs(p.x_strides[-1]) * p.itemsize // _LINE + 1
    return Lesson(
        problem=p.describe(),
        flops=p.flops,
        redundancy=matrix / p.x_bytes,
        image_bytes=p.x_bytes,
        matrix_bytes=matrix,
        loop_lines=p.group_in * int(np.prod(p.kernel[:-1])) * row,
        loop_intensity=2 / (2 * p.itemsize),
        tile_intensity=2 * rows * 2 * lanes / ((rows + 2 * lanes) * p.itemsize),
        peak_gflops=figures().gflops,
        rates=tuple(rates),
        counters_missing=missing,
    )
