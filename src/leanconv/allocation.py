"""Aligned memory from the system or, in tests, from an allocator with guard pages."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from leanconv.errors import AllocationError, ArgumentValueError

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector. All memory of leanconv starts at a multiple."""

if sys.platform == "win32":
    _libc = ctypes.CDLL("msvcrt")
    _libc._aligned_malloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    _libc._aligned_malloc.restype = ctypes.c_void_p
    _system_free = _libc._aligned_free
else:
    _libc = ctypes.CDLL(None)
    _libc.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
    _system_free = _libc.free
_system_free.argtypes, _system_free.restype = (ctypes.c_void_p,), None

LARGE = 4 << 20
"""Bytes from which a block asks for large pages, as NumPy's arrays do."""

_LARGE_PAGE = 2 << 20  # of x86-64 and most of ARM; where they are larger asking does nothing
_MADV_HUGEPAGE = 14

if sys.platform == "linux":
    _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _system_allocate(nbytes: int, alignment: int) -> int:
    """Return an address, 0 if there is no such memory."""
    if sys.platform == "win32":
        return _libc._aligned_malloc(nbytes, alignment) or 0
    if sys.platform == "linux" and nbytes >= LARGE:  # so that all of it but the end lies in large pages
        alignment = max(alignment, _LARGE_PAGE)
    pointer = ctypes.c_void_p()
    return 0 if _libc.posix_memalign(ctypes.byref(pointer), alignment, nbytes) else pointer.value or 0


def _ask_for_large_pages(address: int, nbytes: int) -> None:
    """Let the system map a block by large pages, where it has them and they lie in the block wholly.

    To map pages takes longer than to write them: 64 MiB for the first time take 11 ms so, 48 by pages of 4 KiB. Layers
    whose weights come from memory take 2 to 10 % less time: addresses are looked up 512 times less often. No byte more
    is mapped; a system that has none, or has been told not to use them, goes on as before.
    """
    begin = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    end = (address + nbytes) // _LARGE_PAGE * _LARGE_PAGE
    if sys.platform == "linux" and begin < end:
        _libc.madvise(begin, end - begin, _MADV_HUGEPAGE)


def trim_heap() -> None:
    """Return free pages of the C library's heap to the system, if it can (glibc)."""
    trim = getattr(_libc, "malloc_trim", None) if sys.platform != "win32" else None
    if trim is not None:
        trim(0)


class Block:
    """`nbytes` bytes at `address`, which a subclass owns and gives back when the block is collected."""

    __slots__ = ("__weakref__", "address", "nbytes")

    def __init__(self, address: int, nbytes: int) -> None:
        """Describe the memory."""
        self.address = address
        self.nbytes = nbytes

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bytes in NumPy's protocol; arrays made through it keep the block alive."""
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
        """Return a C-ordered view that starts `offset` bytes into the block and keeps it alive.

        Raises:
            TypeError: the view would reach past the end (raised by NumPy).
        """
        return np.ndarray(shape, dtype, buffer=np.asarray(self), offset=offset)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what comes out of a pickle, hold the same bytes in memory of their own."""
        return _filled, (np.asarray(self).tobytes(),)


class AlignedBlock(Block):
    """Memory of the system, not initialised, starting at a multiple of `alignment` bytes."""

    __slots__ = ()

    def __init__(self, nbytes: int, alignment: int = ALIGNMENT) -> None:
        """Allocate.

        Raises:
            ArgumentValueError: a negative size, or an alignment that is no power of two of at least 8.
            AllocationError: the system has no such memory.
        """
        super().__init__(0, nbytes)  # What __del__ finds if this raises.
        if nbytes < 0:
            raise ArgumentValueError("nbytes", nbytes, "must not be negative")
        if alignment < 8 or alignment & (alignment - 1):
            raise ArgumentValueError("alignment", alignment, "must be a power of two, and at least 8 bytes")
        # ctypes would silently cut a size that does not fit size_t.
        self.address = _system_allocate(max(nbytes, 1), alignment) if nbytes <= sys.maxsize else 0
        if not self.address:
            raise AllocationError(f"the system could not give {nbytes:,} bytes")
        if nbytes >= LARGE:
            _ask_for_large_pages(self.address, nbytes)

    def __del__(self, _free: Callable[[int], None] = _system_free) -> None:
        """Free the memory; `_free` is bound here because globals may be gone when the interpreter ends."""
        if self.address:
            _free(self.address)


Allocator: TypeAlias = Callable[[int, int], Block]  # (nbytes, alignment) -> block, or AllocationError
test_allocator: Allocator | None = None
"""What `set_allocator` installed."""


def set_allocator(allocator: Allocator | None) -> Allocator | None:
    """Take all memory from `allocator`, or from the system again (None). For tests.

    While one is installed, each buffer of a workspace is an allocation of its own, fresh at each call.

    Returns:
        The allocator that was installed before.
    """
    global test_allocator
    previous, test_allocator = test_allocator, allocator
    return previous


def allocate(nbytes: int, alignment: int = ALIGNMENT) -> Block:
    """Return memory outside any arena, such as packed weights.

    Raises:
        AllocationError: the system has no such memory.
    """
    return (test_allocator or AlignedBlock)(nbytes, alignment)


def _filled(data: bytes) -> Block:
    block = allocate(len(data))
    np.asarray(block)[:] = np.frombuffer(data, np.uint8)
    return block
