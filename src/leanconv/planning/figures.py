"""What the cost model needs to know of a machine: measured once, remembered on disk.

Without a place to remember them (`LEANCONV_CACHE=off` or `ro`) nothing is measured: the figures of `reference` stand
in, whose ratios are those of the machine that the model's constants were fitted on.

Whoever else uses caches and memory meanwhile makes them look slower, never faster. Figures that look slow are therefore
measured again by later processes, and the fastest are kept; a few times, for the machine may be like that.
"""

from __future__ import annotations

import ctypes
import functools
import time
from dataclasses import asdict

from leanconv.bandwidth import ReadSpec
from leanconv.classes import dataclass
from leanconv.host import Host, this_host
from leanconv.memory import AlignedBlock, Buffer
from leanconv.peak import fma_peak
from leanconv.planning.records import machine_key, records
from leanconv.program import Compiled, Job, Phase, Program
from leanconv.threads import pool

_FIELDS = ("gflops", "l2", "l3", "memory")
_LARGEST = 256 << 20
_CACHES = 4  # times the last-level cache: of twice as much a part is still there from the round before
_SECONDS, _ROUNDS = (0.004, 0.008, 0.02), 3  # of reading from each level
_IMPOSSIBLE = 8  # times the reference, up or down: what a measurement on a busy machine is corrected to
_SLOW = 2  # times slower than the reference: measured again
_TIMES, _PAUSE = 6, 60.0  # how often at most, and seconds between: what disturbed it may be over


@dataclass(frozen=True, slots=True)
class Figures:
    """Speeds of one thread.

    Attributes:
        gflops: peak of multiply-adds in float32, 1e9 operations a second.
        l2: reading from the second-level cache, 1e9 bytes a second.
        l3: reading from the third-level cache.
        memory: reading from memory.
        measured: whether this machine was measured.
    """

    gflops: float
    l2: float
    l3: float
    memory: float
    measured: bool = True

    @property
    def slot(self) -> float:
        """Seconds of one multiply-add of a vector of float32."""
        return 2 * this_host().target.lanes("float32") / self.gflops / 1e9


def reference(gflops: float = 100.0) -> Figures:
    """Figures in the proportions of the machine that the model was fitted on (Zen 3)."""
    return Figures(gflops, gflops * 1.07, gflops * 0.75, gflops * 0.25, measured=False)


@functools.cache
def figures() -> Figures:
    """This machine's figures: remembered, or measured now in about a tenth of a second, or `reference`."""
    store, key = records(), machine_key("figures")
    found = store.get(key) or {}
    known, times = _plausible(found.get("figures")), 0
    if known is not None:
        times, now = _counted(found.get("times")), time.time()
        again = _looks_slow(known) and times < _TIMES and abs(now - _when(found.get("at"))) > _PAUSE
        if not again or store.mode != "rw":
            return known
    if store.mode != "rw":
        return reference()
    fresh = measure()
    if known is not None:
        fresh = Figures(*[max(getattr(known, name), getattr(fresh, name)) for name in _FIELDS])
    store.put(key, {"kind": "figures", "figures": asdict(fresh), "times": times + 1, "at": time.time()})
    return fresh


def remembered_figures() -> Figures:
    """This machine's figures as they are remembered, however they look: nothing is measured unless there are none."""
    found = records().get(machine_key("figures")) or {}
    return _plausible(found.get("figures")) or figures()


def _looks_slow(known: Figures) -> bool:
    usual = reference(known.gflops)
    return any(getattr(known, level) * _SLOW < getattr(usual, level) for level in ("l2", "l3", "memory"))


def _counted(times: object) -> int:
    return times if isinstance(times, int) else 1


def _when(at: object) -> float:
    return at if isinstance(at, float) else 0.0


def measure() -> Figures:
    """Measure this machine."""
    host = this_host()
    gflops = fma_peak(1, seconds=0.01)
    usual = reference(gflops)
    last = max(host.l3, host.l2)
    sizes = (host.l2 // 2, max(host.l2 * 2, min(last // 4, 4 << 20)), min(max(_CACHES * last, 64 << 20), _LARGEST))
    # In rounds apart from each other: what disturbs one is over, maybe, in the next.
    rounds = [[_read_speed(host, size, t) for size, t in zip(sizes, _SECONDS, strict=True)] for _ in range(_ROUNDS)]
    speeds = [max(of_size) for of_size in zip(*rounds, strict=True)]
    wanted = (usual.l2, usual.l3, usual.memory)
    l2, l3, memory = (min(max(s, w / _IMPOSSIBLE), w * _IMPOSSIBLE) for s, w in zip(speeds, wanted, strict=True))
    return Figures(gflops, l2, l3, memory)


def _read_speed(host: Host, nbytes: int, seconds: float) -> float:
    """GB/s of reading a block again and again on this thread."""
    step = 8 * host.target.vector_bytes
    turns = nbytes // step
    fields = {"chunk_bytes": 0, "turns": turns}
    # Small blocks are read several times a run, so that starting it does not count.
    chunks = max(1, (1 << 20) // nbytes)
    program = Program((Phase("read", ReadSpec(host.target), fields, chunks),), (Buffer("source", turns * step),), 1)
    block = AlignedBlock(program.layout.nbytes)
    ctypes.memset(block.address, 0, block.nbytes)
    job = Job(Compiled(program))
    job.place_workspace([block.address])
    run, best, end = pool().run, float("inf"), time.perf_counter() + seconds
    run(job.address, 1)
    while True:
        begin = time.perf_counter()
        run(job.address, 1)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return chunks * turns * step / best / 1e9


def _plausible(found: object) -> Figures | None:
    """Figures from a record, or None if they cannot be some."""
    if not isinstance(found, dict):
        return None
    values = [found.get(name) for name in _FIELDS]
    if not all(isinstance(value, float | int) and 0 < value < 1e9 for value in values):
        return None
    return Figures(*[float(value) for value in values])  # type: ignore[arg-type]
