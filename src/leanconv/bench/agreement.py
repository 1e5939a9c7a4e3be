"""How far two runs of the same comparison agree: each contestant's time over that of one reference, in both.

Times move with the machine and with whoever shares it; ratios of what took turns should not. So what two runs agree on
is told by ratios, for those rows that either run calls certain and for the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from leanconv.bench.grid import print_grid
from leanconv.bench.report import OK, Report, Row, ratio, ratio_interval
from leanconv.errors import ArgumentValueError

TOLERANCE = 0.08
_PRECISION = 0.05  # of files that do not say theirs

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Pair:
    """A row's time over that of the reference, in both runs.

    Attributes:
        key: layer, contestant, layout, threads.
        old: the ratio in one run.
        new: in the other.
        certain: whether both runs know it as precisely as they were asked to.
    """

    key: Key
    old: float
    new: float
    certain: bool

    @property
    def agrees(self) -> bool:
        """Whether the two ratios are within the tolerance of one another."""
        return abs(math.log(self.new / self.old)) <= math.log(1 + TOLERANCE)


def reference_of(old: Report, new: Report, wanted: str | None = None) -> str | None:
    """Return what ratios are to: the first contestant that both runs timed, or the one that is wanted.

    Returns:
        None if both runs timed fewer than two contestants.

    Raises:
        ArgumentValueError: none of the name was timed in both.
    """
    names = [*dict.fromkeys(row.algorithm for row in old.rows if row.status == OK)]
    common = [name for name in names if any(row.algorithm == name and row.status == OK for row in new.rows)]
    if wanted is not None and wanted not in common:
        raise ArgumentValueError("--reference", wanted, f"must be timed in both files: {', '.join(common)}")
    return (wanted or common[0]) if len(common) > 1 else None


def pairs(old: Report, new: Report, reference: str, without: Collection[str] = ()) -> list[Pair]:
    """Return the ratios that both runs have, in the order of the old one; layers in `without` are left out."""
    found = [_ratios(report, reference) for report in (old, new)]
    return [
        Pair(key, before, found[1][key][0], certain and found[1][key][1])
        for key, (before, certain) in found[0].items()
        if key in found[1] and key[0] not in without
    ]


def _ratios(report: Report, reference: str) -> dict[Key, tuple[float, bool]]:
    """Return each ratio, and whether its interval is as narrow as was asked for."""
    timed = [row for row in report.rows if row.status == OK]
    base: dict[tuple[str, int], Row] = {}
    for row in timed:
        if row.algorithm == reference:
            base.setdefault((row.layer, row.threads), row)
    precision = report.settings.get("precision", _PRECISION)
    result = {}
    for row in timed:
        other = base.get((row.layer, row.threads))
        if other is not None and row.algorithm != reference:
            interval = ratio_interval(row, other)
            certain = interval is not None and _reach(*interval) <= precision
            result[row.layer, row.algorithm, row.layout, row.threads] = (ratio(row, other), certain)
    return result


def _reach(low: float, middle: float, high: float) -> float:
    return max(middle - low, high - middle) / middle


def show(found: Sequence[Pair], reference: str, console: Console) -> None:
    """Print a line for each contestant and one for all, then both figures in words."""
    groups: dict[tuple[str, int], list[Pair]] = {}
    for pair in found:
        groups.setdefault((pair.key[1], pair.key[3]), []).append(pair)
    several = len({threads for _, threads in groups}) > 1
    lines = [
        [Text(f"{name}, {threads} threads" if several else name), *_cells(part)]
        for (name, threads), part in groups.items()
    ]
    if len(groups) > 1:
        lines.append([Text("all"), *_cells(found)])
    within = f"within {TOLERANCE:.0%}"
    headings = [f"time over {reference}", "rows", "old", "new", "new / old", within, "certain rows", within]
    print_grid(console, headings, [lines], left=1)
    console.print()
    console.print(" ".join(_sentences(found, reference)), style="dim", highlight=False)


def _cells(part: Sequence[Pair]) -> Iterator[Text]:
    old, new = means(part)
    certain = [pair for pair in part if pair.certain]
    words = [str(len(part)), f"{old:.3f}", f"{new:.3f}", f"{new / old:.3f}", _share(part)]
    yield from map(Text, [*words, str(len(certain)), _share(certain)])


def means(part: Sequence[Pair]) -> tuple[float, float]:
    """Return the geometric mean of the ratios, in the old run and in the new one."""
    return statistics.geometric_mean(p.old for p in part), statistics.geometric_mean(p.new for p in part)


def share(part: Sequence[Pair]) -> float | None:
    """Return the part of the ratios on which the runs agree; None of no rows."""
    return sum(pair.agrees for pair in part) / len(part) if part else None


def _share(part: Sequence[Pair]) -> str:
    found = share(part)
    return "-" if found is None else f"{found:.0%}"


def _sentences(found: Sequence[Pair], reference: str) -> Iterator[str]:
    old, new = means(found)
    certain = [pair for pair in found if pair.certain]
    yield f"Agreement: the geometric mean of all times over {reference} differs by {abs(new / old - 1):.1%};"
    yield f"{_share(found)} of {len(found)} ratios are within {TOLERANCE:.0%},"
    yield f"{_share(certain)} of the {len(certain)} that are certain in both files (no ?, --precision)."
