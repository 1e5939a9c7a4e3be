"""Few channels a group, vectors of channels: what a tile and a chunk take, by where in memory the arrays lie."""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import EVEN, MANY, busiest
from leanconv.host import Host
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.nexttile import LINE
from leanconv.kernels.taporder import LONGEST, TapOrder
from leanconv.problem import Problem

AHEAD = 8 * LINE  # bytes under the outputs of a narrow tile
TAPS = 6  # taps for which a narrow tile is a pixel wide
WIDE = 12  # pixels of a tile of such an array; LLVM spills wider ones of 7x7 on AVX-512
# Pixels of a narrow tile by the arrays that are asked for ahead, and whether there are strides.
FETCHED = {(1, False): 4, (2, False): 8, (1, True): 2, (2, True): 2}
HELD = 4  # units at least of a section whose rows are held
NEAR = 3  # bands more or less that are tried
LEAST_WIDE = 8  # pixels of a strip
HALO = 4  # rows of the image at least that a band reads for each that the band before has read as well
MOST_WIDE = 16  # pixels of a tile: beyond it nothing is gained by reading fewer pixels twice
# Pixels of a tile with strides, by whether more than three taps are side by side, and of one with seven taps: of wider
# ones LLVM loads so many pixels before their turn that sums go to the stack (AVX-512, 5x5, 14 pixels: 84 moves).
STRIDED, SEVEN = {False: 15, True: 10}, 15


def tile_width(problem: Problem, host: Host, *, near: bool = False) -> tuple[int, int, int]:
    """Output pixels of a tile, tiles of a row, and how many of those are one pixel shorter.

    `near`: what is read and written is in the cache, however large the whole problem.
    """
    order = TapOrder(problem.kernel, problem.group_in)
    width = problem.out_size[-1]
    # Sums, the weights of a chunk and one pixel are in registers; `accumulators` leaves three for the last two.
    widest = MOST_WIDE if near else _widest(problem, host)
    taps = order.chunks[0]
    if problem.stride[-1] > 1:
        widest = min(widest, STRIDED[taps > 3])
    elif taps >= 7:
        widest = min(widest, SEVEN)
    most = max(1, min(widest, host.target.accumulators + 3 - taps, width))
    strips = -(-width // most)
    size = -(-width // strips)
    return size, strips, strips * size - width


def _widest(problem: Problem, host: Host) -> int:
    """Pixels of a tile at most: few, if the arrays come from far away.

    A wide tile saves loads, but reads a few bytes each of many pixels; a narrow one reads all channels of a few pixels,
    which the processor fetches ahead. 96 channels, 3x3, stride 2: 4.8 MB take 1.4 times as long in wide tiles, 39 MB
    1.9 times. Many taps are worth their loads, however far away pixels are (7x7, 18 MB: a third of the time in tiles
    of 8), so are several channels a group, and pixels of few channels are fetched ahead several at a time.
    """
    p = problem
    pixel = p.in_channels * p.itemsize
    if pixel < LINE:  # pixels share lines of cache (3 channels, 5x5, 1080p: 12 ms, 42 in narrow ones)
        return MOST_WIDE
    if at_hand(p, host):
        return _strip_width(p, host) if p.kernel[-1] < LONGEST and narrow(p, host) else MOST_WIDE
    nbytes = sum(_array_bytes(p))
    asked, strided = fetched(p, host), math.prod(p.stride) > 1
    for limit, width in ((host.l3 // 2, 1), (8 * host.l2, 2), (4 * host.l2, 4)):
        if nbytes > limit:
            more = max(1, p.taps // TAPS)
            if asked:
                return min(FETCHED[asked, strided] * more, WIDE)
            return min(max(width * more * p.group_in, AHEAD // (pixel * math.prod(p.stride))), WIDE)
    return MOST_WIDE


def _array_bytes(problem: Problem) -> tuple[int, int]:
    """Bytes of the image and of the output."""
    p = problem
    pixels = p.batch * p.itemsize
    return pixels * p.in_channels * math.prod(p.in_size), pixels * p.out_channels * math.prod(p.out_size)


def fetched(problem: Problem, host: Host) -> int:
    """How many arrays tiles ask for ahead: none, the image, or the image and the output.

    The second-level cache is near enough (384 channels, 14x14: 8 % lost), and what is stored past the caches is not to
    be read. From further away: 96 channels, 112x112, stride 2, 6 MB, go from 22.7 cycles a register of outputs to 12.2,
    144 channels, 56x56, 8 images, 29 MB, from 15.3 to 11.1.
    """
    p = problem
    plain = p.pad_mode == "zeros" and p.ndim <= 2 and p.group_in == 1 and p.in_channels * p.itemsize >= LINE
    if not plain or sum(_array_bytes(p)) <= 4 * host.l2 or at_hand(p, host):
        return 0
    return 1 if streams(p, host) else 2


def streams(problem: Problem, host: Host) -> bool:
    """Whether the output is so large that whoever reads it next will not find it in a cache."""
    image, out = _array_bytes(problem)
    return image + out > host.l3 // 2 and out > host.l3 // 4


def whole_vectors(problem: Problem, host: Host, lanes: Lanes) -> bool:
    """Whether every pixel of the output is a number of whole registers, all at multiples of their size."""
    p, width = problem, host.target.vector_bytes
    steps = [stride * p.itemsize % width for stride in (p.out_strides[0], *p.out_strides[2:])]
    return not any(steps) and p.out_channels % lanes.lanes == 0 and lanes.groups * lanes.group_out % lanes.lanes == 0


def at_hand(problem: Problem, host: Host) -> bool:
    """Whether a chunk that goes down a strip finds what it reads soon enough: vectors are whole lines of a cache.

    A row of such a strip is one run of lines, each of which is loaded whole.
    """
    p = problem
    lines = host.target.vector_bytes >= LINE and p.ndim == 2 and p.in_channels * p.itemsize >= LINE
    return lines and sum(_array_bytes(p)) <= host.l3 // 2


def _strip_width(problem: Problem, host: Host) -> int:
    """Pixels of the widest strip all of whose channels the first-level cache keeps, or the least.

    A part of the channels of a wider one is pieces of memory that often share a set of the cache (256 channels, 56x56,
    14 pixels: 111 us, 8 pixels 84).
    """
    pixel = problem.in_channels * problem.itemsize
    fits = [w for w in range(LEAST_WIDE, MOST_WIDE + 1) if _strip_pixels(problem, w) * pixel <= host.l1 * 2 // 3]
    return max(fits, default=LEAST_WIDE)


def _strip_pixels(problem: Problem, width: int, *, outputs: bool = True) -> int:
    """Pixels that a tile reads and, with `outputs`, writes."""
    p = problem
    columns = (width - 1) * p.stride[-1] + (p.kernel[-1] - 1) * p.dilation[-1] + 1
    return math.prod(p.kernel[:-1]) * columns + (width if outputs else 0)


def _held_units(problem: Problem, host: Host, nbytes: int) -> int:
    """Units, of so many bytes a pixel, of which the first-level cache holds all that is under a row of the output."""
    p = problem
    if p.ndim != 2:
        return 0
    line = max(1, LINE // nbytes)
    rows = p.kernel[0] * (p.in_size[-1] + p.pad_low[-1] + p.pad_high[-1]) + p.out_size[-1]
    return host.l1 * 3 // 4 // nbytes // rows // line * line


def narrow(problem: Problem, host: Host) -> bool:
    """Whether a chunk goes down one strip, whose next row finds in the first-level cache what the two share.

    Where all is `at_hand` and that cache does not hold whole rows. What is read less than twice is worth it only from
    afar (3x3, stride 2, 32 channels, 112x112: 1.1 times the time).
    """
    p = problem
    lanes = Lanes(host.target.lanes(p.dtype), p.group_in, p.group_out)
    held = _held_units(p, host, lanes.groups * lanes.group_in * p.itemsize)
    if held >= min(HELD, -(-p.groups // lanes.groups)) or not at_hand(p, host):
        return False
    return p.kernel[0] >= 2 * p.stride[0] or sum(_array_bytes(p)) > 4 * host.l2


def unit_section(problem: Problem, host: Host, lanes: Lanes, width: int) -> int:
    """Units a chunk takes at a time: so many that what they read and write stays in the first-level cache.

    All that is under a row of the output if that leaves enough of them, so that the next row finds it there (576
    channels, 14x14: 44 to 34 us); else what is under one tile: of all strips, or of one (AVX-512, 3x3: 64 channels on
    112x112 112 to 74 us, 128 on 56x56 60 to 35).
    """
    p = problem
    units = -(-p.groups // lanes.groups)
    nbytes = lanes.groups * lanes.group_in * p.itemsize
    line = max(1, LINE // nbytes)
    held = _held_units(p, host, nbytes)
    if narrow(p, host):  # the row that comes, and the outputs, beside what is kept
        section = max(1, host.l1 * 2 // 3 // nbytes // _strip_pixels(p, width) // line) * line
    elif held >= HELD:
        section = held
    else:
        section = max(1, host.l1 * 3 // 4 // nbytes // _strip_pixels(p, width, outputs=False) // line) * line
    return -(-units // -(-units // section))


def bands(problem: Problem, threads: int, most: int, rows: int, sections: list[int], strips: list[int]) -> int:
    """Into how many bands of rows threads share a layer best, each in sections of so many units by so many strips.

    A band reads rows that the one before has read too: of 14 rows under 3x3 taps five bands took two threads 6.5 us,
    one 4.9. So such rows are a quarter at most, chunks eight a thread, and bands as few more or less as share evenly.
    """
    p = problem
    if threads == 1 or most == 1 or not p.batch:
        return 1
    copies = p.batch * len(sections) * len(strips)
    both = (p.kernel[0] - 1) * p.dilation[0] + 1 - p.stride[0] if p.ndim > 1 else 0
    low = rows * p.stride[0] // (HALO * both) if both > 0 else most
    usual = min(max(min(low, -(-MANY * threads // copies)), -(-threads // copies)), most)
    if usual * copies >= 2 * MANY * threads:
        return usual
    fair = p.batch * rows * sum(sections) * sum(strips) / threads

    def uneven(count: int) -> tuple[float, int]:
        heights, widths = parts(rows, -(-rows // count)), [strip * units for strip in strips for units in sections]
        work = [height * width for _ in range(p.batch) for height in heights for width in widths]
        return max(busiest(work, threads), EVEN * fair), abs(count - usual)

    return min(range(max(1, usual - NEAR), min(most, usual + NEAR) + 1), key=uneven)


def parts(total: int, size: int) -> list[int]:
    """Parts of a size, the last of which has the rest."""
    return [min(size, total - first) for first in range(0, total, size)]
