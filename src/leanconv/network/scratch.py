"""Memory for plain weights while layers are packed, one after the other: the same pages for all of them.

Weights on the heap would leave holes between packed ones, which nothing else fits, and every array's pages would be
mapped and cleared anew.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import AllocationError
from leanconv.locks import new_lock

SMALLEST = 64 << 10
"""Bytes of an array below which it lies on the heap."""

# One that the same thread may take again: collecting garbage inside the guarded lines may free another array.
_lock = new_lock(again=True)
_users = 0
_spare: mmap.mmap | None = None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within this block the memory of an array that is dropped waits for the next."""
    global _users, _spare
    with _lock:
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _spare = None


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array whose elements are to be written; its memory goes back to the system once it is dropped.

    Raises:
        AllocationError: the system has no such memory.
    """
    global _spare
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    if nbytes < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        pages, _spare = _spare, None
    if pages is None or len(pages) < nbytes:
        del pages  # before the next is asked for
        try:
            pages = mmap.mmap(-1, nbytes)
        except (OSError, ValueError, OverflowError) as error:
            raise AllocationError(f"the system could not give {nbytes:,} bytes") from error
    return np.asarray(_Owner(pages, shape, dtype))


class _Owner:
    """Holds pages for an array; lets the next have them when the array and all its views are gone."""

    __slots__ = ("__array_interface__", "_pages")

    def __init__(self, pages: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pages = pages
        whole = np.frombuffer(pages, np.uint8)
        self.__array_interface__ = {
            "data": (whole.ctypes.data, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        global _spare
        lock = _lock
        if lock is None:  # the interpreter is going down
            return
        with lock:
            if _users and (_spare is None or len(_spare) < len(self._pages)):
                _spare = self._pages
