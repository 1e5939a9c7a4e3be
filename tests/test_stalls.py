"""Workers that keep their caller waiting take no more chunks for a while. Jobs are made of Python functions here."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from leanconv.kernels import offsets, stalls
from leanconv.memory import AlignedBlock
from leanconv.threads import LIMITS, Pool

CHUNK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
Body = Callable[[int], None]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of its own."""
    made = Pool()
    yield made
    made.stop()


def word(pool: Pool, offset: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(pool.address + offset)


def run(pool: Pool, *phases: tuple[int, Body]) -> list[list[int]]:
    """Run a job of so many chunks of each body, which gets its thread; returns who took the chunks of each phase."""
    taken: list[list[int]] = [[] for _ in phases]
    block = AlignedBlock(offsets.JOB_RECORDS + offsets.RECORD_BYTES * len(phases))
    ctypes.memset(block.address, 0, offsets.JOB_RECORDS + offsets.RECORD_BYTES * len(phases))

    def put(offset: int, value: int | None) -> None:
        ctypes.c_void_p.from_address(block.address + offset).value = value

    def made(which: int, body: Body) -> object:
        def chunk(_: int, __: int, ___: int, thread: int) -> None:
            taken[which].append(thread)
            body(thread)

        return CHUNK(chunk)

    functions = [made(i, body) for i, (_, body) in enumerate(phases)]
    put(offsets.JOB_PHASES, len(phases))
    for i, (chunks, _) in enumerate(phases):
        record = offsets.JOB_RECORDS + offsets.RECORD_BYTES * i
        put(record + offsets.RECORD_FUNCTION, ctypes.cast(functions[i], ctypes.c_void_p).value)  # type: ignore[arg-type]
        put(record + offsets.RECORD_CHUNKS, chunks)
    pool.run(block.address, 2)
    return taken


def meeting() -> Body:
    """Two chunks that wait for each other, so that each thread takes one."""
    both = threading.Barrier(2)
    return lambda thread: both.wait(10) and None  # type: ignore[func-returns-value]


def test_the_clock_is_known_once_there_are_workers(pool: Pool) -> None:
    assert all(word(pool, offset).value == 0 for offset in LIMITS)
    assert sorted(run(pool, (2, meeting()))[0]) == [0, 1]
    ratio = word(pool, stalls.LONGEST).value / word(pool, stalls.SHORTEST).value
    assert ratio == pytest.approx(LIMITS[stalls.LONGEST] / LIMITS[stalls.SHORTEST], rel=1e-3)


def test_who_keeps_the_caller_waiting_rests(pool: Pool) -> None:
    run(pool, (2, meeting()))
    meet = meeting()

    def stall(thread: int) -> None:
        meet(thread)
        time.sleep(0.3 * thread)  # the worker's chunk takes much longer than the caller's

    stalled, behind = run(pool, (2, stall), (40, lambda thread: None))
    assert sorted(stalled) == [0, 1]
    assert behind == [0] * 40, "the rest of the job is the caller's"
    assert word(pool, stalls.REST_UNTIL).value > 0
    assert word(pool, stalls.BALANCE).value == 0
    assert word(pool, stalls.REST).value == 2 * word(pool, stalls.SHORTEST).value

    word(pool, stalls.REST_UNTIL).value = 1 << 62
    last = word(pool, offsets.LAST).value
    assert run(pool, (40, lambda thread: None)) == [[0] * 40]
    assert word(pool, offsets.LAST).value == last, "nobody was asked to help"

    word(pool, stalls.REST_UNTIL).value = 0
    assert sorted(run(pool, (2, meeting()))[0]) == [0, 1]
    assert word(pool, offsets.LAST).value > last


def test_what_was_saved_pays_for_a_stall(pool: Pool) -> None:
    run(pool, (2, meeting()))
    meet = meeting()

    def useful(thread: int) -> None:
        meet(thread)
        time.sleep(0.02)  # both at once: 20 ms are saved

    run(pool, (2, useful))
    assert word(pool, stalls.BALANCE).value == word(pool, stalls.MOST_BALANCE).value
    word(pool, stalls.MOST_BALANCE).value = word(pool, stalls.BALANCE).value = 1 << 60

    def stall(thread: int) -> None:
        meet(thread)
        time.sleep(0.3 * thread)

    run(pool, (2, stall))
    assert 0 < word(pool, stalls.BALANCE).value < 1 << 60
    assert word(pool, stalls.REST_UNTIL).value == 0


def test_one_chunk_is_the_callers(pool: Pool) -> None:
    run(pool, (2, meeting()))
    for _ in range(20):
        assert run(pool, (1, lambda thread: None), (2, meeting()))[0] == [0]
