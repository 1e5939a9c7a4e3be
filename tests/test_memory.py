"""Aligned blocks, layouts and the arena."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import FailingAllocator, GuardedAllocator, run_python
from leanconv.errors import AllocationError, ArgumentValueError, MemoryLimitError
from leanconv.memory import (
    ALIGNMENT,
    SPARE_BYTES,
    AlignedBlock,
    Arena,
    Buffer,
    arena_bytes,
    layout_of,
)

TWO = (Buffer("columns", 1000), Buffer("panel", 100, per_thread=True))
TWO_BYTES = 1024 + 3 * 128  # With three threads.


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4096, 1 << 20])
@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_block_is_aligned_and_exact(nbytes: int, alignment: int) -> None:
    block = AlignedBlock(nbytes, alignment)
    assert block.address % alignment == 0
    assert block.nbytes == nbytes
    block.array(np.uint8, (nbytes,))[...] = 7


def _asked_for_large_pages(address: int) -> bool:
    """Whether the system has been asked to map an address by large pages (the flag "hg" of its mapping)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            inside = begin <= address < end
        elif name == "VmFlags:" and inside:
            return "hg" in rest.split()
    return False


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no large pages")
def test_large_blocks_ask_for_large_pages_wholly_inside() -> None:
    # So large that the C library takes memory of its own for it, whatever was freed before.
    block = AlignedBlock((48 << 20) + 8192)
    page = 2 << 20
    assert block.address % page == 0
    inner = [-(-block.address // page) * page, (block.address + block.nbytes) // page * page - 1]
    assert [_asked_for_large_pages(at) for at in inner] == [True, True]
    assert not _asked_for_large_pages(block.address) or block.address % page == 0
    assert not _asked_for_large_pages(block.address + block.nbytes - 1) or inner[1] + 1 == block.address + block.nbytes


def test_block_arrays_share_memory_and_keep_it_alive() -> None:
    block = AlignedBlock(64)
    array = block.array(np.float32, (2, 3), offset=8)
    assert array.ctypes.data == block.address + 8
    array[...] = 5.0
    assert block.array(np.float32, (16,))[2] == 5.0
    del block
    assert (array == 5.0).all()
    with pytest.raises(TypeError):
        AlignedBlock(64).array(np.float32, (17,))


@pytest.mark.parametrize(("nbytes", "alignment"), [(-1, 64), (64, 0), (64, 4), (64, 96)])
def test_block_refuses_impossible_arguments(nbytes: int, alignment: int) -> None:
    with pytest.raises(ArgumentValueError):
        AlignedBlock(nbytes, alignment)


@pytest.mark.parametrize("nbytes", [1 << 62, sys.maxsize, 1 << 64, (1 << 64) + 64])
def test_block_that_no_machine_has(nbytes: int) -> None:
    with pytest.raises(AllocationError, match="could not give") as caught:
        AlignedBlock(nbytes)
    assert isinstance(caught.value, MemoryError)


def test_layout_of_known_buffers() -> None:
    layout = layout_of(TWO, 3)
    assert layout.offsets == (0, 1024)
    assert layout.sizes == (1000, 2 * 128 + 100)
    assert layout.strides == (0, 128)
    assert layout.index == {"columns": 0, "panel": 1}
    assert layout.nbytes == arena_bytes(TWO, 3) == TWO_BYTES
    assert arena_bytes(()) == 0


buffers_strategy = st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=5).map(
    lambda parts: tuple(Buffer(f"b{i}", nbytes, each) for i, (nbytes, each) in enumerate(parts))
)


@given(buffers_strategy, st.integers(1, 5))
def test_layout_parts_do_not_share_lines(buffers: tuple[Buffer, ...], threads: int) -> None:
    layout = layout_of(buffers, threads)
    parts = []
    for i, buffer in enumerate(buffers):
        copies = threads if buffer.per_thread else 1
        starts = [layout.offsets[i] + t * layout.strides[i] for t in range(copies)]
        parts += [(start, start + buffer.nbytes) for start in starts]
        assert parts[-1][1] == layout.offsets[i] + layout.sizes[i]
    assert all(start % ALIGNMENT == 0 for start, _ in parts)
    assert all(end <= start for (_, end), (start, _) in pairwise(parts))
    # Exact: nothing but the rounding of each part to whole lines.
    assert layout.nbytes == sum(-(-(end - start) // ALIGNMENT) * ALIGNMENT for start, end in parts)


@pytest.mark.parametrize(
    ("buffers", "threads"),
    [((Buffer("a", 1), Buffer("a", 2)), 1), ((Buffer("a", -1),), 1), (TWO, 0)],
)
def test_layout_refuses_nonsense(buffers: tuple[Buffer, ...], threads: int) -> None:
    with pytest.raises(ArgumentValueError):
        layout_of(buffers, threads)


def test_lease_addresses() -> None:
    with Arena().acquire(TWO, 3) as lease:
        assert lease.addresses[0] % ALIGNMENT == 0
        assert lease.addresses == (lease.address("columns"), lease.address("panel"))
        assert lease.address("panel") - lease.address("columns") == 1024
        with pytest.raises(KeyError):
            lease.address("rows")


def test_limit_is_exact() -> None:
    arena = Arena(TWO_BYTES)
    with arena.acquire(TWO, 3):
        assert arena.live_bytes == TWO_BYTES
        with pytest.raises(MemoryLimitError) as caught:
            arena.acquire((Buffer("one more byte", 1),))
        assert (caught.value.limit, caught.value.needed) == (TWO_BYTES, TWO_BYTES + 64)
        assert arena.acquire(()).addresses == ()
    assert (arena.live_bytes, arena.peak_bytes) == (0, TWO_BYTES)
    with pytest.raises(MemoryLimitError):
        Arena(TWO_BYTES - 1).acquire(TWO, 3)
    with pytest.raises(ArgumentValueError):
        Arena(-1)


def test_release_twice_gives_back_once() -> None:
    arena = Arena()
    lease = arena.acquire(TWO)
    lease.release()
    other = arena.acquire(TWO)
    lease.release()
    assert arena.live_bytes == arena_bytes(TWO)
    assert arena.acquire(TWO).addresses != other.addresses


def one(nbytes: int) -> tuple[Buffer, ...]:
    return (Buffer("b", nbytes),)


def test_spare_is_reused_for_its_size_class() -> None:
    arena = Arena()
    with arena.acquire(one(2000)) as lease:
        first = lease.addresses
    assert arena.spare_bytes == 2048
    with arena.acquire(one(2000)) as lease:
        assert lease.addresses == first
        assert arena.spare_bytes == 0
    with arena.acquire((Buffer("a", 1024), Buffer("b", 1024))) as lease:
        assert lease.addresses == (first[0], first[0] + 1024)
    with arena.acquire(one(512)):
        assert arena.spare_bytes == 2048
    # A larger one of the class takes the place of a smaller one.
    with arena.acquire(one(4032)):
        assert arena.spare_bytes == 512
    assert arena.spare_bytes == 512 + 4032
    assert arena.trim() == 512 + 4032
    assert (arena.spare_bytes, arena.trim()) == (0, 0)


def test_spares_without_limit_are_bounded() -> None:
    arena = Arena()
    quarter = SPARE_BYTES // 4
    leases = [arena.acquire(one(quarter)) for _ in range(5)]
    oldest = leases[0].addresses
    for lease in leases:
        lease.release()
    assert arena.spare_bytes == 4 * quarter
    kept = [arena.acquire(one(quarter)).addresses for _ in range(4)]
    assert oldest not in kept
    # The oldest go, of whatever size.
    arena = Arena()
    leases = [arena.acquire(one(quarter << i)) for i in (1, 0, 0)]
    for lease in leases:
        lease.release()
    arena.acquire(one(64)).release()
    assert arena.spare_bytes == 2 * quarter + 64
    arena.acquire(one(SPARE_BYTES + 64)).release()
    assert arena.spare_bytes == 2 * quarter + 64


def test_with_limit_lent_and_spare_stay_below_it() -> None:
    arena = Arena(10 * 64)
    rng = np.random.default_rng(0)
    leases = []
    for _ in range(2000):
        nbytes = 64 * int(rng.integers(1, 6))
        fits = arena.live_bytes + nbytes <= 640
        try:
            leases.append(arena.acquire(one(nbytes)))
            assert fits
        except MemoryLimitError:
            assert not fits
        assert arena.live_bytes + arena.spare_bytes <= 640
        while leases and rng.random() < 0.5:
            leases.pop(int(rng.integers(len(leases)))).release()
        assert arena.live_bytes == sum(lease.layout.nbytes for lease in leases)
    assert arena.peak_bytes == 640


def test_threads_never_share_memory() -> None:
    arena, errors = Arena(), []

    def work(number: int) -> None:
        for i in range(300):
            buffers = one(64 * (1 + (i + number) % 5))
            with arena.acquire(buffers) as lease:
                words = np.ctypeslib.as_array(
                    (ctypes.c_int64 * (lease.layout.nbytes // 8)).from_address(lease.addresses[0])
                )
                words[...] = number
                if (words != number).any():
                    errors.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert arena.live_bytes == 0
    assert arena.spare_bytes == sum(chunk.nbytes for stack in arena._spares.values() for chunk in stack)


def test_failed_allocation_leaves_the_arena_as_it_was() -> None:
    arena = Arena(TWO_BYTES)
    for nth in (1, 2):
        with FailingAllocator(nth) as failing, pytest.raises(AllocationError):
            arena.acquire(TWO, 3)
        assert failing.count == nth
        assert arena.live_bytes == 0
    arena.acquire(TWO, 3).release()
    with pytest.raises(AllocationError):
        Arena().acquire(one(1 << 62))


def test_spares_give_way_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena()
    arena.acquire(one(100)).release()
    failures = iter([True])

    def short(nbytes: int) -> AlignedBlock:
        if next(failures, False):
            raise AllocationError("short")
        return AlignedBlock(nbytes)

    monkeypatch.setattr("leanconv.memory.AlignedBlock", short)
    lease = arena.acquire(one(1 << 20))
    assert arena.spare_bytes == 0
    lease.release()


FORK = """
import os, threading
from leanconv.memory import Arena, Buffer

arena = Arena(200)
held = arena.acquire((Buffer("a", 100),))
arena.acquire((Buffer("b", 64),)).release()
arena._lock.acquire()  # As if another thread were at work.
child = os.fork()
if not child:
    held.release()
    for _ in range(3):
        with arena.acquire((Buffer("a", 192),)):
            assert arena.live_bytes == 192
        with arena.acquire((Buffer("b", 64),)):
            pass
        assert arena.spare_bytes == sum(c.nbytes for stack in arena._spares.values() for c in stack)
    arena.trim()
    os._exit(0 if (arena.live_bytes, arena.spare_bytes) == (0, 0) else 3)
assert os.waitpid(child, 0)[1] == 0
arena._lock.release()
held.release()
assert arena.live_bytes == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_arena_works_in_a_forked_child() -> None:
    assert run_python(FORK) == "fine"


@settings(max_examples=50, deadline=None)
@given(buffers_strategy, st.integers(1, 3), st.sampled_from(["right", "left"]))
def test_guarded_buffers_hold_what_the_layout_says(buffers: tuple[Buffer, ...], threads: int, flush: str) -> None:
    with GuardedAllocator("left" if flush == "left" else "right"):
        lease = Arena().acquire(buffers, threads)
        if lease.layout.nbytes:
            for address, size in zip(lease.addresses, lease.layout.sizes, strict=True):
                ctypes.memset(address, 0, size)
        lease.release()
