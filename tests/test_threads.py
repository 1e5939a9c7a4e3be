"""How many threads a call uses, callers side by side, forks, and the life and death of the workers."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import leanconv
from guard import run_python
from leanconv.errors import ArgumentError

F32 = np.float32
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def problem(seed: int = 0, size: int = 40) -> tuple[Any, Any, Any]:
    """An image, weights and the result."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 16, size, size)).astype(F32)
    w = rng.standard_normal((32, 16, 3, 3)).astype(F32)
    return x, w, leanconv.conv2d(x, w, algorithm="reference", threads=1)


def right(got: Any, want: Any) -> bool:
    return bool(np.abs(got - want).max() < 1e-4)


# -- how many ------------------------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Any:
    """Forget what `set_num_threads` set."""
    module = sys.modules["leanconv.threads"]  # `leanconv.threads` is the function
    before = module._chosen
    yield
    module._chosen = before


@pytest.mark.usefixtures("restored")
def test_scopes_nest_and_belong_to_their_thread() -> None:
    leanconv.set_num_threads(3)
    assert leanconv.get_num_threads() == 3
    with leanconv.threads(2):
        assert leanconv.get_num_threads() == 2
        with leanconv.threads(5):
            assert leanconv.get_num_threads() == 5
            assert leanconv.plan((1, 1, 5, 5), (1, 1, 3, 3)).threads == 5
            assert leanconv.plan((1, 1, 5, 5), (1, 1, 3, 3), threads=1).threads == 1
            with ThreadPoolExecutor(1) as other:
                assert other.submit(leanconv.get_num_threads).result() == 3
                inside = contextvars.copy_context()
                assert other.submit(inside.run, leanconv.get_num_threads).result() == 5
        assert leanconv.get_num_threads() == 2
        leanconv.set_num_threads(7)
        assert leanconv.get_num_threads() == 2
        with pytest.raises(KeyError), leanconv.threads(4):
            raise KeyError
        assert leanconv.get_num_threads() == 2
    assert leanconv.get_num_threads() == 7


def test_scopes_of_tasks_are_apart() -> None:
    async def task(n: int) -> list[int]:
        seen = []
        with leanconv.threads(n):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(leanconv.get_num_threads())
        return seen

    async def both() -> list[list[int]]:
        return list(await asyncio.gather(task(2), task(3)))

    assert asyncio.run(both()) == [[2] * 3, [3] * 3]


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "2", None])
def test_numbers_that_are_none(bad: Any) -> None:
    before = leanconv.get_num_threads()
    with pytest.raises(ArgumentError):
        leanconv.set_num_threads(bad)
    with pytest.raises(ArgumentError), leanconv.threads(bad):
        pass
    assert leanconv.get_num_threads() == before


def test_the_environment_sets_the_number(monkeypatch: Any) -> None:
    script = "import leanconv; print(leanconv.get_num_threads())"
    monkeypatch.setenv("LEANCONV_NUM_THREADS", "3")
    assert run_python(script) == "3"
    monkeypatch.delenv("LEANCONV_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_python(script) == "1"


# -- callers side by side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["direct", "im2row_strip", "im2col"])
def test_many_callers(algorithm: str) -> None:
    """Eight callers, 200 calls each, on one bound plan, on plans of their own and unbound; with and without workspace."""
    cases = [problem(seed, 12 + seed) for seed in range(8)]
    shared = leanconv.plan((1, 16, 12, 12), cases[0][1].shape, algorithm=algorithm, threads=2).bind(cases[0][1])
    start, failures = threading.Barrier(8), []

    def caller(i: int) -> None:
        x, w, want = cases[i]
        own = leanconv.plan(x.shape, w.shape, algorithm=algorithm, threads=1 + i % 3).bind(w)
        out = np.empty_like(want)
        start.wait()
        for turn in range(200):
            if turn % 3 == 0:
                ok = right(shared(cases[0][0]), cases[0][2])
            elif turn % 3 == 1:
                out.fill(np.nan)
                ok = right(own(x, out=out), want)
            else:
                ok = right(leanconv.conv2d(x, w, algorithm=algorithm, threads=1 + turn % 4), want)
            if not ok:
                failures.append((i, turn))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
        assert not thread.is_alive(), "a caller hangs"
    assert not failures


def test_first_calls_at_once() -> None:
    """The pool, the kernel and the plan are all made while others ask for them."""
    script = """
import threading, numpy as np, leanconv
x, w = np.ones((1, 4, 20, 20), "f4"), np.ones((8, 4, 3, 3), "f4")
start, results = threading.Barrier(8), []
def caller():
    start.wait()
    results.append(leanconv.conv2d(x, w, threads=2))
threads = [threading.Thread(target=caller) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(results), all((r == 36).all() for r in results))
"""
    assert run_python(script) == "8 True"


def test_more_threads_than_chunks_and_cores() -> None:
    x, w, want = problem(1, 5)
    for threads in (1, 2, 3, 8, 33):
        assert right(leanconv.conv2d(x, w, threads=threads), want)


# -- forks -----------------------------------------------------------------------------------------------------------


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


@FORKS
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_and_so_does_its_parent() -> None:
    x, w, want = problem()
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=3).bind(w)
    assert right(bound(x), want)
    for _ in range(5):
        assert child_status(lambda: right(bound(x), want)) == 0
        assert right(bound(x), want)
    assert child_status(lambda: child_status(lambda: right(bound(x), want)) == 0) == 0
    assert child_status(lambda: right(leanconv.conv2d(x[:, :, 1:], w, threads=2), want[:, :, 1:])) == 0


@FORKS
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_computes() -> None:
    x, w, want = problem(2, 60)
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=2).bind(w)
    stop, failures = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            if not right(bound(x), want):
                failures.append(1)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(20):
            assert child_status(lambda: right(bound(x), want)) == 0
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not failures


@FORKS
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_holds_our_locks() -> None:
    """The child has no other thread that would release them."""
    x, w, want = problem(2, 60)  # a result of 430 KB, beyond what the C library's heap keeps
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
        return right(bound(x), want) and right(bound(strided), want) and right(fresh, np.clip(want, -1.5, 2.5))

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert child_status(compute, 10) == 0
    finally:
        release.set()
        holder.join()


# -- idling and ending -----------------------------------------------------------------------------------------------


def test_idle_workers_use_no_time() -> None:
    x, w, want = problem()
    assert right(leanconv.conv2d(x, w, threads=4), want)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


ENDINGS = {
    "plain": "",
    "exit": "import sys; sys.exit(0)",
    "daemon still computing": """
import threading
threading.Thread(target=lambda: [bound(x) for _ in iter(int, 1)], daemon=True).start()
import time; time.sleep(0.1)
""",
    "thread still computing": """
import threading
threading.Thread(target=lambda: [bound(x) for _ in range(200)]).start()
""",
    "called at exit": "import atexit; atexit.register(lambda: bound(x))",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_processes_end_cleanly(ending: str) -> None:
    script = f"""
import numpy as np, leanconv
x, w = np.ones((1, 8, 30, 30), "f4"), np.ones((16, 8, 3, 3), "f4")
bound = leanconv.plan(x.shape, w.shape, threads=3).bind(w)
assert (bound(x) == 72).all()
import os; os.dup2(1, 2)  # what is said on stderr is seen by the test
{ENDINGS[ending]}
"""
    assert run_python(script) == ""


@POSIX
def test_interrupts_in_a_loop_of_calls() -> None:
    x, w, want = problem()
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=2).bind(w)
    bound(x)
    arena = bound.plan.arena
    main = threading.main_thread().ident
    assert main is not None
    for turn in range(20):
        timer = threading.Timer(0.01 + 0.001 * turn, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1_000_000):
                bound(x)
        timer.join()
        assert right(bound(x), want)
    assert arena.live_bytes == 0
