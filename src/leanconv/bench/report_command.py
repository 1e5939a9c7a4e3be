"""`leanconv report`: from a file of results to a page, pictures and Markdown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from leanconv.bench.load import ResultsError, load
from leanconv.bench.plot import check
from leanconv.bench.report import Report
from leanconv.errors import LeanconvError

OK, TROUBLE, USAGE = 0, 1, 2


def command(options: argparse.Namespace) -> int:
    """Write what was asked for, say where, and return the exit code."""
    source = Path(options.results)
    page = Path(options.output) if options.output else None
    if not (options.output or options.png or options.markdown):
        page = source.with_suffix(".html")
    try:
        report = load(source)
        if not any(row.seconds for row in report.rows):
            raise ResultsError(str(source), "rows", "none was timed, so there is nothing to show")
        if page:
            _check_file(page, source)
        if options.png:
            # The folder is made later; that matplotlib is there can be known now.
            check(Path("chart.png"))
        texts = _texts(report, page, options.markdown, source)
    except LeanconvError as error:
        print(f"leanconv report: {error}", file=sys.stderr)
        return USAGE
    # What was written is not told where the tables of Markdown go.
    told = sys.stderr if options.markdown == "-" else sys.stdout
    try:
        for path, text in texts.items():
            # Line ends as they are on any system: the hashes in the page are of these bytes.
            path.write_bytes(text.encode())
            print(f"wrote {path}", file=told)
        if options.png:
            from leanconv.bench.figures import draw

            for path in draw(report, Path(options.png)):
                print(f"wrote {path}", file=told)
    except (OSError, LeanconvError) as error:
        print(f"leanconv report: {error}", file=sys.stderr)
        return TROUBLE
    return OK


def _texts(report: Report, page: Path | None, markdown: str | None, source: Path) -> dict[Path, str]:
    """Return what is to be written where; Markdown for standard output is written at once."""
    from leanconv.bench.markdown import insert, tables
    from leanconv.bench.page import render

    texts = {page: render(report)} if page else {}
    if markdown == "-":
        sys.stdout.write(tables(report))
    elif markdown:
        _check_file(Path(markdown), source)
        texts[Path(markdown)] = insert(tables(report), Path(markdown))
    return texts


def _check_file(path: Path, source: Path) -> None:
    """Refuse a file that cannot be written, or that holds the results."""
    if path.is_dir() or not path.parent.is_dir():
        rule = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ResultsError(str(path), "", rule)
    if path.exists() and path.samefile(source):
        raise ResultsError(str(path), "", "holds the results and is not overwritten")
