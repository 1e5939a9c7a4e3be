"""FFT for several threads and few windows: a phase for each step, each cut into as many chunks as threads like.

In the fused form a chunk is a block of windows and some of the panels: with one block, which is usual, three panels
keep two threads busy for three quarters of the time, one panel keeps one.  Here all are busy, but products pass through
the caches that threads share: two threads take 0.63 of the fused form's time with one panel, 0.79 with three, and
1.06 to 1.4 with four and eight (5x5 taps, 7x7 to 28x28, Zen 5).

    windows     V [group][point][tile][channel]         of all tiles, once for all threads
    products    M [group][panel][point][tile][NR]
    scratch     a plane and a row, a thread
"""

from __future__ import annotations

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.fft_blocks import BlocksOfWindows
from leanconv.classes import replace
from leanconv.compiled import KernelSpec
from leanconv.kernels.fft_shared import FftMultiplySpec, FftOutputsSpec, FftWindowsSpec
from leanconv.memory import ALIGNMENT, Buffer, arena_bytes
from leanconv.program import Phase

_EVEN = 1.2  # times its share that a thread may have in the fused form
_CHUNKS = 8  # a thread, about, of every phase: a busy neighbour costs no more than one of them


class SharedWindows(BlocksOfWindows):
    """Sizes and phases of the form with buffers of windows and products."""

    def shared(self, threads: int, workspace: int | None, wanted: int | None) -> Lowering | None:
        """The program; None if blocks and panels are about as many for each thread, or the workspace is too little."""
        p, panels = self.problem, self.panels
        total = self.fields["tile_count"]
        jobs = -(-max(1, total) // self.block(1, None, wanted)) * p.groups * panels.total
        even = -(-jobs // threads) * threads <= _EVEN * jobs
        if threads == 1 or even or not p.batch or (wanted or total) < total:
            return None
        width = self.host.target.vector_bytes
        fields, _ = self.scratch(total)
        v_group, m_panel = fields["m_at"], self.points * fields["m_point"]
        buffers = (
            Buffer("windows", p.groups * v_group),
            Buffer("products", p.groups * panels.total * m_panel),
            Buffer("scratch", self.grid.plane_bytes(width) + self.grid.longest * width, per_thread=True),
        )
        if workspace is not None and arena_bytes(buffers, threads) > workspace:
            return None
        usual = self.program(total, 1, 1)
        vectors = -(-p.group_in // self.lanes)
        # Vectors of channels that lie in one cache line belong to one thread.
        parts = min(-(-vectors * width // ALIGNMENT), -(-_CHUNKS * threads // (total * p.groups)))
        spans = min(self.points, -(-_CHUNKS * threads // (panels.total * p.groups)))
        apart = {"v_g": v_group, "m_g": panels.total * m_panel, "m_panel": m_panel, "vectors": vectors}
        fields = {**usual.phases[0].fields, **apart, "p_count": panels.total, "b_count": total}

        def phase(name: str, spec: KernelSpec, order: str, counts: dict[str, int]) -> Phase:
            """Chunks counted along the letters of `order`, the last one first."""
            divs, chunks = {}, 1
            for letter in reversed(order):
                divs[f"{letter}_div"] = chunks
                chunks *= (fields | counts)[f"{letter}_count"]
            return Phase(name, spec, fields | counts | divs, chunks)

        spec = self.spec(total)
        read, write = self.transforms()
        multiply = FftMultiplySpec(
            spec.target, p.dtype, self.points, spec.reduction, spec.panels, write.bias, spec.asked
        )
        phases = (
            phase("windows", FftWindowsSpec(read), "gbk", {"k_count": parts}),
            phase("multiply", multiply, "gpk", {"k_count": spans}),
            phase("outputs", FftOutputsSpec(write, spec.panels), "gpb", {}),
        )
        parameters = {**usual.parameters, "chunks": phases[1].chunks}
        return replace(usual, phases=phases, workspace=buffers, parameters=parameters)
