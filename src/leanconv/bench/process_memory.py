"""The most memory that this process has held for a while, as the system counts it (Linux)."""

from __future__ import annotations

import gc
from pathlib import Path

from leanconv.allocation import trim_heap

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Measures from its creation on; bytes are None where the system does not tell.

    The counter is the process's high-water mark of resident memory (VmHWM), which is set back first. It moves in
    pages, and the system may be late by some hundred kilobytes.
    """

    def __init__(self) -> None:
        """Give back what the heap keeps unused, so that it cannot be taken again unseen, and start."""
        gc.collect()
        trim_heap()
        try:
            (_PROCESS / "clear_refs").write_text("5")
        except OSError:
            self._before = None
        else:
            self._before = _kilobytes("VmRSS")

    def extra_bytes(self) -> int | None:
        """Return how far the high-water mark lies above what was resident at the start."""
        most = _kilobytes("VmHWM")
        if self._before is None or most is None:
            return None
        return max(most - self._before, 0) * 1024


def _kilobytes(name: str) -> int | None:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
