"""The command line: all commands, and what `leanconv doctor` and `leanconv cache` do.

Only the standard library is imported here; each command imports what it needs when it runs, so that help and
version appear at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence

from leanconv import bench_cli, results_cli

OK, TROUBLE, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXIT_CODES = """\
exit codes:
  0    all is well
  1    an algorithm failed or computed something wrong, or doctor found a problem
  2    the command line, or a file it names, is not understood; nothing was done
  130  interrupted; what was finished is shown
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
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at exit
        print(f"leanconv: the output cannot be written: {error.strerror}", file=sys.stderr)
        return TROUBLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="leanconv",
        description="Convolution on CPUs: the published algorithms, with the bytes and the time of each.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    bench_cli.add_command(commands, _EXIT_CODES)
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


class _Version(argparse.Action):
    """Print the version; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from leanconv.doctor import package_version

        print(f"leanconv {package_version()}")
        parser.exit()


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
    "bench": bench_cli.run,
    "doctor": _doctor,
    "cache": _cache,
    "startup": _startup,
    **dict.fromkeys(("run", "warmup"), _model),
    **dict.fromkeys(("explain", "tune", "network", "records", "model-error", "formulas", "limits"), _plan),
    **results_cli.HANDLERS,
}
