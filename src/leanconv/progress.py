"""Telling somebody who waits how far a network is: packed layers and compiled kernels, counted."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TypeAlias

Watcher: TypeAlias = Callable[[str, int, int], object]
"""Called from any thread with what is done ("plan", "pack", "compile"), how many, and of how many (0: not known)."""

_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("leanconv_progress", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Within this block (in this thread or task) a watcher is told; None for nobody."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher:
    """Who is to be told, or somebody who does not listen; for threads that are started here."""
    return _watcher.get() or _nobody


def report(what: str, done: int, total: int) -> None:
    """Tell who watches."""
    watcher()(what, done, total)


def _nobody(what: str, done: int, total: int) -> None:
    return None
