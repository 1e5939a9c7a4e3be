"""`leanconv bench`: from the options of the command line to table, JSON and plot."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leanconv.bench import plot, scaling, table
from leanconv.bench.catalogue import NETWORKS, network, resolve, select
from leanconv.bench.layers import Layer, LayerError
from leanconv.bench.load import ResultsError, load
from leanconv.bench.peers import PEERS, PeerInfo, named
from leanconv.bench.report import Report
from leanconv.bench.run import Progress as Step
from leanconv.bench.run import Save, run
from leanconv.bench.settings import ALL, LIMITED, Engine, Settings, limits_of
from leanconv.errors import ArgumentValueError, LeanconvError
from leanconv.sizes import parse_bytes

OK, TROUBLE, USAGE, INTERRUPTED = 0, 1, 2, 130

_SAVE_SECONDS = 20.0  # between two writings of what is measured so far
_LONGEST_RUN = 1e6  # seconds


def bench(options: argparse.Namespace, command: Sequence[str], engine: Engine | None = None) -> int:
    """Do what the options say and return the exit code."""
    try:
        if options.list and not (options.layers or options.net):
            _list_networks()
            _list_peers()
            return OK
        layers = _layers(options)
        if options.list:
            _list_layers(layers)
            return OK
        _check_algorithms(options.algorithms)
        _check_outputs(options)
        if options.scaling and options.append:
            raise ArgumentValueError("--append", True, "adds passes, which --scaling does not have")
        if options.every and (options.scaling or options.passes == 1):
            what = "--scaling has one pass" if options.scaling else "there is one pass"
            raise ArgumentValueError("--every", options.every, f"spreads several passes, and {what}")
        if options.scaling:
            return scaling.command(layers, options, engine)
        earlier = _earlier(options)
        for missing in (info for info in named(options.peers) if info.missing):
            print(f"leanconv bench: {_missing(missing)}", file=sys.stderr)
    except LeanconvError as error:
        print(f"leanconv bench: {error}", file=sys.stderr)
        return USAGE
    settings = Settings(
        algorithms=options.algorithms,
        layouts=options.layout,
        threads=options.threads,
        dtype=options.dtype,
        time=options.time,
        rounds=options.rounds,
        passes=options.passes,
        every=options.every or 0.0,
        longest=2 * options.time if options.max_time is None else options.max_time,
        precision=options.precision / 100,
        peers=options.peers,
        peer_timeout=options.peer_timeout,
        bandwidth=True,
    )
    try:
        with progress_bar() as step:
            save = _saver(options.json)
            report = run(layers, settings, command=command, engine=engine, progress=step, save=save, earlier=earlier)
    except ResultsError as error:
        print(f"leanconv bench: {error}", file=sys.stderr)
        return USAGE

    # With JSON on standard output the table must not mix with it.
    table.show(report, Console(stderr=options.json == "-"))
    if options.json == "-":
        sys.stdout.write(report.json())
    elif options.json:
        _write(report, Path(options.json))
    if options.plot and any(row.seconds for row in report.rows):
        plot.draw(report, Path(options.plot))
    if report.interrupted:
        return INTERRUPTED
    return TROUBLE if report.failures else OK


def _earlier(options: argparse.Namespace) -> Report | None:
    """Return the results that are to be gone on with."""
    if not options.append:
        return None
    if options.json in (None, "-"):
        raise ArgumentValueError("--append", True, "goes on with the file of --json: name one")
    path = Path(options.json)
    return load(path) if path.exists() else None


def _saver(path: str | None) -> Save | None:
    """Return what keeps the results so far in a file, at most every so many seconds."""
    if path is None or path == "-":
        return None
    last = time.monotonic()

    def save(report: Report) -> None:
        nonlocal last
        if time.monotonic() - last > _SAVE_SECONDS:
            _write(report, Path(path))
            last = time.monotonic()

    return save


def _write(report: Report, path: Path) -> None:
    """Write results to a file, which holds the earlier ones until all are written."""
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe
        path.write_text(report.json(), encoding="utf-8")
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(report.json(), encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _layers(options: argparse.Namespace) -> list[Layer]:
    """Return the layers that were asked for; at least one."""
    for name in options.net:
        network(name)  # so that a word after --net is taken for nothing but a network
    words = [*options.layers, *options.net]
    if not words:
        raise LayerError(
            "name a network, a layer, a CSV file or a oneDNN string; leanconv bench --list shows what is built in"
        )
    found = resolve(words)
    layers = select(found, pattern=options.filter, batches=options.batch)
    twice = next((name for name, count in Counter(layer.name for layer in layers).items() if count > 1), None)
    if twice is not None:
        raise LayerError(f"two layers are called {twice!r}; results are told apart by name, so rename one of them")
    if not layers:
        raise LayerError(f"none of the {len(found)} layers has a name that matches {options.filter!r}")
    return layers


def _check_algorithms(wanted: Sequence[str]) -> None:
    """Refuse names that no algorithm has, before anything is measured."""
    from leanconv.algorithms import REGISTRY

    known = [ALL, "auto", *REGISTRY.names]
    for word in wanted:
        name, limited, _ = word.partition(LIMITED)
        if limited:
            for limit in limits_of(word).values():
                parse_bytes(limit, "--algorithms")
            if name == ALL:
                raise LayerError(f"{word!r}: a memory limit is set on one algorithm or auto, not on all")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise LayerError(f"no algorithm is called {name!r}; {hint}there are {', '.join(known)}")


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse files that cannot be written, before minutes are spent on measuring."""
    if options.plot:
        plot.check(Path(options.plot))
    if options.json and options.json != "-":
        path = Path(options.json)
        if path.is_dir() or not path.parent.is_dir():
            raise LayerError(f"{path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


def _list_networks() -> None:
    """Print the built-in networks."""
    print(f"{'network':<20}{'layers':>7}{'shapes':>8}{'GFLOP':>9}")
    for name, title in NETWORKS.items():
        layers, shapes = network(name), resolve([name])
        flops = sum(layer.problem().flops * layer.repeats for layer in layers)
        count = sum(layer.repeats for layer in layers)
        print(f"{name:<20}{count:>7}{len(shapes):>8}{flops / 1e9:>9.2f}  {title}")


def _list_peers() -> None:
    """Print the peers, and which are installed."""
    width = max(len(info.name) for info in PEERS)
    print(f"\n{'peer':<{width}}  {'version':<16}")
    for info in PEERS:
        version = "not installed" if info.missing else info.version
        print(f"{info.name:<{width}}  {version:<16}  {info.title}")


def _missing(info: PeerInfo) -> str:
    return f"peer {info.name} is not installed: pip install {' '.join(info.missing)}"


def _list_layers(layers: Sequence[Layer]) -> None:
    """Print layers, one a line."""
    width = max(len(layer.name) for layer in layers)
    shapes = [layer.short() for layer in layers]
    for layer, shape in zip(layers, shapes, strict=True):
        flops = layer.problem().flops
        times = f"  {layer.repeats} times" if layer.repeats > 1 else ""
        print(f"{layer.name:<{width}}  {shape:<{max(map(len, shapes))}}  {flops / 1e6:>9.1f} MFLOP{times}")


@contextmanager
def progress_bar() -> Iterator[Step | None]:
    """Show a progress bar on standard error while measuring, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Redrawn only between measurements: a thread that draws would take time from what is measured. The time left
    # follows from all steps so far: layers differ, and the last half minute knows only some.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, speed_estimate_period=_LONGEST_RUN
    ) as bar:
        task = bar.add_task("", total=None)

        def step(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total, refresh=True)

        yield step
