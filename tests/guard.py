"""Memory between guard pages: a byte read or written outside of it is a crash, not a wrong number somewhere.

`guarded` and `guarded_copy` make arrays, `GuardedAllocator` serves the buffers of workspaces, and
`FailingAllocator` has no memory at a chosen moment. Memory that nobody has written yet is full of 0xFF bytes:
NaN as floating point. `run_python` is for what may crash.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from leanconv.errors import AllocationError
from leanconv.memory import AlignedBlock, Block, set_allocator

PAGE = mmap.PAGESIZE
POISON = 0xFF
Flush = Literal["right", "left"]


def _protect(address: int, nbytes: int, access: Literal["none", "read"]) -> None:
    """Forbid all access, or writing, to whole pages."""
    if sys.platform == "win32":
        flag, before = {"none": 0x01, "read": 0x02}[access], ctypes.c_ulong()
        size = ctypes.c_size_t(nbytes)
        done = ctypes.windll.kernel32.VirtualProtect(ctypes.c_void_p(address), size, flag, ctypes.byref(before))
        assert done, "VirtualProtect failed"
    else:
        flag = {"none": 0, "read": mmap.PROT_READ}[access]
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), flag)
        assert not failed, f"mprotect failed: error {ctypes.get_errno()}"


class GuardedBlock(Block):
    """Bytes with a forbidden page behind them (flush "right") or in front of them ("left").

    What is left of the last page on the other side, and what the alignment costs, is a canary region: full of
    poison, checked by `damage`; beyond it is a forbidden page too.
    """

    __slots__ = ("_allocator", "_inner", "_readonly", "_start")

    def __init__(
        self, nbytes: int, alignment: int, flush: Flush = "right", allocator: GuardedAllocator | None = None
    ) -> None:
        span = max(1, -(-nbytes // PAGE)) * PAGE
        mapping = np.frombuffer(mmap.mmap(-1, span + 2 * PAGE), dtype=np.uint8)
        self._allocator = allocator
        self._inner = mapping[PAGE : PAGE + span]
        self._inner[...] = POISON
        self._readonly = False
        self._start = (span - nbytes) // alignment * alignment if flush == "right" else 0
        inner = self._inner.ctypes.data
        super().__init__(inner + self._start, nbytes)
        _protect(inner - PAGE, PAGE, "none")
        _protect(inner + span, PAGE, "none")

    @property
    def __array_interface__(self) -> dict[str, Any]:
        interface = dict(super().__array_interface__)
        interface["data"] = (self.address, self._readonly)
        return interface

    def make_readonly(self) -> None:
        """Forbid writing, to native code as well."""
        self._readonly = True
        _protect(self._inner.ctypes.data, self._inner.size, "read")

    def damage(self) -> list[str]:
        """Return what was written where nothing may be written."""
        stop = self._start + self.nbytes
        found = []
        for name, region in (("before", self._inner[: self._start]), ("after", self._inner[stop:])):
            changed = np.flatnonzero(region != POISON)
            if changed.size:
                distance = region.size - changed[-1] if name == "before" else changed[0] + 1
                found.append(f"{changed.size} bytes {name} a block of {self.nbytes}, nearest {distance} away")
        return found

    def __del__(self) -> None:
        if getattr(self, "_allocator", None) is not None:
            assert self._allocator is not None
            self._allocator.damage += self.damage()


def guarded(
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    fill: float = math.nan,
    readonly: bool = False,
    flush: Flush = "right",
) -> npt.NDArray[Any]:
    """Return a C-ordered array that touches a forbidden page; `fill` NaN means poison, also for integers."""
    dtype = np.dtype(dtype)
    block = GuardedBlock(math.prod(shape) * dtype.itemsize, dtype.alignment, flush)
    array = block.array(dtype, shape)
    if not math.isnan(fill):
        array[...] = fill
    return _finish(block, array, readonly)


def guarded_copy(
    source: npt.NDArray[Any],
    readonly: bool = True,
    flush: Flush = "right",
    strides: tuple[int, ...] | None = None,
) -> npt.NDArray[Any]:
    """Return a copy between forbidden pages, dense or with `strides` (bytes, not negative) around poison."""
    if strides is None:
        strides = np.empty_like(source, order="C").strides
    reach = sum((n - 1) * stride for n, stride in zip(source.shape, strides, strict=True)) + source.itemsize
    block = GuardedBlock(reach if source.size else 0, source.dtype.alignment, flush)
    array: npt.NDArray[Any] = np.ndarray(source.shape, source.dtype, buffer=np.asarray(block), strides=strides)
    array[...] = source
    return _finish(block, array, readonly)


def _finish(block: GuardedBlock, array: npt.NDArray[Any], readonly: bool) -> npt.NDArray[Any]:
    if readonly:
        block.make_readonly()
        array.flags.writeable = False
    return array


def check_canaries(array: npt.NDArray[Any]) -> None:
    """Fail if something was written beside an array that `guarded` or `guarded_copy` made."""
    owner: Any = array
    while not isinstance(owner, GuardedBlock):
        owner = getattr(owner, "base", None)
        assert owner is not None, "not a guarded array"
    assert not owner.damage(), owner.damage()


class _Installed:
    """A context manager that takes all memory of leanconv from itself."""

    def __call__(self, nbytes: int, alignment: int) -> Block:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._before = set_allocator(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_allocator(self._before)


class GuardedAllocator(_Installed):
    """Every buffer between forbidden pages, poisoned, its start aligned as asked; leaving checks all of them.

    Attributes:
        sizes: bytes of each allocation so far.
        damage: what blocks already freed had found in their canary regions.
        live: the blocks in use.
    """

    def __init__(self, flush: Flush = "right") -> None:
        self.flush: Flush = flush
        self.sizes: list[int] = []
        self.damage: list[str] = []
        self.live: weakref.WeakSet[GuardedBlock] = weakref.WeakSet()

    def __call__(self, nbytes: int, alignment: int) -> Block:
        block = GuardedBlock(nbytes, alignment, self.flush, self)
        self.sizes.append(nbytes)
        self.live.add(block)
        return block

    def check(self) -> None:
        """Fail if a canary of any block, freed or in use, was overwritten."""
        damage = self.damage + [text for block in list(self.live) for text in block.damage()]
        assert not damage, damage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self.check()


class FailingAllocator(_Installed):
    """Has no memory at the `nth` allocation, counted from 1, and has some before and after.

    Attributes:
        count: allocations asked for so far.
    """

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.count = 0

    def __call__(self, nbytes: int, alignment: int) -> Block:
        self.count += 1
        if self.count == self.nth:
            raise AllocationError(f"allocation {self.nth} fails on purpose")
        return AlignedBlock(nbytes, alignment)


def run_python(script: str, *arguments: str) -> str:
    """Run a script in a process of its own, which finds leanconv and this folder; what it printed."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
