"""`leanconv explain`, `leanconv tune`, `leanconv formulas`, `leanconv records` and `leanconv network`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from leanconv.classes import replace
from leanconv.errors import LeanconvError
from leanconv.planning.check_commands import add_limits, add_model_error, limits, model_error


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands; nothing heavy is imported."""
    explain = commands.add_parser(
        "explain",
        help="say which algorithm runs for a layer, and why",
        description="Show a layer's work, traffic and roofline; for every algorithm its bytes, predicted and measured "
        "time, and what became of it; the steps of the one that runs; what more memory would buy.",
    )
    explain.add_argument("layers", nargs="*", metavar="LAYERS", help="as for leanconv bench, or an .onnx file")
    explain.add_argument("--shape", action="append", default=[], metavar="NAME=1x3x224x224", help="of a model's input")
    explain.add_argument(
        "--plot",
        metavar="PATH",
        help="draw time against memory, or what is said of im2col; of a model, memory over its steps",
    )
    explain.add_argument(
        "--direction",
        choices=("forward", "backward_data", "backward_weights"),
        default="forward",
        help="the layer itself, or its gradient with respect to image or weights",
    )
    explain.add_argument("--measure", action="store_true", help="time every algorithm that fits")
    explain.add_argument(
        "--why-im2col", action="store_true", help="why a matrix product beats plain loops, in this machine's figures"
    )
    _add_common(explain)
    tune = commands.add_parser(
        "tune",
        help="time the candidates of layers and remember the fastest",
        description="Time the best few candidates of each layer by the cost model, or all of them, and remember the "
        'times on disk, where choose="measure" and leanconv explain find them. To kill it costs the layer at hand.',
    )
    tune.add_argument("layers", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    tune.add_argument("--exhaustive", action="store_true", help="every algorithm with every setting")
    tune.add_argument("--budget", type=float, default=1.0, metavar="S", help="seconds a layer (default: 1)")
    tune.add_argument("--lock", metavar="PATH", help="write a lock file that pins the plans found")
    _add_common(tune)
    network = commands.add_parser(
        "network",
        help="plan layers together under one memory limit",
        description="Plan all layers under one limit: one workspace for all, packed weights for each; or show what "
        "time each number of bytes would give.",
    )
    network.add_argument("layers", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    network.add_argument("--chain", action="store_true", help="each layer reads what the one before wrote")
    network.add_argument("--frontier", action="store_true", help="show time against memory")
    network.add_argument("--plot", metavar="PATH", help="draw time against memory into a PNG, SVG or PDF")
    network.add_argument(
        "--measure", action="store_true", help="time it at its least memory, at twice that, and without a limit"
    )
    network.add_argument(
        "--leaner",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="without a limit, the part of the shortest time that may go to save packed weights, such as 0.02",
    )
    _add_common(network)
    add_model_error(commands)
    add_limits(commands)
    formulas = commands.add_parser(
        "formulas",
        help="show the workspace that papers state beside what a call takes",
        description="For each algorithm whose paper states its memory: the formula and its bytes for a layer, what the "
        "plan declares, and what was asked of the system while weights were bound and a call ran.",
    )
    formulas.add_argument("layers", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    _add_common(formulas)
    records = commands.add_parser(
        "records",
        help="show, export, merge or delete what was measured",
        description="Measured times and the machine's figures are kept beside the compiled kernels.",
    )
    records.add_argument("action", choices=("info", "export", "merge", "clear"))
    records.add_argument("path", nargs="?", help="file for export and merge")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    layouts = ("NHWC", "NCHW", "CHWN", "CHWN8")
    add("--layout", choices=layouts, default="NHWC", help="order of the arrays in memory (default: NHWC)")
    add("--threads", type=int, metavar="N", help="most threads (default: as leanconv chooses)")
    add("--memory-limit", metavar="BYTES", help="bytes, or text such as 256KiB")
    add("--algorithm", default="auto", metavar="A,B", help='names joined by commas, or exclusions such as "!mec"')
    add("--accuracy", choices=("exact", "standard", "fast"), default="standard")
    add("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    steps = {"explain": _explain, "tune": _tune, "network": _network, "records": _records, "model-error": model_error}
    steps |= {"formulas": _formulas, "limits": limits}
    try:
        return steps[options.command](options)
    except LeanconvError as error:
        print(f"leanconv: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _problems(options: argparse.Namespace) -> list[tuple[str, Any]]:
    from leanconv.bench.catalogue import resolve

    return [(layer.name, layer.problem(options.layout, bias=True)) for layer in resolve(options.layers)]


def _arguments(options: argparse.Namespace) -> tuple[Any, int, int | None]:
    """Algorithms, threads and limit."""
    from leanconv.checks import integer
    from leanconv.planning.limits import resolve_limit
    from leanconv.threads import get_num_threads

    words = options.algorithm.split(",")
    threads = get_num_threads() if options.threads is None else integer("threads", options.threads, 1)
    return words if len(words) > 1 else words[0], threads, resolve_limit(options.memory_limit)


def _explain(options: argparse.Namespace) -> int:
    from leanconv.bench.catalogue import resolve

    if options.why_im2col:
        from leanconv.planning.lesson import lesson

        found = lesson()
        if options.plot:
            found.plot(options.plot)
        print(json.dumps(asdict(found), indent=1) if options.json else found)
        return 0
    if len(options.layers) == 1 and options.layers[0].endswith(".onnx"):
        from leanconv.onnx.commands import explain

        return explain(options, options.layers[0])
    if not options.layers:
        print("leanconv: name the layers to explain, or --why-im2col", file=sys.stderr)
        return 2
    algorithm, threads, limit = _arguments(options)
    layers = resolve(options.layers)
    if options.plot and len(layers) != 1:
        print(f"leanconv: --plot draws one layer, these are {len(layers)}", file=sys.stderr)
        return 2
    several = []
    for layer in layers:
        found_ = _explain_layer(layer, options, algorithm, threads, limit)
        if options.plot:
            found_.plot(options.plot, f"{layer.name}: {found_.problem.describe()}")
        if options.json:
            several.append({"name": layer.name, **explanation_data(found_)})
        else:
            print(f"{layer.name}\n{found_}\n")
    if options.json:
        print(json.dumps(several, indent=1))
    return 0


def _explain_layer(layer: Any, options: argparse.Namespace, algorithm: Any, threads: int, limit: int | None) -> Any:
    from leanconv.backward.explain import explain_gradient
    from leanconv.directions import problem_of
    from leanconv.planning.explain import explain_problem
    from leanconv.planning.torch_backend import torch_backend

    if options.direction == "backward_weights":
        problem = replace(layer.problem(options.layout), direction=options.direction)
        wishes = {"accuracy": options.accuracy, "measure": options.measure, "budget": 60.0}
        return explain_gradient(problem, algorithm, threads, limit, **wishes)
    if options.direction == "forward":
        problem = layer.problem(options.layout, bias=True)
    else:
        x_shape, w_shape = layer.shapes(options.layout)
        given = layer.options(options.layout)
        problem = problem_of(options.direction, layer.ndim, x_shape, w_shape, "float32", given)
    found = explain_problem(
        problem, algorithm, threads, limit, accuracy=options.accuracy, measure=options.measure, budget=60.0
    )
    return replace(found, torch_backend=torch_backend(problem, load=True))


def explanation_data(found: Any) -> dict[str, Any]:
    """An explanation as JSON's types."""
    data = {
        entry.name: getattr(found, entry.name)
        for entry in fields(found)
        if entry.name not in ("plan", "rows", "offers", "problem")
    }
    plan = found.plan
    return {
        **data,
        "problem": found.problem.describe(),
        "plan": {"algorithm": plan.algorithm, "threads": plan.threads, "steps": plan.steps},
        "rows": [asdict(row) for row in found.rows],
        "offers": [asdict(offer) for offer in found.offers],
    }


def _tune(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from leanconv.planning.choice import choose
    from leanconv.planning.pins import record_plans
    from leanconv.planning.records import records

    algorithm, threads, limit = _arguments(options)
    problems = _problems(options)
    failed = records().info().write_errors
    console = Console(stderr=True)
    found: list[dict[str, str]] = []
    with record_plans() as pins, Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tune", total=len(problems))
        for name, problem in problems:
            bar.update(task, description=name)
            plan = choose(
                problem,
                algorithm,
                threads,
                limit,
                accuracy=options.accuracy,
                how="exhaustive" if options.exhaustive else "measure",
                budget=options.budget,
            )
            bar.advance(task)
            found.append({"name": name, "algorithm": plan.algorithm, "threads": str(plan.threads)})
            if not options.json:
                print(f"{name:<40} {plan.algorithm} on {plan.threads}", flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    if options.lock:
        print(f"{pins.save(options.lock)} plans pinned in {options.lock}", file=sys.stderr)
    store = records().info()
    if store.mode != "rw":
        print(f"leanconv: no time is remembered (LEANCONV_CACHE={store.mode})", file=sys.stderr)
    elif store.write_errors > failed:
        print(f"leanconv: not all times are remembered: {store.directory} cannot be written", file=sys.stderr)
    return 0


def _network(options: argparse.Namespace) -> int:
    from leanconv.bench.catalogue import in_order
    from leanconv.planning.figures import figures
    from leanconv.planning.network import frontier, plan_layers

    algorithm, threads, limit = _arguments(options)
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


def _formulas(options: argparse.Namespace) -> int:
    from leanconv.bench.catalogue import resolve
    from leanconv.planning.formulas import rows
    from leanconv.planning.text import formulas_text

    threads = _arguments(options)[1]
    several = []
    for layer in resolve(options.layers):
        problem = layer.problem(options.layout)
        found = rows(problem, threads)
        if not options.json:
            print(f"{layer.name}: {formulas_text(problem, found)}\n")
        several.append({"name": layer.name, "rows": [{**asdict(row), "formula": row.formula.text} for row in found]})
    if options.json:
        print(json.dumps(several, indent=1))
    return 0


def _records(options: argparse.Namespace) -> int:
    from leanconv.planning.records import records

    store = records()
    if options.action in ("export", "merge") and not options.path:
        print(f"leanconv: records {options.action} needs a file", file=sys.stderr)
        return 2
    if options.action == "export":
        print(f"{store.export(options.path)} records written to {options.path}")
    elif options.action == "merge":
        print(f"{store.merge(options.path)} records taken from {options.path}")
    elif options.action == "clear":
        print(f"deleted {store.clear()} records")
    else:
        info = store.info()
        print(
            f"directory  {info.directory}\nmode       {info.mode}\nrecords    {info.entries}\nbytes      {info.bytes}"
        )
    return 0
