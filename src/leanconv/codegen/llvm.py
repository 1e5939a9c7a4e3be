"""LLVM's compiler, by the C functions of llvmlite's library: text in, machine code out, on any number of threads.

llvmlite's own bindings take one lock around each call, and importing them takes four times as long as loading the
library does. To compile takes some twenty of the library's functions; they are called here, each compilation in a
context of its own, so that threads compile at the same time. To link where our loader cannot stays with the bindings:
see `jit.py`. The functions are those of the one release of llvmlite that pyproject.toml admits.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from leanconv.errors import CompileError
from leanconv.locks import Room, new_lock

RELEASE = "0.50."  # of llvmlite, as in pyproject.toml: another one may want other arguments, and would crash
OPTIMIZE = 1  # level 2 takes a fifth longer and gains nothing: what it would move and merge is written as it should run
_ROOM = 8  # compilations at one time
_room = Room(_ROOM)
_starting = new_lock()
_held = 0

_P, _S, _I, _OUT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ContextCreate": (_P, ()),
    "ContextDispose": (None, (_P,)),
    "ParseAssembly": (_P, (_P, _S, _OUT)),
    "VerifyModule": (ctypes.c_bool, (_P, _OUT)),
    "SetTarget": (None, (_P, _S)),
    "SetDataLayout": (None, (_P, _S)),
    "DisposeModule": (None, (_P,)),
    "GetTargetFromTriple": (_P, (_S, _OUT)),
    "CreateTargetMachine": (_P, (_P, _S, _S, _S, _I, _S, _S, _I, _I, _S)),
    "CreateTargetMachineData": (_P, (_P,)),
    "CopyStringRepOfTargetData": (None, (_P, _OUT)),
    "DisposeTargetData": (None, (_P,)),
    "TargetMachineEmitToMemory": (_P, (_P, _P, _I, _OUT)),
    "GetBufferStart": (_P, (_P,)),
    "GetBufferSize": (ctypes.c_size_t, (_P,)),
    "DisposeMemoryBuffer": (None, (_P,)),
    "DisposeString": (None, (_P,)),
    "GetVersionInfo": (ctypes.c_uint, ()),
    **dict.fromkeys(("GetProcessTriple", "GetHostCPUName", "GetHostCPUFeatures"), (None, (_OUT,))),
}
_NATIVE = ("NativeTarget", "NativeAsmPrinter")
_ALL = ("AllTargetInfos", "AllTargets", "AllTargetMCs", "AllAsmPrinters")
_FUNCTIONS |= dict.fromkeys((f"Initialize{name}" for name in _NATIVE + _ALL), (None, ()))


class _Library:
    """The functions of the library, under their names without the prefix; errors are as LLVM words them."""

    def __init__(self, path: str) -> None:
        """Load the library.

        Raises:
            CompileError: it is not there, or not the one that is known here.
        """
        try:
            self._library = _open(path)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = self._library[f"LLVMPY_{name}"]
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise CompileError(f"llvmlite's library cannot be used: {error}") from error

    def __getattr__(self, name: str) -> Any:
        """Only what was set is there; for type checkers."""
        raise AttributeError(name)

    def initialize(self, names: Iterable[str]) -> None:
        """Make targets ready."""
        for name in names:
            getattr(self, f"Initialize{name}")()

    def text(self, given: ctypes.c_void_p) -> str:
        """The text that a function has put where it was told to, which is freed."""
        if not given.value:
            return ""
        try:
            return ctypes.string_at(given.value).decode(errors="replace")
        finally:
            self.DisposeString(given)


def _open(path: str) -> ctypes.CDLL:
    """A library, mapped while other threads go on."""
    if os.name == "posix":
        # As a foreign function dlopen runs without the interpreter's lock, which ctypes holds while it opens a library;
        # to open it again takes no time, and says what was wrong if something was.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).dlopen(os.fsencode(path), ctypes.c_int(os.RTLD_NOW))
    return ctypes.CDLL(path)


@functools.cache
def _library() -> _Library:
    """The library, with the native target ready; the file is mapped in some 8 ms."""
    import llvmlite
    from llvmlite.utils import get_library_name

    if not llvmlite.__version__.startswith(RELEASE):
        raise CompileError(f"llvmlite {llvmlite.__version__} is installed; its release {RELEASE}x is needed")
    with _starting:
        found = _Library(os.path.join(os.path.dirname(llvmlite.__file__), "binding", get_library_name()))
        found.initialize(_NATIVE)
    return found


@functools.cache
def _with_all_targets() -> _Library:
    found = _library()
    with _starting:
        found.initialize(_ALL)
    return found


def machine_code(text: str, triple: str, cpu: str, features: str, *, native: bool, assembly: bool) -> bytes:
    """Machine code, as an object file or as assembly text, for a module of LLVM assembly.

    Args:
        text: the module.
        triple: the system it is for; so are the processor and its features, as LLVM names them.
        cpu: see there.
        features: see there.
        native: whether the system is this one; for others all of LLVM's targets are made ready.
        assembly: text instead of an object.

    Raises:
        CompileError: LLVM refused the text, or knows no such system.
    """
    llvm = _library() if native else _with_all_targets()
    with _room, _compilation(llvm, text, triple, cpu, features) as (machine, module):
        told = ctypes.c_void_p()
        buffer = llvm.TargetMachineEmitToMemory(machine, module, not assembly, told)
        refusal = llvm.text(told)
        if not buffer:
            raise CompileError(f"LLVM made no code: {refusal}")
        try:
            return ctypes.string_at(llvm.GetBufferStart(buffer), llvm.GetBufferSize(buffer))
        finally:
            llvm.DisposeMemoryBuffer(buffer)


def describe_host() -> tuple[str, str, str, str]:
    """LLVM's version, and its names for this machine's system, processor and features ("+avx2,-sse4a", sorted)."""
    llvm, answers = _library(), []
    for question in (llvm.GetProcessTriple, llvm.GetHostCPUName, llvm.GetHostCPUFeatures):
        told = ctypes.c_void_p()
        question(told)
        answers.append(llvm.text(told))
    triple, cpu, features = answers
    version = llvm.GetVersionInfo().to_bytes(4, "big").lstrip(b"\0")
    ordered = sorted(filter(None, features.split(",")), key=lambda feature: feature[1:])
    return ".".join(map(str, version)), triple, cpu, ",".join(ordered)


@contextlib.contextmanager
def _compilation(llvm: _Library, text: str, triple: str, cpu: str, features: str) -> Iterator[tuple[int, int]]:
    """A target machine, and the module in a context of its own, both freed afterwards."""
    told = ctypes.c_void_p()
    context = llvm.ContextCreate()
    try:
        module = llvm.ParseAssembly(context, text.encode(), told)
        refusal = llvm.text(told)
        try:
            if refusal or not module or llvm.VerifyModule(module, told):
                raise CompileError(f"LLVM refused a generated kernel: {refusal or llvm.text(told)}")
            llvm.text(told)
            machine = _machine(llvm, triple, cpu, features)
            layout = _layout(llvm, machine)
            llvm.SetTarget(module, triple.encode())
            llvm.SetDataLayout(module, layout)
            yield machine, module
            _machines.setdefault((triple, cpu, features), []).append(machine)
        finally:
            if module:
                llvm.DisposeModule(module)
    finally:
        llvm.ContextDispose(context)


# Machines that no compilation uses at the moment: one serves one thread at a time, and takes half a millisecond.
_machines: dict[tuple[str, str, str], list[int]] = {}


def _machine(llvm: _Library, triple: str, cpu: str, features: str) -> int:
    with contextlib.suppress(IndexError):
        return _machines.setdefault((triple, cpu, features), []).pop()
    told = ctypes.c_void_p()
    target = llvm.GetTargetFromTriple(triple.encode(), told)
    refusal = llvm.text(told)
    if not target:
        raise CompileError(f"LLVM knows no target {triple!r}: {refusal}")
    words = (triple.encode(), cpu.encode(), features.encode(), OPTIMIZE, b"pic", b"small", 0, 0, b"")
    machine: int | None = llvm.CreateTargetMachine(target, *words)
    if not machine:
        raise CompileError(f"LLVM makes no code for {triple!r}, {cpu!r}")
    return machine


def _layout(llvm: _Library, machine: int) -> bytes:
    """How a machine lays out data, as LLVM writes it."""
    told = ctypes.c_void_p()
    data = llvm.CreateTargetMachineData(machine)
    llvm.CopyStringRepOfTargetData(data, told)
    llvm.DisposeTargetData(data)
    return llvm.text(told).encode()


def _before_fork() -> None:
    """A fork waits for compilations under way, a second at the most: half of LLVM's state would be of no use."""
    global _held
    _held = sum(_room.acquire(timeout=1.0 / _ROOM) for _ in range(_ROOM))


def _after_fork_in_parent() -> None:
    if _held:
        _room.release(_held)


if hasattr(os, "register_at_fork"):  # a child finds all room free, as `locks` makes it
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
