"""Aligned memory, and the arena that workspaces come from.

Every byte a convolution needs beyond its arrays is declared as a `Buffer`. The buffers of a program make a
`Layout`, whose `nbytes` is the exact workspace, and an `Arena` lends memory for it, within a limit, keeping what
is given back for the next call. For tests, `set_allocator` replaces the source of the memory: every buffer is
then an allocation of its own, fresh at each call, so that guard pages can surround it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from leanconv.errors import AllocationError, ArgumentValueError, MemoryLimitError

# Bytes: a cache line, and the widest vector. Each buffer, and each thread's part of one, starts at a multiple.
ALIGNMENT = 64
# Bytes an arena without a limit keeps at most for reuse.
SPARE_BYTES = 64 << 20

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


def _system_allocate(nbytes: int, alignment: int) -> int:
    """Return an address, 0 if there is no such memory."""
    if sys.platform == "win32":
        return _libc._aligned_malloc(nbytes, alignment) or 0
    pointer = ctypes.c_void_p()
    return 0 if _libc.posix_memalign(ctypes.byref(pointer), alignment, nbytes) else pointer.value or 0


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

    def __del__(self, _free: Callable[[int], None] = _system_free) -> None:
        """Free the memory; `_free` is bound here because globals may be gone when the interpreter ends."""
        if self.address:
            _free(self.address)


Allocator: TypeAlias = Callable[[int, int], Block]  # (nbytes, alignment) -> block, or AllocationError
_test_allocator: Allocator | None = None


def set_allocator(allocator: Allocator | None) -> Allocator | None:
    """Take memory from `allocator`, or from the system again (None); returns the one before. For tests."""
    global _test_allocator
    previous, _test_allocator = _test_allocator, allocator
    return previous


def allocate(nbytes: int, alignment: int = ALIGNMENT) -> Block:
    """Return memory outside any arena (packed weights), or raise AllocationError; heeds `set_allocator`."""
    return (_test_allocator or AlignedBlock)(nbytes, alignment)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A part of a workspace: `nbytes` in all or, with `per_thread`, for each thread that runs."""

    name: str
    nbytes: int
    per_thread: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the buffers of a workspace lie. All numbers are bytes, the tuples in the declared order.

    Attributes:
        nbytes: the whole workspace, exactly.
        offsets: start of each buffer from the start of the workspace.
        sizes: what each buffer occupies, all threads together, up to the last byte a kernel may touch.
        strides: distance between the parts of two threads; 0 for a buffer all threads share.
        index: position of each name in the tuples.
        size_class: bit length of `nbytes`; an arena keeps its spares by it.
    """

    nbytes: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    index: dict[str, int]
    size_class: int


@lru_cache(maxsize=4096)
def layout_of(buffers: tuple[Buffer, ...], threads: int = 1) -> Layout:
    """Place `buffers` one after another, each (and each thread's part) on cache lines of its own.

    Raises:
        ArgumentValueError: a negative size, a name used twice, or `threads` below one.
    """
    index = {buffer.name: i for i, buffer in enumerate(buffers)}
    if threads < 1:
        raise ArgumentValueError("threads", threads, "must be at least 1")
    if len(index) != len(buffers) or any(buffer.nbytes < 0 for buffer in buffers):
        raise ArgumentValueError("buffers", buffers, "each needs a name of its own and a size of at least 0 bytes")
    lines = [-(-buffer.nbytes // ALIGNMENT) * ALIGNMENT for buffer in buffers]
    strides = [line if buffer.per_thread else 0 for buffer, line in zip(buffers, lines, strict=True)]
    offsets, end = [], 0
    for line, stride in zip(lines, strides, strict=True):
        offsets.append(end)
        end += line + stride * (threads - 1)
    sizes = [b.nbytes + stride * (threads - 1) for b, stride in zip(buffers, strides, strict=True)]
    return Layout(end, tuple(offsets), tuple(sizes), tuple(strides), index, end.bit_length())


def arena_bytes(buffers: tuple[Buffer, ...], threads: int = 1) -> int:
    """Return the exact bytes an arena lends for `buffers`, every rounding to cache lines counted."""
    return layout_of(buffers, threads).nbytes


class _Chunk:
    """What an arena lends: one block or, from a test's allocator, one a buffer; with the buffers' addresses."""

    __slots__ = ("addresses", "block", "layout", "nbytes", "stack", "stamp")

    def __init__(self, layout: Layout, stack: list[_Chunk] | None) -> None:
        self.stack = stack  # Where it waits while it is a spare; None if it must not be lent again.
        self.nbytes, self.stamp = layout.nbytes, 0
        if stack is None:
            self.block: Block | list[Block] = [allocate(size) for size in layout.sizes]
            self.layout, self.addresses = layout, tuple([block.address for block in self.block])
        else:
            self.block = AlignedBlock(self.nbytes)
            self.place(layout)

    def place(self, layout: Layout) -> None:
        start = self.block.address  # type: ignore[union-attr]
        self.layout, self.addresses = layout, tuple([start + offset for offset in layout.offsets])


class Lease:
    """A workspace on loan; a context manager that gives it back.

    Attributes:
        layout: sizes and strides of the buffers.
        addresses: start of each buffer, in the declared order; of no use after `release`, or if all have 0 bytes.
    """

    __slots__ = ("_arena", "_held", "addresses", "layout")

    def __init__(self, arena: Arena, layout: Layout, addresses: tuple[int, ...], held: _Chunk | None) -> None:
        """Made by `Arena.acquire`."""
        self._arena = arena
        self._held = held
        self.layout = layout
        self.addresses = addresses

    def address(self, name: str) -> int:
        """Return where the buffer called `name` starts, for thread 0 if each thread has its own part."""
        return self.addresses[self.layout.index[name]]

    def release(self) -> None:
        """Give the memory back to the arena. Doing so twice does no harm."""
        if self._held is None:
            return
        arena, dropped = self._arena, None
        with arena._lock:
            held, self._held = self._held, None
            if held is None:  # Another thread was quicker.
                return
            live = arena.live_bytes - self.layout.nbytes
            # Negative if the lease was taken before a fork: the child's count began anew.
            arena.live_bytes = live if live > 0 else 0
            if held.stack is not None and held.nbytes <= arena._spare_ceiling:
                arena._clock = held.stamp = arena._clock + 1
                held.stack.append(held)
                arena.spare_bytes += held.nbytes
                if arena.spare_bytes > arena._spare_ceiling:
                    dropped = arena._evict(arena._spare_ceiling)
        del dropped  # Freed outside the lock, as everywhere.

    def __enter__(self) -> Lease:
        """Return the lease itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()


class Arena:
    """Lends workspaces, and keeps those given back for reuse. Safe for any number of threads, and across fork.

    Without a limit, a workspace may be served from a spare block up to twice its size, and spares of at most
    `SPARE_BYTES` are kept. With a limit a block serves only its exact size, so that lent and spare bytes together
    never pass the limit and yet no workspace that fits is refused. The spares least recently used go first.

    Attributes:
        limit: bytes, or None.
        live_bytes: bytes on loan, by their layouts.
        spare_bytes: bytes kept for reuse.
        peak_bytes: the most bytes that were ever on loan at one time.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Start empty; raises ArgumentValueError if `limit`, in bytes, is negative."""
        if limit is not None and limit < 0:
            raise ArgumentValueError("limit", limit, "must not be negative")
        self.limit = limit
        self.peak_bytes = 0
        self._exact = limit is not None
        self._ceiling = sys.maxsize if limit is None else limit
        self._spare_ceiling = SPARE_BYTES if limit is None else limit
        self._start()
        _arenas.add(self)

    def _start(self) -> None:
        """Set up an empty arena; also in a forked child, where the lock may be held by a thread that is gone."""
        self._lock = threading.Lock()
        self.live_bytes = self.spare_bytes = self._clock = 0
        # Spares by size class; each list has its oldest first.
        self._spares: dict[int, list[_Chunk]] = {}

    def acquire(self, buffers: tuple[Buffer, ...] | Layout, threads: int = 1) -> Lease:
        """Lend memory for `buffers`, not initialised; `threads` is how many parts per-thread buffers have.

        A `Layout` (which knows its threads) in place of the buffers saves looking it up at each call.

        Raises:
            MemoryLimitError: what is on loan and this would pass the limit.
            AllocationError: the system has no such memory.
        """
        layout = buffers if isinstance(buffers, Layout) else layout_of(buffers, threads)
        nbytes = layout.nbytes
        if not nbytes:
            return Lease(self, layout, layout.offsets, None)
        chunk = None
        with self._lock:
            live = self.live_bytes + nbytes
            if live > self._ceiling:
                raise MemoryLimitError(self._ceiling, live, "the workspace (with those in use)")
            self.live_bytes = live
            if live > self.peak_bytes:
                self.peak_bytes = live
            stack = self._spares.get(layout.size_class)
            if stack and _test_allocator is None:
                chunk = stack.pop()
                self.spare_bytes -= chunk.nbytes
                if chunk.nbytes != nbytes and (self._exact or chunk.nbytes < nbytes):
                    chunk = None
        if chunk is None:
            chunk = self._allocate(layout)
        elif chunk.layout is not layout:
            chunk.place(layout)
        return Lease(self, layout, chunk.addresses, chunk)

    def trim(self) -> int:
        """Free all spares, and return how many bytes that were."""
        with self._lock:
            dropped = self._evict(0)
        return sum(chunk.nbytes for chunk in dropped)

    def _allocate(self, layout: Layout) -> _Chunk:
        """Allocate for `layout`, whose bytes are already counted as lent."""
        with self._lock:
            dropped = self._evict(self._ceiling - self.live_bytes)
            stack = None if _test_allocator else self._spares.setdefault(layout.size_class, [])
        del dropped
        try:
            try:
                return _Chunk(layout, stack)
            except AllocationError:
                if not self.trim():
                    raise
                return _Chunk(layout, stack)  # Where the spares were there may be room now.
        except BaseException:
            with self._lock:
                self.live_bytes -= layout.nbytes
            raise

    def _evict(self, ceiling: int) -> list[_Chunk]:
        """Remove the oldest spares until at most `ceiling` bytes are left; the caller holds the lock."""
        dropped = []
        while self.spare_bytes > ceiling:
            stack = min((s for s in self._spares.values() if s), key=lambda s: s[0].stamp)
            dropped.append(stack.pop(0))
            self.spare_bytes -= dropped[-1].nbytes
        return dropped


_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _restart_arenas() -> None:
    for arena in list(_arenas):
        arena._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_arenas)
