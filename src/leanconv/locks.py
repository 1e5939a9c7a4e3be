"""Locks, and room, that a forked child finds free: the threads that held them in the parent do not exist there."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock(*, again: bool = False) -> contextlib.AbstractContextManager[bool]:
    """A lock that is free again in every forked child; what it guards must bear an update left half done.

    With `again` the thread that holds it may take it again.
    """
    lock: Any = threading.RLock() if again else threading.Lock()
    _locks.add(lock)
    return lock  # type: ignore[no-any-return]


class Room(threading.Semaphore):
    """Room for so many at a time, all of it free in every forked child."""

    def __init__(self, count: int) -> None:
        """`count`: at least 1."""
        super().__init__(count)
        self._count = count
        _locks.add(self)

    def _at_fork_reinit(self) -> None:
        super().__init__(self._count)


def _free_all() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # as the standard library does for its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)
