"""The command line: `leanconv bench`, `leanconv doctor`, `leanconv cache`.

Only the standard library is imported here; each command imports what it needs when it runs, so that help and
version appear at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from leanconv import results_cli

OK, TROUBLE, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXIT_CODES = """\
exit codes:
  0    all is well
  1    an algorithm failed or computed something wrong, or doctor found a problem
  2    the command line, or a file it names, is not understood; nothing was done
  130  interrupted; what was finished is shown
"""

_BENCH = """\
Time convolution algorithms side by side and check what they compute.

LAYERS are any mix of
  a network        resnet50, vgg16, ... (leanconv bench --list shows all)
  a layer of one   resnet50/conv1, mec/cv5
  a CSV file       columns name,N,C,H,W,K,R,S,stride,pad,dilation,groups:
                   N images of C channels and H x W pixels, K output channels,
                   kernels of R x S; only C, H, K and R are needed
  a oneDNN string  mb1ic64ih56oc64oh56kh3ph1 (mb is 2 if missing, dilation 0
                   is dense), or a file of them

All algorithms of a layer take turns in several rounds. For each you see the
median time, its spread, the part of the peak of fused multiply-adds (measured
in the same rounds), the memory it takes beyond input, weights and output, and
its error against float64. Rows marked ? are not certain in proportion to the
fastest: see --precision and --max-time.
"""

_BENCH_EXAMPLES = """\
examples:
  leanconv bench resnet50
  leanconv bench layers.csv --filter 3x3 --threads 1,2 --json results.json
  leanconv bench mb1ic64ih56oc64kh3ph1 --layout NHWC,NCHW --algorithms direct,im2row
  leanconv bench mobilenet_v2 --batch 8 --plot mobilenet.png
  leanconv bench compare old.json new.json
  leanconv bench --set mec --peers all --threads 1,2
  leanconv bench model.onnx --peers onnxruntime,openvino --memory-limit 64MiB

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: what follows the program's name; the process's own arguments if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(results_cli.join_words(words))
    try:
        code = _COMMANDS[options.command](options, words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; Python must not complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="leanconv",
        description="Convolution on CPUs: the published algorithms, with the bytes and the time of each.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_bench(commands)
    results_cli.add_commands(commands)

    doctor = commands.add_parser(
        "doctor",
        help="show what leanconv finds on this machine, and what stands in its way",
        description="Show CPU, caches, threads, versions, the cache of compiled kernels and the measured "
        "peak; run the algorithms on small layers; report problems. Takes some seconds, and longer the first time, "
        "when their kernels are compiled.",
    )
    doctor.add_argument("--every", action="store_true", help="run those algorithms too that auto never takes")
    doctor.add_argument("--bandwidth", action="store_true", help="also measure the speed of memory")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    cache = commands.add_parser(
        "cache",
        help="show or empty the cache of compiled kernels",
        description="Compiled kernels are kept on disk. LEANCONV_CACHE_DIR says where; "
        "LEANCONV_CACHE=off|ro|rw whether they are not used, only read, or read and written.",
    )
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="show where the cache is and what it holds")
    info.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("clear", help="delete all kernels, and what is kept of ONNX models and of the CPU")
    actions.add_parser("path", help="print the folder, and nothing else")
    _add_planning(commands)
    return parser


def _add_planning(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from leanconv.bench.startup import add_command
    from leanconv.onnx import commands as models
    from leanconv.planning.commands import add_commands

    add_command(commands)
    add_commands(commands)
    models.add_commands(commands)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="time algorithms on layers or networks, with memory and error",
        description=_BENCH,
        epilog=_BENCH_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = bench.add_argument
    add("layers", nargs="*", metavar="LAYERS", help="what to measure, see above")
    add(
        "--net",
        "--set",
        action="append",
        default=[],
        metavar="NAME",
        help="add a built-in network or set of layers; may be repeated",
    )
    add("--filter", metavar="REGEX", help="only layers whose name holds a match of this regular expression")
    add("--batch", type=_positive, metavar="N", help="number of images, instead of what the layers say")
    add(
        "--list",
        action="store_true",
        help="show the layers, or the built-in networks and the peers if no layers are named, and exit",
    )
    add(
        "--algorithms",
        type=_words,
        default=("all",),
        metavar="A,B",
        help="algorithms to measure (auto: the one leanconv chooses; all: each that applies, but for the "
        "slow reference; auto@256KiB: with a memory limit, which any name can have; default: all)",
    )
    add(
        "--layout",
        type=_layouts,
        default=("NHWC",),
        metavar="A,B",
        help="order of the arrays in memory: NHWC (channels last), NCHW (channels first), CHWN or CHWN8 (the batch "
        "last), or several (default: NHWC)",
    )
    add("--threads", type=_counts, default=(1,), metavar="N,M", help="numbers of threads (default: 1)")
    add(
        "--scaling",
        action="store_true",
        help="let the numbers of threads take turns with one algorithm, and show how much faster several are",
    )
    add(
        "--peers",
        type=_words,
        default=(),
        metavar="A,B",
        help="other libraries to measure beside, each in a process of its own (all: every one; those that are not "
        "installed are skipped with a word; leanconv bench --list shows them; default: none)",
    )
    add(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="type of the numbers (default: float32)",
    )
    add(
        "--time",
        type=_seconds,
        default=0.2,
        metavar="S",
        help="seconds for each algorithm and peer on each layer; one that takes longer for a call is timed once "
        "(default: 0.2)",
    )
    add(
        "--rounds",
        type=_positive,
        default=10,
        metavar="N",
        help="how often the algorithms take turns (default: 10)",
    )
    add(
        "--max-time",
        type=_seconds,
        metavar="S",
        help="seconds for those whose ratio to the fastest is still uncertain after the rounds: they take more turns "
        "with it (default: 5 times --time)",
    )
    add(
        "--precision",
        type=_seconds,
        default=3.0,
        metavar="PERCENT",
        help="a ratio is certain if its interval of 95 %% confidence reaches at most so far from it (default: 3)",
    )
    add(
        "--peer-timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="a peer that does not answer for so long is ended (default: 120)",
    )
    add(
        "--json",
        metavar="PATH",
        help="write all results to a file; - for standard output (the table: standard error)",
    )
    add("--plot", metavar="PATH", help="draw a PNG, SVG or PDF; needs pip install leanconv[plot]")
    _add_bench_models(bench)


class _Version(argparse.Action):
    """Print the version; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from leanconv.doctor import package_version

        print(f"leanconv {package_version()}")
        parser.exit()


def _words(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} must be names joined by commas")
    return words


def _layouts(text: str) -> tuple[str, ...]:
    words = tuple(word.upper() for word in _words(text))
    for word in words:
        if word not in ("NHWC", "NCHW", "CHWN", "CHWN8"):
            raise argparse.ArgumentTypeError(f"{word!r} is no layout; there are NHWC, NCHW, CHWN and CHWN8")
    return words


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_positive(word) for word in _words(text))


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return seconds


def _add_bench_models(bench: argparse.ArgumentParser) -> None:
    group = bench.add_argument_group(
        "ONNX models",
        "LAYERS may be .onnx files instead: whole networks; peers: onnxruntime, openvino,\n"
        "mnn, ncnn, litert, torch_compile",
    )
    group.add_argument(
        "--memory-limit",
        metavar="BYTES",
        help="what a run of leanconv may take, such as 64MiB; least for as little as it can",
    )
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="of an input that the model leaves free",
    )


def _bench(options: argparse.Namespace, words: list[str]) -> int:
    if any(word.endswith(".onnx") for word in options.layers):
        from leanconv.bench import onnx_models

        return onnx_models.run(options)
    from leanconv.bench.command import bench

    return bench(options, ["leanconv", *words])


def _doctor(options: argparse.Namespace, _: list[str]) -> int:
    from dataclasses import asdict

    from leanconv import doctor

    found = doctor.examine(bandwidth=options.bandwidth, every=options.every)
    if options.json:
        print(json.dumps(asdict(found), indent=1, default=str))
    else:
        from rich.console import Console

        doctor.show(found, Console())
    return TROUBLE if found.problems else OK


def _cache(options: argparse.Namespace, _: list[str]) -> int:
    from dataclasses import asdict

    from leanconv.cache import ObjectCache
    from leanconv.errors import LeanconvError
    from leanconv.sizes import format_bytes

    try:
        cache = ObjectCache()
        info = cache.info()
        if options.action == "path":
            print(info.directory)
        elif options.action == "clear":
            deleted = cache.clear()
            for folder in ("models", "facts", "decisions"):
                ObjectCache(folder=folder).clear()
            print(f"deleted {deleted} kernels from {info.directory}")
            if cache.info().entries:
                print(f"leanconv: {cache.info().entries} could not be deleted", file=sys.stderr)
                return TROUBLE
        elif options.json:
            print(json.dumps(asdict(info), indent=1, default=str))
        else:
            print(f"directory  {info.directory}")
            print(f"mode       {info.mode}")
            print(f"kernels    {info.entries}")
            print(f"size       {format_bytes(info.bytes)} of at most {format_bytes(info.max_bytes)}")
    except LeanconvError as error:
        print(f"leanconv: {error}", file=sys.stderr)
        return TROUBLE
    return OK


def _model(options: argparse.Namespace, _: list[str]) -> int:
    from leanconv.onnx.commands import run

    return run(options)


def _startup(options: argparse.Namespace, _: list[str]) -> int:
    from leanconv.bench.startup import run

    return run(options)


def _plan(options: argparse.Namespace, _: list[str]) -> int:
    from leanconv.planning.commands import run

    return run(options)


_COMMANDS = {
    "bench": _bench,
    "doctor": _doctor,
    "cache": _cache,
    "startup": _startup,
    **dict.fromkeys(("run", "warmup"), _model),
    **dict.fromkeys(("explain", "tune", "network", "records", "model-error", "formulas", "limits"), _plan),
    **results_cli.HANDLERS,
}
