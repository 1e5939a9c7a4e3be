"""Indirect convolution: the definition, and the table that a plan keeps."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import leanconv
from definitions_indirect import PADDING, indirect, indirection_table
from guard import GuardedAllocator
from leanconv import oracle
from leanconv.algorithms.indirect import Indirect
from leanconv.host import this_host
from leanconv.kernels.indirect import nowhere
from leanconv.memory import ALIGNMENT
from leanconv.plan import Plan
from leanconv.program import Compiled, Job, Program
from leanconv.threads import pool
from strategies import WINDOWS, Case, Geometry

EACH_WINDOW = pytest.mark.parametrize("geometry", WINDOWS, ids=range(len(WINDOWS)))
SAME = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def case_of(geometry: Geometry, **more: Any) -> Case:
    size = tuple(n + 3 for n in geometry.smallest)
    return Case((2, 6, *size), (4, 3, *geometry.kernel), geometry, groups=2, layout="NHWC", **more)


def filled_table(plan: Plan, dtype: Any) -> np.ndarray[Any, Any]:
    """What the kernel writes into the table of a plan's problem."""
    tables = Indirect().lower(plan.problem, this_host(), 2, None, {}).tables
    assert tables is not None
    with GuardedAllocator():
        blocks = [leanconv.memory.allocate(buffer.nbytes) for buffer in tables.buffers]
        addresses = {b.name: block.address for b, block in zip(tables.buffers, blocks, strict=True)}
        job = Job(Compiled(Program((tables.phase,), (), 2, addresses)))
        pool().run(job.address, 2)
        return np.asarray(blocks[0]).view(dtype).copy()


@EACH_WINDOW
def test_the_definition_is_a_convolution(geometry: Geometry) -> None:
    case = replace(case_of(geometry), layout="NCHW")
    got = indirect(case.problem, case.values["x"], case.values["w"])
    np.testing.assert_allclose(got, oracle.reference(case.problem, **case.values), rtol=0, atol=1e-12)


@EACH_WINDOW
def test_the_table_is_that_of_the_definition(geometry: Geometry) -> None:
    problem = case_of(geometry).problem
    entries = filled_table(case_of(geometry).plan("indirect"), np.int32)
    pixel_bytes = problem.in_channels * problem.itemsize
    wanted = indirection_table(problem).ravel()
    np.testing.assert_array_equal(entries, np.where(wanted == PADDING, nowhere(4), wanted * pixel_bytes))


def test_bytes_are_those_of_the_formula() -> None:
    """P * Q * taps offsets of 4 bytes and C/g zeros, whatever batch, groups and number of filters."""

    def lines(nbytes: int) -> int:
        return -(-nbytes // ALIGNMENT) * ALIGNMENT

    for batch, groups, filters in ((1, 1, 4), (5, 1, 32), (2, 4, 8)):
        shape = (filters, 24 // groups, 3, 3)
        plan = leanconv.plan((batch, 11, 13, 24), shape, padding=1, groups=groups, layout="NHWC", algorithm="indirect")
        assert plan.table_bytes == lines(11 * 13 * 9 * 4) + lines(24 // groups * 4)
        assert plan.workspace_bytes == plan.table_bytes
    plain = leanconv.plan((1, 11, 13, 24), (4, 24, 3, 3), layout="NHWC", algorithm="indirect")
    assert plain.workspace_bytes == lines(9 * 11 * 9 * 4)  # without padding no zeros are needed


def test_all_that_is_bound_to_a_plan_shares_its_table() -> None:
    plan = case_of(SAME).plan("indirect", 2)
    values = case_of(SAME).values
    with GuardedAllocator() as first:
        plan.bind(values["w"])
    with GuardedAllocator() as second:
        plan.bind(values["w"])
    assert len(first.sizes) == 3 and second.sizes == [plan.packed_weight_bytes]


def test_bound_from_many_threads_at_once() -> None:
    case = case_of(SAME)
    plan, results = case.plan("indirect", 1), []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        results.append(plan.bind(case.values["w"])(case.values["x"]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        case.check(result)


def test_an_image_that_reaches_further_than_two_gigabytes() -> None:
    """Offsets of 8 bytes; the memory between the rows is never touched."""
    rows = 3 << 30
    try:
        memory = np.zeros(rows, np.uint8)  # pages come when they are written
    except MemoryError:
        pytest.skip("no address space for 3 GiB")
    x = np.lib.stride_tricks.as_strided(memory.view(np.float32), (1, 3, 5, 8), (0, 1 << 30, 32, 4))
    rng = np.random.default_rng(0)
    x[...] = rng.standard_normal(x.shape)
    w = rng.standard_normal((4, 8, 3, 3)).astype(np.float32)
    options: dict[str, Any] = {"padding": 1, "layout": "NHWC", "algorithm": "indirect", "threads": 1}
    got = leanconv.conv2d(x, w, **options)
    assert got.tobytes() == leanconv.conv2d(np.ascontiguousarray(x), w, **options).tobytes()
