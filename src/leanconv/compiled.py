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
    """A compiled kernel: its address, the fields of its parameter block, what keeps the code in memory, and its key."""

    address: int
    fields: tuple[str, ...]
    linked: jit.Linked
    key: str


_NAME = "kernel"
_kernels: dict[KernelSpec, Kernel] = {}
_making: dict[object, contextlib.AbstractContextManager[bool]] = {}  # locks, of what is being compiled
_runtimes: dict[Target, jit.Linked] = {}


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
                found = _kernels[spec] = _come_by(spec)
    return found


def _come_by(spec: KernelSpec) -> Kernel:
    key = key_of(spec)
    # A specification and what is stored of it (see `StoredSpec`) are not equal, but their kernels are the same.
    found = next((each for each in list(_kernels.values()) if each.key == key), None)
    if found is not None:
        return found
    emit = functools.partial(spec.emit, name=_NAME)
    fields, linked = _obtain(spec.target, key, lambda: identity(spec), emit, (_NAME,))
    return Kernel(linked.addresses[_NAME], fields, linked, key)


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
    new = [spec for spec in wanted if not object_cache().holds(key_of(spec))]
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


def at_hand(spec: KernelSpec) -> bool:
    """Whether the kernel of a specification is there, in memory or on disk."""
    return spec in _kernels or object_cache().holds(key_of(spec))


def identity(spec: KernelSpec) -> str:
    """What decides what a kernel's code is, beside the generator."""
    if isinstance(spec, StoredSpec):
        spec = spec.origin()
    return repr(spec) + sources(spec)


def key_of(spec: KernelSpec) -> str:
    """What the kernel of a specification is called in the cache."""
    if isinstance(spec, StoredSpec):
        return spec.key
    found = _kernels.get(spec)
    return cache_key(identity(spec)) if found is None else found.key


class StoredSpec:
    """A specification of which no more is known than its key in the cache: what a plan that is read from disk names.

    Nothing of what makes specifications is imported for it.

    Attributes:
        key: of the kernel in the cache.
        outputs: output channels of a panel, of a kernel that packs weights panel by panel; 0 for others.
    """

    __slots__ = ("_any", "_origin", "key", "outputs")

    def __init__(
        self, key: str, outputs: int, any_extents: StoredSpec | None, origin: Callable[[str], KernelSpec]
    ) -> None:
        """Note what is known.

        Args:
            key: see above.
            outputs: see above.
            any_extents: the kernel that serves images of any size in its place, if that is another.
            origin: makes the specification of a key, where its kernel is not on disk any more.
        """
        self.key, self.outputs, self._any, self._origin = key, outputs, any_extents, origin

    def __eq__(self, other: object) -> bool:
        """Whether the kernel is the same."""
        return isinstance(other, StoredSpec) and other.key == self.key

    def __hash__(self) -> int:
        """Of the key."""
        return hash(self.key)

    def __repr__(self) -> str:
        """The key."""
        return f"StoredSpec({self.key!r})"

    def __reduce__(self) -> tuple[Callable[[KernelSpec], KernelSpec], tuple[KernelSpec]]:
        """Another process gets the specification itself."""
        return _itself, (self.origin(),)

    @property
    def target(self) -> Target:
        """This machine's: keys are of its kernels only."""
        return jit.host_target()

    def origin(self) -> KernelSpec:
        """The specification."""
        return self._origin(self.key)

    def for_any_extents(self) -> StoredSpec:
        """The kernel that computes the same, with the same fields, for any size."""
        return self._any or self

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """As the specification does."""
        return self.origin().emit(module, name)


def _itself(spec: KernelSpec) -> KernelSpec:
    return spec


def object_code(spec: KernelSpec) -> tuple[tuple[str, ...], bytes]:
    """The names of a kernel's fields, and its object code, compiled anew."""
    module = Module()
    fields = spec.emit(module, _NAME)
    return fields, jit.compile_object(module.text(), spec.target)


def _keep(spec: KernelSpec, fields: tuple[str, ...], code: bytes) -> None:
    """Link and store what another process has compiled."""
    with _alone(spec):
        if spec not in _kernels:
            linked, key = jit.Linked(code, (_NAME,)), key_of(spec)
            _kernels[spec] = Kernel(linked.addresses[_NAME], fields, linked, key)
            _store(spec.target, key, identity(spec), fields, code)


def runtime_functions() -> jit.Linked:
    """The thread pool's native side: functions `leanconv_` submit, worker, share and call."""
    target = jit.host_target()
    names = ("leanconv_submit", "leanconv_worker", "leanconv_share", "leanconv_call")
    with _alone(target):
        if target not in _runtimes:
            named = f"runtime {target!r}"
            emit = functools.partial(_emit_runtime, target=target)
            _, _runtimes[target] = _obtain(target, cache_key(named), lambda: named, emit, names)
    return _runtimes[target]


def _emit_runtime(module: Module, target: Target) -> tuple[str, ...]:
    from leanconv.kernels.runtime import emit_runtime  # only here: most processes find it in the cache

    return emit_runtime(module, target)


def _obtain(
    target: Target,
    key: str,
    named: Callable[[], str],
    emit: Callable[[Module], tuple[str, ...]],
    names: tuple[str, ...],
) -> tuple[tuple[str, ...], jit.Linked]:
    """Field names and linked code of one module, from the disk or from LLVM (then stored)."""
    stored = object_cache().get(key)
    if stored is not None:
        head, _, code = stored.partition(b"\0")
        return tuple(head.decode().split()), jit.Linked(code, names)
    module = Module()
    fields = emit(module)
    code = jit.compile_object(module.text(), target)
    linked = jit.Linked(code, names)
    _store(target, key, named(), fields, code)
    return fields, linked


def cache_key(named: str) -> str:
    """What a kernel is called in the cache."""
    from leanconv.cache import make_key

    return make_key({"generator": generator_digest(), "llvm": jit.llvm_version(), "spec": named})


def _store(target: Target, key: str, named: str, fields: tuple[str, ...], code: bytes) -> None:
    """Put object code into the cache."""
    entry = " ".join(fields).encode() + b"\0" + code
    object_cache().put(key, entry, {"target": target.name, "spec": named[:2000]})
