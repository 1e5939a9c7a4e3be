"""What LLVM says about this machine, kept on disk so that a process with all its kernels in the cache never loads it.

The answer is found by what it depends on: the processor as the kernel describes it, and the file that LLVM is in. Where
the system describes no processor, LLVM is asked in every process.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import asdict

from leanconv.classes import dataclass


@dataclass(frozen=True, slots=True)
class HostFacts:
    """LLVM's version, and its names for this machine: system (`triple`), processor and features ("+avx2,-sse4a")."""

    llvm: str
    triple: str
    cpu: str
    features: str


@functools.cache
def host_facts() -> HostFacts:
    """What LLVM says about this machine; LLVM is loaded only if it has not been asked before."""
    import json

    from leanconv.codegen.jit import ask_llvm
    from leanconv.facts import remembered

    parts = _depends_on()
    if parts is None:
        return ask_llvm()
    return HostFacts(**json.loads(remembered(parts, lambda: json.dumps(asdict(ask_llvm())))))


def _depends_on() -> dict[str, str] | None:
    """What the answer depends on; None where that cannot be told without loading LLVM."""
    from leanconv.machine import cpu_identity

    identity = cpu_identity()
    library = _library()
    if not identity or not library:
        return None
    return {"kind": "host 1", "cpu": identity, "llvmlite": library, "pointer": str(sys.maxsize)}


def _library() -> str:
    """Version, size and time of the library that LLVM is in; nothing if it is not where it is expected."""
    import llvmlite  # this alone does not load the library

    folder = os.path.join(os.path.dirname(llvmlite.__file__), "binding")
    try:
        status = os.stat(os.path.join(folder, "libllvmlite.so"))
    except OSError:
        return ""
    return f"{llvmlite.__version__} {status.st_size} {status.st_mtime_ns}"
