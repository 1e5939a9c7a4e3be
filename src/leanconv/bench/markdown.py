"""The results of a benchmark as tables of Markdown, for a README or other documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanconv.bench.digest import EVERY, Digest, Score, digest
from leanconv.bench.load import ResultsError
from leanconv.bench.report import Report, undecided_words
from leanconv.bench.table import format_seconds
from leanconv.sizes import format_bytes

# Between these lines a file's text is replaced; the rest is left as it is.
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

# What Markdown reads as markup; an underscore within a word is none.
_SPECIAL = re.compile(r"[\\`*\[\]<>|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def tables(report: Report) -> str:
    """Return what was measured and how, and for each number of threads a table of scores, the best first."""
    found = digest(report)
    return "\n\n".join(_paragraphs(report, found)) + "\n"


def insert(text: str, path: Path) -> str:
    """Return what a file should hold: the text, or what the file holds with the text between its two marks.

    Args:
        text: the tables.
        path: the file, which need not exist.

    Raises:
        ResultsError: the file exists and has not exactly one pair of marks, or cannot be read.
    """
    if not path.exists():
        return text
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(str(path), "", f"cannot be read: {error}") from error
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ResultsError(str(path), "", f"exists and is not replaced: it has no lines {BEGIN} and {END}, once each")
    return f"{old[: old.index(BEGIN)]}{BEGIN}\n\n{text}\n{old[old.index(END) :]}"


def _paragraphs(report: Report, found: Digest) -> Iterator[str]:
    yield " ".join(filter(None, (_conditions(report, found), undecided_words(report))))
    for threads in found.threads:
        scores = [score for score in found.scores if score.threads == threads and score.set == EVERY]
        if scores:
            if len(found.threads) > 1:
                yield f"{threads} thread{'s' if threads > 1 else ''}:"
            yield "\n".join(_table(*_summary(found, scores)))
            if len(found.sets) > 1:
                yield "Time over that of the fastest, by network:"
                yield "\n".join(_table(*_by_set(found, scores)))


def _conditions(report: Report, found: Digest) -> str:
    count = len(found.layers)
    peaks = ", ".join(f"{peak:.0f} GFLOP/s on {n} thread{'s' if n > 1 else ''}" for n, peak in found.peaks.items())
    words = [
        f"{count} layer{'s' if count > 1 else ''}",
        report.settings["dtype"],
        _text(str(report.machine.get("cpu", "unknown CPU"))),
        f"measured FMA peak {peaks}",
        f"leanconv {_text(report.versions.get('leanconv', ''))}",
        report.started[:10],
    ]
    command = shlex.join(report.command)
    fence = "`"
    while fence in command:  # more backticks than the command has in a row, so that it cannot end the code
        fence += "`"
    return f"{', '.join(word for word in words if word)}; {fence}{command}{fence}."


def _summary(found: Digest, scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    best = next((score for score in scores if score.layers == score.of), None)
    whole = any(score.total is not None for score in scores)
    head = ["algorithm", "time over the best", "% of FMA peak", "fastest on", "layers", "largest memory"]
    rows = []
    for score in scores:
        name, relative = _text(found.contestants[score.contestant].label), f"{score.relative:.2f}"
        if score is best:
            name, relative = f"**{name}**", f"**{relative}**"
        row = [name, relative, f"{score.percent:.1f}", str(score.wins), f"{score.layers} of {score.of}"]
        row.append("-" if score.memory is None else format_bytes(score.memory))
        if whole:
            row.append("-" if score.total is None else format_seconds(score.total))
        rows.append(row)
    return [*head, *(["total time"] if whole else [])], rows


def _by_set(found: Digest, scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    where = {(score.set, score.contestant, score.threads): score for score in found.scores}
    rows = []
    for score in scores:
        row = [_text(found.contestants[score.contestant].label)]
        for name in found.sets:
            part = where.get((name, score.contestant, score.threads))
            some = f" ({part.layers} of {part.of})" if part and part.layers < part.of else ""
            row.append(f"{part.relative:.2f}{some}" if part else "-")
        rows.append(row)
    return ["algorithm", *map(_text, found.sets)], rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _text(text: str) -> str:
    """Return a text that means itself in Markdown, on one line."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
