"""The command line of `leanconv bench`.

As in `cli.py`, only the standard library is imported here.
"""

from __future__ import annotations

import argparse

_DESCRIPTION = """\
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

_EXAMPLES = """\
examples:
  leanconv bench resnet50
  leanconv bench layers.csv --filter 3x3 --threads 1,2 --json results.json
  leanconv bench mb1ic64ih56oc64kh3ph1 --layout NHWC,NCHW --algorithms direct,im2row
  leanconv bench mobilenet_v2 --batch 1,8 --plot mobilenet.png
  leanconv bench mec --peers torch,onnxruntime --passes 9 --every 120 --json results.json
  leanconv bench compare old.json new.json
  leanconv bench --set mec --peers all --threads 1,2
  leanconv bench model.onnx --peers onnxruntime,openvino --memory-limit 64MiB

"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], exit_codes: str) -> None:
    """Add the command `bench`; `exit_codes` ends its help."""
    bench = commands.add_parser(
        "bench",
        help="time algorithms on layers or networks, with memory and error",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + exit_codes,
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
    add(
        "--batch",
        type=_counts,
        default=(),
        metavar="N,M",
        help="numbers of images, each measured on its own (default: what the layers say)",
    )
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
        "slow reference; auto@256KiB: with a memory limit, auto@256KiB/thread: with one of each thread's workspace, "
        "which any name can have; default: all)",
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
        metavar="S",
        help="seconds for each algorithm and peer on each layer, in all passes; one that takes longer for a call is "
        "timed once in each pass (default: 0.08; 0.2 in a single pass)",
    )
    add(
        "--rounds",
        type=_positive,
        metavar="N",
        help="how often the algorithms take turns in a pass (default: 3; 10 in a single pass)",
    )
    add(
        "--passes",
        type=_positive,
        default=5,
        metavar="N",
        help="how often all layers are gone through, with everything prepared anew: a neighbour on a shared machine "
        "then weighs on one pass only; ONNX files and --scaling have one (default: 5)",
    )
    add(
        "--every",
        type=_seconds,
        metavar="S",
        help="seconds from the start of a pass to that of the next: passes that lie minutes apart see more states of a "
        "shared machine than those of one go, and two such runs agree better (default: at once)",
    )
    add(
        "--max-time",
        type=_seconds,
        metavar="S",
        help="seconds for those within twice the time of the fastest whose ratio to it is still uncertain after the "
        "passes: they take more turns with it, in further passes (default: 2 times --time)",
    )
    add(
        "--precision",
        type=_seconds,
        default=8.0,
        metavar="PERCENT",
        help="a ratio is certain if its interval of 95 %% confidence reaches at most so far from it; others are marked "
        "? (default: 8)",
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
    add(
        "--append",
        action="store_true",
        help="go on with the results that the file of --json holds, if there is one: what an interrupt left out, then "
        "further passes of the same comparison, now or hours later",
    )
    add("--plot", metavar="PATH", help="draw a PNG, SVG or PDF; needs pip install leanconv[plot]")
    _add_models(bench)


def _add_models(bench: argparse.ArgumentParser) -> None:
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
    group.add_argument(
        "--converted",
        metavar="FOLDER",
        help="keep there what converters make of the models for some peers, and take it from there the next time",
    )


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


def run(options: argparse.Namespace, words: list[str]) -> int:
    """Run it; `words` are the arguments of the command line."""
    models = any(word.endswith(".onnx") for word in options.layers)
    single = options.passes == 1 or options.scaling or models
    options.time = options.time or (0.2 if single else 0.08)
    options.rounds = options.rounds or (10 if single else 3)
    if models:
        from leanconv.bench import onnx_models

        return onnx_models.run(options)
    from leanconv.bench.command import bench

    return bench(options, ["leanconv", *words])
