"""The FMA peak of this machine, measured: what percentages in benchmarks refer to."""

from __future__ import annotations

import time

from numpy.typing import DTypeLike

from leanconv.checks import dtype_name, integer
from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import this_host
from leanconv.kernels.fields import KernelFunction
from leanconv.program import Compiled, Job, Phase, Program
from leanconv.threads import pool

_CHAINS = 12  # independent sums: more than latency (4) times units (2) of any CPU we know, fewer than its registers
_TURNS = 20_000


@dataclass(frozen=True, slots=True)
class PeakSpec:
    """Independent chains of multiply-adds in registers; field `turns` is how many each chain does in a chunk."""

    target: Target
    dtype: str

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn = kernel.fn
        kind = vector(SCALARS[self.dtype], self.target.lanes(self.dtype))
        sink = fn.alloca(_CHAINS * self.target.vector_bytes)
        half = fn.const(kind, 0.5)
        fn.store(half, sink)
        factor = fn.load(kind, sink)
        start = [fn.const(kind, float(i)) for i in range(_CHAINS)]

        def turn(_: Value, sums: list[Value]) -> list[Value]:
            return [fn.multiply_add(factor, s, factor, fused=self.target.fma) for s in sums]

        for i, value in enumerate(fn.loop(0, kernel.fields["turns"], 1, start, turn)):
            fn.do(f"store volatile {kind} {value.name}, ptr {fn.gep(sink, i * self.target.vector_bytes).name}, align 8")
        return kernel.finish()


def fma_peak(threads: int = 1, dtype: DTypeLike = "float32", seconds: float = 0.02) -> float:
    """Measure how many floating-point operations per second multiply-adds in registers reach, in GFLOP/s.

    Args:
        threads: how many threads compute at once.
        dtype: "float32" or "float64".
        seconds: for how long; the best of several rounds counts.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: threads is not positive, or no such dtype.
    """
    count = integer("threads", threads, 1)
    name = dtype_name("dtype", dtype)
    target = this_host().target
    chunks = 8 * count
    phase = Phase("peak", PeakSpec(target, name), {"turns": _TURNS}, chunks)
    job = Job(Compiled(Program((phase,), (), count)))
    flops = 2 * _CHAINS * target.lanes(name) * _TURNS * chunks
    run, best, end = pool().run, float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        run(job.address, count)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return flops / best / 1e9
