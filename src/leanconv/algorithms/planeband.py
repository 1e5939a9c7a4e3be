"""Few channels first by bands that stay planes: how such a problem is cut for the kernel of `kernels.planeband`."""

from __future__ import annotations

import math

from leanconv.algorithms import columns
from leanconv.algorithms.base import Lowering
from leanconv.algorithms.blocking import WAY, wanted_chunks
from leanconv.algorithms.channelwise import window_of
from leanconv.algorithms.dense import image_input, store_columns
from leanconv.algorithms.planes import StagedRows, even_parts, row_stage
from leanconv.algorithms.traffic import past
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.planeband import PlaneBandSpec
from leanconv.kernels.reduction import FEW, Reduction
from leanconv.memory import Buffer
from leanconv.problem import BATCH_LAST, Problem
from leanconv.program import Phase

MOST_TERMS = 1024  # of a sum, each of which has an entry in a table on the stack
FEW_SETS = 8  # of the first-level cache: where planes share fewer, to store to them takes more than twice as long
SHARES = 4  # bands a thread: each copies again what it shares with its neighbours (3x3, stride 2: 0.96 of 16 a thread)
FEW_REGISTERS = 7  # of a row, of which a tile that is one register wide would be a large part


def applies(problem: Problem, host: Host) -> bool:
    """Whether a problem can be computed so, and should be."""
    return possible(problem) and worth(problem, host)


def possible(problem: Problem) -> bool:
    """Whether rows of image and output are adjacent pixels, and the few terms of a sum are in sections that are known.

    Those end with rows of taps, or are one.
    """
    p = problem
    if not store_columns(p) or p.x_strides[-1] != 1 or p.taps == 1 or p.group_in > FEW or p.layout in BATCH_LAST:
        return False
    if p.taps * p.group_in > MOST_TERMS or reduction_of(p).flush not in (None, 0):
        return False
    return math.prod(p.out_size) * p.batch > 0


def worth(problem: Problem, host: Host) -> bool:
    """Whether the lanes that rows leave empty cost less than tiles of pixels by channels do, which are transposed."""
    p = problem
    width, lanes = p.out_size[-1], host.target.lanes(p.dtype)
    return width > lanes and p.taps * p.group_in * (-width % lanes) <= turned(p, lanes) * width


def turned(problem: Problem, lanes: int) -> float:
    """Vector multiply-adds that take the time of transposing one vector of a tile and storing it in parts to planes.

    Half as many as lanes, measured for 8 and 16. Planes a multiple of a large power of two apart share sets of the
    first-level cache, from which their lines are displaced before they are whole: 3x3 taps of 3 channels to 64 take 2.9
    times as long so at 64 x 64, where planes are 16 KiB, and 1.15 times at 56 x 56 (16 lanes).
    """
    apart = problem.out_strides[1] * problem.itemsize
    return lanes / 2 * (1 + FEW_SETS / (WAY // math.gcd(apart, WAY)))


def reduction_of(problem: Problem) -> Reduction:
    """The sum as the core has it."""
    return Reduction.of(problem.kernel, problem.group_in, unit_channel=False, merged=False, stream=False)


def lower(problem: Problem, host: Host, threads: int, most: int | None, chosen: int | None) -> Lowering:
    """One phase: bands of output rows, or of `chosen` rows, in `most` bytes of each thread."""
    p, item = problem, problem.itemsize
    lanes = host.target.lanes(p.dtype)
    high, width = p.out_size[-2] if p.ndim > 1 else 1, p.out_size[-1]
    vectors = tile_vectors(p, host)
    rows, panels, short = columns.heights(p, host, vectors)
    wide = even_parts(-(-width // lanes), vectors)
    staged = StagedRows.of(p, lanes)
    outer = p.out_size[0] if p.ndim == 3 else 1
    band = min(chosen, high) if chosen else band_rows(p, host, threads, staged, high, most)
    bands = -(-high // band)
    band = -(-high // bands)
    nbytes = staged.nbytes(band)
    spec = PlaneBandSpec(
        target=host.target,
        dtype=p.dtype,
        window=window_of(p),
        channels=p.group_in,
        stage=row_stage(p, host),
        reduction=reduction_of(p),
        rows=rows,
        short=short > 0,
        vectors=wide[0],
        narrow=wide[2] > 0,
        valid=width % lanes or lanes,
        bias=p.has_bias,
        epilogue=Epilogue(p.activation, p.residual),
        past=past(p, host),
    )
    vector = host.target.vector_bytes
    tail = (p.pad_low[-1] + p.in_size[-1]) // p.stride[-1] * item // vector * vector
    rows_bytes = staged.rows(band) * staged.row
    fields = {
        "b_div": 1,
        "b_count": bands,
        "d_div": bands,
        "d_count": outer,
        "g_div": bands * outer,
        "g_count": p.groups,
        "n_div": bands * outer * p.groups,
        "n_count": p.batch,
        "band": band,
        "row_count": high,
        "wide_count": wide[1],
        "wide_long": wide[1] - wide[2],
        "panel_count": panels,
        "panel_long": panels - short,
        "w_g": p.group_out * columns.row_bytes(p),
        "w_row": columns.row_bytes(p),
        "s_phase": staged.phase,
        "s_row": staged.row,
        "s_slice": rows_bytes,
        "s_channel": rows_bytes * (p.kernel[0] if p.ndim == 3 else 1),
        "s_bytes": nbytes,
        "s_tail": tail,
        "reach": (width - 1) * p.stride[-1] + (p.kernel[-1] - 1) * p.dilation[-1] + 1,
        **image_input(p).fields,
    }
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            channel = strides[1] * item
            fields |= {f"{letter}_n": strides[0] * item, f"{letter}_g": p.group_out * channel, f"{letter}_k": channel}
    chunks = p.batch * p.groups * outer * bands
    tile = f"{rows}x{wide[0] * lanes}"
    return Lowering(
        phases=(Phase("core", spec, fields, chunks),),
        workspace=(Buffer("scratch", nbytes, per_thread=True),),
        packing=columns.pack_rows(p, host, vectors=vectors),
        steps=(
            f"each thread copies the rows under {band} output rows, padded, channels apart",
            f"tiles of {tile} (channels x pixels) read them",
        ),
        parameters={"tile": tile, "rows": band, "chunks": chunks},
    )


def tile_vectors(problem: Problem, host: Host) -> int:
    """Registers of pixels of a tile: two, so that most output channels are summed with each; more for few channels.

    On AVX-512 three where the last tile of a short row would else be one register wide: seven registers take 0.96 of
    the time (7x7 taps, stride 2), nine 1.03 times (3x3).
    """
    p, target = problem, host.target
    registers = -(-p.out_size[-1] // target.lanes(p.dtype))
    if p.group_out <= 4:
        return min(registers, 4, (target.registers - 2) // (p.group_out + 1))
    return min(registers, 3 if target.masks and registers % 2 and registers <= FEW_REGISTERS else 2)


def band_rows(problem: Problem, host: Host, threads: int, staged: StagedRows, high: int, most: int | None) -> int:
    """Output rows of a band: those whose rows an eighth of the second-level cache holds, fewer if threads share them.

    224 x 224, 3x3 to 64 channels: bands of 16 rows take 0.98 of the time of 8, longer ones as long.
    """
    p = problem
    budget = host.l2 // 8 if most is None else min(host.l2 // 8, most)
    band = 1
    while band < high and staged.nbytes(band + 1) <= budget:
        band += 1
    if threads > 1:
        others = p.batch * p.groups * (p.out_size[0] if p.ndim == 3 else 1)
        band = min(band, high * others // min(SHARES * threads, wanted_chunks(p, threads)))
    return max(1, band)
