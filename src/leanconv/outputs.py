"""Memory for results that callers did not bring: large blocks are kept for the next result once a result is dropped.

A fresh large array is not in memory until it is written: the kernel maps every page on first touch, which
costs more than a fast convolution computes (a 1080p layer with 32 channels: 265 MB, 65,000 faults).  A loop
that drops each result before it asks for the next gets the same pages again.  At most `KEPT_BYTES` are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from leanconv.checks import dtype_name, integer
from leanconv.locks import new_lock
from leanconv.memory import ALIGNMENT, AlignedBlock

SMALLEST = 256 << 10  # bytes; below, the C library's own heap keeps its pages
KEPT_BYTES = 512 << 20

# One that the same thread may take again: collecting garbage inside the guarded lines may free another result.
_lock = new_lock(again=True)
_spares: dict[int, list[AlignedBlock]] = {}
_kept = 0


class _Owner:
    """Holds a block for an array; gives it back when the array and all its views are gone."""

    __slots__ = ("__array_interface__", "_block")

    def __init__(self, block: AlignedBlock, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._block = block
        self.__array_interface__ = {
            "data": (block.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        global _kept
        block, lock = self._block, _lock
        if lock is None:  # the interpreter is going down
            return
        with lock:
            if _kept + block.nbytes <= KEPT_BYTES:
                _kept += block.nbytes
                _spares.setdefault(block.nbytes, []).append(block)


def empty(shape: int | Sequence[int], dtype: DTypeLike = "float32") -> NDArray[Any]:
    """An uninitialised array to use as `out=` or as an image, on a boundary of a cache line.

    NumPy's own large arrays begin 16 bytes behind one, so that every second vector stored to them crosses a line: a
    layer that writes more than it computes (3 channels to 64, 3x3) then takes half as long again.

    Args:
        shape: of the array.
        dtype: float32 or float64.

    Returns:
        A C-contiguous array whose first element lies on a multiple of 64 bytes.

    Raises:
        ArgumentTypeError: a shape that holds no ints; another element type.
        ArgumentValueError: a negative extent, or one too large.
        AllocationError: the system has no such memory.
    """
    extents = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    checked = tuple(integer("shape", extent, 0, shown=shape, what="extents") for extent in extents)
    element = np.dtype(dtype_name("dtype", dtype))
    nbytes = math.prod(checked) * element.itemsize
    if nbytes >= SMALLEST:
        return new_output(checked, element)
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    return np.ndarray(checked, element, memory, -memory.ctypes.data % ALIGNMENT)


def new_output(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised C-contiguous array, on used pages if a result of the same size has been dropped.

    Raises:
        AllocationError: the system has no such memory.
    """
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    if nbytes < SMALLEST:
        return np.empty(shape, dtype)
    global _kept
    block = None
    with _lock:
        spare = _spares.get(nbytes)
        if spare:
            block = spare.pop()
            _kept -= nbytes
    return np.asarray(_Owner(block or AlignedBlock(nbytes), dtype, shape))


def kept_bytes() -> int:
    """Bytes of dropped results that are kept for the next ones."""
    return _kept


def release_outputs() -> int:
    """Free what is kept, and return how many bytes that were."""
    global _kept
    with _lock:
        freed, _kept = _kept, 0
        _spares.clear()
    return freed
