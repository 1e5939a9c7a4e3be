"""Padded images by tiles that end with the rows of the output: which, and how their rows are cut."""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import Blocking, few_weights, panels_of
from leanconv.algorithms.dense import CoreInput, image_input
from leanconv.algorithms.sharing import of_rows
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import LATENCY, part_inside
from leanconv.kernels.image import Image
from leanconv.kernels.reduction import FEW
from leanconv.kernels.rowtiles import RowTiles
from leanconv.problem import Problem

SPARED = 0.015  # part of the products from which it pays: 56 columns (0.024) take 0.98 of the time, 112 (0.012) 1.00
COLUMNS = 5  # of taps at most: each has up to three loops


def in_rows(problem: Problem, host: Host, threads: int) -> tuple[CoreInput, tuple[int, int], Blocking] | None:
    """What the core reads, the heights of its tiles and its blocks of rows; None where other tiles fit better.

    Only where registers have masks, and so are many: on AVX2 a row of seven pixels is tiles of four and of three, and
    takes 1.2 times as long as tiles of six that multiply padding.
    """
    p, panels, plain = problem, panels_of(problem, host), image_input(problem)
    image = plain.source
    assert isinstance(image, Image)
    if not host.target.masks or p.ndim != 2 or not plain.unit_channel or p.group_in <= FEW:
        return None
    if not image.padded or p.pad_mode != "zeros" or p.kernel[1] > COLUMNS or _spared(p) < SPARED:
        return None
    width = p.out_size[1]
    widths = (panels.vectors, panels.last or panels.vectors)
    most = [host.target.tile_rows(vectors, even=not panels.count) for vectors in widths]
    rows = [-(-width // -(-width // full)) for full in most]
    outside = tuple(_outside(p, tap) for tap in range(p.kernel[1]))
    lowest = min(rows) - any(width % height for height in rows)
    if 2 * lowest < LATENCY or max(map(max, outside)) >= lowest:
        return None
    source = RowTiles.of(image, outside, alone=all(height == width for height in rows))
    heights = rows[0], rows[1]
    return replace(plain, source=source), heights, _cut(p, host, threads, heights)


def _spared(problem: Problem) -> float:
    """The part of all products that are with padding."""
    p = problem
    if not math.prod(p.out_size):
        return 0.0
    axes = zip(p.out_size, p.stride, p.dilation, p.pad_low, p.kernel, p.in_size, strict=True)
    return 1 - math.prod(part_inside(*axis) for axis in axes)


def _outside(problem: Problem, tap: int) -> tuple[int, int]:
    """How many first and how many last pixels of a row of the output read padding under a column of taps."""
    p, width = problem, problem.out_size[1]
    at = p.pad_low[1] - tap * p.dilation[1]
    first, end = -(-at // p.stride[1]), -(-(p.in_size[1] + at) // p.stride[1])
    return max(0, min(first, width)), width - max(0, min(end, width))


def _cut(problem: Problem, host: Host, threads: int, rows: tuple[int, int]) -> Blocking:
    """Blocks of whole rows of the output; panels in groups as in `blocking`."""
    p, panels = problem, panels_of(problem, host)
    high = p.out_size[0]
    group, budget = (panels.total, host.l2 // 4) if few_weights(p, host) else (1, host.l2 // 2)
    line = p.in_size[1] * p.stride[0] * p.group_in * p.itemsize
    return of_rows(p, host, threads, rows, max(1, min(high, budget // line)), group)
