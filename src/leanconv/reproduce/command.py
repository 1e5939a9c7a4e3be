"""`leanconv reproduce`: from the options of the command line to a table of claims."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from leanconv.bench.command import progress_bar
from leanconv.bench.grid import print_grid
from leanconv.bench.load import ResultsError
from leanconv.bench.report import FAILED, WRONG
from leanconv.errors import LeanconvError
from leanconv.reproduce.checks import EXCEEDED, NOT, NOT_HERE, NOT_YET, REPRODUCED, TOLERANCE, Measured, Outcome
from leanconv.reproduce.claims import PAPERS, Claim, Paper
from leanconv.reproduce.measure import QUICK, Effort, reproduce

OK, TROUBLE, USAGE, INTERRUPTED = 0, 1, 2, 130

_STYLES = {REPRODUCED: "green", EXCEEDED: "bold green", NOT: "red", NOT_HERE: "dim", NOT_YET: "yellow"}


def command(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print the claims with their verdicts, and return the exit code."""
    paper = PAPERS[options.paper]
    effort = QUICK if options.quick else Effort()
    if options.batch is not None:
        effort = Effort(options.batch, effort.time, effort.rounds)
    folder = Path(options.save) if options.save else None
    try:
        if folder and not folder.is_dir():
            raise ResultsError(str(folder), "", "is no folder")
        with progress_bar() as step:
            measured, claims = reproduce(paper, effort, command=words, progress=step)
    except LeanconvError as error:
        print(f"leanconv reproduce: {error}", file=sys.stderr)
        return USAGE
    console = Console()
    show(paper, measured, claims, console)
    for name, found in measured.items() if folder else ():
        path = (folder or Path()) / f"{options.paper}-{name}.json"
        path.write_text(found.report.json(), encoding="utf-8")
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    reports = [found.report for found in measured.values()]
    if any(report.interrupted for report in reports):
        return INTERRUPTED
    return TROUBLE if any(report.failures for report in reports) else OK


def show(
    paper: Paper, measured: dict[str, Measured], claims: Sequence[tuple[Claim, Outcome]], console: Console
) -> None:
    """Print the paper, a line and a reason for each claim, and how it was measured."""
    console.print(Text(paper.title, style="bold"))
    console.print()
    groups = []
    for claim, outcome in claims:
        style = _STYLES[outcome.verdict]
        line = [claim.text, f"{claim.source} {claim.mark}", claim.value, outcome.found, outcome.verdict]
        groups.append(
            [
                [*map(Text, line[:-1]), Text(outcome.verdict, style=style)],
                [Text(f"  {outcome.why}", style="dim")],
            ]
        )
    print_grid(console, ["claim", "source", "claimed", "here", "verdict"], groups, left=2)
    console.print()
    for note in _notes(paper, measured, claims):
        console.print(note, style="dim", highlight=False, markup=False)


def _notes(paper: Paper, measured: dict[str, Measured], claims: Sequence[tuple[Claim, Outcome]]) -> Iterator[str]:
    verdicts = [outcome.verdict for _, outcome in claims]
    counted = (REPRODUCED, EXCEEDED, NOT, NOT_HERE, NOT_YET)
    yield ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in counted if verdict in verdicts) + "."
    yield (
        f"Reproduced: within {TOLERANCE:.0%} of the claimed figure. [A] abstract read, [R] source read, [D] derived. "
        "Means over layers are geometric."
    )
    if paper.note:
        yield paper.note
    for experiment in paper.experiments:
        if experiment.name in measured:
            yield f"{_title(experiment.name)}: {_batches(experiment.batch, measured[experiment.name])}."
    for report in [found.report for found in measured.values()][:1]:
        cpu, target = (report.machine.get(name, "?") for name in ("cpu", "target"))
        yield f"CPU: {cpu}, kernels for {target}; {report.settings['dtype']}."
    for found in measured.values():
        for row in found.report.rows:
            if row.status in (WRONG, FAILED):
                yield f"{row.layer} {row.algorithm} {row.layout}: {row.status}: {row.reason}"


def _title(name: str) -> str:
    return "Measured" if name == "main" else f"Measured for the {name} loops"


def _batches(papers: int, measured: Measured) -> str:
    """Return the batch of the layers, and which have a smaller one."""
    batches = {layer["name"]: layer["batch"] for layer in measured.report.layers}
    if not batches:
        return "nothing, it was interrupted"
    most = max(batches.values())
    fewer = ", ".join(f"{name} {batch}" for name, batch in batches.items() if batch < most)
    words = f"{len(batches)} layers, batch {most}" + (f" (for want of memory: {fewer})" if fewer else "")
    return words + (f"; the paper's is {papers}" if most != papers else "")
