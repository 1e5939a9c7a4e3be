"""The native way into a bound plan: what it takes, what it leaves to the checks, and who may use it at once."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import leanconv
from guard import GuardedAllocator
from layers import random_layer, roughly_equal
from leanconv import entry
from leanconv.errors import ArgumentError, MemoryLimitError

pytestmark = pytest.mark.skipif(not entry.available, reason="no entries on this interpreter")
pool_module = sys.modules["leanconv.threads"]  # `leanconv.threads` is a function


def bound_layer(algorithm: str = "direct", **options: Any) -> tuple[Any, Any, Any]:
    """A bound plan that has been called once, an image, and what it gives."""
    x, w, want = random_layer()
    bound = leanconv.plan(x.shape, w.shape, algorithm=algorithm, **options).bind(w)
    bound(x)
    return bound, x, want


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call that the native way is tried with: whether it took it."""
    found: list[bool] = []
    runner = sys.modules["leanconv.bound"].Runner
    try_run = runner.try_run

    def watched(*args: Any) -> Any:
        result = try_run(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(runner, "try_run", watched)
    return found


@pytest.mark.parametrize("algorithm", ["direct", "im2row_strip", "winograd_f2"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_plain_arrays_are_taken(algorithm: str, count: int, taken: list[bool]) -> None:
    bound, x, want = bound_layer(algorithm, threads=count)
    for _ in range(20):
        out = leanconv.empty(want.shape)
        out[...] = np.nan
        assert bound(x, out) is out
        assert roughly_equal(out, want)
        assert roughly_equal(bound(x), want)
    # With helpers a call is left to Python where the caller has moved to another core.
    assert taken.count(True) >= (40 if count == 1 else 20)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not kept on cores")
def test_a_caller_kept_to_one_core_is_let_in(taken: list[bool]) -> None:
    """Calls from there took the long way, 4 us, each time. Helpers go to the cores that it leaves."""
    bound, x, want = bound_layer(threads=2)
    bound(x)
    allowed = os.sched_getaffinity(0)
    helpers = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("leanconv-")]

    def calls() -> None:  # on a thread of its own, on each core that there is
        for core in sorted(allowed):
            os.sched_setaffinity(0, {core})
            bound(x)
            taken.clear()
            assert all(roughly_equal(bound(x), want) for _ in range(3))
            assert taken == [True] * 3
            if len(allowed) > 1:
                assert all(os.sched_getaffinity(helper or 0) == allowed - {core} for helper in helpers)

    with ThreadPoolExecutor(1) as pinned:
        pinned.submit(calls).result()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_residuals_are_taken(layout: str, taken: list[bool]) -> None:
    """One apart from the output, or the output itself; not one that overlaps it, nor one of another kind."""
    shape, w = (1, 4, 8, 8) if layout == "NCHW" else (1, 8, 8, 4), np.ones((4, 4, 1, 1), np.float32)
    plan = leanconv.plan(shape, w.shape, layout=layout, algorithm="direct", threads=1, residual=True)
    bound, x = plan.bind(w), np.ones(shape, np.float32)
    memory = np.zeros(1024, np.float32)

    def part(at: int) -> Any:
        return memory[at : at + 256].reshape(shape)

    bound(x, residual=x)
    for at in (0, 512, 256):
        memory[...] = 3
        assert bound(x, part(256), part(at)) is not None
        assert (part(256) == 7).all()
    assert (bound(x, residual=part(0)) == 7).all()
    assert taken == [True] * 4
    for at in (1, 255, 257, 511):
        with pytest.raises(ArgumentError, match="residual"):
            bound(x, part(256), part(at))
    for bad in (None, x[:, :, 1:], x.astype(np.float64), np.ones(shape, ">f4"), [1.0]):
        with pytest.raises(ArgumentError, match="residual"):
            bound(x, part(0), bad)
    turned = x[:, :, ::-1].copy()[:, :, ::-1]
    assert (bound(x, part(0), turned) == 5).all()
    assert taken == [True] * 4 + [False] * 10
    with pytest.raises(ArgumentError, match="residual"):
        bound_layer(threads=1)[0](random_layer()[0], None, x)


def test_workspaces_on_guarded_pages(taken: list[bool]) -> None:
    bound, x, want = bound_layer("im2row_strip", threads=2)
    with GuardedAllocator():
        for _ in range(3):
            assert roughly_equal(bound(x), want)
    assert any(taken)


def test_arrays_of_other_kinds_are_left_to_the_checks(taken: list[bool]) -> None:
    bound, x, want = bound_layer(threads=1)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), np.float32)
    wide[..., ::2] = x
    unaligned = np.zeros(want.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(want.shape)
    for good in (wide[..., ::2], x[:, :, ::-1].copy()[:, :, ::-1], x.view(np.memmap)):
        assert roughly_equal(bound(good), want)
    other = np.zeros((*want.shape[:-1], 2 * want.shape[-1]), np.float32)
    assert roughly_equal(bound(x, other[..., ::2]), want)
    assert not any(taken)
    locked = np.zeros_like(want)
    locked.flags.writeable = False
    for bad_x, bad_out in (
        (x, locked),
        (x, unaligned),
        (x, want.astype(np.float64)),
        (x, want[0]),
        (x, [1.0]),
        (x.astype(np.float64), None),
        (x.astype(">f4"), None),
        (x[:, :, 1:], None),
        (x[0], None),
    ):
        with pytest.raises(ArgumentError):
            bound(bad_x, bad_out)
    assert not any(taken)
    assert not locked.any()
    assert not unaligned.any()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_arrays_that_overlap_are_refused_and_neighbours_are_not(layout: str, taken: list[bool]) -> None:
    shape, w = (1, 4, 8, 8) if layout == "NCHW" else (1, 8, 8, 4), np.ones((4, 4, 1, 1), np.float32)
    bound = leanconv.plan(shape, w.shape, layout=layout, algorithm="direct", threads=1).bind(w)
    memory = np.ones(1024, np.float32)
    for at, other in ((0, 256), (256, 0), (300, 556), (512, 0)):
        x, out = (memory[i : i + 256].reshape(shape) for i in (at, other))
        x[...] = 1
        assert (bound(x, out) == 4).all()
    assert taken == [True] * 3
    for at, other in ((0, 0), (0, 255), (255, 0), (1, 256), (256, 1)):
        x, out = (memory[i : i + 256].reshape(shape) for i in (at, other))
        with pytest.raises(ArgumentError, match="out"):
            bound(x, out)
    assert taken == [True] * 3 + [False] * 5


def test_references_are_counted() -> None:
    bound, x, want = bound_layer(threads=1)
    out = np.zeros_like(want)
    none = sys.getrefcount(None)
    before = sys.getrefcount(x), sys.getrefcount(out)
    for _ in range(1000):
        bound(x, out)
        roughly_equal(bound(x), want)
        with pytest.raises(ArgumentError):
            bound(x, x)
    assert (sys.getrefcount(x), sys.getrefcount(out)) == before
    assert abs(sys.getrefcount(None) - none) < 500


def test_many_callers_at_once(taken: list[bool]) -> None:
    """Each has a job of its own; other threads run while one computes."""
    bound, x, want = bound_layer("im2row_strip", threads=2)
    wrong: list[int] = []

    def work() -> None:
        out = np.zeros_like(want)
        for turn in range(50):
            out[...] = np.nan
            if bound(x, out) is not out or not roughly_equal(out, want):
                wrong.append(turn)

    callers = [threading.Thread(target=work) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    assert any(taken)
    assert len(bound._runner._entries) <= 7


def test_a_refused_workspace_leaves_the_plan_usable() -> None:
    x, w, want = random_layer()
    plan = leanconv.plan(x.shape, w.shape, algorithm="im2row_strip", threads=1)
    limited = leanconv.plan(
        x.shape,
        w.shape,
        algorithm="im2row_strip",
        threads=1,
        memory_limit=plan.workspace_bytes + plan.packed_weight_bytes,
    )
    bound = limited.bind(w)
    for _ in range(3):
        assert roughly_equal(bound(x), want)
    with limited.arena.acquire(limited.compiled.layout), pytest.raises(MemoryLimitError):
        bound(x)
    assert roughly_equal(bound(x), want)
    assert limited.arena.live_bytes == 0


def test_another_pool_takes_over(taken: list[bool]) -> None:
    bound, x, want = bound_layer(threads=2)
    bound(x)
    before = pool_module.pool()
    try:
        pool_module.use_pool(None)
        assert roughly_equal(bound(x), want)
        assert pool_module.pool() is not before
        assert all(each.pool is pool_module.pool() for each in bound._runner._entries)
    finally:
        pool_module.pool().stop()
        pool_module.use_pool(before)
    assert roughly_equal(bound(x), want)


def test_calls_of_another_form_are_refused() -> None:
    bound, x, want = bound_layer(threads=1)
    out = np.zeros_like(want)
    bound(x, out)
    way = bound._runner._entries[0].call
    assert way(x) is None
    assert way(x, out, out) is None
    assert way(out, x) is None
    assert way(3, out) is None
    assert way(x, None) is None
    assert way(x, out) is out
    assert roughly_equal(out, want)


def test_without_entries_calls_are_checked(monkeypatch: pytest.MonkeyPatch, taken: list[bool]) -> None:
    monkeypatch.setattr(entry, "available", False)
    bound, x, want = bound_layer(threads=2)
    for _ in range(3):
        assert roughly_equal(bound(x), want)
    assert not taken
