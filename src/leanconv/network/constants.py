"""Constants of a network: in memory, or made whenever somebody looks at them, and gone when nobody does any more.

Packed weights are what a network runs with; the plain ones are needed only while a layer is packed.  So weights that
lie in a file, and those made of them, are held as recipes: planning a network looks at shapes only, and packing it
needs the plain weights of one layer at a time.
"""

from __future__ import annotations

import functools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, overload

import numpy as np

from leanconv.arrays import Array
from leanconv.network import scratch


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy makes anew in microseconds whenever it is asked for."""
    return dtype.name


class Constant(ABC):
    """A constant, of which shape and element type are known without looking at it.

    Attributes:
        shape: its extents.
        dtype: its element type in memory.
    """

    __slots__ = ("__weakref__", "dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Note what is known without the elements."""
        self.shape, self.dtype = shape, dtype

    @property
    def element(self) -> str:
        """NumPy's name of the element type."""
        return _name(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * self.dtype.itemsize

    @property
    def known(self) -> Array | None:
        """The elements, if somebody has them in memory."""
        return self.array()

    @abstractmethod
    def array(self) -> Array:
        """The elements, read-only; all that look at once see the same array.

        Raises:
            ModelError: they lie in a file, which cannot be read or is not what it was.
        """

    def fresh(self) -> Array:
        """The elements as an array that nobody else has, to be written over."""
        copy = scratch.empty(self.shape, self.dtype)
        copy[...] = self.array()
        return copy

    def rows(self, first: int, last: int) -> Array:
        """A part along the first axis, to look at; of what lies in a file no more than that is read."""
        return self.array()[first:last]


class Recipe(Constant):
    """A constant whose elements are got or made whenever somebody looks, and gone when nobody does any more."""

    __slots__ = ("_seen",)

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """`read` is asked for the elements."""
        super().__init__(shape, dtype)
        self._seen: weakref.ref[Array] | None = None

    @property
    def known(self) -> Array | None:
        """The elements, if somebody has them in memory."""
        return None if self._seen is None else self._seen()

    def array(self) -> Array:
        """The elements, read-only; all that look at once see the same array.

        Raises:
            ModelError: they lie in a file, which cannot be read or is not what it was.
        """
        found = self.known
        if found is None:
            found = self.read()
            found.flags.writeable = False
            self._seen = weakref.ref(found)
        return found

    def fresh(self) -> Array:
        """The elements as an array that nobody else has, to be written over."""
        return self.read() if self.known is None else super().fresh()

    @abstractmethod
    def read(self) -> Array:
        """Get or make the elements, as an array in C order that nobody else has."""


class Held(Constant):
    """A constant in memory."""

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        """Keep the array."""
        super().__init__(array.shape, array.dtype)
        self._array = array

    def array(self) -> Array:
        """The array itself."""
        return self._array


class Derived(Recipe):
    """A constant that is made of others when it is looked at."""

    __slots__ = ("_make",)

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], Array]) -> None:
        """`make` returns an array in C order that nobody else writes to."""
        super().__init__(shape, dtype)
        self._make = make

    def read(self) -> Array:
        """Make it."""
        return self._make()


def as_constant(value: Array | Constant) -> Constant:
    """An array as a constant in memory; a constant as it is."""
    return value if isinstance(value, Constant) else Held(value)


class Constants(MutableMapping[str, Array]):
    """Constants by name; looking one up brings it into memory, `handle` does not."""

    def __init__(self, constants: Mapping[str, Array | Constant]) -> None:
        """Take over arrays and recipes."""
        self._all: dict[str, Constant] = {name: as_constant(value) for name, value in constants.items()}

    def handle(self, name: str) -> Constant | None:
        """A constant without looking at it; None for other names."""
        return self._all.get(name)

    def handles(self) -> Iterator[tuple[str, Constant]]:
        """All of them, without looking at any."""
        return iter(self._all.items())

    def with_more(self, arrays: Mapping[str, Array | Constant]) -> Constants:
        """These and others."""
        return Constants({**self._all, **arrays})

    def __getitem__(self, name: str) -> Array:
        """Look at one."""
        return self._all[name].array()

    def __setitem__(self, name: str, value: Array | Constant) -> None:
        """Add one, or put it in the place of another."""
        self._all[name] = as_constant(value)

    def __delitem__(self, name: str) -> None:
        """Drop one."""
        del self._all[name]

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._all)

    def __len__(self) -> int:
        """How many."""
        return len(self._all)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name, without looking at it."""
        return name in self._all

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, in memory or not."""
        return sum(each.nbytes for each in self._all.values())


class Values(Sequence["Array | None"]):
    """The values of a node's inputs, None where they are absent or unknown; looked at one by one."""

    def __init__(self, handles: Sequence[Constant | None]) -> None:
        """One for each input."""
        self._handles = handles

    def known(self, position: int) -> bool:
        """Whether an input is a constant, without looking at it."""
        return self._handles[position] is not None

    @overload
    def __getitem__(self, position: int) -> Array | None: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Array | None]: ...
    def __getitem__(self, position: int | slice) -> Array | Sequence[Array | None] | None:
        """Look at one, or at several."""
        if isinstance(position, slice):
            return Values(self._handles[position])
        found = self._handles[position]
        return None if found is None else found.array()

    def __len__(self) -> int:
        """How many inputs."""
        return len(self._handles)


def is_known(values: Sequence[Array | None], position: int) -> bool:
    """Whether the value of an input is known; it is not looked at."""
    return values.known(position) if isinstance(values, Values) else values[position] is not None
