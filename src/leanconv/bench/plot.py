"""The results of a benchmark as a picture. Needs matplotlib, which is imported when a plot is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.bench.report import PEER, Report, Row, common_prefix, fastest, ratio
from leanconv.errors import LeanconvError
from leanconv.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

_DPI = 120
FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which stay apart for colour-blind eyes; with the markers they name many series.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
PALE = 0.3  # opacity of what is undecided
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")


class PlotError(LeanconvError):
    """A plot cannot be drawn: matplotlib is missing, the format is none of `FORMATS`, or the disk refuses the file."""


def check(path: Path) -> None:
    """Raise a `PlotError` if `draw` could not draw into this file; cheap, to be asked beforehand."""
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"{path}: a plot's name must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise PlotError(f"{path}: there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib: pip install leanconv[plot]")


def save(figure: Figure, path: str | Path) -> None:
    """Write a picture; what cannot be written whole leaves no file.

    Raises:
        PlotError: the disk does not take it.
    """
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(path).unlink()
        raise PlotError(f"{path} cannot be written: {error.strerror or error}") from error


def draw(report: Report, path: Path) -> None:
    """Draw the part of the peak each algorithm reaches on each layer, and its time against its workspace.

    Raises:
        PlotError: matplotlib is missing, the file's format is not known, or nothing was timed.
    """
    check(path)
    if not any(row.seconds for row in report.rows):
        raise PlotError(f"{path}: not drawn, no algorithm was timed")
    # The figure is made without pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in report.rows))
    figure = Figure(figsize=(min(max(9.0, 3 + 0.24 * len(layers)), 30.0), 9.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
    _percent_of_peak(upper, report, layers)
    _time_against_workspace(lower, report)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False)
    prefix = f"{network[:-1]}, " if (network := common_prefix(layers)) else ""
    dtype, cpu = report.settings["dtype"], report.machine.get("cpu", "")
    figure.supxlabel(f"{prefix}{dtype}, {cpu}", fontsize="small", color="0.4")
    save(figure, path)


def _percent_of_peak(axes: Any, report: Report, layers: list[str]) -> None:
    """One column a layer, one dot an algorithm."""
    where = {layer: index for index, layer in enumerate(layers)}
    for label, style, rows in _series(report.rows):
        axes.plot(
            [where[row.layer] for row in rows],
            [row.percent_of_peak for row in rows],
            **style,
            label=label,
            ls="",
        )
    axes.axhline(100, color="0.7", lw=1, zorder=0)
    axes.set_ylabel("% of measured FMA peak")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    names = [layer.removeprefix(common_prefix(layers)) for layer in layers]
    axes.set_xticks(range(len(layers)), names, rotation=90, fontsize=8 if len(layers) < 60 else 6)
    axes.grid(axis="both", color="0.92", zorder=-1)
    axes.set_axisbelow(True)


def _time_against_workspace(axes: Any, report: Report) -> None:
    """Each dot a layer: time over that of its fastest algorithm, so that layers of all sizes compare."""
    best = {}
    for row in report.rows:
        key = (row.layer, row.threads)
        best[key] = fastest([other for other in report.rows if (other.layer, other.threads) == key])
    peers = any(row.kind == PEER for row in report.rows)
    nbytes = {id(row): _memory(row, peers=peers) for row in report.rows}
    for _, style, rows in _series(report.rows):
        for undecided, paint in ((False, style), (True, style | {"alpha": PALE})):
            known = [row for row in rows if nbytes[id(row)] is not None and row.undecided == undecided]
            times = [ratio(row, best[row.layer, row.threads] or row) for row in known]
            axes.plot([nbytes[id(row)] for row in known], times, **paint, ls="")
    # Linear below 1 KiB, because the best workspace is none.
    axes.set_xscale("symlog", base=2, linthresh=1024, linscale=0.5)
    most = max(value or 0 for value in nbytes.values())
    ticks = [0, *(1 << power for power in range(10, 41, 2) if 1 << power <= 2 * most)]
    axes.set_xticks(ticks, [format_bytes(tick).replace(".0 ", " ") for tick in ticks])
    axes.set_xlim(left=-256)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (2, 3, 5, 20, 50) else "")
    ours = "workspace and packed weights" if peers else "workspace of a call"
    axes.set_xlabel(f"{ours}; of peers the measured extra peak" if peers else ours)
    pale = "; pale: undecided" if any(row.undecided for row in report.rows) else ""
    axes.set_ylabel(f"time / time of the fastest{pale}")
    axes.grid(color="0.92", zorder=-1)
    axes.set_axisbelow(True)


def _memory(row: Row, *, peers: bool) -> int | None:
    """Return the memory to plot; beside peers, which pack weights too, our packed weights count."""
    if row.kind == PEER:
        return row.extra_peak_bytes
    return row.workspace_bytes + (row.packed_weight_bytes if peers else 0)


def _series(rows: list[Row]) -> Iterator[tuple[str, dict[str, Any], list[Row]]]:
    """Yield label, style and rows of each algorithm; layout and threads are in the label if they differ."""
    timed = [row for row in rows if row.seconds is not None]
    layouts, threads = ({getattr(row, field) for row in timed} for field in ("layout", "threads"))
    series: dict[tuple[str, str, int], list[Row]] = {}
    for row in timed:
        series.setdefault((row.algorithm, row.layout, row.threads), []).append(row)
    for number, ((algorithm, layout, count), members) in enumerate(series.items()):
        label = algorithm + (f" {layout}" if len(layouts) > 1 else "")
        label += f", {count} thread{'s' if count > 1 else ''}" if len(threads) > 1 else ""
        style = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 5,
            "alpha": 0.85,
        }
        yield label, style, members
