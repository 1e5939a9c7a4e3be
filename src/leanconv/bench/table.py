"""The results of a benchmark as a table for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from leanconv.bench.grid import print_grid
from leanconv.bench.report import (
    NOISY,
    NOT_APPLICABLE,
    OK,
    PEER,
    Report,
    Row,
    common_prefix,
    fastest,
    ratio,
    undecided_words,
)
from leanconv.sizes import format_bytes


def show(report: Report, console: Console) -> None:
    """Print the results, one group of rows a layer, and what they come to over all layers."""
    timed = [row for row in report.rows if row.seconds is not None]
    if report.rows:
        results(report, console)
    if len({row.layer for row in timed}) > 1:
        console.print()
        summary(report, console)
    console.print()
    for line in _notes(report, timed):
        console.print(line, style="dim", highlight=False, crop=False)


def results(report: Report, console: Console) -> None:
    """Print the rows of all layers."""
    columns = _extra_columns(report.rows)
    numbers = ["time", "spread", "/ best", "GFLOP/s", "% peak", "workspace", "packed w"]
    peers = any(row.kind == PEER for row in report.rows)
    numbers += ["extra peak", "cold", "error"] if peers else ["error"]
    known = {layer["name"]: layer for layer in report.layers}
    prefix = common_prefix([*known])
    groups = []
    for name, group in groupby(report.rows, key=lambda row: row.layer):
        rows = list(group)
        best = {threads: fastest([row for row in rows if row.threads == threads]) for threads in _threads(rows)}
        titles = _titles(name.removeprefix(prefix), known.get(name, {}), len(rows))
        groups.append(
            [
                [title, *_cells(row, columns, best[row.threads], peers=peers)]
                for title, row in zip(titles, rows, strict=True)
            ]
        )
    print_grid(console, ["layer", "algorithm", *columns, *numbers], groups, left=2 + len(columns))


def summary(report: Report, console: Console) -> None:
    """Print one line an algorithm, over all layers it ran on."""
    columns = _extra_columns(report.rows)
    numbers = ["layers", "fastest on", "time / best", "% peak", "total time", "largest workspace"]
    peers = any(row.kind == PEER for row in report.rows)
    numbers += ["largest extra peak"] if peers else []
    repeats = {layer["name"]: layer["repeats"] for layer in report.layers}
    best = _best_rows(report.rows)
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in report.rows:
        if row.seconds is not None:
            groups.setdefault((row.algorithm, row.layout, row.threads), []).append(row)
    lines = []
    for (algorithm, _, threads), rows in groups.items():
        relative = [ratio(row, best[row.layer, threads]) for row in rows]
        won = sum(row is best[row.layer, threads] for row in rows)
        total = sum((row.seconds or 0.0) * repeats.get(row.layer, 1) for row in rows)
        words = [
            algorithm,
            *[str(getattr(rows[0], column)) for column in columns],
            f"{len(rows)} of {len(repeats)}",
            str(won),
            f"{statistics.geometric_mean(relative):.2f}",
            f"{statistics.geometric_mean([row.percent_of_peak or math.nan for row in rows]):.1f}",
            format_seconds(total) if len(rows) == len(repeats) else "-",
            _declared(rows[0], max(row.workspace_bytes for row in rows)),
        ]
        if peers:
            extra = [row.extra_peak_bytes for row in rows if row.extra_peak_bytes is not None]
            words.append(format_bytes(max(extra)) if extra else "-")
        lines.append([Text(word) for word in words])
    print_grid(console, ["all layers", *columns, *numbers], [lines], left=1 + len(columns))


def format_seconds(seconds: float) -> str:
    """Return a time with four digits and the unit that fits: 812.3 us, 14.02 ms, 1.204 s."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.95:
            return f"{_digits(value)} {unit}"
    return f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    return f"{value:.3f}" if value < 9.9995 else f"{value:.2f}" if value < 99.995 else f"{value:.1f}"


def _cells(row: Row, columns: list[str], best: Row | None, *, peers: bool) -> list[Text]:
    """Return the cells of a row but the first; fewer, with a sentence as the last, if it has no numbers."""
    label = Text(f"{row.label} *" if row is best else row.label, style="bold green" if row is best else "")
    cells = [label, *(Text(str(getattr(row, column))) for column in columns)]
    if row.status != OK:
        # "all" is no algorithm: its sentence says already that none applies.
        why = row.reason if row.algorithm == "all" else f"{row.status}: {row.reason}"
        return [*cells, Text(why, style="dim" if row.status == NOT_APPLICABLE else "red")]
    noisy = row.spread is not None and row.spread > NOISY
    spread = "-" if row.spread is None else f"(! {row.spread:.0%})" if noisy else f"{row.spread:.1%}"
    relative = f"{ratio(row, best):.2f}" if best else "-"
    memory = []
    if peers:
        extra = "-" if row.extra_peak_bytes is None else format_bytes(row.extra_peak_bytes)
        memory = [Text(extra), Text("-" if row.cold_seconds is None else format_seconds(row.cold_seconds))]
    return [
        *cells,
        Text(format_seconds(row.seconds or 0.0)),
        Text(spread, style="yellow" if noisy else ""),
        Text(f"? {relative}" if row.undecided else relative, style="yellow" if row.undecided else ""),
        Text(f"{row.gflops:.1f}"),
        Text(f"{row.percent_of_peak:.1f}"),
        Text(_declared(row, row.workspace_bytes)),
        Text(_declared(row, row.packed_weight_bytes)),
        *memory,
        Text(f"{row.error:.1e}"),
    ]


def _declared(row: Row, nbytes: int) -> str:
    """Return the bytes that an algorithm declares; peers declare none."""
    return "-" if row.kind == PEER else format_bytes(nbytes)


def _titles(name: str, layer: dict[str, Any], rows: int) -> list[Text]:
    """Return the first column of a group: the name, then shape and work if there are rows for them."""
    titles = [Text(name, style="bold")]
    if layer and rows > 1:
        titles.append(Text(layer["shape"], style="dim"))
    if layer and rows > 2:
        count = f", {layer['repeats']} times" if layer["repeats"] > 1 else ""
        titles.append(Text(f"{_digits(layer['flops'] / 1e6)} MFLOP{count}", style="dim"))
    return titles + [Text("")] * (rows - len(titles))


def _notes(report: Report, timed: list[Row]) -> Iterable[str]:
    """Return the lines below the table."""
    if report.interrupted:
        yield "Interrupted: what was not finished is missing."
    if not timed:
        return
    peaks = []
    for threads in _threads(timed):
        values = [sample.peak_gflops for row in timed if row.threads == threads for sample in row.samples]
        peaks.append(f"{statistics.median(values):.0f} GFLOP/s on {_count(threads)}")
    dtype, cpu = report.settings["dtype"], report.machine.get("cpu", "?")
    yield f"Measured FMA peak, {dtype}: {', '.join(peaks)}. CPU: {cpu}."
    if report.bandwidth:
        speeds = [f"{item['gb_per_s']:.1f} GB/s on {_count(item['threads'])}" for item in report.bandwidth]
        yield f"Measured speed of reading memory: {', '.join(speeds)}."
    yield (
        "* fastest. Times are medians, spread is the interquartile range over the median, (! n%) marks a "
        "noisy one. / best is the median of the ratios of each round, ? marks one that is undecided. time / best and "
        "% peak over all layers are geometric means; total time counts repeats."
    )
    if words := undecided_words(report):
        yield words
    if any(row.kind == PEER for row in timed):
        yield (
            "Extra peak: the most memory that the process held beyond input, weights and output while it prepared the "
            "layer and ran it; cold: time to prepare and for the first call."
        )
    sampled = len({row.layer for row in timed if not row.compared.startswith("all")})
    layers = len({row.layer for row in timed})
    compared = f"a sample of the outputs on {sampled} of {layers} layers, else " if sampled else ""
    yield (f"Error: largest absolute error against float64 over the largest output; compared: {compared}every output.")


def _count(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _extra_columns(rows: list[Row]) -> list[str]:
    """Return the columns that are only shown if they differ."""
    return [column for column in ("layout", "threads") if len({getattr(row, column) for row in rows}) > 1]


def _best_rows(rows: list[Row]) -> dict[tuple[str, int], Row]:
    """Return the fastest row of each layer and number of threads."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.layer, row.threads), []).append(row)
    best = {key: fastest(group) for key, group in groups.items()}
    return {key: row for key, row in best.items() if row is not None}


def _threads(rows: list[Row]) -> list[int]:
    return sorted({row.threads for row in rows})
