"""Convolution by FFT, in tiles: products of spectra, summed over channels.

Idea        the discrete Fourier transform turns correlation into products, one a bin: a window of n x n pixels gives
            (n - R + 1) x (n - S + 1) outputs for n * n / 2 complex products, each of three real ones; windows overlap
            (overlap-save), and are as large as costs least: 4 to 64, any product of 2, 3 and 5; longer ones where the
            kernel has one axis, folded to two; blocks of them go through all steps while they are in the cache
Workspace   a thread: points * block * (C/g + NR) elements and one window of NR, where points is 3/2 of the window's
            pixels and block the windows staged at one time; for several threads and few panels points * windows *
            (C + K) in all and one window of NR a thread
Weights     3/2 of the window's pixels for each filter: 384 elements for 16 x 16
Good for    kernels of 5x5 and more, stride 1, many channels in and out; its rounding is that of a plain sum
Bad for     few outputs (all weights are read for each block), strides, infinities (they spoil a whole window)

M. Mathieu, M. Henaff, Y. LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014; in tiles as in
A. Zlateski et al.: FFT Convolutions are Faster than Winograd on Modern CPUs, Here is Why, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, NamedTuple

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.fft_blocks import BlocksOfWindows
from leanconv.algorithms.fft_shared import SharedWindows
from leanconv.algorithms.fft_windows import (
    LONGEST,
    LONGEST_TILE,
    MOST_PLACES,
    Extent,
    best_grid,
    extent,
    longest_window,
    windows_along,
)
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fft_grid import Grid
from leanconv.problem import Problem

# For the choice of windows, in slots of a multiply-add. A place of a transform costs more in longer lines, whose values
# do not stay in registers (measured from 12 to 128 places). More of a byte's time shows than with the plain core: every
# point is another matrix, used for a block of tiles only. How much more: of windows, and of weights by the part of the
# last cache that they fill. A register tile of few rows waits for its own sums.
_PLACE, _LENGTH = 16.0, 0.5
_WINDOWS, _WEIGHTS = 25.0, ((0.25, 3.0), (0.8, 10.0), (math.inf, 8.0))
_READ, _READ_MEMORY = 0.011, 0.0218
_ROWS, _FEWEST = 6, 4
# For the choice among algorithms, where weights are a stream: the same of windows, and of a place, times. Windows that
# the second-level cache holds hardly show: 7x7 to 28x28, 16 to 48 channels, were predicted 1.1 to 1.4 times too long.
_SHOWN, _SHOWN_NEAR, _MOVED = 15.0, 3.0, 1.3
BLOCK = 16  # tiles that weights are read for at least


def transform_slots(of: Extent) -> float:
    """Slots of one transform of a vector of windows."""
    return of.places * (_PLACE + _LENGTH * of.length)


class Work(NamedTuple):
    """What a layer takes: counts, and bytes of weights and of transformed windows that are read."""

    multiply: float
    vector: float
    weights: float
    windows: float

    @staticmethod
    def of(problem: Problem, lanes: int, of: Extent, blocks: int, parts: float = 1) -> Work:
        """That of tiles in so many blocks, whose windows each part of the panels transforms; weights of one block."""
        p, inner, outer = problem, -(-problem.group_in // lanes), -(-problem.group_out // lanes)
        block = -(-of.tiles // max(1, blocks))
        rows = blocks * max(block, _FEWEST * -(-block // _ROWS))
        multiply = p.groups * rows * of.points * p.group_in * outer
        vector = p.groups * of.tiles * (parts * inner + outer) * transform_slots(of)
        weights = p.groups * of.points * p.group_in * outer * lanes * p.itemsize
        windows = p.groups * of.tiles * of.points * inner * lanes * -(-outer // 2) * p.itemsize
        return Work(multiply, vector, weights, windows)


def stream(weights: float, host: Host) -> float:
    """How many times as much of a byte's time shows, of so many bytes of weights."""
    return next(factor for part, factor in _WEIGHTS if weights <= part * host.l3)


@lru_cache(maxsize=512)
def grid_of(problem: Problem, host: Host, whole: bool) -> Grid | None:
    """The windows of least cost; they depend on neither layout nor threads, as bits must not."""
    lanes = host.target.lanes(problem.dtype)

    def slots(of: Extent) -> float:
        blocks = -(-of.tiles // BLOCK)
        work = Work.of(problem, lanes, of, blocks)
        byte = _READ if work.weights <= 0.8 * host.l3 else _READ_MEMORY
        read = blocks * work.weights * stream(work.weights, host) * byte + work.windows * _WINDOWS * _READ
        return work.multiply + work.vector + read

    return best_grid(problem, slots, whole=whole, longest=LONGEST if whole else LONGEST_TILE)


class Fft(Algorithm):
    """Convolution by FFT in overlapping tiles."""

    name: ClassVar[str] = "fft"
    title: ClassVar[str] = "FFT, overlapping tiles"
    paper: ClassVar[str] = (
        "M. Mathieu, M. Henaff, Y. LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014; in tiles as "
        "in A. Zlateski et al.: FFT Convolutions are Faster than Winograd on Modern CPUs, Here is Why, 2018"
    )
    error_class: ClassVar[str] = "transformed"
    tunables: ClassVar[Mapping[str, str]] = {"tiles": "tiles that a thread takes through all steps at one time"}
    whole: ClassVar[bool] = False
    longest: ClassVar[int] = LONGEST_TILE

    def refusal(self, problem: Problem) -> str | None:
        """Several taps, no stride, and windows that straight-line transforms can be."""
        p = problem
        if p.taps == 1:
            return "the kernel has one tap, there is nothing to save"
        if any(stride > 1 for stride in p.stride):
            return f"the stride is {max(p.stride)}, an FFT computes the outputs of stride 1"
        for d, taps in enumerate(p.kernel):
            if not windows_along(p, d, whole=self.whole, longest=self.longest):
                need = f"all {p.out_size[d]} outputs" if self.whole else "more"
                most = longest_window(p, self.longest)
                return f"an axis has {taps} taps, a window of at most {most} has no room for {need}"
        shortest = [windows_along(p, d, whole=self.whole, longest=self.longest)[0].size for d in range(p.ndim)]
        if math.prod(shortest) > MOST_PLACES:
            return f"a window would have {math.prod(shortest)} places, at most {MOST_PLACES} are supported"
        return None

    def error_bound(self, problem: Problem) -> float:
        """That of a plain sum: rounding of transforms is of the order of log2(n) units, and sums are shorter."""
        return super().error_bound(problem)

    def cost(self, problem: Problem, host: Host, threads: int, lowering: Lowering) -> Cost | None:
        """Products, transforms, weights that each block of tiles reads once, and windows that each panel does."""
        p, grid, lanes = problem, grid_of(problem, host, self.whole), host.target.lanes(problem.dtype)
        assert grid is not None
        blocks = int(lowering.parameters["blocks"])
        # In one phase each part of the panels transforms the windows anew.
        parts = lowering.phases[0].chunks / max(1, blocks * p.groups) if len(lowering.phases) == 1 else 1.0
        work = Work.of(p, lanes, extent(p, grid), blocks, parts)
        out = p.batch * p.out_channels * math.prod(p.out_size) * p.itemsize
        held = lowering.workspace[0].nbytes
        reads = (((_SHOWN if held > host.l2 else _SHOWN_NEAR) * work.windows, held),)
        counts = {"multiply": work.multiply, "vector": _MOVED * work.vector}
        streams = ((blocks * work.weights, work.weights),)
        return Cost(counts, reads, ((out, out),), lowering.phases[-1].chunks, streams, len(lowering.phases))

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase, a chunk for each block of tiles, group and group of panels; or one for each step."""
        grid = grid_of(problem, host, self.whole)
        assert grid is not None
        tiles = tunables.get("tiles")
        shared = SharedWindows(problem, host, grid).shared(threads, workspace, tiles)
        return shared or BlocksOfWindows(problem, host, grid).lowering(threads, workspace, tiles)


class FftWhole(Fft):
    """Convolution by FFT of whole images."""

    name: ClassVar[str] = "fft_whole"
    title: ClassVar[str] = "FFT of the whole image"
    paper: ClassVar[str] = (
        "M. Mathieu, M. Henaff, Y. LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014"
    )
    tunables: ClassVar[Mapping[str, str]] = {}
    whole: ClassVar[bool] = True
    longest: ClassVar[int] = LONGEST
