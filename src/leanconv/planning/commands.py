"""`leanconv explain`, `leanconv tune`, `leanconv formulas` and `leanconv records`; the other commands of planning."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from typing import Any

from leanconv.classes import replace
from leanconv.errors import LeanconvError
from leanconv.planning.check_commands import add_limits, add_model_error, limits, model_error
from leanconv.planning.command_options import add_common, asked
from leanconv.planning.network_commands import add_network, network


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
    add_common(explain)
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
    add_common(tune)
    add_network(commands)
    add_model_error(commands)
    add_limits(commands)
    formulas = commands.add_parser(
        "formulas",
        help="show the workspace that papers state beside what a call takes",
        description="For each algorithm whose paper states its memory: the formula and its bytes for a layer, what the "
        "plan declares, and what was asked of the system while weights were bound and a call ran.",
    )
    formulas.add_argument("layers", nargs="+", metavar="LAYERS", help="as for leanconv bench")
    add_common(formulas)
    records = commands.add_parser(
        "records",
        help="show, export, merge or delete what was measured",
        description="Measured times and the machine's figures are kept beside the compiled kernels.",
    )
    records.add_argument("action", choices=("info", "export", "merge", "clear"))
    records.add_argument("path", nargs="?", help="file for export and merge")


def run(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    steps = {"explain": _explain, "tune": _tune, "network": network, "records": _records, "model-error": model_error}
    steps |= {"formulas": _formulas, "limits": limits}
    try:
        return steps[options.command](options)
    except LeanconvError as error:
        print(f"leanconv: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _problems(options: argparse.Namespace) -> list[tuple[str, Any]]:
    from leanconv.bench.catalogue import resolve

    return [(layer.name, layer.problem(options.layout, bias=True)) for layer in resolve(options.layers)]


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
    algorithm, threads, limit = asked(options)
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

    algorithm, threads, limit = asked(options)
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


def _formulas(options: argparse.Namespace) -> int:
    from leanconv.bench.catalogue import resolve
    from leanconv.planning.formulas import rows
    from leanconv.planning.text import formulas_text

    threads = asked(options)[1]
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
