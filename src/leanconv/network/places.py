"""Where a value lies: a part of a storage, with the strides of each axis; views of it are arithmetic on those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from leanconv.classes import dataclass, replace
from leanconv.network.graph import ValueType, itemsize


@dataclass(frozen=True, slots=True)
class Place:
    """A value in memory.

    Attributes:
        storage: name of the block of memory.
        offset: bytes from its start to the element of index 0.
        shape: of the value, in ONNX's order of axes.
        strides: elements from neighbour to neighbour along each axis; 0 where one element stands for all.
        dtype: NumPy's name of the element type.
    """

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return itemsize(self.dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def byte_strides(self) -> tuple[int, ...]:
        """Strides in bytes."""
        return tuple(step * self.item for step in self.strides)

    def same_elements(self, other: Place) -> bool:
        """Whether both have the same elements at the same indices."""
        return (self.storage, self.offset, self.shape, self.dtype) == (
            other.storage,
            other.offset,
            other.shape,
            other.dtype,
        ) and all(a == b for a, b, n in zip(self.strides, other.strides, self.shape, strict=True) if n > 1)


def row_major(rank: int) -> tuple[int, ...]:
    """The order of axes in memory, outermost first, of a dense array in C order."""
    return tuple(range(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """The order of axes of an image (N, C, *spatial) whose channels are adjacent."""
    return (0, *range(2, rank), 1) if rank >= 3 else row_major(rank)


def strides_in(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array whose axes lie in memory in an order, outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def dense(storage: str, type_: ValueType, order: Sequence[int] | None = None, offset: int = 0) -> Place:
    """A value without gaps, its axes in memory in an order (C order if None)."""
    order = row_major(len(type_.shape)) if order is None else order
    return Place(storage, offset, type_.shape, strides_in(type_.shape, order), type_.dtype)


def order_of(place: Place) -> tuple[int, ...]:
    """The order of a value's axes in memory, outermost first; axes of one element stay where they are."""
    axes = [axis for axis, n in enumerate(place.shape) if n > 1]
    by_stride = iter(sorted(axes, key=lambda axis: (-abs(place.strides[axis]), axis)))
    return tuple(next(by_stride) if n > 1 else axis for axis, n in enumerate(place.shape))


def is_dense(place: Place) -> bool:
    """Whether the elements lie in C order without gaps."""
    wanted = strides_in(place.shape, row_major(len(place.shape)))
    return all(a == b for a, b, n in zip(place.strides, wanted, place.shape, strict=True) if n > 1)


def reshaped(place: Place, shape: Sequence[int]) -> Place | None:
    """The same elements in C order under another shape, or None if that takes a copy."""
    shape = tuple(shape)
    if place.size == 0:
        return replace(place, shape=shape, strides=strides_in(shape, row_major(len(shape))))
    old = [(n, s) for n, s in zip(place.shape, place.strides, strict=True) if n > 1]
    new = [0] * len(shape)
    axes = [axis for axis, n in enumerate(shape) if n > 1]
    at = 0
    while old:
        # The least runs of axes, of the old and of the new shape, that hold as many elements.
        size, count = old[0][0], 1
        end, wanted = at + 1, shape[axes[at]]
        while size != wanted:
            if size < wanted:
                size *= old[count][0]
                count += 1
            else:
                wanted *= shape[axes[end]]
                end += 1
        for (_, outer), (n, inner) in pairwise(old[:count]):
            if outer != n * inner:
                return None
        step = old[count - 1][1]
        for axis in reversed(axes[at:end]):
            new[axis] = step
            step *= shape[axis]
        old, at = old[count:], end
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:  # of no meaning; as in a dense array
            new[axis] = new[axis + 1] * shape[axis + 1] if axis + 1 < len(shape) else 1
    return replace(place, shape=shape, strides=tuple(new))


def transposed(place: Place, axes: Sequence[int]) -> Place:
    """The value with its axes in another order: axis i is the old axis `axes[i]`."""
    return replace(place, shape=tuple(place.shape[a] for a in axes), strides=tuple(place.strides[a] for a in axes))


def sliced(place: Place, starts: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Place:
    """Every `steps`-th element from `starts` on, `shape` of them, along each axis."""
    offset = place.offset + sum(a * s for a, s in zip(starts, place.strides, strict=True)) * place.item
    strides = tuple(a * b for a, b in zip(place.strides, steps, strict=True))
    return replace(place, offset=offset, shape=tuple(shape), strides=strides)


def broadcast(place: Place, shape: Sequence[int]) -> Place:
    """The value under a larger shape, its elements repeated (strides of 0), by NumPy's rule."""
    missing = len(shape) - len(place.shape)
    pairs = zip(place.shape, place.strides, shape[missing:], strict=True)
    strides = (0,) * missing + tuple(0 if have == 1 and want != 1 else step for have, step, want in pairs)
    return replace(place, shape=tuple(shape), strides=strides)


def span(place: Place) -> tuple[int, int]:
    """First and last byte (exclusive) of the storage that the value's elements reach; strides not negative."""
    if not place.size:
        return place.offset, place.offset
    ends = [step * (n - 1) * place.item for step, n in zip(place.strides, place.shape, strict=True)]
    low = place.offset + sum(e for e in ends if e < 0)
    return low, place.offset + sum(e for e in ends if e > 0) + place.item
