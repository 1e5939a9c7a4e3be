"""Nothing grows: ten thousand calls of mixed shapes and ways leave the process as large as a few hundred did."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

import leanconv
from guard import run_python

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")

MIXED = """
import gc, resource, sys
import numpy as np, leanconv

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

rng = np.random.default_rng(0)
small, large = ([i.name for i in leanconv.algorithms((2, 4, 8, 8), (8, 4, r, r)) if i.applies] for r in (1, 3))
names = sorted({*small, *large}) + ["auto"] * 3
w3, w1 = rng.standard_normal((8, 4, 3, 3)).astype("f4"), rng.standard_normal((8, 4, 1, 1)).astype("f4")
plan = leanconv.plan((1, 4, 10, 10), (8, 4, 3, 3), threads=2)

def turn(i):
    size = 8 + i % 17
    name = names[i % len(names)]
    w = w3 if name in large or name == "auto" and i % 2 else w1
    x = np.empty((1 + i % 2, 4, size, size), "f4")
    x[...] = 1.0
    kind = i % 5
    if kind == 0:
        leanconv.conv2d(x, w, algorithm=name, threads=1 + i % 2)
    elif kind == 1:
        leanconv.plan(x.shape, w.shape, algorithm=name, threads=2).bind(w)(x)
    elif kind == 2:
        plan.bind(w3)(np.ones((1, 4, 10, 10), "f4"))
    elif kind == 3:
        leanconv.conv2d(x[:, :, ::-1, 1:], w, activation="relu", threads=2)
    else:
        try:
            leanconv.conv2d(x, w[:, :3], algorithm=name)
        except leanconv.ArgumentError:
            pass

first = int(sys.argv[1])
for i in range(first):
    turn(i)
gc.collect()
before = resident()
for i in range(int(sys.argv[2])):
    turn(i)
gc.collect()
print(resident() - before)
"""

LARGE = """
import gc, resource, numpy as np, leanconv
x, w = np.ones((1, 4, 200, 200), "f4"), np.ones((8, 4, 3, 3), "f4")
bound = leanconv.plan(x.shape, w.shape, algorithm="im2col", threads=2).bind(w)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for _ in range(20):
    bound(x)
before = resident()
for _ in range(300):
    bound(x)
gc.collect()
print(resident() - before)
"""


@LINUX
def test_memory_stays_flat() -> None:
    # Every kind of call comes within 17 * 5 * 40 turns, and the caches of plans are full of them.
    assert int(run_python(MIXED, "3400", "10000")) < 3 << 20


@LINUX
def test_memory_of_large_results_stays_flat() -> None:
    assert int(run_python(LARGE)) < 3 << 20


def test_caches_of_plans_are_bounded() -> None:
    from leanconv import calls

    w = np.ones((1, 1, 1, 1), np.float32)
    for size in range(calls.CALLS_KEPT + 50):
        leanconv.conv1d(np.ones((1, 1, size + 1), np.float32), w[0], algorithm="reference", threads=1)
    gc.collect()
    assert len(calls._calls) <= calls.CALLS_KEPT


def test_dropped_plans_are_freed() -> None:
    import weakref

    x, w = np.ones((1, 4, 9, 9), np.float32), np.ones((8, 4, 3, 3), np.float32)
    plan = leanconv.plan(x.shape, w.shape, memory_limit="1 MiB")
    bound = plan.bind(w)
    bound(x)
    bound(x[..., ::-1])
    references = [weakref.ref(plan), weakref.ref(bound), weakref.ref(plan.arena)]
    del plan, bound
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
