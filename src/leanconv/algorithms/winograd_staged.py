"""Winograd for several threads and few tiles: windows are transformed once, into a buffer that all threads read.

A chunk of the fused form is a block of tiles.  Where there are fewer blocks than threads would like, each of them is
shared by several chunks, that take some of its panels each; every one of these would transform the same windows again.
Here a phase of its own transforms them, some tiles a chunk; then each chunk takes some panels of a block.

    windows     V [block][point][section][tile][channel]          of all tiles, once for all threads
    scratch     M [point][tile][NR]                               of a block, a thread
"""

from __future__ import annotations

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.classes import replace
from leanconv.kernels.backward_winograd_stage import WindowStageSpec
from leanconv.kernels.winograd import WinogradSpec
from leanconv.memory import ALIGNMENT, Buffer, arena_bytes
from leanconv.program import Phase

_CHUNKS = 8  # a thread, about, of either phase: a busy neighbour costs no more than one of them


class SharedWindows(BlocksOfTiles):
    """Sizes and phases of the form with a buffer of windows."""

    def shared(self, threads: int, workspace: int | None, wanted: int | None) -> Lowering | None:
        """The program; None if there are blocks enough for all threads, one panel, or too little workspace for it."""
        tiles = self.block(threads, None, wanted)
        total, panels = max(1, self.fields["tile_count"]), self.panels.total
        blocks = -(-total // tiles)
        few = threads > 1 and blocks < self.enough(threads) and panels > 1
        if not few or self.problem.groups > 1 or not self.problem.batch:
            return None
        tiles = -(-total // blocks)
        blocks = -(-total // tiles)
        parts = min(panels, -(-_CHUNKS * threads // blocks))
        spread = min(tiles, -(-_CHUNKS * threads // blocks))
        windows = Buffer("windows", blocks * self.window_bytes(tiles))
        zeros = [Buffer("zeros", self.zero_bytes, per_thread=True)] if self.zero_bytes else []
        buffers = (windows, self.buffer(tiles), *zeros)
        if workspace is not None and arena_bytes(buffers, threads) > workspace:
            return None
        fused = self.program(tiles, blocks, parts)
        phase = fused.phases[0]
        fields = {**phase.fields, "block_tiles": tiles, "section_bytes": self.window_bytes(tiles)}
        products = replace(phase, fields=fields)
        stage = fields | {"section": tiles, "section_first": 0}
        stage |= {"s_div": spread, "s_count": blocks, "b_div": 1, "b_count": spread}
        first = Phase("windows", WindowStageSpec(self.input_step()), stage, blocks * spread)
        return replace(fused, phases=(first, products), workspace=buffers)

    def window_bytes(self, tiles: int) -> int:
        """Bytes of V of a block."""
        return self.points * super().scratch(tiles)[0]["v_point"]

    @property
    def zero_bytes(self) -> int:
        """A row of channels that padding is read from."""
        return -(-self.row // ALIGNMENT) * ALIGNMENT if self.padded and self.adjacent else 0

    def scratch(self, tiles: int) -> tuple[dict[str, int], int]:
        """Where everything lies in a thread's scratch, and its bytes: M alone."""
        fields, _ = super().scratch(tiles)
        return fields | {"m_at": 0}, self.points * fields["m_point"]

    def spec(self, tiles: int) -> WinogradSpec:
        """The kernel of products."""
        return replace(super().spec(tiles), staged=True)
