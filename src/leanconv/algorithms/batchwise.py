"""Lowering onto vectors along the last axis, where it has one tap: the batch last, and kernels of R x 1."""

from __future__ import annotations

import math

from leanconv.algorithms import columns
from leanconv.algorithms.base import Lowering
from leanconv.algorithms.blocking import wanted_chunks
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.problem import BATCH_LAST, Problem
from leanconv.program import Phase

LEAST_FILLED = 0.75  # of the vectors, for a problem that has other ways


def applies(problem: Problem, host: Host) -> bool:
    """Whether the elements of the last axis go side by side through the convolution, and fill vectors."""
    p = problem
    if p.ndim < 2 or p.kernel[-1] != 1 or p.stride[-1] != 1 or p.pad_low[-1] or p.pad_high[-1]:
        return False
    if adjacent_refusal(p) is not None:
        return False
    length, lanes = p.in_size[-1], narrowed(host, p).target.lanes(p.dtype)
    filled = length / (-(-length // lanes) * lanes)
    return p.layout in BATCH_LAST or (p.taps > 1 and length > 1 and filled >= LEAST_FILLED)


def adjacent_refusal(problem: Problem) -> str | None:
    """Why the elements of the last axis cannot be loaded and stored as vectors, or None if they can."""
    p = problem
    for name, strides in (("image", p.x_strides), ("output", p.out_strides), ("residual", p.residual_strides)):
        if strides is not None and strides[-1] != 1:
            return f"the {name}'s elements are not adjacent along the last axis"
    return None


def narrowed(host: Host, problem: Problem) -> Host:
    """The host with vectors no longer than the last axis needs: eight images fill half of those of AVX-512."""
    target, item = host.target, problem.itemsize
    nbytes = target.vector_bytes
    while nbytes > 16 and nbytes // 2 >= problem.in_size[-1] * item:
        nbytes //= 2
    return replace(host, target=replace(target, vector_bytes=nbytes))


def lower(problem: Problem, host: Host, threads: int) -> Lowering:
    """One phase: rows of output pixels, their vectors through all panels."""
    from leanconv.kernels.batchwise import BatchSpec  # only here: few of the layers that are asked about are lowered

    p, host = problem, narrowed(host, problem)
    dims, lanes = p.ndim - 1, host.target.lanes(problem.dtype)
    length, lines = p.in_size[-1], math.prod(p.out_size[: dims - 1])
    vectors = -(-length // lanes)
    across = vectors == 1
    tail = -(-(length % (2 * lanes)) // lanes)
    rows, panels, short = columns.heights(p, host)
    block, group = blocking(p, host, threads, lines, host.l2 // 2)
    spec = BatchSpec(
        host.target,
        p.dtype,
        Reduction.of(p.kernel[:-1], p.group_in, unit_channel=False, merged=False, stream=False),
        p.stride[:-1],
        p.dilation[:-1],
        p.pad_low[:-1],
        any(p.pad_low) or any(p.pad_high),
        p.pad_mode,
        across,
        int(length < lanes) if across else tail,
        rows,
        short > 0,
        p.has_bias,
        Epilogue(p.activation, p.residual),
    )
    fields = {**common_fields(p, block, group, panels, short), **reduction_fields(p.group_in)}
    rows_of_weights = p.group_in
    for d in reversed(range(dims)):
        stride, reach = p.stride[d], (p.kernel[d] - 1) * p.dilation[d]
        low = min(-(-p.pad_low[d] // stride), p.out_size[d])
        high = min((p.in_size[d] - 1 - reach + p.pad_low[d]) // stride + 1, p.out_size[d])
        fields |= {f"low{d}": low, f"high{d}": max(high, low), f"w_rows{d}": rows_of_weights}
        rows_of_weights *= p.kernel[d]
    chunks = fields["n_count"] * fields["g_count"] * fields["b_count"] * fields["k_count"]
    tile = f"{rows}x{2 * lanes}"
    return Lowering(
        phases=(Phase("core", spec, fields, chunks),),
        packing=columns.pack_rows(p, host),
        steps=(f"core {tile} reads the image in place, in vectors along its last axis",),
        parameters={"tile": tile, "block": block, "panels": group, "chunks": chunks},
    )


def common_fields(
    problem: Problem, block: int, group: int, panels: int, short: int, image: int | None = None
) -> dict[str, int]:
    """Fields of the arrays and of chunks, on all images or on one."""
    p, item, dims = problem, problem.itemsize, problem.ndim - 1
    lines = math.prod(p.out_size[: dims - 1])
    groups_of_panels, blocks = -(-panels // group), -(-lines // block)
    channel = p.x_strides[1] * item
    fields = {
        "k_div": 1,
        "k_count": groups_of_panels,
        "b_div": groups_of_panels,
        "b_count": blocks,
        "g_div": groups_of_panels * blocks,
        "g_count": p.groups,
        "n_div": groups_of_panels * blocks * p.groups,
        "n_count": p.batch if image is None else 1,
        "n_first": image or 0,
        "block": block,
        "lines": lines,
        "panels": group,
        "panel_count": panels,
        "panel_long": panels - short,
        "w_g": p.group_out * columns.row_bytes(p),
        "w_row": columns.row_bytes(p),
        "x_n": p.x_strides[0] * item,
        "x_g": p.group_in * channel,
        "x_c": channel,
        "length": p.in_size[-1],
        "channels": p.group_in,
    }
    for d in range(dims):
        fields |= {f"out{d}": p.out_size[d], f"in{d}": p.in_size[d], f"at{d}": p.x_strides[2 + d] * item}
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            out_channel = strides[1] * item
            fields |= {
                f"{letter}_n": strides[0] * item,
                f"{letter}_g": p.group_out * out_channel,
                f"{letter}_k": out_channel,
                **{f"{letter}at{d}": strides[2 + d] * item for d in range(dims)},
            }
    return fields


def blocking(problem: Problem, host: Host, threads: int, lines: int, kept: int) -> tuple[int, int]:
    """Rows of pixels a chunk, and panels, whose weights are at most `kept` bytes."""
    p = problem
    rows, panels, _ = columns.heights(p, host)
    group = max(1, min(panels, kept // (rows * columns.row_bytes(p))))
    wanted, blocks = wanted_chunks(p, threads), 1

    def chunks() -> int:
        return p.batch * p.groups * blocks * -(-panels // group)

    while chunks() < wanted and blocks < lines:
        blocks = min(2 * blocks, lines)
    while chunks() < wanted and group > 1:
        group = -(-group // 2)
    return -(-lines // blocks), group
