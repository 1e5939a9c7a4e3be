"""The guarded memory that other tests build on does notice what it should notice."""

from __future__ import annotations

import ctypes
import os
import signal

import numpy as np
import pytest

from guard import PAGE, GuardedAllocator, check_canaries, guarded, guarded_copy, run_python
from leanconv.memory import ALIGNMENT, AlignedBlock, Arena, Buffer, allocate, arena_bytes

TWO = (Buffer("columns", 1000), Buffer("panel", 100, per_thread=True))


def test_an_installed_allocator_serves_each_buffer_separately() -> None:
    arena = Arena()
    arena.acquire(TWO, 3).release()
    with GuardedAllocator() as guard:
        lease = arena.acquire(TWO, 3)
        assert guard.sizes == [1000, 356]
        assert all(address % ALIGNMENT == 0 for address in lease.addresses)
        assert len(guard.live) == 2
        assert arena.live_bytes == arena_bytes(TWO, 3)
        lease.release()
        assert not guard.live
        block = allocate(100)
        assert len(guard.live) == 1
        assert np.isnan(block.array(np.float32, (25,))).all()
        del block
    assert arena.live_bytes == 0
    assert isinstance(allocate(1), AlignedBlock)


def test_guarded_arrays() -> None:
    array = guarded((3, 5), np.float32)
    assert np.isnan(array).all()
    assert (array.ctypes.data + array.nbytes) % PAGE == 0
    assert guarded((3, 5), np.float32, flush="left").ctypes.data % PAGE == 0
    assert (guarded((2,), np.int8) == -1).all()
    frozen = guarded((3, 5), np.float64, 2.0, readonly=True)
    assert (frozen == 2.0).all()
    assert not frozen.flags.writeable
    assert guarded((0, 4), np.float32).size == 0

    source = np.arange(12.0).reshape(3, 4)
    for flush in ("right", "left"):
        assert (guarded_copy(source, flush=flush) == source).all()
        spread = guarded_copy(source, strides=(80, 16), flush=flush)
        assert (spread == source).all()
        check_canaries(spread)
    assert (spread.ctypes.data + 2 * 80 + 3 * 16 + 8) % PAGE != 0
    with pytest.raises(AssertionError, match="not a guarded array"):
        check_canaries(source)


def test_canaries_notice_writes_beside_the_array() -> None:
    array = guarded((3,), np.float32, 0.0)
    check_canaries(array[1:])
    beside = np.ctypeslib.as_array((ctypes.c_float * 1).from_address(array.ctypes.data - 4))
    beside[0] = 1.0
    with pytest.raises(AssertionError, match="4 bytes before a block of 12, nearest 1 away"):
        check_canaries(array)
    with (
        pytest.raises(AssertionError, match="1 bytes after a block of 100, nearest 5 away"),
        GuardedAllocator(),
    ):
        block = allocate(100)
        ctypes.c_uint8.from_address(block.address + 104).value = 0
        del block


CRASHES = """
import ctypes, os, signal, sys
import numpy as np
from guard import GuardedAllocator, guarded
from leanconv.memory import Arena, Buffer

right, left = guarded((5,), np.float32), guarded((5,), np.float32, flush="left")
frozen = guarded((5,), np.float32, 0.0, readonly=True)
arena, allocator = Arena(), GuardedAllocator()
allocator.__enter__()
lease = arena.acquire((Buffer("a", 128), Buffer("b", 64)))
gone = arena.acquire((Buffer("a", 1 << 20),))
gone.release()
read = lambda address: ctypes.string_at(address, 1)
write = lambda address: ctypes.memset(address, 0, 1)
start = lambda array: array.ctypes.data
cases = {
    "last": lambda: read(start(right) + 19), "canary": lambda: write(start(right) - 1),
    "buffer": lambda: write(lease.addresses[1] + 63),
    "read after": lambda: read(start(right) + 20), "write after": lambda: write(start(right) + 20),
    "read before": lambda: read(start(left) - 1), "write frozen": lambda: write(start(frozen)),
    "after buffer": lambda: write(lease.addresses[0] + 128), "released": lambda: read(gone.addresses[0]),
}
for name, case in cases.items():
    child = os.fork()
    if not child:
        case()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, sep=":")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_guard_pages_stop_native_code() -> None:
    outcome = run_python(CRASHES)
    crashed = {name: int(number) for name, number in (line.split(":") for line in outcome.splitlines())}
    fatal = {int(signal.SIGSEGV), int(getattr(signal, "SIGBUS", 0))}
    assert [name for name, number in crashed.items() if number == 0] == ["last", "canary", "buffer"]
    assert len(crashed) == 9
    assert set(crashed.values()) <= {0, *fatal}
