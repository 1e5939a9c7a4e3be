"""Timing one call, alike in this process and in those of the peers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Thread pools of libraries spin for a while after their work is done (OpenBLAS about 30 ms, others 200 ms).
_SETTLE_AT_MOST = 0.5
_SETTLE_STEP = 1e-3
_SETTLED = 0.1  # a process that uses less than this part of one core is at rest

# From so many calls on a sample begins with one that is not timed: cheap next to the sample, it fetches into the
# caches what the others displaced, and wakes threads.
_WARM_FROM = 4


def sample(call: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of one of several calls; afterwards the process is at rest."""
    with _no_collection():
        if calls >= _WARM_FROM:
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = max(time.perf_counter() - start, 1e-9) / calls
    settle()
    return seconds


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
