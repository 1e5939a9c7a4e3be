"""The charts of a report's page as PNG files. Needs matplotlib, which is imported when a chart is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from leanconv.bench.digest import EVERY, Digest, Result, digest, pareto
from leanconv.bench.plot import PALE, check, save
from leanconv.bench.report import Report
from leanconv.bench.table import format_seconds
from leanconv.sizes import format_bytes

# As the page draws them: ten colours, and a shape for each, so that seventy contestants differ.
_MARKERS = ("o", "s", "^", "D", "v", "P", "*")
_COLUMNS = 3
_GREY = "0.45"


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw time against memory for each set of layers, a roofline and bars, for each number of threads.

    Args:
        report: results with at least one timed row.
        folder: where to; made if it does not exist.

    Returns:
        The files that were written.

    Raises:
        PlotError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check(folder / "chart.png")
    found = digest(report)
    paths = []
    for name, figure in _figures(found):
        paths.append(folder / f"{name}.png")
        figure.supxlabel(_conditions(report), fontsize="small", color=_GREY)
        save(figure, paths[-1])
    return paths


def _figures(found: Digest) -> Iterator[tuple[str, Any]]:
    for threads in found.threads:
        ending = f"{threads}-thread{'s' if threads > 1 else ''}"
        timed = [result for result in found.results if result.threads == threads and result.seconds]
        if not timed:
            continue
        for number, name in enumerate(found.sets):
            layers = [index for index, layer in enumerate(found.layers) if layer.set == name]
            if any(result.layer in layers for result in timed):
                yield f"time-memory-{_slug(name, number, found.sets)}-{ending}", _time_memory(found, timed, layers)
        yield f"roofline-{ending}", _roofline(found, timed, threads)
        yield f"bars-{ending}", _bars(found, threads)


def _time_memory(found: Digest, timed: Sequence[Result], layers: Sequence[int]) -> Any:
    """One panel a layer: time over the fastest against memory, with the Pareto front."""
    used = sorted({result.contestant for result in timed if result.layer in layers and result.memory is not None})
    lines = math.ceil(len(layers) / _COLUMNS)
    figure = _figure(12.0, 2.6 + 2.5 * lines)
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axes, layer in zip(panels, layers, strict=False):
        points = [result for result in timed if result.layer == layer and result.memory is not None]
        for result in points:
            paint = _style(found, result.contestant) | ({"alpha": PALE} if result.undecided else {})
            axes.plot(result.memory, result.relative, ls="", **paint)
        front = pareto((result.memory or 0, result.relative or 0.0) for result in points)
        if front:
            axes.step(*zip(*front, strict=True), where="post", color=_GREY, lw=1, zorder=1.8)
        axes.set_title(f"{found.layers[layer].short}  {found.layers[layer].shape}", fontsize=9)
        axes.set_yscale("log")
        axes.margins(y=0.08)
        _plain_numbers(axes.yaxis)
        _memory_scale(axes, [result.memory or 0 for result in points])
        axes.grid(color="0.92", which="both")
        axes.set_axisbelow(True)
    for axes in panels[len(layers) :]:
        axes.set_axis_off()
    pale = "; pale: undecided" if any(result.undecided and result.layer in layers for result in timed) else ""
    figure.supylabel(f"time / time of the fastest, against memory{pale}", fontsize="medium")
    _legend(figure, found, used)
    return figure


def _memory_scale(axes: Any, sizes: Sequence[int]) -> None:
    """Make the horizontal axis one of bytes, from 0 only if somebody needs next to nothing."""
    least, most = min(sizes, default=0), max([1024, *sizes])
    if least < 4096:
        axes.set_xscale("symlog", base=2, linthresh=1024, linscale=0.5)
        axes.set_xlim(-256, 2 * most)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(least / 2, 2 * most)
    powers = [power for power in range(10, 44) if least / 2 <= 1 << power <= 2 * most]
    ticks = [*([0] if least < 4096 else []), *(1 << power for power in powers[:: max(1, math.ceil(len(powers) / 5))])]
    axes.set_xticks(ticks, [format_bytes(tick).replace(".0 ", " ") for tick in ticks], fontsize=8)


def _roofline(found: Digest, timed: Sequence[Result], threads: int) -> Any:
    """The fastest contestant of each layer under the roof of peak and bandwidth."""
    best = [result for result in timed if result.best]
    figure = _figure(10.0, 6.0)
    axes = figure.subplots()
    for result in best:
        axes.plot(found.layers[result.layer].intensity, result.gflops, ls="", **_style(found, result.contestant))
    peak, bandwidth = found.peaks[threads], found.bandwidths.get(threads)
    intensities = [found.layers[result.layer].intensity for result in best]
    low, high = min(intensities) / 1.5, max(intensities) * 1.5
    if bandwidth:
        ridge = peak / bandwidth
        low, high = min(low, ridge / 1.5), max(high, ridge * 1.5)
        axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=_GREY, lw=1.5, zorder=1.8)
    else:
        axes.plot([low, high], [peak, peak], color=_GREY, lw=1.5, zorder=1.8)
    axes.annotate(f"FMA peak {peak:.0f} GFLOP/s", (high, peak), (0, 4), textcoords="offset points", ha="right")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_numbers(axis)
    axes.set_xlabel("FLOPs a byte of image, weights and output")
    axes.set_ylabel("GFLOP/s of the fastest contestant of each layer")
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    _legend(figure, found, sorted({result.contestant for result in best}))
    return figure


def _bars(found: Digest, threads: int) -> Any:
    """One panel a set of layers: the geometric mean of time over the fastest."""
    names = [EVERY, *found.sets] if len(found.sets) > 1 else [EVERY]
    groups = [[s for s in found.scores if s.threads == threads and s.set == name] for name in names]
    columns = min(len(names), 2)
    lines = math.ceil(len(names) / columns)
    height = 0.8 + 0.24 * max(map(len, groups))
    figure = _figure(6.5 * columns, 0.6 + height * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name, scores in zip(panels, names, groups, strict=False):
        labels = [
            found.contestants[score.contestant].label + (f" ({score.layers} of {score.of})" * (score.layers < score.of))
            for score in scores
        ]
        colours = [_style(found, score.contestant)["color"] for score in scores]
        # Scores over some of the layers only do not set the scale; a bar that is longer than it is broken.
        most = max((s.relative for s in scores if s.layers == s.of), default=math.inf)
        bars = axes.barh(range(len(scores)), [min(s.relative, most) for s in scores], color=colours, height=0.7)
        for number, (bar, score) in enumerate(zip(bars, scores, strict=True)):
            bar.set_alpha(1.0 if score.layers == score.of else 0.5)
            if score.relative > most:
                axes.annotate("//", (0.97 * most, number), ha="right", va="center", color="white", weight="bold")
        total = [f"  {s.relative:.2f}" + (f"   {format_seconds(s.total)}" if s.total else "") for s in scores]
        axes.bar_label(bars, total, fontsize=8)
        axes.margins(x=0.25)
        axes.set_yticks(range(len(scores)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(name or "all layers", fontsize=10)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.suptitle("Time over that of the fastest, geometric mean, and time of all layers", fontsize=11)
    return figure


def _figure(width: float, height: float) -> Any:
    # The figure is made without pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, min(height, 120.0)), layout="constrained")


def _style(found: Digest, contestant: int) -> dict[str, Any]:
    about = found.contestants[contestant]
    colours = re.findall(r"--c\d: (#[0-9a-f]{6})", (files("leanconv.bench") / "html/style.css").read_text("utf-8"))[:10]
    colour = colours[about.hue % 10]
    layouts = list(dict.fromkeys(other.layout for other in found.contestants))
    hollow = about.label != about.algorithm and layouts.index(about.layout) > 0
    return {
        "color": colour,
        "marker": _MARKERS[about.hue % len(_MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
        "markersize": 6,
    }


def _legend(figure: Any, found: Digest, contestants: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    # Dollar signs in a name are no formula.
    handles = [
        Line2D([], [], ls="", label=found.contestants[index].label.replace("$", r"\$"), **_style(found, index))
        for index in contestants
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=8)


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_view_interval()
    few = high / low < 10
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}") if few else NullFormatter())
    axis.set_tick_params(which="both", labelsize=8)


def _conditions(report: Report) -> str:
    words = (str(report.machine.get("cpu", "")), report.settings["dtype"], report.started[:10])
    return ", ".join(word for word in words if word).replace("$", r"\$")


def _slug(name: str, number: int, names: Sequence[str]) -> str:
    """Return a set's name as a part of a file's name; with its number if another set would have the same."""

    def plain(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60].lower() or "set"

    return plain(name) if [plain(other) for other in names].count(plain(name)) == 1 else f"{plain(name)}-{number}"
