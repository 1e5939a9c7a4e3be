"""Object code into memory that can be run, without LLVM: one private mapping an object.

A kernel that was compiled before needs no compiler, so a process that finds all its kernels in the cache never loads
one; see docs/decisions/0015-own-loader.md. Objects for Linux on x86-64 and AArch64 are loaded here; for others, and for
what this does not know, `link` says so and LLVM's linker does it.

The mapping is written, then made executable and no longer writable: it is never both. Kernels raise nothing and
nothing unwinds through them (their functions are `nounwind`, and LLVM writes no unwind tables for such), so none are
registered.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from leanconv.codegen.elf import AARCH64, X86_64, UnsupportedObjectError, read_object
from leanconv.codegen.relocate import Layout, addresses, relocated
from leanconv.errors import CompileError

_MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}
_MAP_FAILED = ctypes.c_void_p(-1).value


class Code:
    """A mapping that is unmapped when this is collected."""

    __slots__ = ("address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        """Map fresh memory that can be read and written.

        Raises:
            CompileError: the system has none.
        """
        self.address, self.nbytes = 0, nbytes  # what __del__ finds if this raises
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found = _libc().mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found in (None, _MAP_FAILED):
            raise CompileError(f"no memory for {nbytes:,} bytes of code: {os.strerror(ctypes.get_errno())}")
        self.address = found

    def finish(self, image: bytearray) -> None:
        """Write the code, then make it executable and no longer writable.

        Raises:
            CompileError: the system forbids it.
        """
        ctypes.memmove(self.address, (ctypes.c_char * len(image)).from_buffer(image), len(image))
        if _libc().mprotect(self.address, self.nbytes, mmap.PROT_READ | mmap.PROT_EXEC):
            raise CompileError(f"the system lets no code run that was made here: {os.strerror(ctypes.get_errno())}")
        flush = _instruction_flush()
        if flush is not None:
            flush(self.address, self.address + self.nbytes)

    def __reduce__(self) -> str:
        """Not to be copied: two owners of a mapping would both unmap it."""
        raise TypeError("machine code cannot be copied or pickled")

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Unmap, but not at the end of the interpreter, where daemon threads may still run the code."""
        if self.address and not _finalizing():
            _libc().munmap(self.address, self.nbytes)


def link(
    data: bytes, names: Sequence[str], imports: Mapping[str, int] | None = None
) -> tuple[Code, dict[str, int]] | None:
    """Load an object and find its functions `names`; what it does not define are `imports` and the C library's.

    Returns:
        What keeps the code in memory, and the addresses; None if this object, or this machine, needs another linker.

    Raises:
        CompileError: the object is damaged or for another machine, lacks a name, or needs one that nobody defines.
    """
    machine = host_machine()
    if machine is None or (machine == AARCH64 and _instruction_flush() is None):
        return None

    def resolve(name: str) -> int:
        return (imports or {}).get(name) or _system_symbol(name)

    try:
        found = read_object(data)
        if found.machine != machine:
            raise CompileError(f"object code for machine {found.machine}, not {machine}, cannot be loaded here")
        layout = Layout(found)
        code = Code(max(layout.nbytes, 1))
        image = relocated(data, found, layout, code.address, resolve)
    except UnsupportedObjectError:
        return None
    result = addresses(found, layout, code.address, names)
    code.finish(image)
    return code, result


@lru_cache(maxsize=1)
def host_machine() -> int | None:
    """The number that ELF gives this machine; None if nothing is loaded for it here."""
    if sys.platform != "linux" or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return _MACHINES.get(os.uname().machine)


def _system_symbol(name: str) -> int:
    """The address of a function of this process, such as the C library's `fmaf`."""
    try:
        found = ctypes.cast(_libc()[name], ctypes.c_void_p).value
    except AttributeError:
        found = None
    if not found:
        raise CompileError(f"object code calls {name!r}, which nothing here defines")
    return found


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t
    libc.mmap.argtypes = (ctypes.c_void_p, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mmap.restype = ctypes.c_void_p
    libc.mprotect.argtypes = (ctypes.c_void_p, size, ctypes.c_int)
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    return libc


@lru_cache(maxsize=1)
def _instruction_flush() -> Callable[[int, int], Any] | None:
    """What makes new code visible to instruction fetch; None where hardware does it, or where it is not to be had."""
    if host_machine() != AARCH64:
        return None
    for library in (None, "libgcc_s.so.1"):
        try:
            flush = ctypes.CDLL(library)["__clear_cache"]
        except (OSError, AttributeError):
            continue
        flush.argtypes, flush.restype = (ctypes.c_void_p, ctypes.c_void_p), None
        return flush
    return None
