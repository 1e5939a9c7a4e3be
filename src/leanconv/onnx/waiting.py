"""A bar on a terminal for whoever waits for a network; nothing anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanconv.progress import Watcher

_WORDS = {"plan": "planning", "pack": "packing weights", "compile": "compiling kernels"}


@contextlib.contextmanager
def waiting(*, quiet: bool) -> Iterator[Watcher | None]:
    """What shows progress on the standard error, and is gone at the end; None where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=_WORDS.get(what, what), completed=done, total=total or None)
            if what == "compile" and done >= total - 1:
                bar.stop()  # before anything is printed

        yield tell
