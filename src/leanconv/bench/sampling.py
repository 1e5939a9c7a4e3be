"""Timing one call, alike in this process and in those of the peers.

A sample in which the process had to wait for a CPU that others used is taken again: how long its threads stood in the
queue is counted by the system (Linux), apart from the time that is measured, so the choice favours nobody.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Thread pools of libraries spin for a while after their work is done (OpenBLAS about 30 ms, others 200 ms).
_SETTLE_AT_MOST = 0.5
_SETTLE_STEP = 1e-3
_SETTLED = 0.1  # a process that uses less than this part of one core is at rest

# From so many calls on a sample begins with one that is not timed: cheap next to the sample, it fetches into the
# caches what the others displaced, and wakes threads.
_WARM_FROM = 4

_TASKS = Path("/proc/self/task")
_TRIES = 3
_DISTURBED = 0.03  # part of a sample's time that its threads waited for a CPU
_LONG = 0.5  # seconds; a longer sample is not taken again


def sample(call: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of one of several calls; afterwards the process is at rest."""
    with _no_collection():
        if calls >= _WARM_FROM:
            call()
        least, seconds = math.inf, 0.0
        for _ in range(_TRIES):
            queued, start = _queued(), time.perf_counter()
            for _ in range(calls):
                call()
            took = max(time.perf_counter() - start, 1e-9)
            lost = (_queued() - queued) / took
            if lost < least:
                least, seconds = lost, took / calls
            if lost < _DISTURBED or took > _LONG:
                break
    settle()
    return seconds


def _queued() -> float:
    """Return for how many seconds the threads of this process have waited for a CPU; 0 where that is unknown."""
    nanoseconds = 0
    # Threads may end meanwhile, and not every system tells.
    with contextlib.suppress(OSError):
        for thread in _TASKS.iterdir():
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def settle() -> None:
    """Wait until the threads of this process no longer spin, so that they take nothing from whoever is next."""
    end = time.perf_counter() + _SETTLE_AT_MOST
    while True:
        used, begin = time.process_time(), time.perf_counter()
        time.sleep(_SETTLE_STEP)
        now = time.perf_counter()
        if time.process_time() - used < _SETTLED * (now - begin) or now > end:
            return


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in a sample."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
