"""Lowering onto the core that is turned round: matrices whose columns are adjacent pixels, stored pixel by pixel."""

from __future__ import annotations

import math

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.blocking import Blocking, wanted_chunks
from leanconv.algorithms.dense import CoreInput, even_stride, scattered, store_columns
from leanconv.host import Host
from leanconv.kernels.columns import ColumnSpec, RowPackSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.image import Rows
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.problem import Problem
from leanconv.program import Phase


def applies(problem: Problem, source: CoreInput) -> bool:
    """Whether pixels are adjacent in the matrix and in the output."""
    adjacent = store_columns(problem) and not scattered(problem)
    return adjacent and isinstance(source.source, Rows) and source.source.row_bytes is not None


def heights(problem: Problem, host: Host, vectors: int = 2) -> tuple[int, int, int]:
    """Rows of a panel, panels, and how many of them (the last ones) are one row shorter, under tiles so wide."""
    channels, most = problem.group_out, host.target.tile_rows(vectors)
    panels = -(-channels // most)
    rows = -(-channels // panels)
    return rows, panels, panels * rows - channels


def row_bytes(problem: Problem) -> int:
    """Bytes of packed weights of one output channel."""
    return (problem.taps * problem.group_in + problem.has_bias) * problem.itemsize


def pack_rows(problem: Problem, host: Host, order: tuple[int, ...] | None = None, *, vectors: int = 2) -> WeightPacking:
    """The packing of weights into panels of rows, exactly as large as weights and bias; `order` as in `RowPackSpec`."""
    p, item = problem, problem.itemsize
    rows, panels, short = heights(p, host, vectors)
    strides = [s * item for s in p.w_strides]
    fields = {
        "g_div": panels,
        "g_count": p.groups,
        "p_div": 1,
        "p_count": panels,
        "panel_long": panels - short,
        "channels": p.group_in,
        "w_k": strides[0],
        "w_c": strides[1],
        "w_g": p.group_out * strides[0],
        "p_g": p.group_out * row_bytes(p),
        "p_row": row_bytes(p),
        "bias_g": p.group_out * item,
        "group_out": p.group_out,
        **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
    }
    spec = RowPackSpec(host.target, p.dtype, p.kernel, rows, short > 0, p.has_bias, order)
    phase = Phase("pack weights", spec, fields, p.groups * panels)
    return WeightPacking(p.out_channels * row_bytes(p), phase, grouped=True)


def blocking(problem: Problem, host: Host, threads: int) -> Blocking:
    """Blocks of whole tiles of pixels, and groups of panels that stay in half the second-level cache.

    A tile of pixels is read from memory once and passes all panels of the group, so the size of a block matters to the
    number of chunks only.
    """
    p = problem
    pixels, wide = math.prod(p.out_size), 2 * host.target.lanes(p.dtype)
    rows, panels, _ = heights(p, host)
    group = max(1, min(panels, host.l2 // 2 // (rows * row_bytes(p))))
    wanted = wanted_chunks(p, threads)
    count = 1
    while p.batch * p.groups * count * -(-panels // group) < wanted and count < pixels // (2 * wide):
        count *= 2
    while p.batch * p.groups * count * -(-panels // group) < wanted and group > 1:
        group = -(-group // 2)
    block = max(wide, pixels // count // wide * wide)
    return Blocking(min(block, pixels), max(1, pixels // block), group)


def column_phase(
    problem: Problem, host: Host, source: CoreInput, cut: Blocking, image: int | None = None
) -> tuple[Phase, dict[str, int | str]]:
    """The phase that runs the core over pixel columns, on all images or on one, and the settings chosen."""
    p, item = problem, problem.itemsize
    rows, panels, short = heights(p, host)
    pixels, lanes = math.prod(p.out_size), host.target.lanes(p.dtype)
    left = [size % (2 * lanes) for size in (cut.block, pixels - (cut.blocks - 1) * cut.block)]
    # A tile of pixels, a line of cache a channel, comes from the second level again for every panel.
    stream = source.channels * 2 * host.target.vector_bytes > host.l1 // 2
    spec = ColumnSpec(
        host.target,
        p.dtype,
        Reduction.of((1,), source.channels, unit_channel=False, merged=False, stream=stream),
        rows,
        short > 0,
        -(-max(left) // lanes),
        p.has_bias,
        Epilogue(p.activation, p.residual),
        source.stage,
        _asked_ahead(p, host, source),
    )
    groups_of_panels = -(-panels // cut.group)
    fields = {
        **source.fields,
        **reduction_fields(source.channels),
        "k_div": 1,
        "k_count": groups_of_panels,
        "b_div": groups_of_panels,
        "b_count": cut.blocks,
        "g_div": groups_of_panels * cut.blocks,
        "g_count": p.groups,
        "n_div": groups_of_panels * cut.blocks * p.groups,
        "n_count": p.batch if image is None else 1,
        "n_first": image or 0,
        "block": cut.block,
        "pixels": pixels,
        "panels": cut.group,
        "panel_count": panels,
        "panel_long": panels - short,
        "w_g": p.group_out * row_bytes(p),
        "w_row": row_bytes(p),
    }
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            assert even_stride(strides[2:], p.out_size) is not None
            channel = strides[1] * item
            fields |= {f"{letter}_n": strides[0] * item, f"{letter}_g": p.group_out * channel, f"{letter}_k": channel}
    chunks = fields["n_count"] * p.groups * cut.blocks * groups_of_panels
    parameters: dict[str, int | str] = {
        "tile": f"{rows}x{2 * lanes}",
        "block": cut.block,
        "panels": cut.group,
        "chunks": chunks,
    }
    return Phase("core", spec, fields, chunks, {"x": source.buffer}), parameters


def _asked_ahead(problem: Problem, host: Host, source: CoreInput) -> bool:
    """Whether each row of a tile asks for the next tile's: from afar, if the nearest cache holds both and the weights.

    Lines a plane apart the processor does not foresee: eight images of 144 channels, 56 x 56, to 24 take 0.8 of the
    time so, 32 channels, 112 x 112, to 16 nine tenths; with 256 channels they displace one another (1.1 times).
    """
    p = problem
    nbytes = p.batch * p.groups * source.channels * math.prod(p.out_size) * p.itemsize
    rows = heights(p, host)[0]
    near = source.channels * (2 * 2 * host.target.vector_bytes + rows * p.itemsize)
    return source.stage is None and nbytes > host.l2 and near <= host.l1 * 3 // 4
