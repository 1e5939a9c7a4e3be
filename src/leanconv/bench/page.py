"""The results of a benchmark as one page of HTML that needs nothing else.

Style, scripts and results are in the page; its content security policy allows these, by their hashes, and nothing
else, so the page asks no other computer for anything, and text in results is never run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shlex
from collections.abc import Iterator
from importlib.resources import files
from string import Template
from typing import Any

from leanconv.bench.digest import Digest, Result, digest
from leanconv.bench.report import FAILED, WRONG, Report, undecided_words
from leanconv.sizes import format_bytes

# In the order in which they are joined to one script.
SCRIPTS = ("base.js", "marks.js", "scatter.js", "roofline.js", "bars.js", "tables.js", "main.js")

# What would end a script element or a line of JavaScript if it stood in a text.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(report: Report) -> str:
    """Return the page.

    Args:
        report: results with at least one timed row.
    """
    found = digest(report)
    style, script = _file("style.css"), "\n".join(map(_file, SCRIPTS))
    return Template(_file("page.html")).substitute(
        title=html.escape(f"Convolution benchmark: {report.machine.get('cpu', 'unknown CPU')}"),
        version=html.escape(report.versions.get("leanconv", "")),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        results=embed(_content(report, found)),
    )


def embed(content: Any) -> str:
    """Return JSON that can stand in a script element of HTML, whatever texts it holds."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate has no UTF-8; as an escape it is the same text to JSON.
    text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text.translate(_ESCAPES)


def _content(report: Report, found: Digest) -> dict[str, Any]:
    content = found.json()
    # A list for each result: the names of its fields once make a file a third as long.
    names = [*Result.__dataclass_fields__]
    content["results"] = {
        "fields": names,
        "rows": [[_short(result[name]) for name in names] for result in content["results"]],
    }
    count = len(found.layers)
    return {
        **content,
        "subtitle": f"{count} layer{'s' if count != 1 else ''}, {len(found.contestants)} contestants, "
        f"{report.settings['dtype']}",
        "facts": [[name, value] for name, value in _facts(report, found) if value],
        "conditions": [[name, value] for name, value in _conditions(report) if value],
        "warning": " ".join(_warnings(report)),
        "footnotes": _footnotes(report),
    }


def _short(value: Any) -> Any:
    """Return a float with six digits; they are more than were measured."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _facts(report: Report, found: Digest) -> Iterator[tuple[str, str]]:
    machine = report.machine
    yield "CPU", str(machine.get("cpu", ""))
    yield "Kernels for", str(machine.get("target", ""))
    yield "Usable CPUs", str(machine.get("usable_cpus", ""))
    for threads, peak in found.peaks.items():
        yield f"FMA peak, {_threads(threads)}", f"{peak:.0f} GFLOP/s"
    for threads, speed in found.bandwidths.items():
        yield f"Memory, {_threads(threads)}", f"{speed:.1f} GB/s"
    yield "Measured", report.started.replace("T", " ").replace("+00:00", " UTC")
    yield "leanconv", report.versions.get("leanconv", "")


def _conditions(report: Report) -> Iterator[tuple[str, str]]:
    yield "Command", shlex.join(report.command)
    yield "Finished", report.finished.replace("T", " ").replace("+00:00", " UTC")
    for name, value in report.settings.items():
        yield name.capitalize(), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield "System", " ".join(str(report.machine[name]) for name in ("system", "architecture") if name in report.machine)
    caches = report.machine.get("caches")
    if isinstance(caches, dict):
        yield "Caches", ", ".join(f"{name} {_size(size)}" for name, size in caches.items() if name != "line")
    features = report.machine.get("features")
    if isinstance(features, list):
        yield "Features", " ".join(map(str, features))
    peers = {row.algorithm: row.version for row in report.rows if row.version}
    for name, version in {**report.versions, **peers}.items():
        yield name, version


def _warnings(report: Report) -> Iterator[str]:
    if report.interrupted:
        yield "The run was interrupted: what was not finished is missing."
    said = []
    for status, words in ((WRONG, "with a wrong result"), (FAILED, "that failed")):
        rows = [row for row in report.rows if row.status == status]
        if rows:
            said.append(f"{len(rows)} {words} ({', '.join(dict.fromkeys(row.algorithm for row in rows))})")
    if said:
        yield f"Rows without a time: {', '.join(said)}; the table of all measurements says why."


def _footnotes(report: Report) -> str:
    return (
        "Times are medians of interleaved rounds, spread is the interquartile range over the median, percent of peak "
        f"is paired with the peak of its round. {_noise(report)} "
        "leanconv's memory is declared: the workspace of a call and the packed weights. Error is the largest absolute "
        "error against float64 over the largest output."
    )


def _noise(report: Report) -> str:
    words = undecided_words(report)
    return f"{words} A question mark follows them." if words else "Above 5 % the spread is marked."


def _size(size: Any) -> str:
    return format_bytes(size) if isinstance(size, int) else str(size)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return (files("leanconv.bench") / "html" / name).read_text(encoding="utf-8")
