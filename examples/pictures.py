"""The demo's pictures: two contact sheets, and a chart of time against memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from leanconv.bench.report import Row
from leanconv.sizes import format_bytes

Array = NDArray[Any]

# Okabe and Ito's colours, which stay apart for colour-blind eyes; with the markers they name many series.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")


@dataclass(frozen=True)
class Responses:
    """What a first layer made of the photograph.

    Attributes:
        title: the network and its layer.
        kernels: weights of the channels that are shown, (n, 3, R, S).
        maps: their outputs, (n, P, Q).
    """

    title: str
    kernels: Array
    maps: Array


def filter_sheet(tiles: Sequence[tuple[str, Array]], path: Path) -> None:
    """Draw titled RGB images (H, W, 3), four in a row."""
    height, width = tiles[0][1].shape[:2]
    rows = -(-len(tiles) // 4)
    figure = Figure(figsize=(10, rows * (2.5 * height / width + 0.25)), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, tiles, strict=False):
        axis.imshow(np.clip(image, 0, 1), interpolation="antialiased")
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def feature_sheet(layers: Sequence[Responses], path: Path) -> None:
    """Draw a row of feature maps for each layer, each with its kernel in the corner."""
    columns = len(layers[0].maps)
    figure = Figure(figsize=(1.3 * columns, 1.52 * len(layers)), layout="constrained")
    for part, layer in zip(figure.subfigures(len(layers), 1, squeeze=False).flat, layers, strict=True):
        part.suptitle(layer.title, fontsize=9, x=0.005, ha="left")
        axes = part.subplots(1, columns)
        for axis, kernel, response in zip(axes, layer.kernels, layer.maps, strict=True):
            axis.set_axis_off()
            # The brightest hundredth is cut off: a few highlights would darken all the rest.
            axis.imshow(response, cmap="inferno", vmin=0, vmax=max(np.quantile(response, 0.99), 1e-6))
            corner = axis.inset_axes((0.0, 0.0, 0.27, 0.27))
            corner.imshow(np.moveaxis(0.5 + 0.5 * kernel / np.abs(kernel).max(), 0, -1))
            corner.set_xticks([])
            corner.set_yticks([])
            corner.spines[:].set_color("white")
    figure.savefig(path, dpi=110)


def _beats(one: Row, other: Row) -> bool:
    """Whether one algorithm is faster than another on the same layer in no more memory."""
    if one.layer != other.layer or one.seconds is None or other.seconds is None:
        return False
    memory = one.workspace_bytes + one.packed_weight_bytes, other.workspace_bytes + other.packed_weight_bytes
    return one.seconds < other.seconds and memory[0] <= memory[1]


def time_against_memory(rows: Sequence[Row], facts: str, path: Path) -> None:
    """Draw a panel for each layer: every algorithm's time over its workspace and packed weights.

    Algorithms that no other beats in time and memory on some layer have a colour and a name, the others are grey.
    """
    timed = [(row, row.seconds) for row in rows if row.seconds is not None]
    layers = list(dict.fromkeys(row.layer for row, _ in timed))
    best = [row.algorithm for row, _ in timed if not any(_beats(other, row) for other, _ in timed)]
    algorithms = list(dict.fromkeys(best))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0]
    for panel, layer in zip(panels, layers, strict=True):
        for row, seconds in timed:
            if row.layer == layer:
                named = row.algorithm in algorithms
                number = algorithms.index(row.algorithm) if named else 0
                panel.plot(
                    row.workspace_bytes + row.packed_weight_bytes,
                    1e3 * seconds,
                    marker=MARKERS[number % len(MARKERS)] if named else ".",
                    color=COLOURS[number % len(COLOURS)] if named else "0.7",
                    label=row.algorithm if named else "others",
                    alpha=0.85,
                    zorder=3 if named else 2,
                    ls="",
                )
        panel.set_title(layer, fontsize=10)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    most = max(row.workspace_bytes + row.packed_weight_bytes for row, _ in timed)
    # Linear below 4 KiB, because the least memory is none.
    panels[0].set_xscale("symlog", base=2, linthresh=4096, linscale=0.5)
    ticks = [0, *(1 << power for power in range(12, 41, 4) if 1 << power <= 2 * most)]
    panels[0].set_xticks(ticks, [format_bytes(tick).replace(".0 ", " ") for tick in ticks])
    panels[0].set_xlim(-2048, 2 * most)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylabel("time of a call, ms")
    for panel in panels:
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
    figure.supxlabel("workspace and packed weights", fontsize=10)
    entries = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in (*algorithms, "others") if name in entries]
    handles = [entries[name] for name in order]
    figure.legend(handles, order, loc="outside upper center", ncols=min(len(order), 7), frameon=False, fontsize=8)
    figure.text(0.995, 0.01, facts, ha="right", fontsize=7, color="0.4")
    figure.savefig(path, dpi=110)
