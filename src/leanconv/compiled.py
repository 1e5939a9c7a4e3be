"""From a kernel's specification to an address: in memory, else from the cache on disk, else from LLVM.

A specification is a frozen dataclass that names its target and can `emit` itself; equal specifications share
one kernel in a process, and one file on disk between processes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from leanconv.classes import dataclass
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import Target
from leanconv.foreign import sources
from leanconv.locks import new_lock
from leanconv.progress import watcher

if TYPE_CHECKING:
    from leanconv.cache import CacheInfo, ObjectCache


class KernelSpec(Protocol):
    """What a kernel is specialised for; its repr names it completely."""

    @property
    def target(self) -> Target:
        """The CPU it is for."""

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit `void name(ptr buffers, ptr fields, i64 chunk, i64 thread)`; the names of its fields in order."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel: its address, the fields of its parameter block, and what keeps the code in memory."""

    address: int
    fields: tuple[str, ...]
    linked: jit.Linked


_NAME = "kernel"
_kernels: dict[KernelSpec, Kernel] = {}
_making: dict[object, contextlib.AbstractContextManager[bool]] = {}  # locks, of what is being compiled
_runtimes: dict[Target, tuple[jit.Linked, int, int, int]] = {}


@functools.cache
def object_cache() -> ObjectCache:
    """The cache on disk of this process."""
    from leanconv.cache import ObjectCache

    return ObjectCache()


def cache_info() -> CacheInfo:
    """Where compiled kernels are kept on disk, in which mode, how many and how large, and how often they served."""
    return object_cache().info()


def cache_clear() -> None:
    """Delete all compiled kernels on disk; those in use stay in memory."""
    object_cache().clear()


@functools.cache
def generator_digest() -> str:
    """A digest of every source file that decides what machine code a specification becomes."""
    from leanconv.facts import digest_of_sources

    return digest_of_sources("compiled.py", "codegen", "kernels")


def kernel(spec: KernelSpec) -> Kernel:
    """The compiled kernel of a specification.

    Raises:
        CompileError: LLVM refused the generated code (a defect of ours) or could not link it.
    """
    found = _kernels.get(spec)
    if found is None:
        with _alone(spec):
            found = _kernels.get(spec)
            if found is None:
                emit = functools.partial(spec.emit, name=_NAME)
                fields, linked = _obtain(spec.target, identity(spec), emit, (_NAME,))
                found = _kernels[spec] = Kernel(linked.addresses[_NAME], fields, linked)
    return found


@contextlib.contextmanager
def _alone(what: object) -> Iterator[None]:
    """The only thread that makes something; others do so at the same time with something else."""
    with _making.setdefault(what, new_lock()):
        try:
            yield
        finally:
            _making.pop(what, None)


def prepare(specs: Iterable[KernelSpec]) -> None:
    """Compile the kernels of specifications, on several threads, or in several processes if many are new.

    Raises:
        CompileError: as `kernel`.
    """
    wanted = [spec for spec in dict.fromkeys(specs) if spec not in _kernels]
    new = [spec for spec in wanted if not object_cache().holds(cache_key(identity(spec)))]
    if not new:
        return
    from leanconv import compilers  # only here: most processes find their kernels in the cache

    if compilers.processes() == 1:
        return  # `kernel` does it when it is asked
    if len(new) >= compilers.MANY:
        tell, ready = watcher(), itertools.count(1)

        def keep(spec: KernelSpec, fields: tuple[str, ...], code: bytes) -> None:
            _keep(spec, fields, code)
            tell("compile", next(ready), len(new))

        def here(spec: KernelSpec) -> None:
            kernel(spec)
            tell("compile", next(ready), len(new))

        tell("compile", 0, len(new))
        compilers.compile_together(new, keep, here)
    else:
        # The thread pool's native side is soon needed too, and takes as long to compile as a kernel. The phase that
        # sums comes last, and takes longest.
        compilers.side_by_side([runtime_functions, *(functools.partial(kernel, spec) for spec in new)])


def identity(spec: KernelSpec) -> str:
    """What decides what a kernel's code is, beside the generator."""
    return repr(spec) + sources(spec)


def object_code(spec: KernelSpec) -> tuple[tuple[str, ...], bytes]:
    """The names of a kernel's fields, and its object code, compiled anew."""
    module = Module()
    fields = spec.emit(module, _NAME)
    return fields, jit.compile_object(module.text(), spec.target)


def _keep(spec: KernelSpec, fields: tuple[str, ...], code: bytes) -> None:
    """Link and store what another process has compiled."""
    with _alone(spec):
        if spec not in _kernels:
            linked = jit.Linked(code, (_NAME,))
            _kernels[spec] = Kernel(linked.addresses[_NAME], fields, linked)
            _store(spec.target, identity(spec), fields, code)


def runtime_functions() -> tuple[jit.Linked, int, int, int]:
    """The thread pool's native side: what keeps it in memory, then the addresses of submit, worker and share."""
    from leanconv.kernels.runtime import emit_runtime

    target = jit.host_target()
    names = ("leanconv_submit", "leanconv_worker", "leanconv_share")
    with _alone(target):
        if target not in _runtimes:
            _, linked = _obtain(target, f"runtime {target!r}", lambda module: emit_runtime(module, target), names)
            submit, worker, share = (linked.addresses[name] for name in names)
            _runtimes[target] = (linked, submit, worker, share)
    return _runtimes[target]


def _obtain(
    target: Target, named: str, emit: Callable[[Module], tuple[str, ...]], names: tuple[str, ...]
) -> tuple[tuple[str, ...], jit.Linked]:
    """Field names and linked code of one module, from the disk or from LLVM (then stored)."""
    stored = object_cache().get(cache_key(named))
    if stored is not None:
        head, _, code = stored.partition(b"\0")
        return tuple(head.decode().split()), jit.Linked(code, names)
    module = Module()
    fields = emit(module)
    code = jit.compile_object(module.text(), target)
    linked = jit.Linked(code, names)
    _store(target, named, fields, code)
    return fields, linked


def cache_key(named: str) -> str:
    """What a kernel is called in the cache."""
    from leanconv.cache import make_key

    return make_key({"generator": generator_digest(), "llvm": jit.llvm_version(), "spec": named})


def _store(target: Target, named: str, fields: tuple[str, ...], code: bytes) -> None:
    """Put object code into the cache."""
    entry = " ".join(fields).encode() + b"\0" + code
    object_cache().put(cache_key(named), entry, {"target": target.name, "spec": named[:2000]})
