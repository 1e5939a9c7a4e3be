"""How threads share a layer: of several ways to cut it, the one of which the last thread is done first.

A thread that is done takes the next chunk, so two threads that run equally fast wait for one another for up to a
chunk, unless chunks are of one size and there are as many for each. 128 to 512 channels on 28 x 28 pixels, blocks of
504 and 280 pixels: 1.065 times half the time of one thread; of 392: 1.02.  Few chunks cost least (a panel's loops begin
and end in each, 24 blocks of 24 to 144 channels took 1.04 times as long as eight), many share the work of a thread
that is late.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

from leanconv.algorithms.blocking import (
    CHUNKS_A_THREAD,
    MANY,
    Blocking,
    blocking,
    busiest,
    chunk_sizes,
    covered,
    panels_of,
)
from leanconv.host import Host
from leanconv.kernels.cost import LATENCY
from leanconv.problem import Problem

CHUNK = 30_000  # operations in the time that it takes to fetch a chunk: 0.15 us at 200 GFLOP/s
PASS = 5_000  # the same for a panel that begins to pass over a block
READ = 0.5  # the same for each byte of its weights, for which the first tile of a block waits
TILE = 4_000  # the same for a tile that begins and ends
LATE = 0.06  # of a chunk that the others wait for a thread on average, because it is not as fast or begins later
UNEVEN = 1.01  # times its share of the work that a thread must have for lower tiles to be looked at
LOWEST = 4  # rows fewer in lower tiles
WORTH = 0.99  # times the time that they must take at most
COUNTED = 256  # chunks whose turns are worked out one by one


@functools.lru_cache(maxsize=64)  # two algorithms may ask
def shared(problem: Problem, host: Host, threads: int, rows: tuple[int, int]) -> tuple[tuple[int, int], Blocking]:
    """The heights of tiles and the blocking, with lower tiles if chunks are shared better so.

    49 pixels are 20 and 29 in tiles of ten and nine rows, 24 and 25 in tiles of nine and eight: 960 channels to 160,
    five panels, take 0.96 of the time on two threads.
    """
    cut = blocking(problem, host, threads, rows)
    if threads == 1:
        return rows, cut
    found, best = (rows, cut), math.inf
    for fewer in range(LOWEST + 1):
        lower = rows[0] - fewer, rows[1] - fewer
        ways = list(_ways(problem, host, threads, lower)) if min(lower) >= LATENCY or not fewer else []
        if ways:
            cut = quickest(problem, host, threads, lower, ways)
            took = operations(problem, host, threads, lower, cut)
            if took < WORTH * best:
                found, best = (lower, cut), took
            if _work(problem, host, threads, cut)[0] * threads < UNEVEN:
                break
    return found


def of_rows(problem: Problem, host: Host, threads: int, rows: tuple[int, int], most: int, group: int) -> Blocking:
    """Blocks of whole rows of the output, at most `most` of them, and groups of at most so many panels.

    Groups are smaller only where rows are too few for `MANY` chunks a thread.
    """
    (high, width), panels = problem.out_size, panels_of(problem, host)
    first, cuts = -(-high // most), list[Blocking]()
    if threads == 1:
        return Blocking(-(-high // first) * width, -(-high // -(-high // first)), group)
    while group:
        groups = max(1, problem.batch * problem.groups * -(-panels.total // group))
        counts = range(first, min(high, max(first, CHUNKS_A_THREAD * threads // groups)) + 1)
        cuts += [Blocking(lines * width, -(-high // lines), group) for lines in {-(-high // n) for n in counts}]
        group = group // 2 if groups * high < MANY * threads else 0
    return quickest(problem, host, threads, rows, cuts)


def quickest(problem: Problem, host: Host, threads: int, rows: tuple[int, int], cuts: Iterable[Blocking]) -> Blocking:
    """The blocking with which the last thread is done first."""
    return min(cuts, key=lambda cut: operations(problem, host, threads, rows, cut))


def operations(problem: Problem, host: Host, threads: int, rows: tuple[int, int], cut: Blocking) -> float:
    """How many operations one thread does in the time until the last one is done."""
    p, panels = problem, panels_of(problem, host)
    copies = p.batch * p.groups
    chunks = copies * cut.blocks * -(-panels.total // cut.group)
    tiles = copies * panels.total * cut.blocks * -(-cut.block // rows[0])
    weights = p.taps * p.group_in * panels.vectors * host.target.vector_bytes
    apart = chunks * (CHUNK + (PASS + READ * weights) * cut.group) + tiles * TILE
    work, largest = _work(p, host, threads, cut)
    return p.flops * (work + LATE * largest) + apart / threads


def _work(problem: Problem, host: Host, threads: int, cut: Blocking) -> tuple[float, float]:
    """Parts of all multiply-adds: those of the thread that does most, and those of the largest chunk."""
    panels, pixels, copies = panels_of(problem, host), math.prod(problem.out_size), problem.batch * problem.groups
    last, groups = pixels - (cut.blocks - 1) * cut.block, -(-panels.total // cut.group)
    whole, chunks = max(1, copies * pixels * panels.registers), copies * cut.blocks * groups
    largest = max(cut.block, last) * min(panels.registers, cut.group * panels.vectors)
    if groups == 1 and last <= cut.block:
        work: float = -(-chunks // threads) * largest
    elif chunks <= COUNTED:
        work = busiest(chunk_sizes(cut, copies, pixels, panels), threads)
    else:
        work = whole / threads + largest / 2
    return work / whole, largest / whole


def _ways(problem: Problem, host: Host, threads: int, rows: tuple[int, int]) -> Iterator[Blocking]:
    """The usual blocking, then others of equal blocks that each thread has as many of; none that tiles cannot cover."""
    pixels, panels, usual = (
        math.prod(problem.out_size),
        panels_of(problem, host),
        blocking(problem, host, threads, rows),
    )
    if covered(usual.block, rows) and covered(pixels - (usual.blocks - 1) * usual.block, rows):
        yield usual
    whole = blocking(problem, host, 1, rows)  # what caches hold
    groups = problem.batch * problem.groups * -(-panels.total // whole.group)
    if not groups or not pixels:
        return
    step = threads // math.gcd(groups, threads)
    first = -(-whole.blocks // step) * step
    for count in range(first, first + MANY * step, step):
        if count * groups > max(CHUNKS_A_THREAD * threads, first * groups):
            return
        equal = _equal(pixels, count, rows)
        if equal is not None:
            yield Blocking(equal, count, whole.group)


def _equal(pixels: int, count: int, rows: tuple[int, int]) -> int | None:
    """The size of so many blocks, the last of which is smaller or a little larger; None if tiles cannot cover them."""
    most = -(-pixels // count)
    for size in range(most, max(0, most - max(rows)), -1):
        rest = pixels - (count - 1) * size
        if rest > 0 and covered(size, rows) and covered(rest, rows):
            return size
    return None
