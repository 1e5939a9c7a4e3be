"""Timing one call, alike in this process and in those of the peers.

A sample in which the process had to wait for a CPU that others used is taken again: how long its threads stood in the
queue is counted by the system (Linux), apart from the time that is measured, so the choice favours nobody.

The threads of a pool may stand in one another's way: the system may wake a thread on its waker's CPU and leave both
there for a tenth of a second (LiteRT on two threads, among ten others that took turns with it, took as long as on one
on 70 of 104 layers; alone it never did). In a sample the calling thread therefore has a CPU of its own.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Thread pools of libraries spin for a while after their work is done (OpenBLAS about 30 ms, others 200 ms).
_SETTLE_AT_MOST = 0.5
_SETTLE_STEP = 1e-3
_SETTLED = 0.1  # a process that uses less than this part of one core is at rest

# A sample begins with calls that are not timed, one at least: they fetch into the caches what the others displaced, and
# wake threads. Else the number of calls, which is found anew in each run, would decide how much of that a sample holds.
_WARM, _MOST_WARM = 2e-3, 100  # seconds, calls

# A single call that takes longer hardly notices: a last-level cache of 32 MiB is filled in some 3 ms.
_NOTICES = 0.1  # seconds

_TASKS = Path("/proc/self/task")
_TRIES = 3
_DISTURBED = 0.03  # part of a sample's time that its threads waited for a CPU
_LONG = 0.5  # seconds; a longer sample is not taken again
_BUSY = 0.2  # of the time of the thread that runs longest


def sample(call: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of one of several calls; afterwards the process is at rest.

    Some calls before are not timed, unless it is a single one that takes long.
    """
    with _no_collection():
        before = _threads()
        seconds, lost = _timed(call, 1)
        tries = 1
        if calls > 1 or seconds < _NOTICES:
            for _ in range(min(int(_WARM / seconds), _MOST_WARM)):
                call()
            tries, lost = 0, math.inf
        with _apart(before):
            while lost >= _DISTURBED and tries < _TRIES and (not tries or seconds * calls <= _LONG):
                seconds, lost = min((seconds, lost), _timed(call, calls), key=lambda result: result[1])
                tries += 1
    settle()
    return seconds


def _timed(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Return the mean seconds of a call, and for what part of the time this process waited for a CPU."""
    queued, start = _queued(), time.perf_counter()
    for _ in range(calls):
        call()
    took = max(time.perf_counter() - start, 1e-9)
    return took / calls, (_queued() - queued) / took


def _queued() -> float:
    """Return for how many seconds the threads of this process have waited for a CPU; 0 where that is unknown."""
    return sum(waited for _, waited in _threads().values()) / 1e9


def _threads() -> dict[int, tuple[int, int]]:
    """Return for how many nanoseconds each thread of this process ran and waited; none where that is unknown."""
    found = {}
    # Threads may end meanwhile, and not every system tells.
    with contextlib.suppress(OSError):
        for thread in _TASKS.iterdir():
            ran, waited = (thread / "schedstat").read_text().split()[:2]
            found[int(thread.name)] = int(ran), int(waited)
    return found


@contextmanager
def _apart(before: Mapping[int, tuple[int, int]]) -> Iterator[None]:
    """Keep the calling thread on a CPU of its own, and the others off it.

    Unless it leaves the work to others, as what has run since `before` shows, or they would not have a CPU each, or
    calls make threads of their own, which would inherit the caller's CPU.
    """
    ran = {thread: times[0] - before.get(thread, (0, 0))[0] for thread, times in _threads().items()}
    busy = [thread for thread, nanoseconds in ran.items() if nanoseconds > _BUSY * max(ran.values())]
    caller = threading.get_native_id()
    usable = sorted(os.sched_getaffinity(0)) if ran else []
    if len(ran) < 2 or ran.keys() != before.keys() or caller not in busy or not 1 < len(usable) >= len(busy):
        yield
        return
    allowed = {}
    try:
        for thread in ran:
            with contextlib.suppress(OSError):  # it has ended
                cpus = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, usable[:1] if thread == caller else usable[1:])
                allowed[thread] = cpus
        yield
    finally:
        for thread, cpus in allowed.items():
            # The caller still is on its CPU: a thread that was kept to that one would share it from now on.
            restored = cpus if thread == caller or cpus - {usable[0]} else set(usable)
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, restored)


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
