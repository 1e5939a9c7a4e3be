"""Winograd with weights transformed on the fly: how many tiles and input channels go through all steps at once.

A thread's scratch holds V [point][tile][channel], U [point][channel][NR] and M [point][tile][NR].  Each weight is
transformed once for each block of tiles, and each product is transformed back once for each block of channels, whose
outputs are added up in the output itself.  So many tiles are good for weights, many channels for products, and what
the scratch may hold is shared between them so that both together cost least:

    slots of a tile = points * (products * tiles' rows + windows * C / 8 + weights * C * K / 8 / tiles
                                + outputs * splits * K / 8)                                            for 8 lanes
"""

from __future__ import annotations

from typing import ClassVar

from leanconv.algorithms.winograd_blocks import BlocksOfTiles, odd_lines
from leanconv.host import Host
from leanconv.kernels.cost import issue_slots
from leanconv.kernels.reduction import SECTION
from leanconv.kernels.winograd_tiles import Tiling
from leanconv.problem import Problem

# Slots of a point of a vector in two dimensions, measured: of a window, of a filter, of a product with its way back
# to pixels, and of one that is added to outputs, which are read from farther away.
WINDOW, FILTER, OUTPUT, ADDED = 9.7, 6.0, 12.0, 20.0
_PASS, _MOVE = 0.3, 0.4  # the parts of them that each axis takes, and loads and stores

_FEWEST = 16  # channels of a block: with fewer, products are not worth their way to memory and back
MOST_TILES = _MOST_TILES = 64  # of a block, if memory is no matter: weights are no longer what takes the time


def pass_slots(axes: int) -> float:
    """How much of these a transform along so many axes takes."""
    return _PASS * axes + _MOVE


def output_slots(splits: int) -> float:
    """What the products of all blocks of input channels take on their way back to pixels."""
    return OUTPUT + ADDED * (splits - 1)


def panel_slots(nbytes: int, host: Host) -> float:
    """How much longer filters take if so many bytes of a panel share the second-level cache with the windows."""
    return 1.0 if nbytes <= host.l2 // 4 else 1.7


class BlocksOnTheFly(BlocksOfTiles):
    """Sizes and phases; at least `wanted` blocks of input channels if that can be, or as many as cost least."""

    transform: ClassVar[bool] = True

    def __init__(
        self,
        problem: Problem,
        host: Host,
        tiling: Tiling,
        threads: int,
        workspace: int | None,
        wanted: int | None,
    ) -> None:
        super().__init__(problem, host, tiling)
        possible = self._possible()
        if wanted is not None:
            self.splits = min((count for count in possible if count >= wanted), default=possible[-1])
        else:
            self.splits = min(possible, key=lambda count: self._slots(count, threads, workspace))

    def _possible(self) -> list[int]:
        """Numbers of blocks of channels: all of them whole vectors, and none too short or longer than a section."""
        p = self.problem
        late = p.residual == "after" and p.activation is not None  # a sum is not to be activated with it
        if p.group_in % self.lanes or late:
            return [1]
        vectors = p.group_in // self.lanes
        fewest = max(1, _FEWEST // self.lanes)
        counts = sorted({-(-vectors // size) for size in range(fewest, vectors)})
        return [1, *(n for n in counts if vectors // n >= fewest and -(-vectors // n) * self.lanes <= SECTION)]

    def _slots(self, splits: int, threads: int, workspace: int | None) -> tuple[bool, float]:
        """Whether not even a tile fits, and what a tile takes if the channels are split so."""
        self.splits = splits
        tiles = self.block(threads if workspace is not None else 1, workspace, None)
        inner, outer = (
            self.problem.group_in / self.lanes,
            self.panels.total * self.width / self.host.target.vector_bytes,
        )
        rows = self.host.target.tile_rows(self.panels.vectors)
        tall = -(-tiles // rows)
        issued = tall * issue_slots(tiles / tall, self.panels.vectors) / self.panels.vectors
        products = issued / tiles * self.problem.group_in * outer
        filters = FILTER * panel_slots(self.panel_bytes(self.width), self.host) / tiles * self.problem.group_in
        moved = WINDOW * inner + (filters + output_slots(splits)) * outer
        slots = products + moved * pass_slots(len(self.tiling.active))
        over = workspace is not None and tiles == 1 and self.scratch(1)[1] * threads > workspace
        return over, slots

    def point_bytes(self, width: int) -> int:
        """Bytes of one point's weights in a panel `width` bytes wide."""
        channels = self.row // self.problem.itemsize if self.splits > 1 else self.problem.group_in
        return odd_lines(channels * width)

    @property
    def heavy(self) -> bool:
        """Weights are transformed where they are used."""
        return False

    def block(self, threads: int, workspace: int | None, wanted: int | None) -> int:
        """Tiles a block: as many as fit, and in any case so few that the scratch stays near."""
        total = max(1, self.fields["tile_count"])
        tiles = min(wanted or MOST_TILES, total)
        if wanted is None:
            tiles = self.fitting(tiles, 1, 3 * self.host.l2 // 2)
            if threads > 1:
                tiles = min(tiles, max(16, -(-total // threads)))
        if workspace is not None:
            tiles = self.fitting(tiles, threads, workspace)
        # Blocks of one size: one with the tiles left over would transform all weights for few.
        return -(-total // -(-total // tiles))

    def steps(self, tiles: int) -> tuple[str, ...]:
        """What runs, in words."""
        first, *rest = super().steps(tiles)
        part = f", of 1 / {self.splits} of the channels at a time" if self.splits > 1 else ""
        add = ["add up the outputs of all channels"] if self.splits > 1 else []
        return (first + part, "transform the weights of a panel of output channels", *rest, *add)
