"""What the tiles of the dense core read: terms, bytes, lines, and which of them hang over the edge of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from leanconv.kernels.cost import LINE, part_inside
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.image import Image, Rows
from leanconv.kernels.rowtiles import RowTiles
from leanconv.kernels.rowwindows import RowWindows

Fields = Mapping[str, int]


def terms_of(spec: DenseSpec, f: Fields) -> int:
    """Terms of a sum: rows of packed weights of a panel, but for that of the bias."""
    item = 8 if spec.dtype == "float64" else 4
    return f["w_panel"] // (spec.panels.vectors * spec.target.lanes(spec.dtype) * item) - spec.bias


def edges_of(spec: DenseSpec, f: Fields) -> tuple[float, Callable[[int], float]]:
    """The part of taps that is summed, and a function: part of the tiles of a height that are in edge form."""
    source = spec.source
    if not isinstance(source, Image) or isinstance(source, RowWindows):
        return 1.0, lambda rows: 0.0
    last = source.dims - 1
    width = f[f"out{last}"]
    if not source.padded:
        return 1.0, lambda rows: min(1.0, (rows - 1) / width) / 8
    inside = 1.0
    if source.pad_mode == "zeros" and source.dims > 1 and spec.reduction.channels is None:
        for d in range(source.dims if isinstance(source, RowTiles) else last):
            inside *= part_inside(
                f[f"out{d}"],
                source.stride[d],
                source.dilation[d],
                source.pad_low[d],
                spec.reduction.kernel[d],
                f[f"in{d}"],
            )
    if isinstance(source, RowTiles):
        return inside, lambda rows: 0.0
    beside = width - max(0, min(f[f"high{last}"], width) - min(max(f[f"low{last}"], 0), width))
    return inside, lambda rows: min(1.0, (beside + rows - 1) / width)


def span_of(spec: DenseSpec, f: Fields, rows: float, channels: float, item: int) -> float:
    """Bytes, in whole cache lines where channels lie apart, that a tile of pixels reads."""
    red, source = spec.reduction, spec.source
    if isinstance(source, Image):
        last = source.dims - 1
        step = abs(f[f"step{last}"])
        reach = (red.kernel[-1] - 1) * abs(f.get(f"tap{last}", 0)) if len(red.kernel) == source.dims else 0
        lines = math.prod(red.kernel[:-1])
    elif isinstance(source, Rows):
        step, reach, lines = abs(f["x_row"]), 0, math.prod(red.kernel)
    else:  # packed, or found through a table: each pixel's channels once
        return math.prod(red.kernel) * rows * channels * item
    if red.unit_channel:
        pixel = channels * item
        if step >= (2 if reach else 1) * pixel + 2 * LINE:  # under one tap a stride leaves pixels out
            return lines * (rows + (reach // step if step else 0)) * (pixel + LINE)
        return lines * ((rows - 1) * step + reach + pixel + LINE / 2)
    if step >= LINE:
        return lines * channels * (rows + reach / step) * LINE
    return float(lines * channels * ((rows - 1) * step + reach + LINE))


def lines_of(spec: DenseSpec, f: Fields, rows: float) -> float:
    """Lines of a channel that a tile reads under one tap, if channels lie apart."""
    source = spec.source
    if not isinstance(source, Image):
        return 1.0
    last = source.dims - 1
    step, width = abs(f[f"step{last}"]), f[f"out{last}"]
    between = abs(f[f"step{last - 1}"]) - width * step if last else 0  # from the end of a row to where the next begins
    return 1.0 + (rows - 1) * (step + min(max(between, 0), LINE) / width) / LINE


def input_bytes(spec: DenseSpec, f: Fields, span: float, rows: float) -> float:
    """Bytes of one group of one image as the core reads it."""
    red, source = spec.reduction, spec.source
    if isinstance(source, Image) and all(f"in{d}" in f for d in range(source.dims)) and spec.stage is None:
        pixels = math.prod(f[f"in{d}"] for d in range(source.dims))
        channels = terms_of(spec, f) / math.prod(red.kernel)
        return float(min(pixels * channels * (8 if spec.dtype == "float64" else 4), span * f["pixels"] / rows))
    return span * f["pixels"] / rows
