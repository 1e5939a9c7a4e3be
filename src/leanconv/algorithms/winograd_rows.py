"""Winograd along rows only, for images of few channels.

Idea        F(m, r) along each row of the image: m outputs of r taps with m + r - 1 products, plain sums over the rows
            of the filter and the channels. A stride makes interleaved filters, whose products share their points. All
            channels of three rows are nine products a point: transforms along columns too would save fewer
            multiply-adds than they take
Workspace   a thread: points * rows * tiles * stride * C elements, and a few lines; rows are those under a band
Weights     points / r times as large as plain ones (2 times for F(4, 3))
Good for    RGB images, channels first or last: 3x3 taps, 7x7 with stride 2, 11x11 with stride 4
Bad for     many channels, of which windows transformed along both axes take fewer products

    F(4, 3) along a row          image     0 1 2 3 4 5 6 7 8 9 ...
                                 tile 0    0 1 2 3 4 5           ->   outputs 0 1 2 3
                                 tile 1            4 5 6 7 8 9   ->   outputs 4 5 6 7
    V [row][channel][point][tile]   *   U [point][row of the filter][channel][K]   ->   M [tile][point][K]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering, WeightPacking
from leanconv.algorithms.blocking import panels_of, wanted_chunks
from leanconv.algorithms.traffic import asked_for, past
from leanconv.algorithms.winograd import ERROR_GROWTH
from leanconv.algorithms.winograd_fields import odd_lines
from leanconv.host import Host
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import FEW, SECTION, Reduction
from leanconv.kernels.winograd_row_pack import RowPackSpec
from leanconv.kernels.winograd_row_stage import RowPoints
from leanconv.kernels.winograd_rows import WinogradRowsSpec
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

POINTS = 6  # of the transform: F(4, 3), F(3, 4), F(5, 2), F(2, 5)
SHARES = 4  # bands a thread: each makes points again of the rows that it shares with its neighbours


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def transform_of(problem: Problem) -> CookToom:
    """The transform along rows: of as many taps as the longest phase of the stride has."""
    taps = -(-problem.kernel[-1] // problem.stride[-1])
    return CookToom.of(POINTS + 1 - taps, taps)


def _planes(problem: Problem) -> bool:
    """Whether rows of each channel lie apart."""
    return problem.x_strides[3] == 1 < problem.in_channels


class WinogradRows(Algorithm):
    """Winograd along rows, plain sums along columns."""

    name: ClassVar[str] = "winograd_rows"
    title: ClassVar[str] = "Winograd along rows only, for few channels"
    paper: ClassVar[str] = (
        "S. Winograd: Arithmetic Complexity of Computations, 1980 (F(m, r) along one axis); A. Lavin, S. Gray: Fast "
        "Algorithms for Convolutional Neural Networks, CVPR 2016"
    )
    error_class: ClassVar[str] = "transformed"
    tunables: ClassVar[Mapping[str, str]] = {"rows": "output rows whose band a thread transforms at one time"}

    def refusal(self, problem: Problem) -> str | None:
        """Two axes, few channels, those of the output adjacent, and some taps a phase along rows."""
        p = problem
        if p.ndim != 2:
            return f"the image has {p.ndim} axes, rows and columns are needed"
        if p.groups > 1 or p.in_channels > FEW:
            return f"there are {p.in_channels} channels in {p.groups} groups, at most {FEW} in one are supported"
        if p.pad_mode != "zeros" or set(p.dilation) != {1}:
            return "padding is not of zeros, or the kernel is dilated"
        if p.stride[1] > p.kernel[1] or not 2 <= -(-p.kernel[1] // p.stride[1]) < POINTS:
            return f"{p.kernel[1]} taps along rows at stride {p.stride[1]}, 2 to {POINTS - 1} a phase are supported"
        if p.kernel[0] * p.stride[1] * p.in_channels > SECTION:
            return f"a point has {p.kernel[0] * p.stride[1] * p.in_channels} products, at most {SECTION} are supported"
        if not _planes(p) and (p.x_strides[3] != p.in_channels or p.x_strides[1] != 1):
            return "neither the channels of the image are adjacent nor the pixels of its rows"
        if any(strides is not None and strides[1] != 1 for strides in (p.out_strides, p.residual_strides)):
            return "the channels of the output are not adjacent"
        return None

    def error_bound(self, problem: Problem) -> float:
        """That of a plain sum, times the growth of six points."""
        return super().error_bound(problem) * ERROR_GROWTH[POINTS]

    def least_bytes(self, problem: Problem, host: Host) -> int:
        """A scratch."""
        return ALIGNMENT

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase, a chunk for each image and band of output rows."""
        p, item, transform = problem, problem.itemsize, transform_of(problem)
        panels, lanes, vector = panels_of(p, host), host.target.lanes(p.dtype), host.target.vector_bytes
        tiles = -(-p.out_size[1] // transform.outputs)
        edge = p.out_size[1] - (tiles - 1) * transform.outputs
        high, low, rows = _heights(tiles, panels, host)
        stage = RowPoints(host.target, p.dtype, transform, p.in_channels, p.stride[1], _planes(p))
        sizes = _row_fields(p, host, stage, tiles)
        # Of the highest register tiles, which the kernel that stands in has for rows of any length.
        most = max(host.target.tile_rows(n) * n for n in (panels.vectors, panels.last or panels.vectors))
        products = most * transform.size * vector

        def pitch(band: int) -> int:
            return odd_lines(_rows_under(p, band) * stage.elements * sizes["tile_pitch"])

        # Products stand behind points: register tiles that reach over the last row read there.
        def nbytes(band: int) -> int:
            return sizes["points_at"] + transform.size * pitch(band) + products

        room = host.l2 // 2 if workspace is None else min(host.l2 // 2, workspace // threads // ALIGNMENT * ALIGNMENT)
        band = min(tunables["rows"], p.out_size[0]) if "rows" in tunables else _band(p, threads, room, nbytes)
        bands = -(-p.out_size[0] // band) if band else 0
        terms = p.kernel[0] * stage.elements
        spec = WinogradRowsSpec(
            target=host.target,
            dtype=p.dtype,
            points=stage,
            terms=terms,
            stride=p.stride[0],
            pad=p.pad_low[0],
            edge=edge,
            reduction=Reduction((1,), terms, 0, False, False, None, 1, True, False),
            rows=rows,
            panels=panels.shape,
            bias=p.has_bias,
            epilogue=Epilogue(p.activation, p.residual),
            fetch=asked_for(p, panels, host),
            past=past(p, host),
        )
        packing = _packing(p, host, panels, transform, terms)
        fields = {
            **sizes,
            "b_div": 1,
            "b_count": max(1, bands),
            "n_div": max(1, bands),
            "n_count": p.batch,
            "band": band,
            "row_count": p.out_size[0],
            "kernel_rows": p.kernel[0],
            "in0": p.in_size[0],
            "x_n": p.x_strides[0] * item,
            "x_0": p.x_strides[2] * item,
            "x_c": p.x_strides[1] * item,
            "w_panel": packing.phase.fields["p_panel"],
            "panel_count": panels.total,
            "panel_whole": panels.count,
            "point_pitch": pitch(band),
            "products_at": nbytes(band) - products,
            "tile_last": tiles - 1,
            "tile_edge": edge,
            "high0": high[0],
            "low0": low[0],
            "high1": high[1],
            "low1": low[1],
        }
        for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
            if strides is not None:
                fields |= {f"{letter}_n": strides[0] * item, f"{letter}_panel": panels.vectors * vector}
                fields |= {f"{letter}_0": strides[2] * item, f"{letter}_1": strides[3] * item}
        chunks = p.batch * bands
        tile = f"{rows[0]}x{panels.vectors * lanes}"
        return Lowering(
            phases=(Phase("winograd", spec, fields, chunks),),
            workspace=(Buffer("scratch", nbytes(band), per_thread=True),),
            packing=packing,
            steps=(
                f"each thread transforms the rows under {band} output rows to {transform.size} points for each tile of "
                f"{transform.outputs} outputs",
                f"{transform.size} products of {tile} tiles x channels, transformed to outputs",
            ),
            parameters={"tile": tile, "outputs": transform.outputs, "rows": band, "chunks": chunks},
        )


def _heights(tiles: int, panels: Panels, host: Host) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Register tiles of a row, for whole panels and the last one: how many high ones, low ones, rows of the high."""
    found = []
    for vectors in (panels.vectors, panels.last or panels.vectors):
        number = -(-tiles // host.target.tile_rows(vectors))
        rows = -(-tiles // max(1, number))
        low = number * rows - tiles
        found.append((number - low, low, rows))
    high, lower, rows_of = zip(*found, strict=True)
    return (high[0], high[1]), (lower[0], lower[1]), (rows_of[0], rows_of[1])


def _row_fields(problem: Problem, host: Host, stage: RowPoints, tiles: int) -> dict[str, int]:
    """Fields of a row that becomes points, and where line, transposed line and points are in a thread's scratch."""
    p, item, transform = problem, stage.item, stage.transform
    lanes, vector = stage.lanes, host.target.vector_bytes
    ahead = (transform.size - 1) // transform.outputs  # tiles that a window reaches beyond its own
    groups, turned = -(-tiles // lanes), -(-(tiles + ahead) // lanes)
    pitch = max(turned, -(-(groups * lanes + ahead) // lanes)) * vector
    pixel = 1 if stage.planes else p.in_channels
    row, before = p.in_size[1] * pixel, p.pad_low[1] * pixel
    read = turned * lanes * transform.outputs * stage.stride * pixel
    line = _aligned((max(read, before + row) + lanes) * item)
    return {
        "line_before": before * item,
        "line_elements": row,
        "line_bytes": line,
        "turned_at": line,
        "turned_pitch": pitch,
        "turned_groups": turned,
        "points_at": _aligned(line + transform.outputs * stage.elements * pitch),
        "tile_pitch": groups * vector,
        "tile_groups": groups,
    }


def _rows_under(problem: Problem, band: int) -> int:
    """Rows of the image, and of padding, under a band of output rows."""
    return (band - 1) * problem.stride[0] + problem.kernel[0]


def _band(problem: Problem, threads: int, most: int, nbytes: Callable[[int], int]) -> int:
    """Output rows of a band: those whose scratch of so many `nbytes` fits, fewer if threads share them."""
    high, band = problem.out_size[0], 1
    while band < high and nbytes(band + 1) <= most:
        band += 1
    bands = -(-high // band) if high else 0
    if threads > 1 and problem.batch:
        shared = min(SHARES * threads, wanted_chunks(problem, threads))
        bands = max(bands, -(-shared // problem.batch))
        step = threads // math.gcd(threads, problem.batch)
        bands = -(-bands // step) * step
    return -(-high // max(1, min(bands, high))) if high else 0


def _packing(problem: Problem, host: Host, panels: Panels, transform: CookToom, terms: int) -> WeightPacking:
    """The phase that transforms the weights."""
    p, item, vector = problem, problem.itemsize, host.target.vector_bytes
    spec = RowPackSpec(
        host.target,
        p.dtype,
        transform,
        (p.kernel[0], p.kernel[1]),
        p.stride[1],
        p.in_channels,
        panels.shape,
        p.has_bias,
    )
    rows = terms * transform.size + p.has_bias
    names = ("w_k", "w_c", "w_0", "w_1")
    fields = {name: stride * item for name, stride in zip(names, p.w_strides, strict=True)}
    fields |= {
        "p_div": 1,
        "p_count": panels.total,
        "panel_count": panels.total,
        "group_out": p.group_out,
        "p_panel": rows * panels.vectors * vector,
    }
    return WeightPacking(rows * panels.registers * vector, Phase("transform weights", spec, fields, panels.total))
