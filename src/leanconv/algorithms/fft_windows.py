"""Which windows a convolution by FFT takes its image in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
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


def _folds() -> dict[int, tuple[int, int]]:
    """Long windows as (odd, even) without a common factor, near enough to square; of lines above 64 only the longest.

    Lines above 64 are slow, and take LLVM seconds.
    """
    found: dict[int, tuple[int, int]] = {}
    odd = [n for n in range(3, LONGEST, 2) if _smooth(n)]
    for pair in itertools.product(odd, SIZES):
        n = math.prod(pair)
        if math.gcd(*pair) > 1 or max(pair) > 4 * min(pair) or not LONGEST_TILE < n <= MOST_PLACES:
            continue
        if max(pair) <= LONGEST_TILE or n > LONGEST_TILE * 45:
            found[n] = min(pair, found.get(n, pair), key=max)
    return found


FOLDS = _folds()


def longest_window(problem: Problem, longest: int) -> int:
    """The most places along an axis: many, if there are taps along no other."""
    return max(FOLDS) if sum(taps > 1 for taps in problem.kernel) == 1 else longest


@lru_cache(maxsize=8)
def _sizes(longest: int) -> tuple[int, ...]:
    if longest <= LONGEST:
        return tuple(n for n in SIZES if n <= longest)
    return tuple(sorted({n for n in SIZES if n <= LONGEST_TILE} | set(FOLDS)))


def windows_along(problem: Problem, d: int, *, whole: bool, longest: int) -> list[Window]:
    """The windows that an axis may be taken in, the shortest first; none if all would be too long."""
    p, taps, step = problem, problem.kernel[d], problem.dilation[d]
    if taps == 1:
        return [Window(1, 1, 1, 1, 0)]
    out = -(-p.out_size[d] // step)  # of the longest of the interleaved problems
    image = (p.in_size[d], p.pad_low[d], p.pad_high[d]) if p.pad_mode == "zeros" and step == 1 else None
    return _windows(out, taps, image, longest_window(p, longest), whole)


@lru_cache(maxsize=256)  # a plan asks some ten times
def _windows(out: int, taps: int, image: tuple[int, int, int] | None, longest: int, whole: bool) -> list[Window]:
    """Windows of an axis with so many outputs; `image`: its extent and padding if that is zeros, without dilation."""
    sizes = _sizes(longest)
    found = []
    least = out + taps - 1
    if image is not None:
        # Zeros behind the image are those before it as well: the window is cyclic.
        size, low, high = image
        need = max(size + max(low, high), taps, out)
        place = next((n for n in sizes if n >= need), None)
        if place is not None:
            found.append(Window(place, out, taps, size, low))
            least = min(least, place)
    if whole:
        places = [n for n in sizes if n >= out + taps - 1][: not found]
    else:
        places = [n for n in sizes if taps < n < least]
        places += [n for n in sizes if n >= out + taps - 1][: not found]
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
    folds = longest_window(problem, longest) > longest
    for windows in itertools.product(*choices):
        if math.prod(window.size for window in windows) > MOST_PLACES:
            continue
        grid = Grid(windows, next((FOLDS[w.size] for w in windows if w.size > LONGEST_TILE), None) if folds else None)
        cost = slots(extent(problem, grid))
        if cost < least:
            best, least = grid, cost
    return best
