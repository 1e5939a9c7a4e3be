"""Where the spectrum of a tile has its bins: in place of the pixels, real and imaginary parts side by side.

The last axis with taps is transformed first, as real numbers; its packed spectrum (`fft_program.py`) has columns 0 and
1 real (bins 0 and n / 2) and pairs of columns behind them, the real and imaginary parts of a bin.  Along the next axis
real columns are transformed as real numbers, pairs of columns as complex ones.  A tile of n x m pixels so becomes four
real bins and (n m - 4) / 2 complex ones, and takes no more room than it did.

A long axis, if no other has taps, is *folded*: a cyclic correlation of n m places, n and m without a common factor, is
one of n x m, place p standing in row p mod n and column p mod m (the Chinese remainder theorem; I. Good, L. Thomas).

Lines of equal kind are *regions*; those of the last pass also number the bins as matrix products want them: each bin a
*point*, or, of a complex bin multiplied as C. F. Gauss did, three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.fft_program import reals
from leanconv.kernels.winograd_tiles import Axis, Tiling, Turns, over

LINE = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class Window:
    """One axis of a tile: a cyclic correlation of `size` pixels, of which the first `outputs` results are wanted.

    The first `filled` pixels may be other than zero.  Tap r stands `shift` places before its own: a tile that holds the
    whole of an image needs no room for padding before it and behind it, zeros behind serve as both.
    """

    size: int
    outputs: int
    taps: int
    filled: int
    shift: int

    @property
    def tap_places(self) -> tuple[int, ...]:
        """Where each tap stands."""
        return tuple((r - self.shift) % self.size for r in range(self.taps))


@dataclass(frozen=True, slots=True)
class Region:
    """Lines along one axis that are alike: loops (axis, first, count, step) over the others, outermost first.

    `pair`: the axis along which the next place holds the imaginary part, None if lines are real.  `first` point of the
    first line and `points` a line, in the last pass.
    """

    loops: tuple[tuple[int, int, int, int], ...]
    pair: int | None
    first: int = 0
    points: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows of all axes; those without taps have one place.

    `fold`: rows and columns that the only long one is folded to.
    """

    windows: tuple[Window, ...]
    fold: tuple[int, int] | None = None

    @property
    def lines(self) -> tuple[Window, ...]:
        """The windows along the axes of the plane: those of the image, or of what it is folded to."""
        return self.windows if self.fold is None else tuple(Window(n, n, n, n, 0) for n in self.fold)

    @property
    def axis(self) -> int:
        """The axis of the image along which pixels are read one behind the other."""
        return max(d for d, window in enumerate(self.windows) if window.size > 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Places along each axis of the plane."""
        return tuple(w.size for w in self.lines)

    @property
    def active(self) -> list[int]:
        """The axes that are transformed."""
        return [d for d, n in enumerate(self.sizes) if n > 1]

    @property
    def rows(self) -> int:
        """The axis of the plane that is transformed first, and back last."""
        return self.active[-1]

    @property
    def longest(self) -> int:
        """The largest window."""
        return max(w.size for w in self.windows)

    def near(self, width: int) -> list[int]:
        """Bytes between neighbours along each axis of the plane, of vectors of `width` bytes.

        Rows are an odd number of cache lines apart, or columns would fall into few sets of the first-level cache.
        """
        row = self.sizes[-1] * width
        if len(self.active) > 1:
            row = (-(-row // LINE) | 1) * LINE
        return [row * math.prod(self.sizes[d + 1 : -1]) for d in range(len(self.sizes) - 1)] + [width]

    def plane_bytes(self, width: int) -> int:
        """Bytes of a plane."""
        return max(self.near(width)[0] * self.sizes[0], width)

    def regions(self, d: int, extents: tuple[int, ...]) -> list[Region]:
        """The lines along axis d, axes behind it transformed already, those before it with so many places in use."""
        later = [e for e in self.active if e > d]
        result = []
        for pair in (*reversed(later), None):
            loops = []
            for e, n in enumerate(self.sizes):
                real = reals(n) if n > 1 else 1
                if e == d:
                    continue
                if e == pair:
                    loops.append((e, real, (n - real) // 2, 2))
                elif e in later and (pair is None or e > pair):
                    loops.append((e, 0, real, 1))
                else:
                    loops.append((e, 0, n if e in later else extents[e], 1))
            if all(count for _, _, count, _ in loops):
                result.append(Region(tuple(loops), pair))
        return result

    def points_a_bin(self, gauss: bool) -> int:
        """Points of a complex bin."""
        return 3 if gauss else 2

    def last_regions(self, gauss: bool) -> list[Region]:
        """The lines of the last pass, with their points."""
        d, first, result = self.active[0], 0, []
        n = self.sizes[d]
        for region in self.regions(d, self.sizes):
            bins = n if region.pair is not None else (n - reals(n)) // 2
            points = self.points_a_bin(gauss) * bins + (reals(n) if region.pair is None else 0)
            result.append(Region(region.loops, region.pair, first, points))
            first += points * math.prod(count for _, _, count, _ in region.loops)
        return result

    def points(self, gauss: bool) -> int:
        """All points."""
        places, real = math.prod(self.sizes), math.prod(reals(n) for n in self.sizes if n > 1)
        return real + self.points_a_bin(gauss) * (places - real) // 2

    def each_line(
        self, fn: Function, region: Region, plane: Value, width: int, to: Value, step: Index, body: LineBody
    ) -> None:
        """Run `body(line, pair, point)`: address of a line in the plane, bytes to imaginary parts, its first point."""
        near = self.near(width)
        start = sum(first * near[e] for e, first, _, _ in region.loops)
        turns: list[Turns] = []
        points = region.points
        for e, _, count, skip in reversed(region.loops):
            turns.insert(0, Turns([(count, 0)], [skip * near[e], fn.mul(step, points)]))
            points *= count
        pair = near[region.pair] if region.pair is not None else 0

        def line(state: list[Value], _: tuple[int, ...]) -> None:
            body(state[0], pair, state[1])

        over(fn, turns, [fn.gep(plane, start), fn.gep(to, fn.mul(step, region.first))], line)


LineBody = Callable[[Value, int, Value], None]


@dataclass(frozen=True)  # as its base
class FftTiling(Tiling):
    """Tiles of a grid: as Winograd's, but all whole, with `CookToom` for no more than their numbers of outputs."""

    grid: Grid

    @staticmethod
    def of(grid: Grid, out_size: tuple[int, ...], dilation: tuple[int, ...], pad_low: tuple[int, ...]) -> FftTiling:
        """The tiles that cover an output."""
        axes = []
        for window, out, step, pad in zip(grid.windows, out_size, dilation, pad_low, strict=True):
            counts = CookToom(window.outputs, window.taps, ())
            clipped = step == 1 and out % window.outputs != 0
            axes.append(Axis(counts, window.outputs, 1, step, pad - window.shift, clipped))
        return FftTiling(tuple(axes), grid)

    @cached_property
    def points(self) -> int:
        """Products of a tile: three real ones a complex bin."""
        return self.grid.points(True)
