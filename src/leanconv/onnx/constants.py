"""The weights of a model: in memory, or in their file until somebody needs them.

Packed weights are what a network runs with; the plain ones are needed only while a network is made.  Those of a file
are read for that and given back: they are held weakly, and read again for other shapes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import ModelError

Stamp = tuple[int, int, int]


def stamp_of(file: Any) -> Stamp:
    """What tells whether an open file is still the one that it was: size, time of change, and number."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.

    Attributes:
        path: of the file.
        offset: where it begins, in bytes.
        shape: of the tensor.
        dtype: its element type in the file, little-endian.
        stamp: of the file when it was loaded.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stamp: Stamp

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * self.dtype.itemsize

    def read(self) -> Array:
        """The tensor, read-only.

        Raises:
            ModelError: the file cannot be read, or is not what it was.
        """
        # Read rather than mapped: a mapped file that somebody truncates ends the process.
        array = np.empty(self.shape, self.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                if stamp_of(file) != self.stamp:
                    raise ModelError(f"{self.path} has changed since the model was loaded")
                file.seek(self.offset)
                rest = array.reshape(-1).view(np.uint8).data
                while rest.nbytes and (count := file.readinto(rest)):
                    rest = rest[count:]
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if rest.nbytes:
            raise ModelError(f"{self.path} ends before the weights that it holds")
        array = array.astype(self.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array


class Constants(Mapping[str, Array]):
    """Constants by name."""

    def __init__(self, constants: Mapping[str, Array | Stored]) -> None:
        """Those in memory stay there."""
        self._all = dict(constants)
        self._read: WeakValueDictionary[str, Array] = WeakValueDictionary()

    def with_more(self, arrays: Mapping[str, Array]) -> Constants:
        """These and others, which are in memory."""
        return Constants({**self._all, **arrays})

    def __getitem__(self, name: str) -> Array:
        found = self._all[name]
        if not isinstance(found, Stored):
            return found
        array = self._read.get(name)
        if array is None:
            array = self._read[name] = found.read()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._all

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(each.nbytes for each in self._all.values())
