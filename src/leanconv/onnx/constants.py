"""Weights that stay in their file until somebody needs them; they are read again each time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import ModelError
from leanconv.network import scratch
from leanconv.network.constants import Recipe

Stamp = tuple[int, int, int]


def stamp_of(file: Any) -> Stamp:
    """What tells whether an open file is still the one that it was: size, time of change, and number."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


class Stored(Recipe):
    """A tensor in a file.

    Attributes:
        shape: of the tensor.
        dtype: its element type.
        stored: that in the file, little-endian.
        offset: where it begins in the file, in bytes.
    """

    __slots__ = ("_path", "_stamp", "offset", "stored")

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], stamp: Stamp) -> None:
        """Note where it lies.

        Args:
            path: of the file.
            offset: where it begins, in bytes.
            shape: of the tensor.
            dtype: its element type in the file, little-endian.
            stamp: of the file when it was loaded.
        """
        super().__init__(shape, dtype.newbyteorder("="))
        self._path, self.offset, self.stored, self._stamp = path, offset, dtype, stamp

    def rows(self, first: int, last: int) -> Array:
        """A part along the first axis; no more than that is read.

        Raises:
            ModelError: the file cannot be read, or is not what it was.
        """
        if self.known is not None:
            return self.known[first:last]
        count = max(0, last - first)
        whole = max(1, self.shape[0])
        array = self._read(self.offset + first * (self.nbytes // whole), (count, *self.shape[1:]))
        array.flags.writeable = False
        return array

    def read(self) -> Array:
        """The tensor.

        Raises:
            ModelError: the file cannot be read, or is not what it was.
        """
        return self._read(self.offset, self.shape)

    def _read(self, offset: int, shape: tuple[int, ...]) -> Array:
        # Read rather than mapped: a mapped file that somebody truncates ends the process.
        array = scratch.empty(shape, self.stored)
        try:
            with self._path.open("rb", buffering=0) as file:
                if stamp_of(file) != self._stamp:
                    raise ModelError(f"{self._path} has changed since the model was loaded")
                file.seek(offset)
                rest = array.reshape(-1).view(np.uint8).data
                while rest.nbytes and (count := file.readinto(rest)):
                    rest = rest[count:]
        except OSError as error:
            raise ModelError(f"{self._path} cannot be read: {error.strerror or error}") from error
        if rest.nbytes:
            raise ModelError(f"{self._path} ends before the weights that it holds")
        return array.astype(self.dtype, copy=False)
