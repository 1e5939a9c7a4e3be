"""`leanconv bench compare`: what became faster or slower from one file of results to another.

Each row's times are compared as parts of the peak that was measured in the same round, so that a machine
whose clock moved between the runs does not count. What is not the clock (another load on memory, another
machine) is not removed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.text import Text

from leanconv.bench import agreement
from leanconv.bench.grid import print_grid
from leanconv.bench.intervals import Interval, factor_interval, mean_interval, passes_interval
from leanconv.bench.load import ResultsError, load
from leanconv.bench.report import OK, Report, Row, common_prefix
from leanconv.bench.table import format_seconds
from leanconv.errors import LeanconvError

SAME, SLOWER, USAGE = 0, 1, 2

# What became of a row, and how the table says so.
FASTER, LITTLE_FASTER, EQUAL, LITTLE_SLOWER, WORSE, UNDECIDED, BROKEN = (
    *("faster", "a little faster", "same", "a little slower", "SLOWER", "undecided", "BROKEN"),
)
_STYLES = {FASTER: "green", WORSE: "bold red", BROKEN: "bold red", UNDECIDED: "yellow"}

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Change:
    """What became of one row: its times, their ratio (new over old, as parts of the peak), and the verdict."""

    old: Row
    new: Row
    interval: Interval | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side.

    Attributes:
        changes: the rows that both have and that were timed at least in the old one.
        only_old: rows that were timed and are not in the new report.
        only_new: rows that were timed and are not in the old report.
        reshaped: layers that have the same name and another shape; their rows are not compared.
        threshold: part by which a row may be slower, such as 0.05.
        confidence: of all intervals.
    """

    changes: list[Change]
    only_old: list[Row]
    only_new: list[Row]
    reshaped: list[str]
    threshold: float
    confidence: float

    @property
    def exit_code(self) -> int:
        """1 if a row became slower beyond the threshold or is not right any more, else 0."""
        return SLOWER if any(change.verdict in (WORSE, BROKEN) for change in self.changes) else SAME


def compare(old: Report, new: Report, *, threshold: float = 0.05, confidence: float = 0.95) -> Comparison:
    """Compare the rows that two reports share.

    A row is slower if all of its interval lies beyond the threshold, and faster if all of it lies beyond the threshold
    on the other side. If all of it lies within the threshold, the row is the same, or a little slower or faster if the
    interval leaves out 1. An interval that reaches across the threshold, or that too few samples give no ends to,
    leaves the row undecided.

    Args:
        old: the results to compare with.
        new: the results to judge.
        threshold: part by which a row may be slower.
        confidence: of the intervals.
    """
    before, after = _timed_or_failed(old), _timed_or_failed(new)
    shapes = [{layer["name"]: layer["shape"] for layer in report.layers} for report in (old, new)]
    reshaped = [name for name in shapes[0] if name in shapes[1] and shapes[0][name] != shapes[1][name]]
    return Comparison(
        [
            _change(row, after[key], threshold, confidence)
            for key, row in before.items()
            if row.status == OK and key in after and row.layer not in reshaped
        ],
        [row for key, row in before.items() if row.status == OK and key not in after],
        [row for key, row in after.items() if row.status == OK and key not in before],
        reshaped,
        threshold,
        confidence,
    )


def _timed_or_failed(report: Report) -> dict[Key, Row]:
    return {(row.layer, row.algorithm, row.layout, row.threads): row for row in report.rows}


def _change(old: Row, new: Row, threshold: float, confidence: float) -> Change:
    if new.status != OK:
        return Change(old, new, None, BROKEN)
    after, before = _normalised(new), _normalised(old)
    if len(after) > 1 and len(before) > 1:
        interval = passes_interval(after, before, confidence)
    else:
        interval = factor_interval([*chain(*after)], [*chain(*before)], confidence)
    return Change(old, new, interval, _verdict(interval, threshold))


def _normalised(row: Row) -> list[list[float]]:
    """Return the times of each pass in units of one operation at the peak of their round; equal work cancels out."""
    if not row.samples:
        return [[(row.seconds or math.nan) * (row.peak_gflops or math.nan)]]
    passes: dict[int, list[float]] = {}
    for sample in row.samples:
        passes.setdefault(sample.visit, []).append(sample.seconds * sample.peak_gflops)
    return [*passes.values()]


def _verdict(interval: Interval, threshold: float) -> str:
    fastest, slowest = 1 / (1 + threshold), 1 + threshold
    if interval.low > slowest:
        return WORSE
    if interval.high < fastest:
        return FASTER
    if interval.low < fastest or interval.high > slowest:
        return UNDECIDED
    if interval.low > 1:
        return LITTLE_SLOWER
    return LITTLE_FASTER if interval.high < 1 else EQUAL


def command(options: argparse.Namespace) -> int:
    """Compare two files, print the table, and return the exit code."""
    try:
        paths = [Path(options.old), Path(options.new)]
        old, new = (load(path) for path in paths)
        if old.settings["dtype"] != new.settings["dtype"]:
            rule = f"is {new.settings['dtype']}, and {old.settings['dtype']} in {paths[0]}: they do not compare"
            raise ResultsError(str(paths[1]), "settings.dtype", rule)
        reference = agreement.reference_of(old, new, options.reference)
    except LeanconvError as error:
        print(f"leanconv bench compare: {error}", file=sys.stderr)
        return USAGE
    comparison = compare(old, new, threshold=options.threshold / 100, confidence=options.confidence / 100)
    if not comparison.changes:
        print(f"leanconv bench compare: {paths[0]} and {paths[1]} have no timed row in common", file=sys.stderr)
        return USAGE
    console = Console()
    show(comparison, console, changed_only=options.changed)
    pairs = agreement.pairs(old, new, reference, comparison.reshaped) if reference else []
    if pairs:
        agreement.show(pairs, str(reference), console)
    for line in _notes(comparison, old, new):
        console.print(line, style="dim", highlight=False, crop=False)
    return comparison.exit_code


def show(comparison: Comparison, console: Console, *, changed_only: bool = False) -> None:
    """Print a row for each change, then the geometric means."""
    changes = [change for change in comparison.changes if not (changed_only and change.verdict == EQUAL)]
    rows = [change.old for change in comparison.changes]
    columns = [column for column in ("layout", "threads") if len({getattr(row, column) for row in rows}) > 1]
    prefix = common_prefix([row.layer for row in rows])
    groups: dict[str, list[list[Text]]] = {}
    for change in changes:
        group = groups.setdefault(change.old.layer, [])
        title = Text("" if group else change.old.layer.removeprefix(prefix), style="bold")
        group.append([title, *_cells(change, columns)])
    interval = f"{comparison.confidence:.0%} interval"
    if groups:
        headings = ["layer", "algorithm", *columns, "old", "new", "% of peak", "new / old", interval, ""]
        print_grid(console, headings, groups.values(), left=2 + len(columns))
    else:
        console.print(f"All {len(rows)} rows are the same within their intervals.")
    console.print()
    headings = ["all layers", *columns, "rows", "faster", "same", "slower", "undecided", "geomean", interval]
    print_grid(console, headings, [list(_means(comparison, columns))], left=1 + len(columns))
    console.print()


def _cells(change: Change, columns: list[str]) -> list[Text]:
    old, new, interval = change.old, change.new, change.interval
    words = [old.algorithm, *(str(getattr(old, column)) for column in columns)]
    if interval is None:
        return [*map(Text, words), Text(f"{change.verdict}: {new.status}: {new.reason}", style=_STYLES[BROKEN])]
    words += [format_seconds(old.seconds or 0.0), format_seconds(new.seconds or 0.0)]
    words.append(f"{old.percent_of_peak:.1f} > {new.percent_of_peak:.1f}")
    style = _STYLES.get(change.verdict, "")
    last = [f"{interval.ratio:.3f}", _range(interval), change.verdict if change.verdict != EQUAL else ""]
    return [*map(Text, words), *(Text(word, style=style) for word in last)]


def _means(comparison: Comparison, columns: list[str]) -> Iterator[list[Text]]:
    """Yield the cells of one line an algorithm, then of all."""
    groups: dict[tuple[str, ...], list[Change]] = {}
    for change in comparison.changes:
        key = (change.old.algorithm, *(str(getattr(change.old, column)) for column in columns))
        groups.setdefault(key, []).append(change)
    if len(groups) > 1:
        groups[("all", *("" for _ in columns))] = comparison.changes
    for key, changes in groups.items():
        counts = [
            sum(change.verdict in verdicts for change in changes)
            for verdicts in ((FASTER, LITTLE_FASTER), (EQUAL,), (LITTLE_SLOWER, WORSE, BROKEN), (UNDECIDED,))
        ]
        ratios = [change.interval.ratio for change in changes if change.interval]
        mean = mean_interval(ratios, comparison.confidence) if ratios else None
        words = [*key, str(len(changes)), *map(str, counts)]
        words += [f"{mean.ratio:.3f}", _range(mean)] if mean else ["-", "-"]
        yield [Text(word) for word in words]


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} - {interval.high:.3f}" if interval.bounded else "-"


def _notes(comparison: Comparison, old: Report, new: Report) -> Iterable[str]:
    """Yield what the table does not say."""
    yield (
        "new / old compares times as parts of the FMA peak of their round: below 1 is faster. "
        f"SLOWER and faster: the whole interval is beyond {comparison.threshold:.0%}; undecided: it reaches across. "
        "The interval of a geomean says how much it hangs on the choice of layers."
    )
    for rows, which in ((comparison.only_old, "old"), (comparison.only_new, "new")):
        if rows:
            names = dict.fromkeys(f"{row.layer} {row.algorithm} {row.layout} {row.threads}" for row in rows)
            shown = "; ".join([*names][:8]) + ("; ..." if len(names) > 8 else "")
            yield f"Only in the {which} file, {len(rows)} rows: {shown}."
    if comparison.reshaped:
        yield f"Another shape in each file, not compared: {', '.join(comparison.reshaped)}."
    for what, a, b in (
        ("CPU", old.machine.get("cpu"), new.machine.get("cpu")),
        ("kernels for", old.machine.get("target"), new.machine.get("target")),
    ):
        if a != b:
            yield f"Not the same machine: {what} {a} in the old file and {b} in the new one."
    versions = [name for name in old.versions if old.versions[name] != new.versions.get(name, old.versions[name])]
    if versions:
        changed = ", ".join(f"{name} {old.versions[name]} > {new.versions[name]}" for name in versions)
        yield f"Other versions: {changed}."
