"""Lines of memory: which the core asks for before their use, and which it stores past the caches."""

from __future__ import annotations

import math

from leanconv.host import Host
from leanconv.kernels.cost import LINE
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import UNROLL
from leanconv.problem import Problem

FETCHED = 600  # cycles from asking for a line of the output, or of the image, until it is stored to, or read
NARROW = 64  # terms of sums of one register that ask for no lines of the output
LARGE = 4  # times the last-level cache that an output takes to be stored past it


def from_afar(panel: int, panels: Panels, host: Host) -> bool:
    """Whether weights in panels of so many bytes are asked for ahead.

    In a network the other layers' weights have displaced a layer's: with AVX-512 ResNet-50 takes 0.95 of the time if
    all are asked for that the first level does not hold, MobileNetV2's layers of 7x7 and 14x14 0.91 to 0.97, and a
    layer over and over the same. Where registers are fewer or smaller, some tiles would spill for it.
    """
    return panel * panels.total > host.l1 if host.target.masks else panel > host.l1 // 2


def lines_of_next(panel: int, panels: Panels, tiles: int, host: Host) -> int:
    """Lines of the next panel of weights that each round of a tile asks for, of `tiles` that pass a panel; 0: none.

    All tiles together ask for the whole panel, into the second-level cache, where the next one's tiles find it. Only
    the first of those waited for it, but on 7 x 7 pixels that is one of five.
    """
    known = host.target.masks and panels.count > 1 and tiles > 1
    if not known or not from_afar(panel, panels, host):
        return 0
    round_ = UNROLL * panels.vectors * host.target.vector_bytes // LINE
    return -(-round_ // tiles)


def asked_for(problem: Problem, panels: Panels, host: Host) -> bool:
    """Whether lines of the output are asked for before they are stored to: a store to one that no cache holds waits.

    Not by tiles that are bound by loads, of one register of outputs and few terms, where lines are stored whole and one
    behind the other, so that the processor foresees them: 16 to 64 channels to 16 take 0.93 to 0.96 of the time, 0.96
    to 1.02 where nothing was in the caches. 96 channels then take 1.06, 12 outputs 1.14, eight images 1.05.
    """
    p, lanes = problem, host.target.lanes(problem.dtype)
    narrow = not panels.count and panels.last == 1 and panels.valid == lanes and lanes * p.itemsize == LINE
    nbytes = p.batch * p.itemsize * (math.prod(p.out_size) * p.out_channels + math.prod(p.in_size) * p.in_channels)
    return not (narrow and p.groups == p.taps == 1 and p.group_in <= NARROW and nbytes <= host.l3 // 4)


def past(problem: Problem, host: Host) -> bool:
    """Whether the output is stored past the caches: one much larger than they are, in whole lines.

    A store fetches its line first, twice the traffic. But whoever reads the output next finds the end of it in the
    last-level cache, of 32 MB, if it went through: with a layer behind it 265 MB took 0.92 to 0.99 of the time, and 51
    MB 1.07 to 1.13.
    """
    p, width = problem, host.target.vector_bytes
    planes = p.out_strides[-1] == 1 and p.out_strides[1] != 1
    steps = (*p.out_strides[:-1], p.out_size[-1]) if planes else (p.out_strides[0], *p.out_strides[2:], p.group_out)
    large = math.prod(p.out_size) * p.batch * p.out_channels * p.itemsize > LARGE * host.l3
    return large and width == LINE and not any(step * p.itemsize % width for step in steps)


def ahead(steps: int, rows: int, panels: Panels) -> int:
    """Pixels of the tiles that are computed in that time: short sums would else wait for the lines of later ones."""
    tiles = -(-FETCHED * 2 // (steps * rows * panels.vectors))
    return tiles * rows
