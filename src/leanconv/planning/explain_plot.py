"""An explanation as a picture: time against memory with the front of the best, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.machine import cpu_name
from leanconv.planning.explain import UNFIT
from leanconv.sizes import format_bytes

if TYPE_CHECKING:
    from leanconv.planning.explain import Explanation, Verdict
    from leanconv.planning.lesson import Lesson

_LINE, _POINT = 18.0, 72 / 100  # pixels of a line of text before the picture is written, points of a pixel
_CHOSEN, _FRONT, _OTHER = "#d55e00", "#0072b2", "0.6"  # of Okabe and Ito's colours


def draw(found: Explanation, path: str | Path, title: str = "") -> None:
    """Draw an explanation into a PNG, SVG or PDF.

    Args:
        found: what is drawn: measured times where there are some, else predicted ones.
        path: the file.
        title: above the picture; the problem if "".

    Raises:
        PlotError: matplotlib is missing, or the file's format is not known.
    """
    from leanconv.bench.plot import check, save

    check(Path(path))
    # The figure is made without pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 5.0), layout="constrained")
    memory, roof = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in found.rows if row.predicted_seconds is not None and row.needed_bytes is not None]
    _time_against_memory(memory, found, rows)
    _roofline(roof, found, rows)
    figure.suptitle(title or found.problem.describe(), fontsize="medium")
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    figure.supxlabel(f"{cpu_name()}, {threads}", fontsize="small", color="0.4")
    figure.draw_without_rendering()  # where the dots are is known now
    _labels(memory, found, rows)
    save(figure, path)


def draw_lesson(found: Lesson, path: str | Path) -> None:
    """Draw why im2col beats plain loops: measured rates below the peak, and operations for each byte loaded.

    Raises:
        PlotError: matplotlib is missing, or the file's format is not known.
    """
    from leanconv.bench.plot import check, save

    check(Path(path))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    rates, bytes_ = figure.subplots(1, 2, width_ratios=(3, 2))
    titles = [rate.title for rate in found.rates]
    drawn = rates.barh(titles, [rate.gflops for rate in found.rates], color=_FRONT)
    labels = [f"{rate.gflops:.1f}, {format_bytes(rate.workspace_bytes)} of workspace" for rate in found.rates]
    rates.bar_label(drawn, labels, padding=4, fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    rates.axvline(found.peak_gflops, color="0.4", ls="--", lw=1)
    rates.set_xlim(right=1.6 * max(found.peak_gflops, *(rate.gflops for rate in found.rates)))
    rates.set_xlabel("GFLOP/s of the definition on one thread; dashed: peak of multiply-adds")
    drawn = bytes_.barh(["plain loops", "register tile"], [found.loop_intensity, found.tile_intensity], color=_FRONT)
    bytes_.bar_label(drawn, fmt="%.2f", padding=4, fontsize=8)
    bytes_.set_xlim(right=1.25 * found.tile_intensity)
    bytes_.set_xlabel("operations for each byte loaded")
    for axes in (rates, bytes_):
        axes.invert_yaxis()
    figure.suptitle(
        f"{found.problem}: the matrix holds each pixel {found.redundancy:.1f} times, "
        f"{format_bytes(found.matrix_bytes)} for an image of {format_bytes(found.image_bytes)}",
        fontsize="medium",
    )
    figure.supxlabel(cpu_name(), fontsize="small", color="0.4")
    save(figure, path)


def front(rows: Sequence[Verdict]) -> list[Verdict]:
    """Of rows that may run, measured ones if there are some: those that no other beats in both time and bytes.

    Fewest bytes first.
    """
    kept: list[Verdict] = []
    able = [row for row in rows if row.verdict != UNFIT]
    known = [row for row in able if row.measured_seconds is not None] or able
    for row in sorted(known, key=lambda row: (row.needed_bytes or 0, _seconds(row))):
        if not kept or _seconds(row) < _seconds(kept[-1]):
            kept.append(row)
    return kept


def _seconds(row: Verdict) -> float:
    return row.measured_seconds or row.predicted_seconds or 0.0


def _time_against_memory(axes: Any, found: Explanation, rows: list[Verdict]) -> None:
    """A dot an algorithm, a step line through the best, a line at the limit."""
    best = front(rows)
    axes.step(
        [row.needed_bytes for row in best], [_seconds(row) for row in best], where="post", color=_FRONT, lw=1, zorder=1
    )
    for row in rows:
        colour = _colour(found, row, best)
        filled = row.measured_seconds is not None
        axes.plot(
            [row.needed_bytes], [_seconds(row)], "o", color=colour, fillstyle="full" if filled else "none", zorder=2
        )
    if found.memory_limit is not None:
        axes.axvline(found.memory_limit, color="0.4", ls="--", lw=1)
        axes.annotate("limit", (found.memory_limit, 1), (3, -10), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color="0.4")  # fmt: skip
    # Linear below 1 KiB, because the best memory is none.
    axes.set_xscale("symlog", base=2, linthresh=1024, linscale=0.5)
    most = max([row.needed_bytes or 0 for row in rows], default=0)
    ticks = [0, *(1 << power for power in range(10, 41, 2) if 1 << power <= 2 * most)]
    axes.set_xticks(ticks, [format_bytes(tick).replace(".0 ", " ") for tick in ticks], fontsize=8)
    axes.set_xlim(left=-256)
    axes.set_yscale("log")
    axes.set_xlabel("workspace, and packed weights beyond the plain ones")
    axes.set_ylabel("time of a call (filled: measured, hollow: predicted)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 1e3:g} ms")
    axes.grid(color="0.92", zorder=-1)
    marks = [(_CHOSEN, "chosen"), (_FRONT, "none is better in both"), (_OTHER, "others, and those not allowed")]
    for colour, text in marks:
        axes.plot([], [], "o", color=colour, fillstyle="none", label=text)
    axes.figure.legend(fontsize=8, loc="outside lower left", ncols=3, frameon=False)


def _labels(axes: Any, found: Explanation, rows: list[Verdict]) -> None:
    """Names beside the dots of the front and of what was chosen, none over another."""
    best = front(rows)
    named = [row for row in rows if _colour(found, row, best) != _OTHER]
    points = {row.name: axes.transData.transform((row.needed_bytes, _seconds(row))) for row in named}
    left, right = axes.bbox.x0, axes.bbox.x1
    below = -math.inf
    for row in sorted(named, key=lambda row: float(points[row.name][1])):
        x, y = points[row.name]
        at = max(y, below + _LINE)
        below = at
        inner = x > left + 0.7 * (right - left)
        axes.annotate(
            row.name, (row.needed_bytes, _seconds(row)), (-10 if inner else 10, (at - y) * _POINT + 3),
            textcoords="offset points", ha="right" if inner else "left", color=_colour(found, row, best),
            arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def _roofline(axes: Any, found: Explanation, rows: list[Verdict]) -> None:
    """The roof of peak and memory, and the rate of each algorithm at the layer's intensity."""
    peak, intensity = found.peak_gflops, max(found.intensity, 1e-3)
    ridge = peak / found.memory_gb_per_s
    left, right = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    axes.plot([left, ridge, right], [left * found.memory_gb_per_s, peak, peak], color="0.3", lw=1.5)
    best = front(rows)
    for row in rows:
        colour = _colour(found, row, best)
        filled = row.measured_seconds is not None
        rate = found.flops / max(_seconds(row), 1e-12) / 1e9
        axes.plot([intensity], [rate], "o", color=colour, fillstyle="full" if filled else "none")
        if row.name == found.plan.algorithm:
            axes.annotate(row.name, (intensity, rate), (8, -3), textcoords="offset points", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte of compulsory traffic")
    axes.set_ylabel("GFLOP/s of the definition")
    axes.grid(color="0.92", zorder=-1)


def _colour(found: Explanation, row: Verdict, best: list[Verdict]) -> str:
    if row.name == found.plan.algorithm:
        return _CHOSEN
    return _FRONT if row in best else _OTHER
