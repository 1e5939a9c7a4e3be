"""A process of one's own, and the pipe to it: what is measured there has nothing else in its memory."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE = 5.0  # seconds a process has to end once its pipe is closed


@contextlib.contextmanager
def process(life: Callable[..., None], *arguments: Any, preload: tuple[str, ...] = ()) -> Iterator[Any]:
    """The pipe to a new process, which ends with the block.

    Args:
        life: what it does, given its end of the pipe and the arguments; of a module, so that it is found there.
        arguments: what `pickle` can send.
        preload: modules that a server imports once for all such processes, where the system can fork; else, and
            without any, the process starts from nothing.
    """
    forks = bool(preload) and "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([*preload])
    here, there = context.Pipe()
    process = context.Process(target=life, args=(there, *arguments))
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(_PATIENCE)
        process.kill()
