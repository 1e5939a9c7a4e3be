"""Images of few channels by tiles that end with the rows of the output: how rows are cut; see `kernels/rowwindows`."""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import Blocking, few_weights, panels_of
from leanconv.algorithms.dense import CoreInput, image_input
from leanconv.algorithms.sharing import of_rows
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.image import Image
from leanconv.kernels.reduction import FEW
from leanconv.kernels.rowwindows import RowWindows
from leanconv.problem import Problem

STACK = 8 << 10  # bytes at most that a tile at the edge is copied to
SHORT = 128  # terms of sums that wait for the image if it is not asked for; 147 do not


def by_rows(problem: Problem, host: Host, threads: int) -> tuple[CoreInput, tuple[int, int], Blocking] | None:
    """What the core reads, the heights of its tiles and its blocks of rows; None where other tiles fit better.

    Rows of the output too short for tiles of at least two thirds of the height that registers have room for; images
    under padding that is not zero, or whose columns or channels are apart.
    """
    p, panels, lanes = problem, panels_of(problem, host), host.target.lanes(problem.dtype)
    plain = image_input(p)
    if p.ndim != 2 or not plain.merged or p.group_in > FEW or not math.prod(p.out_size):
        return None
    image = plain.source
    assert isinstance(image, Image)
    if image.padded and p.pad_mode != "zeros":
        return None
    width = p.out_size[1]
    widths = (panels.vectors, panels.last or panels.vectors)
    most = [host.target.tile_rows(vectors, even=not panels.count) for vectors in widths]
    even = [-(-width // -(-width // rows)) for rows in most]
    if any(3 * rows < 2 * full for rows, full in zip(even, most, strict=True)):
        return None
    beyond = max(0, (width - 1) * p.stride[1] - p.pad_low[1] + p.kernel[1] - p.in_size[1])
    source = RowWindows.of(image, p.group_in, p.itemsize, beyond, asks=p.taps * p.group_in <= SHORT)
    if image.padded:
        if not all(source.copies(rows - 1, p.kernel[1], lanes) for rows in even):
            return None
        if p.kernel[0] * source.vectors(max(even), p.kernel[1], lanes) * host.target.vector_bytes > STACK:
            return None
    heights = even[0], even[1]
    return replace(plain, source=source), heights, _cut(p, host, threads, heights)


def _cut(problem: Problem, host: Host, threads: int, rows: tuple[int, int]) -> Blocking:
    """Blocks of whole rows of the output.

    All panels pass over a block while its part of the image and of the output is in the second-level cache.
    """
    p, panels = problem, panels_of(problem, host)
    high, width = p.out_size
    line = (width * p.out_channels + p.in_size[1] * p.stride[0] * p.group_in) * p.itemsize
    group, budget = (panels.total, host.l2 // 4) if few_weights(p, host) else (1, host.l2 // 2)
    return of_rows(p, host, threads, rows, max(1, min(high, budget // line)), group)
