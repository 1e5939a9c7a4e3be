"""The speed of memory, measured: the other limit that benchmarks refer to beside the FMA peak."""

from __future__ import annotations

import ctypes
import time

from leanconv import machine
from leanconv.checks import integer
from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import this_host
from leanconv.kernels.fields import KernelFunction
from leanconv.memory import AlignedBlock, Buffer
from leanconv.program import Compiled, Job, Phase, Program
from leanconv.threads import pool

_STREAMS = 8  # vectors of a turn, each added to a sum of its own: loads wait for memory only
_CHUNK_BYTES = 1 << 20
_LEAST_BYTES = 256 << 20
_CACHES = 4  # times the last-level cache: what is left there from the round before is a small part


@dataclass(frozen=True, slots=True)
class ReadSpec:
    """Reads buffer `source` from front to back; a chunk is `turns` times 8 vectors, every byte once."""

    target: Target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn = kernel.fn
        kind = vector(SCALARS["float32"], self.target.lanes("float32"))
        width = self.target.vector_bytes
        sink = fn.alloca(_STREAMS * width)
        start = fn.gep(kernel.fields.buffer("source"), fn.mul(kernel.chunk, kernel.fields["chunk_bytes"]))
        zero = fn.const(kind, 0.0)

        def turn(_: Value, state: list[Value]) -> list[Value]:
            at, *sums = state
            added = [fn.binary("fadd", s, fn.load(kind, fn.gep(at, i * width))) for i, s in enumerate(sums)]
            return [fn.gep(at, _STREAMS * width), *added]

        ends = fn.loop(0, kernel.fields["turns"], 1, [start, *[zero] * _STREAMS], turn)
        for i, value in enumerate(ends[1:]):
            fn.do(f"store volatile {kind} {value.name}, ptr {fn.gep(sink, i * width).name}, align 8")
        return kernel.finish()


def memory_bandwidth(threads: int = 1, seconds: float = 0.2) -> float:
    """Measure how fast data too large for the caches can be read, in GB/s (1e9 bytes a second).

    Args:
        threads: how many threads read at once, parts of the same block.
        seconds: for how long; the best of several rounds counts.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: threads is not positive.
        AllocationError: the system has no memory for the block: 256 MiB or 4 times the last-level cache.
    """
    count = integer("threads", threads, 1)
    target = this_host().target
    nbytes = max(_LEAST_BYTES, _CACHES * machine.cache_sizes().l3)
    chunks = nbytes // _CHUNK_BYTES
    fields = {"chunk_bytes": _CHUNK_BYTES, "turns": _CHUNK_BYTES // (_STREAMS * target.vector_bytes)}
    phase = Phase("read", ReadSpec(target), fields, chunks)
    program = Program((phase,), (Buffer("source", chunks * _CHUNK_BYTES),), count)
    block = AlignedBlock(program.layout.nbytes)
    ctypes.memset(block.address, 0, block.nbytes)  # pages that were never written share one page of zeros
    job = Job(Compiled(program))
    job.place_workspace([block.address])
    run, best, end = pool().run, float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        run(job.address, count)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return chunks * _CHUNK_BYTES / best / 1e9
