"""`leanconv network`: layers planned together under one memory limit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from leanconv.planning.command_options import add_common, asked


def add_network(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; nothing heavy is imported."""
    parser = commands.add_parser(
        "network",
        help="plan layers together under one memory limit",
        description="Plan all layers under one limit: one workspace for all, packed weights for each; or show what "
        "time each number of bytes would give.",
    )
    parser.add_argument("layers", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    parser.add_argument("--chain", action="store_true", help="each layer reads what the one before wrote")
    parser.add_argument("--frontier", action="store_true", help="show time against memory")
    parser.add_argument("--plot", metavar="PATH", help="draw time against memory into a PNG, SVG or PDF")
    parser.add_argument(
        "--measure", action="store_true", help="time it at its least memory, at twice that, and without a limit"
    )
    parser.add_argument(
        "--leaner",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="without a limit, the part of the shortest time that may go to save packed weights, such as 0.02",
    )
    add_common(parser)


def network(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from leanconv.bench.catalogue import in_order
    from leanconv.planning.figures import figures
    from leanconv.planning.network import frontier, plan_layers

    algorithm, threads, limit = asked(options)
    layers = [(layer.name, layer.problem(options.layout, bias=True)) for layer in in_order(options.layers)]
    wishes: dict[str, Any] = {"chain": options.chain, "algorithm": algorithm, "accuracy": options.accuracy}
    if not 0 <= options.leaner <= 1:
        from leanconv.errors import ArgumentValueError

        raise ArgumentValueError("leaner", options.leaner, "must be from 0 to 1")
    if options.frontier or options.plot:
        points = frontier(layers, threads, **wishes)
        if options.plot:
            points.plot(options.plot, " ".join(options.layers))
        print(json.dumps(points) if options.json else points)
        return 0
    if options.measure:
        return _measure_network(layers, threads, limit, options, wishes)
    figures()  # of the machine: measured once, then remembered
    begin = time.perf_counter()
    found = plan_layers(layers, threads, limit, **wishes, leaner=options.leaner)
    took = time.perf_counter() - begin
    if not options.json:
        shapes = len({problem for _, problem in layers})
        print(f"{found}\nplanned in         {1e3 * took:.1f} ms: {len(layers)} layers of {shapes} shapes")
        return 0
    steps = [{"name": s.name, "algorithm": s.plan.algorithm, "layout": s.layout} for s in found.steps]
    totals = {
        "needed_bytes": found.needed_bytes,
        "seconds": found.predicted_seconds,
        "planning_seconds": took,
        "steps": steps,
    }
    print(json.dumps(totals, indent=1))
    return 0


def _measure_network(
    layers: Sequence[tuple[str, Any]], threads: int, limit: int | None, options: argparse.Namespace, wishes: Any
) -> int:
    from leanconv.planning.network_measured import passes, passes_text

    if options.chain:
        print("leanconv: --measure times layers as they are given; not with --chain", file=sys.stderr)
        return 2
    found = passes(layers, threads, limit, leaner=options.leaner, **wishes)
    if options.json:
        rows = [
            {
                "name": entry.name,
                "limit": entry.limit,
                "needed_bytes": entry.plan.needed_bytes,
                "memory": entry.memory,
                "predicted": entry.plan.predicted_seconds,
                "seconds": entry.seconds,
            }
            for entry in found
        ]
        print(json.dumps(rows, indent=1))
    else:
        print(passes_text(found))
    return 0
