"""The time of a network against its memory, as data, as a table, and as a picture."""

from __future__ import annotations

from pathlib import Path

from leanconv.machine import cpu_name
from leanconv.sizes import format_bytes

_COLOUR = "#0072b2"  # of Okabe and Ito's colours


class Frontier(list[tuple[int, float]]):
    """Points (bytes needed, predicted seconds of a pass), fewest bytes first, each faster than those before.

    It prints as a table; `plot` draws it.
    """

    threads = 1

    def __str__(self) -> str:
        """Bytes and seconds, with a bar for the speed."""
        from leanconv.planning.text import frontier_text

        return frontier_text(self)

    def plot(self, path: str | Path, title: str = "") -> None:
        """Draw it into a PNG, SVG or PDF: under any limit the step below it is what a pass takes.

        Args:
            path: the file.
            title: above the picture.

        Raises:
            PlotError: matplotlib is missing, or the file's format is not known.
        """
        from leanconv.bench.plot import check, save

        check(Path(path))
        # The figure is made without pyplot: no window system, no global state.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 4.5), layout="constrained")
        axes = figure.subplots()
        sizes = [nbytes for nbytes, _ in self]
        times = [1e3 * seconds for _, seconds in self]
        axes.step([*sizes, 2 * sizes[-1] or 1 << 20], [*times, times[-1]], where="post", color=_COLOUR, lw=1)
        axes.plot(sizes, times, "o", color=_COLOUR, ms=4)
        for at, side in {0: "left", len(self) - 1: "right"}.items():
            text = f"{format_bytes(sizes[at])}, {times[at]:.3g} ms"
            offset = (6, 4) if side == "left" else (-2, -14)
            axes.annotate(text, (sizes[at], times[at]), offset, textcoords="offset points", ha=side, fontsize=8)
        # Linear below 1 KiB, because the least may be none.
        axes.set_xscale("symlog", base=2, linthresh=1024, linscale=0.5)
        ticks = [0, *(1 << power for power in range(10, 41, 2) if 1 << power <= 2 * sizes[-1])]
        axes.set_xticks(ticks, [format_bytes(tick).replace(".0 ", " ") for tick in ticks], fontsize=8)
        axes.set_ylim(bottom=0, top=1.15 * max(times))
        axes.set_xlabel("shared workspace, and packed weights beyond the plain ones, of all layers")
        axes.set_ylabel("predicted time of a pass (ms)")
        axes.grid(color="0.92", zorder=-1)
        axes.set_title(title, fontsize="medium")
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        figure.supxlabel(f"{cpu_name()}, {threads}", fontsize="small", color="0.4")
        save(figure, path)
