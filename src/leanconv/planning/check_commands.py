"""`leanconv model-error`: how far choices are from the fastest; `leanconv limits`: that limits hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanconv.bench.layers import Layer

LIMITS = "0,64KiB,256KiB,1MiB,8MiB,unlimited"


def add_model_error(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; nothing heavy is imported."""
    parser = commands.add_parser(
        "model-error",
        help="say how far the planner's choices are from the fastest",
        description="Time all that auto weighs on each layer, in turns, and say how much longer the one that the model "
        "takes needs than the fastest. Or compare the model with reports that were written before, by this command "
        "or by leanconv bench ... --json REPORT: nothing is timed then.",
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="LAYERS|REPORT", help="layers as for leanconv bench, or reports (.json)")
    add("--layout", default="NHWC", metavar="A,B", help="layouts (default: NHWC)")
    add("--threads", default="1", metavar="N,M", help="numbers of threads (default: 1)")
    add("--memory-limit", default="unlimited", metavar="A,B", help="limits, such as 0,256KiB,unlimited (the default)")
    add("--filter", metavar="REGEX", help="only layers whose name holds a match of this regular expression")
    add("--time", type=float, default=0.03, metavar="S", help="seconds for each candidate (default: 0.03)")
    add("--measure", action="store_true", help='also what choose="measure" takes')
    add(
        "--json",
        metavar="PATH",
        help="write what was measured to a file after each layer; what it holds already is not measured again",
    )
    add("--worst", type=int, default=10, metavar="N", help="how many of the worst choices are shown (default: 10)")


def model_error(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from pathlib import Path

    from leanconv.planning.error import compared, error_text, merged
    from leanconv.planning.records import write_json

    files = [word for word in options.words if word.endswith(".json")]
    if options.json and Path(options.json).exists():
        files.append(options.json)
    report = merged(files)
    layers = [word for word in options.words if not word.endswith(".json")]
    for part in _measured(options, layers, report) if layers else ():
        report = merged([report, part])
        if options.json:
            write_json(options.json, report)
    print(error_text(compared(report), options.worst))
    noted = compared(report, measured=True)
    if noted:
        print('\nwith choose="measure":')
        print(error_text(noted, options.worst))
    return 0


def _measured(options: argparse.Namespace, words: list[str], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from leanconv.checks import integer, one_of
    from leanconv.errors import ArgumentValueError
    from leanconv.layouts import LAYOUTS
    from leanconv.planning.choice_measured import measure_choices
    from leanconv.planning.limits import resolve_limit

    chosen = _layers(options, words)
    if not options.time > 0:
        raise ArgumentValueError("time", options.time, "must be a number of seconds above 0")
    counts = options.threads.split(",")
    if not all(word.isdigit() for word in counts):
        raise ArgumentValueError("threads", options.threads, "must be numbers joined by commas, such as 1,2")
    return measure_choices(
        chosen,
        [one_of("layout", word, LAYOUTS) for word in options.layout.split(",")],
        [integer("threads", int(word), 1) for word in counts],
        [resolve_limit(word) for word in options.memory_limit.split(",")],
        seconds=options.time,
        measure=options.measure,
        known=known,
    )


def _layers(options: argparse.Namespace, words: list[str]) -> list[Layer]:
    """The layers that words and filter name; at least one."""
    from leanconv.bench.catalogue import resolve, select
    from leanconv.errors import ArgumentValueError

    found = select(resolve(words), pattern=options.filter)
    if not found:
        raise ArgumentValueError("filter", options.filter, f"matches the name of no layer of {' '.join(words)}")
    return found


def add_limits(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; nothing heavy is imported."""
    parser = commands.add_parser(
        "limits",
        help="show what layers take under memory limits, as declared and as the system counts it",
        description="Run each layer under each limit in a process of its own, and show what counts against the limit, "
        "what the plan declares, and by how much the process grew (Linux).",
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    add("--layout", choices=("NHWC", "NCHW", "CHWN", "CHWN8"), default="NHWC", help="of the arrays (default: NHWC)")
    add("--threads", type=int, default=1, metavar="N", help="most threads (default: 1)")
    add("--memory-limit", default=LIMITS, metavar="A,B", help=f"limits (default: {LIMITS})")
    add("--filter", metavar="REGEX", help="only layers whose name holds a match of this regular expression")
    add(
        "--json",
        metavar="PATH",
        help="write the rows to a file after each layer; cases that it holds already are not run again",
    )


def limits(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code, 1 if a case took more than it declares."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from leanconv.checks import integer
    from leanconv.planning.limits import resolve_limit
    from leanconv.planning.limits_measured import Taken, cases, save, saved, taken, taken_text

    chosen = _layers(options, options.words)
    bounds = [resolve_limit(word) for word in options.memory_limit.split(",")]
    asked = cases(chosen, bounds, options.layout, integer("threads", options.threads, 1))
    known = saved(options.json) if options.json else []
    before = [next((entry for entry in known if entry.answers(case)), None) for case in asked]
    found: list[Taken] = [entry for entry in before if entry is not None]
    todo = [case for case, entry in zip(asked, before, strict=True) if entry is None]
    others = [entry for entry in known if entry not in found]
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=len(asked), completed=len(found))
            for case, entry in zip(todo, taken(todo), strict=True):
                bar.update(task, description=case.layer.name)
                if options.json and found and found[-1].layer != entry.layer:
                    save(options.json, [*others, *found])
                found.append(entry)
                bar.advance(task)
    finally:
        if options.json:
            save(options.json, [*others, *found])
    if not found:
        print(f"leanconv: {options.layout} holds none of these layers", file=sys.stderr)
        return 2
    places = {(case.layer.name, case.limit): number for number, case in enumerate(asked)}
    print(taken_text(sorted(found, key=lambda entry: places[entry.layer, entry.limit])))
    return 0 if all(entry.kept for entry in found) else 1
