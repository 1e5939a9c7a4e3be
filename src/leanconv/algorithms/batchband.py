"""im2win with vectors along the last axis: a band of columns a thread at a time, or the whole tensor of an image."""

from __future__ import annotations

import math

from leanconv.algorithms import columns
from leanconv.algorithms.base import Lowering
from leanconv.algorithms.batchwise import blocking, common_fields, narrowed
from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.batchband import BatchBandSpec
from leanconv.kernels.batchstage import BatchStage, BatchStageSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

TENSOR = "window tensor"
LARGEST_BAND = 256 << 10  # bytes a thread


@dataclass(frozen=True, slots=True)
class Band:
    """The columns that windows slide over: elements side by side in one, and those of one window or row of windows.

    `vectors` of a pixel stand together in an entry of `entry` bytes; `ragged` of the last ones are partly filled.
    """

    problem: Problem
    host: Host
    vectors: int
    across: bool
    ragged: int

    @staticmethod
    def of(problem: Problem, host: Host) -> Band:
        """Two vectors of a pixel, or one if that is all."""
        length, lanes = problem.in_size[-1], host.target.lanes(problem.dtype)
        vectors = 1 if length <= lanes else 2
        return Band(problem, host, vectors, vectors == 1, -(-(length % (vectors * lanes)) // lanes))

    @property
    def terms(self) -> int:
        """Terms of a sum in one column."""
        return math.prod(self.problem.kernel[:-2]) * self.problem.group_in

    @property
    def column(self) -> int:
        """Bytes of a column."""
        return self.terms * self.vectors * self.host.target.vector_bytes

    @property
    def reach(self) -> int:
        """Columns of a window."""
        return (self.problem.kernel[-2] - 1) * self.problem.dilation[-2] + 1

    def columns(self, pixels: int) -> int:
        """Columns that so many pixels of a row read."""
        return (pixels - 1) * self.problem.stride[-2] + self.reach

    @property
    def blocks(self) -> int:
        """Entries side by side in the whole tensor: all vectors of the last axis, some at a time."""
        lanes = self.host.target.lanes(self.problem.dtype)
        return -(-self.problem.in_size[-1] // (self.vectors * lanes))

    @property
    def stage(self) -> BatchStage:
        """How columns are copied."""
        p = self.problem
        padded = any(p.pad_low) or any(p.pad_high)
        axes = (p.kernel[:-1], p.stride[:-1], p.dilation[:-1], p.pad_low[:-1])
        return BatchStage(self.host.target, p.dtype, *axes, padded, p.pad_mode, self.vectors)


def bands(problem: Problem, host: Host, threads: int, workspace: int | None, chosen: int | None) -> Lowering:
    """Bands of one row of output pixels or a part of it, each staged and read by one thread.

    With `chosen` whole rows, else as many pixels as fit half the second-level cache, 256 KiB and the workspace.
    """
    host = narrowed(host, problem)
    band = Band.of(problem, host)
    width = problem.out_size[-2]
    wide = width
    if chosen is None:
        budget = min(host.l2 // 2, LARGEST_BAND)
        if workspace is not None:
            budget = min(budget, workspace // threads // 64 * 64)
        wide = max(1, min(width, (budget // band.column - band.reach) // problem.stride[-2] + 1))
        wide -= wide % 2 if band.across and 1 < wide < width else 0
    core, tile = core_phase(problem, threads, band, None, wide)
    return Lowering(
        (core,),
        (Buffer("scratch", band.columns(wide) * band.column, per_thread=True),),
        columns.pack_rows(problem, host, term_order(problem)),
        (
            f"im2win: each thread copies what the windows of {wide} output pixels hold, in vectors along the last axis",
            f"core {tile} reads the windows while they are in the cache",
        ),
        {"tile": tile, "chunks": core.chunks, "band": wide},
    )


def whole(problem: Problem, host: Host, threads: int) -> Lowering:
    """The whole tensor of one image, or block of images, after the other."""
    p, host = problem, narrowed(host, problem)
    band = Band.of(p, host)
    lines, row = math.prod(p.out_size[:-2]), band.columns(p.out_size[-2])
    group_bytes = band.blocks * lines * row * band.column
    phases: list[Phase] = []
    tile = ""
    for image in range(p.batch):
        phases.append(stage_phase(p, threads, band, image))
        core, tile = core_phase(p, threads, band, image, None)
        phases.append(core)
    return Lowering(
        tuple(phases),
        (Buffer(TENSOR, p.groups * group_bytes),),
        columns.pack_rows(p, host, term_order(p)),
        (
            f"im2win: copy what all windows hold, in vectors along the last axis, {row} columns a row of outputs",
            f"core {tile} reads the windows",
        ),
        {"tile": tile},
    )


def term_order(problem: Problem) -> tuple[int, ...]:
    """The order of a sum: taps of the columns outermost; the last axis has one."""
    slide = problem.ndim - 2
    return (slide, *range(slide), problem.ndim - 1)


def tensor_fields(problem: Problem, band: Band) -> dict[str, int]:
    """Where the whole tensor's columns lie."""
    lines, row = math.prod(problem.out_size[:-2]), band.columns(problem.out_size[-2])
    return {
        "column": band.column,
        "columns": row,
        "t_line": row * band.column,
        "t_vectors": lines * row * band.column,
        "t_g": band.blocks * lines * row * band.column,
    }


def stage_phase(problem: Problem, threads: int, band: Band, image: int) -> Phase:
    """The phase that copies one image into the buffer `TENSOR`."""
    p = problem
    lines = math.prod(p.out_size[:-2])
    block = -(-lines // (8 * threads))
    fields = common_fields(p, block, 1, 1, 0, image) | tensor_fields(p, band)
    spec = BatchStageSpec(band.stage, band.ragged)
    return Phase("stage", spec, fields, p.groups * fields["b_count"], {"windows": TENSOR})


def core_phase(problem: Problem, threads: int, band: Band, image: int | None, wide: int | None) -> tuple[Phase, str]:
    """The phase of the core, on bands of `wide` pixels or on the whole tensor; and its tile in words."""
    p, host = problem, band.host
    rows, panels, short = columns.heights(p, host)
    # A band is copied again for every group of panels, which costs more than weights from the third-level cache do; and
    # a tensor read again more than they do while that cache holds them.  (Twice, because panels may be one row short.)
    weights = p.group_out * columns.row_bytes(p)
    kept = 2 * weights if wide is not None or weights <= host.l3 // 4 else host.l2 // 2
    block, group = blocking(p, host, threads, math.prod(p.out_size[:-2]), kept)
    merged = p.dilation[-2] == 1
    runs, terms = (1, p.kernel[-2] * band.terms) if merged else (p.kernel[-2], band.terms)
    spec = BatchBandSpec(
        band.stage,
        Reduction.of((runs,), terms, unit_channel=False, merged=False, stream=False),
        wide is not None,
        band.across,
        band.ragged,
        rows,
        short > 0,
        p.has_bias,
        Epilogue(p.activation, p.residual),
    )
    fields = common_fields(p, block, group, panels, short, image)
    fields |= {**tensor_fields(p, band), **reduction_fields(terms)}
    fields |= {"reach": band.reach, "tap0": p.dilation[-2] * band.column, "w_rows0": terms, "wide": wide or 0}
    if wide is None:
        fields |= {"x_n": 0, "x_g": fields["t_g"]}
    chunks = fields["n_count"] * fields["g_count"] * fields["b_count"] * fields["k_count"]
    roles = {} if wide is not None else {"windows": TENSOR}
    return Phase("core", spec, fields, chunks, roles), f"{rows}x{2 * host.target.lanes(p.dtype)}"
