"""How much memory there is, so that a network that cannot fit is refused before it is run."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_UNKNOWN = 1 << 62


@lru_cache(maxsize=1)
def physical_memory() -> int:
    """Bytes of the machine's memory, or of what its container may use; a huge number where the system does not say."""
    found = _UNKNOWN
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not POSIX
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (_CGROUPS / name).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():
            found = min(found, int(text))
    return found if found > 0 else _UNKNOWN
