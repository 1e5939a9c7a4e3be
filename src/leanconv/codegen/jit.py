"""Between our code and LLVM's: IR text to object bytes; and object bytes to callable addresses.

Kept to what survives LLVM's releases: parse, verify, emit an object without any pass pipeline (the IR is
already unrolled and vectorised; LLVM's default pipeline costs 9 to 20 ms a kernel, leaks about 70 KB a module
and gains nothing).  See docs/decisions/0001-lljit-and-object-bytes.md.  Objects are linked by `loader`, without
LLVM, and through LLJIT where that cannot: see docs/decisions/0015-own-loader.md.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

from leanconv.classes import replace
from leanconv.codegen import loader
from leanconv.codegen.hostfacts import HostFacts, host_facts
from leanconv.codegen.targets import AVX2, AVX512, NEON, PORTABLE, Target
from leanconv.errors import CompileError

_lock = threading.RLock()
_counter = 0
_held = False


def _before_fork() -> None:
    """A fork waits for a compilation under way, a second at the most: half of LLVM's state would be of no use."""
    global _held
    _held = _lock.acquire(timeout=1.0)


def _after_fork_in_parent() -> None:
    if _held:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@functools.cache
def _llvm() -> Any:
    """Llvmlite's bindings, with the native target ready; for all but compilations, which do without them."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def _lljit() -> Any:
    return _llvm().create_lljit_compiler(use_jit_link=False, suppress_errors=True)


@functools.cache
def llvm_version() -> str:
    """Versions of llvmlite and of the LLVM inside it."""
    import llvmlite

    return f"llvmlite {llvmlite.__version__} LLVM {host_facts().llvm}"


def ask_llvm() -> HostFacts:
    """What LLVM, which this loads, says about this machine and itself."""
    from leanconv.codegen.llvm import describe_host

    return HostFacts(*describe_host())


@functools.cache
def host_target() -> Target:
    """The best target of this CPU, with LLVM's own name and features for it.

    `LEANCONV_TARGET` (avx2, avx512, neon, portable) forces another one that the CPU can run.
    """
    facts = host_facts()
    triple, features = facts.triple, frozenset(facts.features.split(","))
    wanted = os.environ.get("LEANCONV_TARGET", "")
    if triple.startswith(("aarch64", "arm64")):
        able = [NEON]
    else:
        able = [PORTABLE]
        if {"+avx2", "+fma"} <= features:
            able.insert(0, AVX2)
            if {"+avx512f", "+avx512vl", "+avx512dq", "+avx512bw"} <= features:
                able.insert(0, AVX512)
    names = [target.name for target in able]
    if wanted and wanted not in names:
        raise CompileError(f"LEANCONV_TARGET={wanted!r}: this CPU runs {', '.join(names)}")
    chosen = able[names.index(wanted)] if wanted else able[0]
    if wanted and chosen is not able[0]:
        return replace(chosen, triple=triple)
    extra = ",-prefer-256-bit" if chosen is AVX512 else ""
    if chosen is PORTABLE:
        return replace(chosen, triple=triple)
    return replace(chosen, triple=triple, cpu=facts.cpu, features=facts.features + extra)


def compile_object(text: str, target: Target) -> bytes:
    """Machine code for a module of LLVM assembly, as the bytes of an object file."""
    return _machine_code(text, target, assembly=False)


def compile_assembly(text: str, target: Target) -> str:
    """The same machine code as assembly text, for reading and for tests; any target, whatever the host."""
    return _machine_code(text, target, assembly=True).decode()


def _machine_code(text: str, target: Target, *, assembly: bool) -> bytes:
    from leanconv.codegen.llvm import machine_code  # only here: most processes find their kernels in the cache

    native = target.triple == host_facts().triple
    return machine_code(text, target.triple, target.cpu, target.features, native=native, assembly=assembly)


class Linked:
    """Linked machine code: addresses of its functions, valid as long as this object lives."""

    def __init__(self, object_bytes: bytes, names: tuple[str, ...], imports: dict[str, int] | None = None) -> None:
        """Link, by our own loader where it can.

        Raises:
            CompileError: the object is damaged, or a symbol is defined nowhere.
        """
        found = loader.link(object_bytes, names, imports) or link_by_llvm(object_bytes, names, imports)
        self._held, self.addresses = found


def link_by_llvm(
    object_bytes: bytes, names: tuple[str, ...], imports: dict[str, int] | None = None
) -> tuple[object, dict[str, int]]:
    """Link by LLJIT: what keeps the code in memory, and the addresses.

    Raises:
        CompileError: LLVM could not.
    """
    global _counter
    with _lock:
        _counter += 1
        builder = _llvm().JITLibraryBuilder().add_object_img(object_bytes)
        for symbol, address in (imports or {}).items():
            builder.import_symbol(symbol, address)
        for name in names:
            builder.export_symbol(name)
        try:
            tracker = builder.link(_lljit(), f"leanconv{_counter}")
        except RuntimeError as error:
            raise CompileError(f"linking {', '.join(names)} failed: {error}") from error
        return tracker, {name: int(tracker[name]) for name in names}
