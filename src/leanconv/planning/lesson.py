"""Why is im2col with a matrix product faster than plain loops, and what does it cost? In this machine's figures."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from leanconv.host import this_host
from leanconv.options import make_problem
from leanconv.plan import Plan
from leanconv.planning.candidates import algorithm_named
from leanconv.planning.figures import figures
from leanconv.problem import Problem
from leanconv.sizes import format_bytes

_NAMES = ("reference", "im2col", "im2row_strip", "direct")
_LINE = 64


@dataclass(frozen=True, slots=True)
class Rate:
    """One algorithm on the layer of the lesson: bytes of workspace and measured GFLOP/s on one thread."""

    name: str
    workspace_bytes: int
    gflops: float


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

    def __str__(self) -> str:
        """The lesson in words."""
        by_name = {rate.name: rate for rate in self.rates}
        loops = by_name["reference"].gflops
        lines = [
            f"The layer: {self.problem}, {self.flops / 1e6:.1f} MFLOP, one thread.",
            "",
            "Plain loops add one product at a time, and each sum waits for the one before. For each product they load",
            f"two numbers: {self.loop_intensity:.2f} operations a byte. One output touches {self.loop_lines} lines",
            "of cache of the image. A register tile loads a row of weights and a few pixels, and uses each many times:",
            f"{self.tile_intensity:.1f} operations a byte.",
            "im2col makes that easy: all windows stand side by side in a matrix, and a matrix product has such tiles.",
            f"The price is the matrix: each pixel stands in it {self.redundancy:.1f} times, "
            f"{format_bytes(self.matrix_bytes)} for an image of {format_bytes(self.image_bytes)}.",
            "In strips the matrix stays in the cache; direct convolution has the tiles without it.",
            "",
            f"{'measured':<14}{'workspace':>12}{'GFLOP/s':>10}{'% of peak':>11}{'times the loops':>17}",
        ]
        for rate in self.rates:
            percent = 100 * rate.gflops / self.peak_gflops
            title = "plain loops" if rate.name == "reference" else rate.name
            lines.append(
                f"{title:<14}{format_bytes(rate.workspace_bytes):>12}{rate.gflops:>10.1f}{percent:>10.1f}%"
                f"{rate.gflops / loops:>16.0f}x"
            )
        lines.append("(The plain loops are the algorithm called reference, which adds in float64.)")
        return "\n".join(lines)


def lesson(problem: Problem | None = None) -> Lesson:
    """Measure the lesson's algorithms on a layer; 64 channels, 28 x 28 pixels and 3 x 3 taps if None."""
    if problem is None:
        problem = make_problem(2, (1, 64, 28, 28), (64, 64, 3, 3), dtype="float32", padding=1)
    p = problem
    rng = np.random.default_rng(0)
    x = rng.standard_normal(p.x_shape).astype(p.dtype)
    w = rng.standard_normal(p.w_shape).astype(p.dtype)
    bias = np.zeros(p.out_channels, p.dtype) if p.has_bias else None
    rates = []
    for name in _NAMES:
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
        rates.append(Rate(name, plan.workspace_bytes, p.flops / best / 1e9))
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
    )
