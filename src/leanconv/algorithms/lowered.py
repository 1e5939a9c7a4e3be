"""im2col and im2row: copy every window into a patch matrix, then multiply.

K. Chellapilla, S. Puri, P. Simard: High Performance Convolutional Neural Networks for Document Processing, 2006; made
popular by Caffe.

Shared by the four algorithms that differ in two ways: whether a window becomes a row (im2row, windows of
adjacent channels are copied in runs) or a column (im2col, rows of the image are copied in runs), and whether
the matrix is made whole, one image at a time, as published, or in strips of output pixels that a thread
stages and multiplies while they are in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.algorithms import columns
from leanconv.algorithms.base import Lowering
from leanconv.algorithms.blocking import Blocking, blocking, panels_of, tile_heights
from leanconv.algorithms.dense import CoreInput, dense_phase, even_stride, image_input, pack_weights
from leanconv.host import Host
from leanconv.kernels.image import Rows
from leanconv.kernels.patches import Patches, PatchSpec
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

MATRIX = "patch matrix"


def patches(
    problem: Problem, host: Host, rows: bool, unit_matrix: bool, kind: type[Patches] = Patches, *, parts: bool = False
) -> Patches:
    """How the windows of a problem are copied; `kind` says in which runs, `parts` that columns may be part of a row."""
    p = problem
    padded = any(p.pad_low) or any(p.pad_high)
    return kind(
        host.target,
        p.dtype,
        p.kernel,
        p.stride,
        p.dilation,
        p.pad_low,
        padded,
        p.pad_mode,
        rows,
        p.x_strides[1] == 1,
        unit_matrix,
        parts,
    )


def patch_fields(problem: Problem, steps: Mapping[str, int]) -> dict[str, int]:
    """Fields of the copy, with the matrix's byte steps `m_pixel`, `m_c`, `m_tap`."""
    image = dict(image_input(problem).fields)
    image["s_c"] = image.pop("x_c")
    image["at_pixel"] = (even_stride(problem.x_strides[2:], problem.in_size) or 0) * problem.itemsize
    return {**image, "channels": problem.group_in, "pixels": math.prod(problem.out_size), **steps}


def matrix_steps(problem: Problem, pixels: int, *, rows: bool) -> dict[str, int]:
    """Byte steps of a matrix of so many pixels: taps outermost in a window, channels innermost."""
    item, c = problem.itemsize, problem.group_in
    if rows:
        return {"m_pixel": problem.taps * c * item, "m_c": item, "m_tap": c * item}
    return {"m_pixel": item, "m_c": pixels * item, "m_tap": c * pixels * item}


def stage_phase(
    problem: Problem, host: Host, threads: int, image: int, *, rows: bool, kind: type[Patches] = Patches
) -> Phase:
    """The phase that copies all windows of one image into the buffer `MATRIX`."""
    p = problem
    pixels, width = math.prod(p.out_size), p.out_size[-1]
    block = -(-pixels // width // (8 * threads)) * width  # whole output rows: im2col copies by rows
    blocks = -(-pixels // block)
    fields = patch_fields(p, matrix_steps(p, pixels, rows=rows)) | {
        "n_first": image,
        "b_div": 1,
        "b_count": blocks,
        "g_div": blocks,
        "g_count": p.groups,
        "block": block,
        "m_g": p.taps * p.group_in * pixels * p.itemsize,
    }
    return Phase("stage", PatchSpec(patches(p, host, rows, rows, kind)), fields, p.groups * blocks, {"matrix": MATRIX})


def whole(problem: Problem, host: Host, threads: int, *, rows: bool, kind: type[Patches] = Patches) -> Lowering:
    """The matrix of one image after the other, whole; `kind` says in which runs it is copied."""
    p, item = problem, problem.itemsize
    pixels, depth = math.prod(p.out_size), p.taps * p.group_in
    steps = matrix_steps(p, pixels, rows=rows)
    group_bytes = depth * pixels * item
    source = CoreInput(
        Rows(None if rows else item),
        (1,),
        depth,
        rows,
        False,
        {"x_n": 0, "x_g": group_bytes, "x_c": steps["m_c"], "x_row": steps["m_pixel"]},
        MATRIX,
    )
    heights = tile_heights(pixels, host, panels_of(p, host))
    cut = blocking(p, host, threads, heights, depth * item)
    turned = columns.applies(p, source)
    phases: list[Phase] = []
    parameters: dict[str, int | str] = {}
    for image in range(p.batch):
        phases.append(stage_phase(p, host, threads, image, rows=rows, kind=kind))
        if turned:
            core, parameters = columns.column_phase(p, host, source, columns.blocking(p, host, threads), image)
        else:
            core, parameters = dense_phase(p, host, source, heights, cut, image, threads=threads)
        phases.append(core)
    name = "im2row" if rows else "im2col"
    return Lowering(
        tuple(phases),
        (Buffer(MATRIX, p.groups * group_bytes),),
        columns.pack_rows(p, host) if turned else pack_weights(p, host),
        (
            f"{name}: copy all windows of an image into a matrix of {p.groups * depth} x {pixels}",
            f"core {parameters.get('tile', '')} multiplies it",
        ),
        parameters,
    )


def strips(
    problem: Problem, host: Host, threads: int, workspace: int | None, chosen: int | None, *, rows: bool
) -> Lowering:
    """Strips of output pixels, each staged and multiplied by one thread.

    `chosen` output rows a strip, else as many pixels as fit half the second-level cache and the workspace.
    """
    p, item, depth = problem, problem.itemsize, problem.taps * problem.group_in
    # Columns are copied by output rows, or by parts of them where a limit leaves no room for one.
    row = Buffer("scratch", p.out_size[-1] * depth * item, per_thread=True)
    parts = not rows and chosen is None and workspace is not None and arena_bytes((row,), threads) > workspace
    whole_rows = not (rows or parts)
    heights, cut = fitting_strips(p, host, *strip_pixels(p, host, threads, workspace, chosen, whole_rows=whole_rows))
    steps = matrix_steps(p, cut.block, rows=rows)
    image = image_input(p).fields
    fields = patch_fields(p, steps) | {"x_n": image["x_n"], "x_g": image["x_g"]}
    fields |= {"x_row": steps["m_pixel"], "x_c": steps["m_c"]}
    source = CoreInput(
        Rows(None if rows else item), (1,), depth, rows, False, fields, "x", patches(p, host, rows, rows, parts=parts)
    )
    turned = columns.applies(p, source)
    if turned:
        cut = Blocking(cut.block, cut.blocks, columns.heights(p, host)[1])
        core, parameters = columns.column_phase(p, host, source, cut)
    else:
        core, parameters = dense_phase(p, host, source, heights, cut, threads=threads)
    name = "im2row" if rows else "im2col"
    return Lowering(
        (core,),
        (Buffer("scratch", cut.block * depth * item, per_thread=True),),
        columns.pack_rows(p, host) if turned else pack_weights(p, host),
        (
            f"{name}: each thread copies the windows of {cut.block} output pixels into its strip of the matrix",
            f"core {parameters['tile']} multiplies the strip while it is in the cache",
        ),
        {**parameters, "strip": cut.block},
    )


def strip_pixels(
    problem: Problem, host: Host, threads: int, workspace: int | None, chosen: int | None, *, whole_rows: bool
) -> tuple[int, int]:
    """The most pixels of a strip, and the number that it should be a multiple of: whole output rows, or any.

    `chosen` output rows, else as many pixels as fit half the second-level cache and the workspace.
    """
    p = problem
    pixels, width, depth = math.prod(p.out_size), p.out_size[-1], p.taps * p.group_in
    if chosen is not None:
        return min(chosen * width, pixels), width
    unit = width if whole_rows else 1
    budget = host.l2 // 2 if workspace is None else min(host.l2 // 2, workspace // threads // 64 * 64)
    size = max(unit, min(pixels, budget // (depth * p.itemsize) // unit * unit))
    if threads > 1:  # enough strips for every thread to have several
        size = min(size, max(unit, pixels * p.batch * p.groups // (4 * threads) // unit * unit))
    return size, unit


def fitting_strips(
    problem: Problem, host: Host, size: int, unit: int, *, longer: bool = False, apart: int = 0
) -> tuple[tuple[int, int], Blocking]:
    """Tile heights and a strip size of at most `size` pixels that tiles cover exactly, the last strip too.

    `longer`: the last strip may be longer than the others, though not than `size`; `apart` as in `tile_heights`.
    """
    pixels, panels = math.prod(problem.out_size), panels_of(problem, host)
    size = min(size, pixels)
    for block in range(size // unit * unit, 0, -unit):
        heights = tile_heights(block, host, panels, apart=apart)
        count, rest = divmod(pixels, block)
        choices = [(-(-pixels // block), rest or block)]
        if longer and rest and block + rest <= size:
            choices.append((count, block + rest))
        for blocks, last in choices:
            if all(_covered(n, height) for n in (block, last) for height in heights):
                return heights, Blocking(block, blocks, panels.total)
    raise AssertionError("one unit divides the image, so the search ends there")


def _covered(pixels: int, height: int) -> bool:
    """Whether tiles of `height` and one row less can hold exactly so many pixels."""
    tiles = -(-pixels // height)
    return tiles * height - pixels <= tiles and (height > 1 or pixels >= 0)
