"""The commands that read or judge results: `leanconv bench compare`, `leanconv report`.

As in `cli.py`, only the standard library is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

# `bench` takes any words for layers, so what comes after it is a command of its own only if it is the first word.
COMPARE = "bench compare"

_COMPARE = """\
Say what became faster or slower from one file of results to another.

Rows that both files have (layer, algorithm, layout, threads) are compared by
their times as parts of the FMA peak that was measured in the same rounds. The
interval of each ratio follows from the order of the samples alone; a row is
slower if all of its interval is beyond the threshold, and undecided if the
interval reaches across it.
"""

_REPORT = """\
Show results of leanconv bench --json as one page of HTML that needs nothing
else: time against memory with the Pareto front of each layer, a roofline, bars
for each network, and tables that sort and filter. The same charts as PNG
files, and tables of Markdown, if asked for.
"""

_REPORT_CODES = """\
exit codes:
  0    all is written
  1    a file could not be written
  2    the command line, or a file it names, is not understood; nothing was written
"""

_COMPARE_CODES = """\
exit codes:
  0    nothing is slower beyond the threshold
  1    something is, or was right and is not any more
  2    the command line, or a file it names, is not understood
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of this module's commands."""
    _add_compare(commands)
    _add_report(commands)


def join_words(words: list[str]) -> list[str]:
    """Return the words of a command line with the two words of `bench compare` as one."""
    return [COMPARE, *words[2:]] if words[:2] == COMPARE.split() else words


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        COMPARE,
        prog=f"leanconv {COMPARE}",
        help="say what became faster or slower from one file of results to another",
        description=_COMPARE,
        epilog=_COMPARE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", metavar="OLD.json", help="what leanconv bench --json wrote, to compare with")
    parser.add_argument("new", metavar="NEW.json", help="what it wrote later")
    parser.add_argument(
        "--threshold",
        type=percent(0, 1000),
        default=5.0,
        metavar="P",
        help="percent by which a row may be slower (default: 5)",
    )
    parser.add_argument(
        "--confidence",
        type=percent(50, 99.99),
        default=95.0,
        metavar="P",
        help="confidence of the intervals in percent (default: 95)",
    )
    parser.add_argument("--changed", action="store_true", help="leave out the rows that are the same")


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="show results as a page of HTML, pictures or Markdown",
        description=_REPORT,
        epilog=_REPORT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("results", metavar="RESULTS.json", help="what leanconv bench --json wrote")
    add("-o", "--output", metavar="FILE", help="the page (default, if nothing else is asked for: RESULTS.html)")
    add("--png", metavar="DIR", help="write the charts as PNG files; needs pip install leanconv[plot]")
    add(
        "--markdown",
        metavar="FILE",
        help="write tables of Markdown; - for standard output. In a file that exists, what is between the lines "
        "<!-- results: begin --> and <!-- results: end --> is replaced",
    )


def percent(low: float, high: float) -> Callable[[str], float]:
    """Return a reader of a number of percent within limits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number of percent from {low:g} to {high:g}")
        return value

    return read


def _run_compare(options: argparse.Namespace, _: list[str]) -> int:
    from leanconv.bench.compare import command

    return command(options)


def _run_report(options: argparse.Namespace, _: list[str]) -> int:
    from leanconv.bench.report_command import command

    return command(options)


HANDLERS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {COMPARE: _run_compare, "report": _run_report}
