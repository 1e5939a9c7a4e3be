"""Winograd for several threads and few tiles: windows are transformed once, into a buffer that all threads read.

With weights on the fly each of them is transformed once, too, where all tiles make one block.

A chunk of the fused form is a block of tiles.  Where there are fewer blocks than threads would like, each of them is
shared by several chunks, that take some of its panels each; every one of these would transform the same windows again.
Here a phase of its own transforms them, some tiles a chunk; then each chunk takes some panels of a block.

    windows     V [block][point][section][tile][channel]          of all tiles, once for all threads
    scratch     M [point][tile][NR]                               of a block, a thread
"""

from __future__ import annotations

from typing import ClassVar

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fly import MOST_TILES, BlocksOnTheFly
from leanconv.classes import replace
from leanconv.kernels.backward_winograd_stage import WindowStageSpec
from leanconv.kernels.winograd import WinogradSpec
from leanconv.memory import ALIGNMENT, Buffer, arena_bytes
from leanconv.program import Phase

_CHUNKS = 8  # a thread, about, of either phase: a busy neighbour costs no more than one of them


class SharedWindows(BlocksOfTiles):
    """Sizes and phases of the form with a buffer of windows."""

    asks: ClassVar[bool] = False

    def shared(self, threads: int, workspace: int | None, wanted: int | None) -> Lowering | None:
        """The program; None if there are blocks enough for all threads, one panel, or too little workspace for it."""
        tiles = self.block(threads, None, wanted)
        total, panels = max(1, self.fields["tile_count"]), self.panels.total
        blocks = -(-total // tiles)
        few = threads > 1 and self.shares(tiles, threads)[0] <= self.most_blocks(threads) and panels > 1
        if not few or self.splits > 1 or self.problem.groups > 1 or not self.problem.batch:
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
        # All blocks by a panel before the next one: threads then read few panels, and of two blocks, one of which has a
        # tile more, each takes the same.
        fields |= {"b_div": 1, "k_div": blocks}
        products = replace(phase, fields=fields)
        stage = fields | {"section": tiles, "section_first": 0}
        stage |= {"s_div": spread, "s_count": blocks, "b_div": 1, "b_count": spread}
        first = Phase("windows", WindowStageSpec(self.input_step()), stage, blocks * spread)
        return replace(fused, phases=(first, products), workspace=buffers)

    def most_blocks(self, threads: int) -> int:
        """As many blocks as this is done for: fewer than threads would like."""
        return self.enough(threads) - 1

    def window_bytes(self, tiles: int) -> int:
        """Bytes of V of a block."""
        return self.points * super().scratch(tiles)[0]["v_point"]

    @property
    def zero_bytes(self) -> int:
        """A row of channels that padding is read from."""
        return -(-self.row // ALIGNMENT) * ALIGNMENT if self.padded and self.adjacent else 0

    def scratch(self, tiles: int) -> tuple[dict[str, int], int]:
        """Where everything lies in a thread's scratch, and its bytes: M alone."""
        fields, end = super().scratch(tiles)
        gap = fields["m_at"] + self.zero_bytes
        behind = {name: fields[name] - gap for name in ("u_at", "t_at") if name in fields}
        return fields | behind | {"m_at": 0}, end - gap

    def spec(self, tiles: int) -> WinogradSpec:
        """The kernel of products."""
        return replace(super().spec(tiles), staged=True)


class SharedWindowsOnTheFly(SharedWindows, BlocksOnTheFly):
    """The same with weights on the fly, if channels are not split."""

    def most_blocks(self, threads: int) -> int:
        """No more than threads: their own windows would take as much memory."""
        return threads

    def near(self, threads: int) -> int:
        """What all threads may take, who share it."""
        return super().near(threads) * threads

    def block(self, threads: int, workspace: int | None, wanted: int | None) -> int:
        """As many tiles as there can be: each block transforms all weights."""
        total = max(1, self.fields["tile_count"])
        tiles = self.fitting(min(wanted or MOST_TILES, total), 1, workspace or self.near(threads))
        return -(-total // -(-total // tiles))
