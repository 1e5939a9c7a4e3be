"""Forked children compute, whatever the other threads of their parent were doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import leanconv
from layers import random_layer, roughly_equal

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def child_status(work: Any, seconds: float = 30.0) -> int:
    """Run `work` in a forked child; its exit status, 0 if it returned True."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def test_a_forked_child_computes_and_so_does_its_parent() -> None:
    x, w, want = random_layer()
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=3).bind(w)
    assert roughly_equal(bound(x), want)
    for _ in range(5):
        assert child_status(lambda: roughly_equal(bound(x), want)) == 0
        assert roughly_equal(bound(x), want)
    assert child_status(lambda: child_status(lambda: roughly_equal(bound(x), want)) == 0) == 0
    assert child_status(lambda: roughly_equal(leanconv.conv2d(x[:, :, 1:], w, threads=2), want[:, :, 1:])) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_forked_child_has_workers_of_its_own() -> None:
    x, w, want = random_layer()
    bound = leanconv.plan(x.shape, w.shape, algorithm="direct", threads=3).bind(w)
    bound(x)

    def compute() -> bool:
        alone = len(os.listdir("/proc/self/task"))
        return roughly_equal(bound(x), want) and (alone, len(os.listdir("/proc/self/task"))) == (1, 3)

    assert child_status(compute) == 0


def test_a_fork_while_another_thread_computes() -> None:
    x, w, want = random_layer(2, 60)
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=2).bind(w)
    stop, failures = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            if not roughly_equal(bound(x), want):
                failures.append(1)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(20):
            assert child_status(lambda: roughly_equal(bound(x), want)) == 0
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not failures


def test_a_fork_while_another_thread_holds_our_locks() -> None:
    """The child has no other thread that would release them."""
    x, w, want = random_layer(2, 60)  # a result of 430 KB, beyond what the C library's heap keeps
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=2).bind(w)
    bound(x)
    kinds = type(threading.Lock()), type(threading.RLock())
    modules = [module for name, module in sys.modules.items() if name.startswith("leanconv.")]
    owners = [*modules, bound, bound.plan.arena, leanconv.compiled.object_cache()]
    locks = {id(lock): lock for owner in owners for lock in vars(owner).values() if isinstance(lock, kinds)}
    assert len(locks) >= 5
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks.values():
            lock.acquire()
        held.set()
        release.wait()
        for lock in locks.values():
            lock.release()

    def compute() -> bool:
        strided = np.repeat(x, 2, axis=3)[..., ::2]
        fresh = leanconv.conv2d(x, w, activation=("clip", -1.5, 2.5), threads=3)  # a plan and a kernel not made yet
        return (
            roughly_equal(bound(x), want)
            and roughly_equal(bound(strided), want)
            and roughly_equal(fresh, np.clip(want, -1.5, 2.5))
        )

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert child_status(compute, 10) == 0
    finally:
        release.set()
        holder.join()
