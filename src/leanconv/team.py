"""A pool whose threads are those of an OpenMP runtime that another library has loaded: no second set of threads.

Threads that have just run the other library's work are awake, and spin for a while before they sleep; two pools in turn
on the same cores hinder each other. `GOMP_parallel` is what compilers emit for `#pragma omp parallel`, so a region of
ours runs on the same threads as the library's own.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from leanconv.errors import LeanconvError
from leanconv.kernels import offsets
from leanconv.memory import AlignedBlock
from leanconv.threads import LIMITS, Pool


class NoOpenMPError(LeanconvError, RuntimeError):
    """No OpenMP runtime is loaded that can run our work."""


class TeamPool(Pool):
    """Runs jobs on the threads of an OpenMP runtime. One caller at a time has them; others work alone meanwhile."""

    def __init__(self, library: str) -> None:
        """`library`: path of the runtime, loaded already."""
        super().__init__()
        self._runtime = ctypes.CDLL(library)
        self._run_shared = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._share)
        fork = ctypes.cast(self._runtime.GOMP_parallel, ctypes.c_void_p).value
        self._team = AlignedBlock(offsets.TEAM_BYTES)
        ctypes.memset(self._team.address, 0, offsets.TEAM_BYTES)
        for offset, value in ((offsets.TEAM_POOL, self.address), (offsets.TEAM_FORK, fork)):
            ctypes.c_void_p.from_address(self._team.address + offset).value = value
        self._job = ctypes.c_void_p.from_address(self._team.address + offsets.TEAM_JOB)
        self._count = ctypes.c_int32.from_address(self._team.address + offsets.TEAM_COUNT)
        self._set_limits(LIMITS)

    def run(self, job: int, count: int) -> None:
        """Run the job at an address on `count` threads, the caller being one of them."""
        if count > 1 and self._lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                self._job.value, self._count.value = job, count
                self._run_shared(self._team.address)
            finally:
                self._lock.release()  # type: ignore[attr-defined]
        else:
            self.submit(self.address, job, 0)


def loaded_runtime(folder: Path | None = None) -> str:
    """The path of a GNU OpenMP runtime in this process; of one below `folder`, if given, rather than of others.

    Raises:
        NoOpenMPError: there is none, or the platform does not tell.
    """
    if not sys.platform.startswith("linux"):
        raise NoOpenMPError("threads can be shared with GNU's OpenMP runtime on Linux only")
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "libgomp" in line.rpartition("/")[2]}
    below = [path for path in sorted(paths) if folder is not None and Path(path).is_relative_to(folder)]
    found = [*below, *sorted(paths)]
    if not found:
        raise NoOpenMPError("no GNU OpenMP runtime (libgomp) is loaded")
    return found[0]
