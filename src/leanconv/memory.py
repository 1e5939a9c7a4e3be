"""Workspaces: declared buffers, where they lie, and the arena that lends memory for them.

Every byte a convolution needs beyond its arrays is declared as a `Buffer`. The buffers of a program make a
`Layout`, whose `nbytes` is the exact workspace, and an `Arena` lends memory for it, within a limit, keeping
what is given back for the next call.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from functools import lru_cache

from leanconv import allocation
from leanconv.allocation import ALIGNMENT, AlignedBlock, Block, allocate, set_allocator
from leanconv.classes import dataclass
from leanconv.errors import AllocationError, ArgumentValueError, MemoryLimitError

__all__ = [
    "ALIGNMENT",
    "SPARE_BYTES",
    "AlignedBlock",
    "Arena",
    "Block",
    "Buffer",
    "Layout",
    "Lease",
    "allocate",
    "arena_bytes",
    "layout_of",
    "set_allocator",
    "trim_arenas",
]

SPARE_BYTES = 64 << 20
"""Bytes an arena without a limit keeps at most for reuse."""


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
        rule = "each needs a name of its own and a size of at least 0 bytes"
        raise ArgumentValueError("buffers", buffers, rule)
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
    """What an arena lends: one block or, from a test's allocator, one a buffer; and the addresses."""

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
        addresses: start of each buffer, in the declared order; of no use after `release`, or
            if the whole workspace has 0 bytes.
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
        del dropped  # Outside the lock: to unmap a large block takes the system a while.

    def __enter__(self) -> Lease:
        """Return the lease itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()


class Arena:
    """Lends workspaces, and keeps those given back for reuse; safe with many threads and after a fork.

    Without a limit, a workspace may be served from a spare block up to twice its size, and spares of at most
    `SPARE_BYTES` are kept. With a limit a block serves only its exact size, so that lent and spare bytes
    together never pass the limit and yet no workspace that fits is refused. The oldest spares go first.

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
        # Spares by size class; each list has its oldest first.
        self._spares: dict[int, list[_Chunk]] = {}
        self._start()
        _arenas.add(self)

    def _start(self) -> None:
        """Empty the arena, also in a forked child: a thread that is gone may hold the lock there."""
        self._lock = threading.Lock()
        self.live_bytes = self.spare_bytes = self._clock = 0
        # Emptied in place: a chunk that is still lent knows the list it goes back to.
        for stack in self._spares.values():
            stack.clear()

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
            if stack and allocation.test_allocator is None:
                chunk = stack.pop()  # usually the one
                if self._exact and chunk.nbytes != nbytes:
                    stack.append(chunk)
                    chunk = next((spare for spare in stack if spare.nbytes == nbytes), None)
                    if chunk is not None:
                        stack.remove(chunk)
                if chunk is not None:
                    self.spare_bytes -= chunk.nbytes
                    if chunk.nbytes < nbytes:
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
            stack = None if allocation.test_allocator else self._spares.setdefault(layout.size_class, [])
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


def trim_arenas() -> int:
    """Free the spares of all arenas of the process, and return how many bytes that were."""
    return sum(arena.trim() for arena in list(_arenas))


def _restart_arenas() -> None:
    for arena in list(_arenas):
        arena._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_arenas)
