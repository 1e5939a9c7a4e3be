"""How a layer is cut into chunks and tiles.

A chunk takes a block of pixels through a group of panels.  Weights that fit a quarter of the
second-level cache stay there while every block of pixels passes through all panels; larger ones are taken a
panel at a time, over blocks of pixels as large as half of that cache, so that a panel is fetched once a
block.  With several threads blocks are cut until each thread can expect sixteen chunks, but none below about
two microseconds of work; where that leaves so few that threads would wait for one of them, blocks are cut further.
`sharing` looks for a cut with which they wait less.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable

from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.panels import Panels
from leanconv.problem import Problem

SMALLEST_CHUNK = 400_000  # multiply-adds times two: 2 us at 200 GFLOP/s, against 0.1 us to fetch a chunk
CHUNKS_A_THREAD = 16
MANY = 8  # chunks a thread, among which one more or less makes little difference
WAY = 4096  # bytes between addresses that share a set of the first-level cache: 64 lines of 64 bytes
EVEN = 1.06  # times its fair share that the busiest thread may have before blocks are cut further


def panels_of(problem: Problem, host: Host) -> Panels:
    """How the output channels of one group are split."""
    return Panels.of(problem.group_out, host.target.lanes(problem.dtype))


def tile_heights(pixels: int, host: Host, panels: Panels, *, apart: int = 0, even: bool = False) -> tuple[int, int]:
    """Rows of the tiles of whole panels and of the last one, for pixels `apart` bytes from one another (0: not said).

    `even`: all of them are, and channels are adjacent.

    Few pixels are spread evenly: 49 make 9 tiles of 6 or 5 rows on AVX2, and 5 of 10 or 9 rather than of 12
    on AVX-512.
    """
    most = [
        host.target.tile_rows(vectors, even=even and not panels.count)
        for vectors in (panels.vectors, panels.last or panels.vectors)
    ]
    if apart and host.target.masks:
        most = [min(rows, _held(apart, host)) for rows in most]
    spread = [-(-pixels // -(-pixels // rows)) if pixels < rows * rows else rows for rows in most]
    return spread[0], spread[1]


def _held(apart: int, host: Host) -> int:
    """Rows `apart` bytes from one another that the first-level cache holds beside the weights that pass through it.

    Addresses 4 KiB apart share a set, so twelve rows of 1024 channels are all that a set of 48 KiB holds. Whatever else
    the core does (its other hardware thread, too) displaces lines before their sixteen channels are used: 1024 to 512
    channels, 14 x 14, take 1.3 times as long as with nine rows, which take as long as with the core to themselves.
    """
    ways, sets = host.l1 // WAY, WAY // math.gcd(apart, WAY)
    return max(1, ways * 3 // 4 * sets)


@dataclass(frozen=True, slots=True)
class Blocking:
    """Pixels a block (the last block has the rest), blocks an image, and panels of weights a group."""

    block: int
    blocks: int
    group: int


def few_weights(problem: Problem, host: Host) -> bool:
    """Whether all panels of a group stay in the second-level cache while blocks of pixels pass through them."""
    return (
        problem.taps * problem.group_in * panels_of(problem, host).registers * host.target.vector_bytes <= host.l2 // 4
    )


def wanted_chunks(problem: Problem, threads: int, smallest: int = SMALLEST_CHUNK) -> int:
    """How many chunks a layer should have at least, none of which has fewer operations than the smallest."""
    if threads == 1:
        return 1
    return min(CHUNKS_A_THREAD * threads, max(threads, problem.flops // smallest))


def blocking(
    problem: Problem, host: Host, threads: int, rows: tuple[int, int], pixel_bytes: float | None = None
) -> Blocking:
    """Cut a layer into chunks; see the head of this file. `pixel_bytes` of input stand for a pixel of output."""
    p, panels = problem, panels_of(problem, host)
    pixels = math.prod(p.out_size)
    unit = math.lcm(*rows)
    # Fewest pixels that tiles of both heights and one row less cover exactly, whatever their number.
    least = max(1, -(-max(height * (height - 1) for height in rows) // unit)) * unit
    per_pixel = pixel_bytes or max(1.0, p.group_in * p.itemsize * math.prod(p.in_size) / pixels)
    group, budget = (panels.total, host.l2 // 4) if few_weights(p, host) else (1, host.l2 // 2)
    wanted = wanted_chunks(p, threads)

    def cut(size: int, group: int) -> Blocking:
        size = max(least, size // unit * unit)
        count, rest = divmod(pixels, size)
        if count == 0 or (count == 1 and rest < least):
            return Blocking(pixels, 1, group)
        return Blocking(size, count + (1 if rest >= least else 0), group)

    result = cut(int(budget / per_pixel), group)
    while p.batch * p.groups * result.blocks * -(-panels.total // result.group) < wanted:
        halves = cut(result.block // 2, result.group)
        if halves.blocks > result.blocks and (result.block > 4 * least or result.group == 1):
            result = halves
        elif result.group > 1:
            result = cut(result.block, -(-result.group // 2))
        else:
            break
    copies = p.batch * p.groups
    return result if threads == 1 else _evened(result, copies, pixels, panels, rows, threads, wanted)


def _evened(
    cut: Blocking, copies: int, pixels: int, panels: Panels, rows: tuple[int, int], threads: int, wanted: int
) -> Blocking:
    """The blocking, or one of smaller blocks if threads share that better; `copies` images and groups.

    576 channels to 96, 14 x 14, on two threads: three chunks, a panel each, took 59 us, six of half the pixels 47.
    """
    groups = copies * -(-panels.total // cut.group)
    if not groups or cut.blocks * groups >= MANY * threads:
        return cut
    best, busiest = cut, _busiest(cut, copies, pixels, panels, threads)
    fair = copies * pixels * panels.registers / threads
    most = max(wanted, 2 * threads) // groups
    for count in range(cut.blocks + 1, min(most, cut.blocks + MANY) + 1):
        block = next((size for size in range(pixels // count, 0, -1) if covered(size, rows)), 0)
        if busiest <= EVEN * fair or block < min(rows):
            break
        if covered(pixels - (count - 1) * block, rows):
            finer = Blocking(block, count, cut.group)
            if (work := _busiest(finer, copies, pixels, panels, threads)) < busiest:
                best, busiest = finer, work
    return best


def covered(pixels: int, rows: tuple[int, int]) -> bool:
    """Whether tiles of each height and of one row less cover so many pixels exactly."""
    return all(-(-pixels // height) * (height - 1) <= pixels for height in rows)


def _busiest(cut: Blocking, copies: int, pixels: int, panels: Panels, threads: int) -> int:
    """Pixels times registers of the thread that has most to do."""
    return busiest(chunk_sizes(cut, copies, pixels, panels), threads)


def chunk_sizes(cut: Blocking, copies: int, pixels: int, panels: Panels) -> list[int]:
    """Pixels times registers of each chunk, in the order of their numbers."""
    registers = []
    for first in range(0, panels.total, cut.group):
        end = min(first + cut.group, panels.total)
        registers.append((min(end, panels.count) - first) * panels.vectors + (panels.last if end > panels.count else 0))
    sizes = [cut.block] * (cut.blocks - 1) + [pixels - (cut.blocks - 1) * cut.block]
    return [size * width for _ in range(copies) for size in sizes for width in registers]


def busiest(work: Iterable[int], threads: int) -> int:
    """The work of the thread that has most to do, if each takes a chunk when it is done with one.

    `work` is that of each chunk, in the order of their numbers: the first thread and every other one take chunks from
    the front, the rest from the back (`kernels.job`).
    """
    chunks = deque(work)
    loads = [(0, thread) for thread in range(threads)]
    while chunks:
        load, thread = loads[0]
        heapq.heapreplace(loads, (load + (chunks.pop() if thread % 2 else chunks.popleft()), thread))
    return max(loads)[0]
