"""The memory of the calls of a network: an arena and jobs for each call at a time, lent and kept for later calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from leanconv import allocation
from leanconv.arrays import Array, address_of
from leanconv.locks import Room, new_lock
from leanconv.memory import Block, allocate
from leanconv.network.arena import ArenaPlan
from leanconv.network.native import Linked, NativeJob, NumpyStep

SPARE_CONTEXTS = 4
"""Arenas that a network without a limit keeps for later calls."""


class Context:
    """The memory of one call: an arena, and a job for each program."""

    def __init__(
        self,
        arena: ArenaPlan,
        segments: Sequence[Linked | NumpyStep],
        index: Mapping[str, int],
        constants: Mapping[str, Array],
        *,
        apart: bool,
    ) -> None:
        """Allocate an arena.

        Args:
            arena: the regions of a run.
            segments: what runs.
            index: places in the table of addresses: one for addresses themselves, the arena's regions, inputs and
                outputs, constants.
            constants: what is read as it is.
            apart: whether regions may be blocks of their own where tests allocate, so that guard pages find what
                reaches over their ends.
        """
        self._index = index
        self.bases = np.zeros(len(index), np.int64)
        if apart and allocation.test_allocator is not None:
            self.blocks: list[Block] = [allocate(region.nbytes) for region in arena.regions]
            starts = [block.address for block in self.blocks]
        else:
            self.blocks = [allocate(arena.nbytes)] if arena.nbytes else []
            start = self.blocks[0].address if self.blocks else 0
            starts = [start + offset for offset in arena.offsets]
        self.bases[1 : 1 + len(starts)] = starts
        for name, array in constants.items():
            self.bases[index[name]] = address_of(array) if array.size else 0
        self._ends = slice(1 + len(starts), len(index) - len(constants))
        self._jobs = [NativeJob(segment) if isinstance(segment, Linked) else segment for segment in segments]

    def place(self, given: Sequence[Array], results: Mapping[str, Array]) -> None:
        """Note where the caller's arrays are."""
        self.bases[self._ends] = [address_of(array) if array.size else 0 for array in (*given, *results.values())]

    def addresses(self) -> dict[str, int]:
        """Where each region starts."""
        return {name: int(self.bases[i]) for name, i in self._index.items()}

    def run(self, given: Sequence[Array], results: Mapping[str, Array]) -> None:
        """All programs in order."""
        self.place(given, results)
        for job in self._jobs:
            job.run(self.bases if isinstance(job, NativeJob) else self.addresses())  # type: ignore[arg-type]


class Contexts:
    """The contexts of a network: those kept for later calls, and how many calls may have one at a time."""

    def __init__(self, make: Callable[[], Context], most: int | None) -> None:
        """`make` allocates one; `most`: at a time, of which later calls wait for one; None for any number."""
        self._make = make
        self._lock = new_lock()
        self._idle: list[Context] = []
        self._kept = SPARE_CONTEXTS if most is None else most
        self._room = None if most is None else Room(most)

    def lent(self) -> Lent:
        """A context for the time of a `with`."""
        return Lent(self)

    def trim(self) -> int:
        """Free those that no call has; returns how many they were."""
        with self._lock:
            dropped, self._idle = self._idle, []
        return len(dropped)

    def take(self) -> Context:
        """One that is kept, or a new one; waits where there are enough."""
        if self._room is not None:
            self._room.acquire()
        try:
            with self._lock:
                found = self._idle.pop() if self._idle and allocation.test_allocator is None else None
            return found or self._make()
        except BaseException:
            if self._room is not None:
                self._room.release()
            raise

    def keep(self, context: Context) -> None:
        """Keep a context that was taken, unless there are enough."""
        if allocation.test_allocator is None:
            with self._lock:
                if len(self._idle) < self._kept:
                    self._idle.append(context)

    def leave(self) -> None:
        """Let another call take one."""
        if self._room is not None:
            self._room.release()


class Lent:
    """A context on loan."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    def __enter__(self) -> Context:
        self._context = self._contexts.take()
        return self._context

    def __exit__(self, *_: object) -> None:
        self._contexts.keep(self._context)
        del self._context  # if it is not kept, its memory is free before another call asks for some
        self._contexts.leave()
