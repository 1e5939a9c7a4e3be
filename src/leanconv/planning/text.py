"""Explanations, networks and frontiers as text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from leanconv.host import this_host
from leanconv.machine import cpu_name
from leanconv.planning.counters import counters_text
from leanconv.sizes import format_bytes

if TYPE_CHECKING:
    from leanconv.planning.explain import Explanation
    from leanconv.planning.formulas import Row
    from leanconv.planning.network import NetworkPlan
    from leanconv.problem import Problem

WIDTH = 120


def seconds_text(seconds: float | None) -> str:
    """812.3 us, 14.02 ms; "-" for None."""
    if seconds is None:
        return "-"
    from leanconv.bench.table import format_seconds

    return format_seconds(seconds)


def explanation_text(found: Explanation) -> str:
    """The numbers of the problem, a table of the algorithms, the steps and what more bytes would buy."""
    rate = found.flops / max(found.rows[0].predicted_seconds or 1.0, 1e-12) / 1e9
    limit = "none" if found.memory_limit is None else format_bytes(found.memory_limit)
    facts = [
        ("problem", found.problem.describe()),
        (
            "work",
            f"{found.flops / 1e6:.1f} MFLOP   compulsory traffic {format_bytes(found.compulsory_bytes)}   "
            f"{found.intensity:.1f} FLOP/B   roofline {found.roofline_gflops:.0f} GFLOP/s",
        ),
        ("machine", f"{cpu_name()}, {this_host().target.name}, {_count(found.threads, 'thread')}"),
        ("memory limit", limit),
    ]
    table = _table("algorithm", "workspace", "packed", "threads", "predicted", "measured", "verdict")
    for row in found.rows:
        verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
        table.add_row(
            row.name,
            _bytes(row.workspace_bytes),
            _bytes(row.packed_weight_bytes),
            "-" if row.threads is None else str(row.threads),
            seconds_text(row.predicted_seconds),
            seconds_text(row.measured_seconds),
            verdict,
        )
    after = [(f"steps of {found.plan.algorithm}", "")]
    after += [("", f"{number} {step}") for number, step in enumerate(found.plan.steps, 1)]
    text = f"{rate:.1f} GFLOP/s, {100 * rate / found.peak_gflops:.0f} % of the FMA peak"
    if rate > found.peak_gflops:
        text += " (it multiplies less than the definition, whose operations count here)"
    after.append(("predicted rate", text))
    for offer in found.offers:
        text = f">= {format_bytes(offer.needed_bytes)}: {offer.name}, {offer.speedup:.2f} times as fast"
        after.append(("if the limit were", text))
    if found.counters or found.counters_missing:
        after.append(("counters", f"{counters_text(found.counters, found.counters_missing)} (a call on 1 thread)"))
    if found.torch_backend:
        after.append(("PyTorch takes", found.torch_backend))
    return "\n".join([_pairs(facts), _render(table), _pairs(after)])


def network_text(found: NetworkPlan) -> str:
    """One line a layer, then the totals."""
    table = _table("layer", "layout", "algorithm", "workspace", "packed", "threads", "predicted", "converts")
    for step in found.steps:
        table.add_row(
            step.name,
            step.layout,
            step.plan.algorithm,
            _bytes(step.plan.workspace_bytes),
            _bytes(step.plan.packed_weight_bytes),
            str(step.plan.threads),
            seconds_text(step.predicted_seconds),
            seconds_text(step.conversion_seconds) if step.conversion_seconds else "",
        )
    totals = [
        ("predicted", seconds_text(found.predicted_seconds)),
        ("workspace", f"{format_bytes(found.workspace_bytes)} shared by all layers"),
        ("packed weights", f"{format_bytes(found.packed_weight_bytes)}"),
        ("against the limit", f"{found.needed_bytes:,} bytes"),
        ("image and output", f"{format_bytes(found.tensor_bytes)} of the layer that has most, not part of the limit"),
    ]
    return _render(table) + "\n" + _pairs(totals)


def formulas_text(problem: Problem, found: Sequence[Row]) -> str:
    """The workspace that papers state, beside what is declared and what a call takes, in bytes."""
    table = _table("algorithm", "paper's formula", "stated", "declared", "measured", "what differs")
    for row in found:
        numbers = (f"{nbytes:,}" for nbytes in (row.stated, row.declared, row.measured))
        table.add_row(row.name, row.formula.text, *numbers, row.formula.note)
    return f"{problem.describe()}\n{_render(table)}"


def frontier_text(points: Sequence[tuple[int, float]]) -> str:
    """Bytes and seconds, with a bar for the speed."""
    table = _table("bytes", "needed", "predicted", "speed")
    best = min(seconds for _, seconds in points)
    for nbytes, seconds in points:
        speed = best / seconds
        table.add_row(
            f"{nbytes:,}", format_bytes(nbytes), seconds_text(seconds), f"{speed:4.0%} {'#' * int(40 * speed)}"
        )
    return _render(table)


def table_text(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    table = _table(*titles)
    for row in rows:
        table.add_row(*row)
    return _render(table)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for number, title in enumerate(titles):
        right = title in ("workspace", "packed", "threads", "predicted", "measured", "needed", "bytes", "converts")
        right = right or title in ("stated", "declared", "limit", "with tensors", "speed of unlimited")
        table.add_column(title, justify="right" if right and number + 1 < len(titles) else "left", no_wrap=True)
    return table


def _render(table: Table) -> str:
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18}{value}".rstrip() for name, value in pairs)


def _bytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
