"""Entries: functions of CPython made of native code, through which plain arrays reach a bound plan's job.

The checks and the call of a bound plan took 1.9 us as Python and ctypes, a tenth of a layer of 5 MFLOP; they take 0.4.
Where Python keeps its objects otherwise than CPython with its interpreter lock there are no entries (`available`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from leanconv.kernels import call
from leanconv.program import Job
from leanconv.threads import Pool

_METH_FASTCALL = 0x80
_WORD = 8


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Entry:
    """One caller's way into a plan: `call(x, out)` runs the job and returns `out`, or None if that must be checked.

    Where a residual is expected, it is the third argument.

    Not for two callers at once: the job is one.
    """

    __slots__ = ("_job", "_method", "_placed", "_record", "call", "pool")

    def __init__(self, pool: Pool, job: Job, helpers: int, like: Expected) -> None:
        """Prepare; the pool must have so many helpers, and be one of our own threads if that is any."""
        self.pool, self._job = pool, job
        self._placed: Sequence[int] = ()
        self._record = like.record.copy()
        table = ctypes.addressof(job.table)
        words = {call.POOL: pool.address, call.JOB: job.address, call.HELPERS: helpers}
        places = (call.SOURCE, call.TARGET, call.ADDED)
        words |= {place: table + _WORD * slot for place, slot in zip(places, like.slots, strict=False)}
        for number, word in words.items():
            self._record[number] = word
        self._method = _MethodDef(b"call", pool.call, _METH_FASTCALL, None)
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        self.call: Callable[..., Any] = make(ctypes.addressof(self._method), self._record, None)

    def place(self, addresses: Sequence[int]) -> None:
        """Tell the job where its workspace lies now."""
        if addresses is not self._placed:
            self._job.place_workspace(addresses)
            self._placed = addresses


class Expected:
    """What the arrays of a plan's usual call are like: the part of an entry's record that its entries share."""

    def __init__(
        self,
        x: tuple[tuple[int, ...], tuple[int, ...]],
        out: tuple[tuple[int, ...], tuple[int, ...]],
        dtype: np.dtype[Any],
        reach: tuple[int, int, int],
        slots: tuple[int, ...],
    ) -> None:
        """Note it.

        Args:
            x: shape, and strides in bytes, of images.
            out: the same of outputs.
            dtype: of both.
            reach: first and last byte (exclusive) of an image, last byte of an output, from their first elements.
            slots: where a job's table has the addresses of image and output, and of the residual, if there is one;
                that is like outputs.
        """
        self.slots = slots
        self.record = record = np.zeros(call.RECORD_WORDS, np.int64)
        record[call.KIND], record[call.ELEMENT], record[call.MASK] = id(np.ndarray), id(dtype), dtype.itemsize - 1
        record[call.LOW], record[call.HIGH], record[call.SPAN] = reach
        for at, (shape, strides) in ((call.X, x), (call.OUT, out)):
            record[at] = len(shape)
            record[at + 1 : at + 1 + len(shape)] = shape
            record[at + 1 + call.AXES : at + 1 + call.AXES + len(shape)] = strides
        record[call.NONE], record[call.COUNT] = id(None), len(slots)
        functions = {call.INCREF: "Py_IncRef", call.SAVE: "PyEval_SaveThread", call.RESTORE: "PyEval_RestoreThread"}
        for number, name in functions.items():
            record[number] = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def _as_expected() -> bool:
    """Whether arrays lie in memory as `kernels.call` reads them."""
    if sys.implementation.name != "cpython" or object.__basicsize__ != call.DATA or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    probe = np.ones((2, 3, 5), np.float32)[1:, 1:]
    words, numbers = ctypes.c_int64.from_address, ctypes.c_int32.from_address
    address = id(probe)
    shape, strides = words(address + call.SHAPE).value, words(address + call.STRIDES).value
    if numbers(address + call.DIMENSIONS).value != 3 or not shape or not strides:
        return False
    found = (
        words(address + call.TYPE).value == id(np.ndarray)
        and words(address + call.DATA).value == probe.__array_interface__["data"][0]
        and tuple((ctypes.c_int64 * 3).from_address(shape)) == probe.shape
        and tuple((ctypes.c_int64 * 3).from_address(strides)) == probe.strides
        and words(address + call.ELEMENTS).value == id(np.dtype(np.float32))
        and numbers(address + call.FLAGS).value & call.WRITABLE != 0
    )
    probe.flags.writeable = False
    return found and numbers(address + call.FLAGS).value & call.WRITABLE == 0


available = _as_expected()
"""Whether there are entries here."""
