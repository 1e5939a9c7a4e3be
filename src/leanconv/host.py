"""The machine as algorithms see it: a target and the sizes of its caches."""

from __future__ import annotations

import functools

from leanconv.classes import dataclass
from leanconv.codegen.targets import Target


@dataclass(frozen=True, slots=True)
class Host:
    """A target and the bytes of each level of cache of one core (`l3` of all cores that share it)."""

    target: Target
    l1: int
    l2: int
    l3: int


@functools.cache
def this_host() -> Host:
    """This machine; loads LLVM, which alone knows all CPUs and their features, if this one was never asked about."""
    from leanconv.codegen.jit import host_target
    from leanconv.machine import cache_sizes

    caches = cache_sizes()
    return Host(host_target(), caches.l1d, caches.l2, caches.l3)
