"""Which windows a convolution by FFT takes its image in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from leanconv.kernels.fft_grid import Grid, Window
from leanconv.kernels.fft_program import radix_of, reals
from leanconv.problem import Problem

LONGEST_TILE = 64  # places along an axis of a tile
LONGEST = 128  # and of a whole image: transforms are straight-line code
MOST_PLACES = 16384  # of a window: half a megabyte of vectors


def _smooth(n: int) -> bool:
    try:
        while n > 1:
            n //= radix_of(n)
    except ValueError:
        return False
    return True


SIZES = tuple(n for n in range(4, LONGEST + 1, 2) if _smooth(n))


def windows_along(problem: Problem, d: int, *, whole: bool, longest: int) -> list[Window]:
    """The windows that an axis may be taken in, the shortest first; none if all would be too long."""
    p, taps, step = problem, problem.kernel[d], problem.dilation[d]
    if taps == 1:
        return [Window(1, 1, 1, 1, 0)]
    out = -(-p.out_size[d] // step)  # of the longest of the interleaved problems
    found = []
    least = out + taps - 1
    if p.pad_mode == "zeros" and step == 1:
        # Zeros behind the image are those before it as well: the window is cyclic.
        low, high = p.pad_low[d], p.pad_high[d]
        place = next((n for n in SIZES if n >= max(p.in_size[d] + max(low, high), taps, out)), LONGEST + 1)
        if place <= longest:
            found.append(Window(place, out, taps, p.in_size[d], low))
            least = min(least, place)
    if whole:
        places = [n for n in SIZES if n >= out + taps - 1][: not found]
    else:
        places = [n for n in SIZES if taps < n <= longest and n < least]
        places += [n for n in SIZES if n >= out + taps - 1 and n <= longest][: not found]
    for n in places:
        outputs = min(n - taps + 1, out)
        found.append(Window(n, outputs, taps, min(n, outputs + taps - 1), 0))
    # A longer window is of use only if all windows together are shorter: fewer products, for more weights.
    kept: list[Window] = []
    for window in sorted(found, key=lambda w: w.size):
        if not kept or _all_places(out, window) < _all_places(out, kept[-1]):
            kept.append(window)
    return kept


def _all_places(out: int, window: Window) -> int:
    return -(-out // window.outputs) * window.size


class Extent(NamedTuple):
    """What a grid's cost depends on: its places, their mean number along an axis, points, and tiles of all images."""

    places: int
    length: float
    points: int
    tiles: int


def extent(problem: Problem, grid: Grid) -> Extent:
    """The extent of a grid."""
    active = [n for n in grid.sizes if n > 1]
    places, real = math.prod(active), math.prod(map(reals, active))
    tiles = problem.batch
    for out, step, window in zip(problem.out_size, problem.dilation, grid.windows, strict=True):
        whole, rest = divmod(out, window.outputs * step)
        tiles *= whole * step + min(step, rest)
    return Extent(places, sum(active) / len(active), real + 3 * (places - real) // 2, tiles)


def best_grid(problem: Problem, slots: Callable[[Extent], float], *, whole: bool, longest: int) -> Grid | None:
    """The windows of least cost, or None if there are none."""
    choices = [windows_along(problem, d, whole=whole, longest=longest) for d in range(problem.ndim)]
    best, least = None, math.inf
    for windows in itertools.product(*choices):
        if math.prod(window.size for window in windows) > MOST_PLACES:
            continue
        grid = Grid(windows)
        cost = slots(extent(problem, grid))
        if cost < least:
            best, least = grid, cost
    return best
