"""The thread pool: Python threads that enter one native loop and stay there, without the interpreter's lock.

How many threads a call uses: `threads=` of the call, else `with leanconv.threads(n)`, else
`set_num_threads(n)`, else `machine.default_threads()` (LEANCONV_NUM_THREADS, OMP_NUM_THREADS, affinity,
cgroup limits, physical cores).  Workers are made when first needed, survive as daemons, sleep in the kernel
when idle, and are made anew after a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from leanconv.checks import flag as check_flag
from leanconv.checks import integer
from leanconv.kernels import offsets, stalls
from leanconv.locks import new_lock
from leanconv.memory import AlignedBlock

# Seconds: see `kernels.stalls`, and `kernels.offsets` for the last two.
LIMITS = {
    stalls.MOST_BALANCE: 0.01,
    stalls.SHORTEST: 0.005,
    stalls.LONGEST: 0.2,
    stalls.REST: 0.005,
    offsets.NEAR: 0.0003,
    offsets.SHORT: 0.0001,
}
_chosen: int | None = None
_scoped: contextvars.ContextVar[int | None] = contextvars.ContextVar("leanconv_threads", default=None)


def get_num_threads() -> int:
    """How many threads a call made now would use at most."""
    return _scoped.get() or _chosen or default_num_threads()


def chosen_num_threads() -> int | None:
    """How many threads the caller has asked for, by `threads` or `set_num_threads`; None if nothing was said."""
    return _scoped.get() or _chosen


@functools.cache
def default_num_threads() -> int:
    """How many threads calls use if nothing was said."""
    from leanconv.machine import default_threads

    return default_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads calls use from now on, in the whole process.

    Raises:
        ArgumentTypeError: n is not an integer.
        ArgumentValueError: n is not positive.
    """
    global _chosen
    _chosen = integer("n", n, 1)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Within this block (in this thread or task only) calls use n threads.

    Raises:
        ArgumentTypeError: n is not an integer.
        ArgumentValueError: n is not positive.
    """
    token = _scoped.set(integer("n", n, 1))
    try:
        yield
    finally:
        _scoped.reset(token)


class Pool:
    """Workers of one process and the memory that they share with callers."""

    def __init__(self) -> None:
        from leanconv.compiled import runtime_functions

        self._linked = runtime_functions()
        functions = self._linked.addresses
        self._share, self.call = functions["leanconv_share"], functions["leanconv_call"]
        self._block = AlignedBlock(offsets.POOL_BYTES)
        ctypes.memset(self._block.address, 0, offsets.POOL_BYTES)
        self.address = self._block.address
        self._keep = _install_semaphore(self.address)
        self.flush_denormals(_flush)
        self.submit: Callable[[int, int, int], None] = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
        )(functions["leanconv_submit"])
        self._worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(functions["leanconv_worker"])
        self._workers: list[threading.Thread] = []
        self._lock = new_lock()
        self._busy = ctypes.c_int64.from_address(self.address + offsets.BUSY)
        self._avoided = ctypes.c_int64.from_address(self.address + offsets.AVOIDED)
        self._avoided.value = -1
        self._current_cpu = _current_cpu()
        self._usable: set[int] = set()
        if self._current_cpu is not None:
            self._usable = os.sched_getaffinity(0)
            function = ctypes.cast(self._current_cpu, ctypes.c_void_p).value
            ctypes.c_void_p.from_address(self.address + offsets.CURRENT_CPU).value = function
        self._began = self._now()

    def provide(self, helpers: int) -> None:
        """See to it that there are so many workers."""
        if helpers > len(self._workers):
            self._grow(helpers)

    def run(self, job: int, count: int) -> None:
        """Run the job at an address on `count` threads, the caller being one of them."""
        helpers = count - 1
        if helpers:
            self.provide(helpers)
            if not self._busy.value:
                self._spread()
        self.submit(self.address, job, helpers)

    def _now(self) -> tuple[float, int]:
        """The time in seconds, and in ticks of the clock that native code reads."""
        nothing = AlignedBlock(offsets.JOB_RECORDS)
        ctypes.memset(nothing.address, 0, offsets.JOB_RECORDS)
        self.submit(self.address, nothing.address, 0)
        return time.perf_counter(), ctypes.c_int64.from_address(nothing.address + offsets.JOB_BEGAN).value

    def _set_limits(self, limits: Mapping[int, float]) -> None:
        """Tell native code some durations, given in seconds by word, in ticks of its clock."""
        # Long enough for the clock's speed to be known to a few percent.
        time.sleep(max(0.0, self._began[0] + 2e-4 - time.perf_counter()))
        seconds, ticks = self._now()
        rate = (ticks - self._began[1]) / max(seconds - self._began[0], 1e-9)
        for word, duration in limits.items():
            ctypes.c_int64.from_address(self.address + word).value = int(rate * duration)

    def flush_denormals(self, flush: bool) -> None:
        """Whether numbers below the normal range count as 0 in jobs that begin from now on."""
        ctypes.c_int64.from_address(self.address + offsets.FLUSH).value = int(flush)

    def _spread(self) -> None:
        """Keep workers off the caller's core.

        The kernel may wake a thread on the core of the one that wakes it, behind it, or move the caller to the one that
        workers are kept on: the caller has then done all the work before the worker runs, call after call.

        Workers go where the caller may go, or where the one could that made the pool: a caller that is kept to one core
        leaves them the rest. If there is no other core they stay where they are, and that one counts as avoided all the
        same: native code lets calls in that come from there, others take 4 us longer.
        """
        if self._current_cpu is None:
            return
        cpu = self._current_cpu()
        if cpu == self._avoided.value:
            return
        self._avoided.value = cpu
        others = (os.sched_getaffinity(0) - {cpu}) or (self._usable - {cpu})
        for worker in self._workers if others else ():
            with contextlib.suppress(OSError):  # a worker that ends, or a sandbox that forbids it
                os.sched_setaffinity(worker.native_id or 0, others)

    def _grow(self, count: int) -> None:
        with self._lock:
            while len(self._workers) < count:
                name = f"leanconv-{len(self._workers) + 1}"
                thread = threading.Thread(target=self._worker, args=(self.address,), name=name, daemon=True)
                thread.start()
                self._workers.append(thread)
            self._avoided.value = -1
            self._set_limits(LIMITS)

    def stop(self) -> None:
        """End all workers and wait for them."""
        ctypes.c_int64.from_address(self.address + offsets.STOP).value = 1
        post = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(
            ctypes.c_void_p.from_address(self.address + offsets.POST).value or 0
        )
        semaphore = ctypes.c_void_p.from_address(self.address + offsets.SEMAPHORE).value
        for _ in self._workers:
            post(semaphore, 1, None)
        for worker in self._workers:
            worker.join(timeout=5.0)


def _install_semaphore(pool: int) -> list[object]:
    """Put the addresses of the platform's semaphore into the pool; returns what must stay alive.

    The kernel calls wait(semaphore, -1) and post(semaphore, 1, null): POSIX ignores the further arguments,
    dispatch reads the first as "for ever", Windows reads them as time-out and count.
    """

    def put(offset: int, value: int | None) -> None:
        ctypes.c_void_p.from_address(pool + offset).value = value

    def address(function: object) -> int | None:
        return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]

    if sys.platform == "win32":
        system = ctypes.WinDLL("kernel32")  # the branch for Windows cannot be type-checked elsewhere
        system.CreateSemaphoreW.restype = ctypes.c_void_p
        put(offsets.SEMAPHORE, system.CreateSemaphoreW(None, 0, 1 << 30, None))
        wait, post, give = system.WaitForSingleObject, system.ReleaseSemaphore, system.SwitchToThread
        keep: list[object] = [system]
    elif sys.platform == "darwin":
        system = ctypes.CDLL(None)
        system.dispatch_semaphore_create.restype = ctypes.c_void_p
        put(offsets.SEMAPHORE, system.dispatch_semaphore_create(ctypes.c_long(0)))
        wait, post, give = (
            system.dispatch_semaphore_wait,
            system.dispatch_semaphore_signal,
            system.sched_yield,
        )
        keep = [system]
    else:
        system = ctypes.CDLL(None)
        storage = AlignedBlock(64)  # sem_t has 32 bytes on 64-bit Linux
        ctypes.memset(storage.address, 0, 64)
        if system.sem_init(ctypes.c_void_p(storage.address), 0, 0) != 0:
            raise OSError("sem_init failed")
        put(offsets.SEMAPHORE, storage.address)
        wait, post, give = system.sem_wait, system.sem_post, system.sched_yield
        keep = [system, storage]
    put(offsets.WAIT, address(wait))
    put(offsets.POST, address(post))
    put(offsets.YIELD, address(give))
    return keep


def _current_cpu() -> Any:
    """The C library's function for the core that the calling thread runs on; None where threads are not kept off it."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_flush = False
_pool: Pool | None = None
_pool_lock = new_lock()


def pool() -> Pool:
    """The pool of this process, made when first asked for."""
    global _pool
    if _pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = Pool()
    return _pool


def set_flush_denormals(flush: bool) -> None:
    """Let numbers below the normal range (2^-126 in single precision) count as 0, in the whole process.

    Older processors take a hundred times as long for sums in which they occur, as weights of trained networks may. The
    mode of the calling thread is as before after each call.

    Args:
        flush: whether to; off at the start.

    Raises:
        ArgumentTypeError: not a bool.
    """
    global _flush
    _flush = check_flag("flush", flush)
    pool().flush_denormals(_flush)


def use_pool(other: Pool | None) -> None:
    """Let a pool of another kind run what is called from now on; None for one of our own."""
    global _pool
    with _pool_lock:
        _abandoned.append(_pool)
        _pool = other


def _after_fork() -> None:
    """The child has none of the parent's workers: forget the pool (its memory stays, a worker may have been in it)."""
    global _pool
    _abandoned.append(_pool)
    _pool = None


_abandoned: list[Pool | None] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _stop() -> None:
    global _pool
    if _pool is not None:
        running, _pool = _pool, None
        running.stop()
