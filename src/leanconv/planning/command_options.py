"""Options that the commands of planning have in common, and what they name."""

from __future__ import annotations

import argparse
from typing import Any


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add = parser.add_argument
    layouts = ("NHWC", "NCHW", "CHWN", "CHWN8")
    add("--layout", choices=layouts, default="NHWC", help="order of the arrays in memory (default: NHWC)")
    add("--threads", type=int, metavar="N", help="most threads (default: as leanconv chooses)")
    add("--memory-limit", metavar="BYTES", help="bytes, or text such as 256KiB")
    add("--algorithm", default="auto", metavar="A,B", help='names joined by commas, or exclusions such as "!mec"')
    add("--accuracy", choices=("exact", "standard", "fast"), default="standard")
    add("--json", action="store_true", help="print JSON")


def asked(options: argparse.Namespace) -> tuple[Any, int, int | None]:
    """Algorithms, threads and limit that the common options name."""
    from leanconv.checks import integer
    from leanconv.planning.limits import resolve_limit
    from leanconv.threads import get_num_threads

    words = options.algorithm.split(",")
    threads = get_num_threads() if options.threads is None else integer("threads", options.threads, 1)
    return words if len(words) > 1 else words[0], threads, resolve_limit(options.memory_limit)
