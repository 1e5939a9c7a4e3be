"""The commands that read or judge results: `leanconv bench compare`, `leanconv report`, `leanconv reproduce`.

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
interval of each ratio follows from how far the passes of each run lie apart,
or of runs of one pass from the order of the samples alone; a row is slower if
all of its interval is beyond the threshold, and undecided if the interval
reaches across it.

A last table says how far the two files agree as comparisons: by each
contestant's time over that of one reference, which is not the machine's.
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

_REPRODUCE = """\
Make a paper's own comparison again, on its own layers, and judge its claims by
what is measured here:

  im2win    im2win against im2col and direct convolution (2022, 2024)
  mec       MEC against im2col (2017)
  lowmem    kn2row and kn2col against im2col and im2row (2017)
  indirect  indirect convolution against im2col and GEMM (2019)

Baselines are im2col and im2row over SciPy's BLAS and, where PyTorch is
installed, PyTorch's own im2col. A batch that does not fit into half of the
memory that is available is made smaller, and the result says so. Without
--quick this may take an hour.
"""

_REPRODUCE_CODES = """\
exit codes:
  0    all was measured, whatever the verdicts
  1    an algorithm failed or computed something wrong
  2    the command line is not understood, or memory is too small; nothing was measured
  130  interrupted; what was finished is judged
"""

# The papers that `leanconv.reproduce.claims` knows.
PAPERS = ("im2win", "mec", "lowmem", "indirect")

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
    _add_reproduce(commands)


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
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="algorithm or peer that the ratios in the table of agreement are to (default: the first that both timed)",
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


def _add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "reproduce",
        help="make a paper's comparison again and judge its claims",
        description=_REPRODUCE,
        epilog=_REPRODUCE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paper", choices=PAPERS, metavar="PAPER", help=", ".join(PAPERS))
    add("--quick", action="store_true", help="batch 1, and a quarter of the time for each algorithm")
    add("--batch", type=_images, metavar="N", help="number of images, at most that of the paper")
    add("--save", metavar="DIR", help="write the measurements there, as leanconv bench --json does")


def _images(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


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


def _run_reproduce(options: argparse.Namespace, words: list[str]) -> int:
    from leanconv.reproduce.command import command

    return command(options, ["leanconv", *words])


HANDLERS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    COMPARE: _run_compare,
    "report": _run_report,
    "reproduce": _run_reproduce,
}
