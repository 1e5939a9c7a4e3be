"""How many threads a call uses, callers side by side, and the life and death of the workers."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import leanconv
from guard import run_python
from layers import random_layer, roughly_equal
from leanconv.errors import ArgumentError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


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
            assert leanconv.plan((1, 64, 56, 56), (64, 64, 3, 3), algorithm="direct").threads == 5
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
    """Eight callers, 200 calls each, on one bound plan, on plans of their own and unbound."""
    cases = [random_layer(seed, 12 + seed) for seed in range(8)]
    shared = leanconv.plan((1, 16, 12, 12), cases[0][1].shape, algorithm=algorithm, threads=2).bind(cases[0][1])
    start, failures = threading.Barrier(8), []

    def caller(i: int) -> None:
        x, w, want = cases[i]
        own = leanconv.plan(x.shape, w.shape, algorithm=algorithm, threads=1 + i % 3).bind(w)
        out = np.empty_like(want)
        start.wait()
        for turn in range(200):
            if turn % 3 == 0:
                ok = roughly_equal(shared(cases[0][0]), cases[0][2])
            elif turn % 3 == 1:
                out.fill(np.nan)
                ok = roughly_equal(own(x, out=out), want)
            else:
                ok = roughly_equal(leanconv.conv2d(x, w, algorithm=algorithm, threads=1 + turn % 4), want)
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
    x, w, want = random_layer(1, 5)
    for threads in (1, 2, 3, 8, 33):
        assert roughly_equal(leanconv.conv2d(x, w, threads=threads), want)


# -- idling and ending -----------------------------------------------------------------------------------------------


def test_idle_workers_use_no_time() -> None:
    x, w, want = random_layer()
    assert roughly_equal(leanconv.conv2d(x, w, threads=4), want)
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
bound = leanconv.plan(x.shape, w.shape, algorithm="direct", threads=3).bind(w)
assert (bound(x) == 72).all()
import os; os.dup2(1, 2)  # what is said on stderr is seen by the test
{ENDINGS[ending]}
"""
    assert run_python(script) == ""


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@POSIX
@pytest.mark.usefixtures("interrupts")
def test_interrupts_in_a_loop_of_calls() -> None:
    x, w, want = random_layer()
    bound = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=2).bind(w)
    bound(x)
    arena = bound.plan.arena
    main = threading.main_thread().ident
    assert main is not None
    interrupted = 0
    for turn in range(20):
        timer = threading.Timer(0.01 + 0.001 * turn, signal.pthread_kill, (main, signal.SIGINT))
        end = time.monotonic() + 0.5
        try:
            timer.start()  # inside: on a busy machine it may go off before the next line
            while timer.is_alive() or time.monotonic() < end:
                bound(x)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert roughly_equal(bound(x), want)
    # Python drops an interrupt that comes while a finaliser or a callback of the collector runs.
    assert interrupted >= 15
    assert arena.live_bytes == 0
