"""Winograd's blocks of tiles: sizes, where everything lies in a thread's scratch, and the phases made from them."""

from __future__ import annotations

import math
from typing import ClassVar

from leanconv.algorithms.base import Lowering, WeightPacking
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.winograd_fields import odd_lines, tile_fields
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.reduction import SECTION, UNROLL, Reduction, reduction_fields
from leanconv.kernels.winograd import WinogradSpec
from leanconv.kernels.winograd_input import InputStep
from leanconv.kernels.winograd_output import OutputStep
from leanconv.kernels.winograd_products import lines_asked
from leanconv.kernels.winograd_tiles import Tiling
from leanconv.kernels.winograd_weights import WeightStep, WinogradPackSpec
from leanconv.memory import ALIGNMENT, Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

# Bytes of a section's weights, where those of a panel take more than half of the first level of cache: while all tiles
# of a block read them, those of the next section arrive beside them, and rows of V pass through (decision 0038).
_NEAR = 16 * 1024

# Tiles of a block whose weights come from the caches: more save little of their traffic, and push them out of the
# second level: 64 channels at 224x224, 56 tiles and 28 (decision 0030).
_MOST = 28
_FEWER = 24  # where windows are asked for beside products: the register tiles of 28 are fewer than their rows

# Bytes of image and outputs from which on they are asked for, in sizes of the second level of cache.
_FAR = 4
_SECTIONS = 4  # at most, of channels


class BlocksOfTiles:
    """The sizes of one problem on one machine, and the phases made from them.

    `transform`: weights are not transformed beforehand; `splits`: blocks of input channels, that go through all steps
    one after another.
    """

    phase: ClassVar[str] = "winograd"
    least: ClassVar[int] = 16  # tiles a block
    transform: ClassVar[bool] = False
    asks: ClassVar[bool] = True  # whether pixels can be asked for beside products
    splits: int = 1
    row_points: int = 0  # whose weights are transformed at one time, if they are transformed on the fly

    def __init__(self, problem: Problem, host: Host, tiling: Tiling) -> None:
        self.problem, self.host, self.tiling = problem, host, tiling
        self.points = tiling.points
        self.lanes = host.target.lanes(problem.dtype)
        self.panels = panels_of(problem, host)
        self.width = max(self.panels.vectors if self.panels.count else 1, self.panels.last) * host.target.vector_bytes
        axes = zip(problem.out_size, problem.dilation, strict=True)
        self.padded = any(problem.pad_low) or any(problem.pad_high) or any(out % d for out, d in axes)
        self.fields = tile_fields(problem, tiling)

    @property
    def section(self) -> int:
        """Channels of a section of V, whose weights stay near while all tiles pass."""
        vectors = -(-self.problem.group_in // (self.lanes * self.splits))
        whole = self.problem.group_in % max(self.lanes, UNROLL) == 0
        count = -(-vectors * self.lanes // self.most_channels) if whole and self.splits == 1 else 1
        return -(-vectors // count) * self.lanes

    @property
    def most_channels(self) -> int:
        """Channels of a section; weights on the fly are in the second level of cache anyway."""
        if self.transform or self.problem.group_in * self.width <= self.host.l1 // 2:
            return SECTION
        return min(SECTION, _NEAR // self.width)

    @property
    def sections(self) -> int:
        """Sections of V."""
        return -(-self.problem.group_in // self.section) if self.splits == 1 else 1

    @property
    def row(self) -> int:
        """Bytes of V a tile and point."""
        return self.sections * self.section * self.problem.itemsize

    @property
    def adjacent(self) -> bool:
        """Whether input channels are adjacent in memory."""
        return self.problem.x_strides[1] == 1

    @property
    def runs(self) -> bool:
        """Whether rows of windows are runs of adjacent pixels, of which padding is cut off (the rest is zeros)."""
        p, axis = self.problem, self.tiling.axes[-1]
        plain = not self.padded or (p.pad_mode == "zeros" and p.in_size[-1] >= axis.transform.size)
        return not self.adjacent and p.x_strides[-1] == 1 and axis.dilation == 1 < axis.transform.size and plain

    def panel_bytes(self, width: int) -> int:
        """Transformed weights and biases of a panel `width` bytes wide."""
        return self.matrices * self.point_bytes(width) + self.problem.has_bias * width

    @property
    def matrices(self) -> int:
        """Matrices of weights in a panel."""
        return self.points

    def point_bytes(self, width: int) -> int:
        """Bytes of one point's weights in such a panel."""
        return odd_lines(self.problem.group_in * width)

    def scratch(self, tiles: int) -> tuple[dict[str, int], int]:
        """Where everything lies in a thread's scratch for blocks of so many tiles, and its bytes.

        Matrices of different points are an odd number of cache lines apart: a tile's values would otherwise fall into
        few sets of the first-level cache.
        """
        point, product = odd_lines(tiles * self.row), odd_lines(tiles * self.width)
        row = self.section * self.problem.itemsize
        fields = {"v_point": point, "m_point": product, "v_row": row, "v_section": tiles * row, "v_at": 0}
        fields["section_channels"] = self.section
        fields["m_at"] = end = self.points * point
        fields["zero_at"] = end = end + self.points * product
        if self.padded and self.adjacent:
            end += -(-self.row // ALIGNMENT) * ALIGNMENT
        fields["u_at"] = end
        if self.transform:
            end += self.row_points * self.point_bytes(self.width)
            fields["t_at"] = end
            end += (self.row // self.problem.itemsize * self.problem.taps + self.problem.has_bias) * self.width
        return fields, end

    def block(self, threads: int, workspace: int | None, wanted: int | None) -> int:
        """Tiles a block: what the second-level cache holds, and enough that weights are not all that is read."""
        tile = self.points * (self.row + self.width)
        total = max(1, self.fields["tile_count"])
        near = max(min(self.host.l2 * 3 // 4 // tile, _FEWER if self.far else _MOST), self.least)
        tiles = min(wanted or (max(near, 48) if self.heavy else near), total)
        if wanted is None:
            if threads > 1 and not self.heavy:
                tiles = min(tiles, max(24, -(-total // (4 * threads))))
            # Blocks of one size: one with the tiles left over would read all weights for few.
            tiles = -(-total // max(1, round(total / tiles)))
        # Who counts packed weights too (the planner, under a memory limit) says what they leave.
        return tiles if workspace is None else self.fitting(tiles, threads, workspace)

    def shares(self, tiles: int, threads: int) -> tuple[int, int]:
        """Blocks of at most so many tiles, and the tiles of the largest.

        As many for each thread: of eleven blocks two threads would take six, while one of them waits at the end.
        """
        total = max(1, self.fields["tile_count"])
        blocks = -(-total // tiles)
        if blocks > threads and self.problem.groups == 1 and not self.transform:
            blocks = min(total, -(-blocks // threads) * threads)
        return blocks, -(-total // blocks)

    def fitting(self, tiles: int, threads: int, workspace: int) -> int:
        """At most so many tiles whose scratch fits, or one."""
        free = workspace // threads - self.scratch(0)[1]
        tiles = max(1, min(tiles, free // (self.points * (self.row + self.width))))
        while tiles > 1 and arena_bytes((self.buffer(tiles),), threads) > workspace:
            tiles -= 1
        return tiles

    def buffer(self, tiles: int) -> Buffer:
        """The scratch of every thread."""
        return Buffer("scratch", self.scratch(tiles)[1], per_thread=True)

    @property
    def far(self) -> bool:
        """Whether image and outputs come from memory, or the third level of cache: asked for beside products."""
        p = self.problem
        if not self.asks or not self.host.target.masks or self.sections > _SECTIONS or p.groups > 1:
            return False
        dense = all(s[1] == 1 for s in (p.x_strides, p.out_strides)) and p.x_strides[-1] == p.in_channels
        plain = all(n == 1 for n in (*p.stride, *p.dilation))
        moved = p.batch * (p.in_channels * math.prod(p.in_size) + p.out_channels * math.prod(p.out_size)) * p.itemsize
        return dense and plain and moved > _FAR * self.host.l2

    @property
    def heavy(self) -> bool:
        """Whether blocks would wait for their weights, which come from memory: 512 channels, 28x28, 238 -> 298 %."""
        return self.packed_bytes > 16 * self.host.l2

    @property
    def packed_bytes(self) -> int:
        """Bytes of all transformed weights."""
        whole, last = (n * self.host.target.vector_bytes for n in (self.panels.vectors, self.panels.last))
        group = self.panels.count * self.panel_bytes(whole) + (self.panel_bytes(last) if last else 0)
        return self.problem.groups * group

    def weight_fields(self) -> dict[str, int]:
        """Where the user's weights and biases are."""
        p, item = self.problem, self.problem.itemsize
        strides = [s * item for s in p.w_strides]
        return {
            "channels": p.group_in,
            "w_k": strides[0],
            "w_c": strides[1],
            "w_g": p.group_out * strides[0],
            "bias_g": p.group_out * item,
            "group_out": p.group_out,
            "panel_count": self.panels.total,
            "u_point": self.point_bytes(self.panels.vectors * self.host.target.vector_bytes),
            "u_last": self.point_bytes(self.panels.last * self.host.target.vector_bytes),
            **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
        }

    def weight_step(self) -> WeightStep:
        """How filters are transformed."""
        return WeightStep(self.host.target, self.problem.dtype, self.tiling.whole)

    def packing(self) -> WeightPacking:
        """The phase that transforms all weights."""
        p, total = self.problem, self.panels.total
        spec = WinogradPackSpec(self.weight_step(), self.panels.shape, p.has_bias)
        fields = self.weight_fields() | {
            "g_div": total,
            "g_count": p.groups,
            "p_div": 1,
            "p_count": total,
            "p_g": self.packed_bytes // p.groups,
            "p_panel": self.panel_bytes(self.panels.vectors * self.host.target.vector_bytes),
        }
        phase = Phase("transform weights", spec, fields, p.groups * total)
        return WeightPacking(self.packed_bytes, phase, grouped=True)

    def lowering(self, threads: int, workspace: int | None, wanted: int | None) -> Lowering:
        """The whole program."""
        blocks, tiles = self.shares(self.block(threads, workspace, wanted), threads)
        parts = 1
        chunks = blocks * self.problem.groups
        enough = self.enough(threads)  # each part of the panels transforms the windows again
        while threads > 1 and chunks * parts < enough and self.panels.total >= 8 * parts:
            parts *= 2
        # Even so two parts are done before one of all is, while threads have nothing to do: 32 to 96 channels, 5x5 taps
        # on 28 x 28, took 108 us on one thread and on two, now 79. (Blocks of half as many tiles would take 0.78 of the
        # time of one, but 1.33 where the other thread does not come.)
        while chunks * parts < threads and self.panels.total > parts:
            parts += 1
        low = self.program(tiles, blocks, parts)
        if parts > 1:
            return low
        fields = {**low.phases[0].fields, "b_ahead": -(-threads // 2)}  # half of all threads begin at either end
        return replace(low, phases=(replace(low.phases[0], fields=fields),))

    def enough(self, threads: int) -> int:
        """Chunks that keep the threads busy."""
        return (2 if self.heavy else 4) * threads

    def program(self, tiles: int, blocks: int, parts: int) -> Lowering:
        """One phase: so many blocks of tiles, and about so many parts of the panels."""
        p, panels = self.problem, self.panels
        group = -(-panels.total // parts)
        parts = -(-panels.total // group)
        places, _ = self.scratch(tiles)
        fields = self.fields | places | reduction_fields(p.group_in) | self.weight_fields()
        fields |= {
            "channels_vec": p.group_in // self.lanes * self.lanes,
            "k_div": 1,
            "k_count": parts,
            "g_div": parts,
            "g_count": p.groups,
            "b_div": parts * p.groups,
            "b_count": blocks,
            "panels": group,
            "panel_whole": panels.count,
            "c_count": self.splits,
            "c_vectors": p.group_in // self.lanes,
            "b_ahead": 0,
        }
        if not self.transform:
            fields |= {
                "w_g": self.packed_bytes // p.groups,
                "w_panel": self.panel_bytes(panels.vectors * self.host.target.vector_bytes),
            }
        chunks = blocks * p.groups * parts if p.batch else 0
        sizes = "x".join(str(axis.transform.outputs) for axis in self.tiling.axes)
        points = self.points
        return Lowering(
            (Phase(self.phase, self.spec(tiles), fields, chunks),),
            (self.buffer(tiles),),
            None if self.transform else self.packing(),
            self.steps(tiles),
            {
                "tile": sizes,
                "points": points,
                "tiles": tiles,
                "blocks": blocks,
                "splits": self.splits,
                "panels": group,
                "chunks": chunks,
            },
        )

    def steps(self, tiles: int) -> tuple[str, ...]:
        """What runs, in words."""
        sizes = "x".join(str(axis.transform.outputs) for axis in self.tiling.axes)
        points = self.points
        return (
            f"transform the windows of {tiles} tiles of {sizes} outputs to {points} points",
            f"{points} matrix products for each panel of output channels",
            "transform products to outputs",
        )

    def spec(self, tiles: int) -> WinogradSpec:
        """The kernel for blocks of so many tiles."""
        p, target = self.problem, self.host.target
        outputs = [strides for strides in (p.out_strides, p.residual_strides) if strides is not None]
        split = self.splits > 1
        stream = self.sections == 1 and self.section * self.panels.vectors * target.vector_bytes > self.host.l1 // 2
        # The code is the same for all blocks of several vectors of channels, no longer than a section of a sum.
        channels = SECTION if split or self.sections > 1 else p.group_in
        return WinogradSpec(
            target,
            p.dtype,
            self.tiling,
            self.input_step(),
            OutputStep(
                target,
                p.dtype,
                self.tiling,
                all(strides[1] == 1 for strides in outputs),
                all(strides[1] != 1 == strides[-1] for strides in outputs) and self.tiling.axes[-1].dilation == 1,
                p.has_bias,
                Epilogue(p.activation, p.residual),
                split,
            ),
            Reduction.of((1,), channels, unit_channel=True, merged=False, stream=stream),
            self.panels.shape,
            self.transform,
            split,
            self.sections > 1,
            lines_asked(target, self.panels.vectors, tiles),
            ahead=self.sections if self.far else 0,
        )

    def input_step(self) -> InputStep:
        """How windows are read and transformed."""
        p, target, tail = self.problem, self.host.target, self.problem.group_in % self.lanes
        flags = self.adjacent, self.runs
        return InputStep(target, p.dtype, self.tiling, self.padded, p.pad_mode, *flags, tail, self.sections > 1)
