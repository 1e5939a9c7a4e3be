"""Where the storages of a network stand in one block of memory, so that those alive together never overlap.

Offline dynamic storage allocation: the largest storages are placed first, each as low as those placed before allow
(Y. Pisarchyk, J. Lee: Efficient Memory Management for Deep Neural Net Inference, 2020, greedy by size); other orders
are tried as long as the result is above what is alive at once, which no placement can go below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.classes import dataclass
from leanconv.memory import ALIGNMENT

MOST_TRIES = 12  # orders made from the best of the usual ones
TOLERATED = 0.005  # part above what is alive at once that is not worth a try


@dataclass(frozen=True, slots=True)
class Region:
    """A storage or a workspace: `nbytes` that are needed from step `first` to step `last`, both included.

    `shrunk`: a step after which only the first bytes are needed, and how many.
    """

    name: str
    nbytes: int
    first: int
    last: int
    shrunk: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """Bytes in whole cache lines, first and last step, of each time that needs another number of bytes."""
        if self.shrunk is None or self.shrunk[0] >= self.last:
            return ((_lines(self.nbytes), self.first, self.last),)
        step, left = self.shrunk
        return ((_lines(self.nbytes), self.first, step), (_lines(left), step + 1, self.last))


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Offsets of regions.

    Attributes:
        regions: in the order given.
        offsets: start of each, a multiple of a cache line.
        nbytes: of the whole block, exactly.
        bound: bytes that are alive at once at the worst step; no plan is smaller.
    """

    regions: tuple[Region, ...]
    offsets: tuple[int, ...]
    nbytes: int
    bound: int


def _lines(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan_arena(regions: Sequence[Region]) -> ArenaPlan:
    """Offsets for regions, the best of several greedy orders."""
    lines = [_lines(region.nbytes) for region in regions]
    bound = _bound(regions)
    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-lines[i], regions[i].first),
        lambda i: (regions[i].first, -lines[i]),
        lambda i: (-lines[i] * (regions[i].last - regions[i].first + 1), regions[i].first),
        lambda i: (regions[i].first - regions[i].last, -lines[i]),
        lambda i: (-regions[i].last, -lines[i]),
    )
    best: tuple[int, list[int], list[int]] | None = None
    for key in orders:
        order = sorted(range(len(regions)), key=key)
        offsets = _place(regions, lines, order)
        size = max((o + n for o, n in zip(offsets, lines, strict=True)), default=0)
        if best is None or size < best[0]:
            best = size, offsets, order
        if size == bound:
            break
    assert best is not None
    least, found, order = best
    for _ in range(MOST_TRIES):
        if least <= bound * (1 + TOLERATED):
            break
        # What ended highest goes first: it then stands low, and others find their place around it.
        offsets = _place(regions, lines, order)
        high = max(range(len(regions)), key=lambda i: (offsets[i] + lines[i], lines[i]))
        order = [high, *(i for i in order if i != high)]
        offsets = _place(regions, lines, order)
        size = max(o + n for o, n in zip(offsets, lines, strict=True))
        if size < least:
            least, found = size, offsets
    return ArenaPlan(tuple(regions), tuple(found), least, bound)


def _bound(regions: Sequence[Region]) -> int:
    changes: dict[int, int] = {}
    for size, first, last in (part for region in regions for part in region.parts):
        changes[first] = changes.get(first, 0) + size
        changes[last + 1] = changes.get(last + 1, 0) - size
    total = most = 0
    for step in sorted(changes):
        total += changes[step]
        most = max(most, total)
    return most


def _place(regions: Sequence[Region], lines: Sequence[int], order: Sequence[int]) -> list[int]:
    """Each as low as those placed before it allow, in the smallest gap that holds it."""
    offsets = [0] * len(regions)
    placed: list[tuple[int, int, int, int]] = []  # start, end, first step, last step; by start
    for i in order:
        first, last, size = regions[i].first, regions[i].last, lines[i]
        if not size:
            continue
        parts = regions[i].parts
        if len(parts) > 1:
            offsets[i] = _lowest(parts, placed)
        else:
            at, best, gap = 0, -1, -1
            for start, end, begin, stop in placed:
                if begin > last or stop < first:
                    continue
                if start - at >= size and (best < 0 or start - at < gap):
                    best, gap = at, start - at
                at = max(at, end)
            offsets[i] = best if best >= 0 else at
        placed += [(offsets[i], offsets[i] + part, begin, stop) for part, begin, stop in parts if part]
        placed.sort()
    return offsets


def _lowest(parts: Sequence[tuple[int, int, int]], placed: Sequence[tuple[int, int, int, int]]) -> int:
    """The lowest offset at which no part meets what is placed."""

    def free(at: int) -> bool:
        return not any(
            begin <= last and stop >= first and start < at + size and end > at
            for size, first, last in parts
            for start, end, begin, stop in placed
        )

    return next(at for at in sorted({0, *(end for _, end, _, _ in placed)}) if free(at))
