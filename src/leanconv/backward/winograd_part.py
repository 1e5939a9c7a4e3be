"""Winograd for gradients with respect to weights: what is staged at one time, and the phases of some channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fields import odd_lines, tile_fields
from leanconv.backward.direct import TileRows, tile_rows
from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.backward_winograd import ProductSpec, TapSpec
from leanconv.kernels.backward_winograd_stage import GradientStageSpec, WindowStageSpec
from leanconv.kernels.panels import Panels
from leanconv.kernels.winograd_input import InputStep
from leanconv.kernels.winograd_tiles import Tiling
from leanconv.memory import Buffer
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

_CHUNKS_A_THREAD = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """`sections` of `tiles` tiles (of all `total`), and so many channels and outputs, staged at one time; its buffers.

    Matrices of different points are an odd number of cache lines apart: what a tile writes would otherwise fall into
    few sets of the first-level cache.
    """

    TILES: ClassVar[int] = 64  # terms of a sum that starts at zero: follows from the problem alone, as boxes do

    tiles: int
    total: int
    sections: int
    channels: int
    outputs: int
    fields: dict[str, int]
    buffers: tuple[Buffer, ...]

    @staticmethod
    def tile_count(problem: Problem, tiling: Tiling) -> int:
        """Tiles of all images."""
        return tile_fields(problem, tiling)["tile_count"]

    @staticmethod
    def of(p: Problem, host: Host, tiling: Tiling, sections: int, channels: int, outputs: int) -> Sizes:
        """Where everything lies."""
        register, points = host.target.vector_bytes, tiling.points
        count = max(1, Sizes.tile_count(p, tiling))
        tiles, total = min(Sizes.TILES, count), -(-count // Sizes.TILES)
        panels = Panels.of(outputs, host.target.lanes(p.dtype))
        row = -(-channels * p.itemsize // register) * register
        wide = panels.registers * register
        fields = {"v_row": row, "v_point": odd_lines(tiles * row)}
        fields |= {"z_panel": tiles * panels.vectors * register, "z_point": odd_lines(tiles * wide)}
        fields |= {"m_row": wide, "m_point": odd_lines(channels * wide), "section": tiles}
        fields |= {"v_section": points * fields["v_point"], "z_section": points * fields["z_point"]}
        fields["section_bytes"] = fields["v_section"]
        buffers = [
            Buffer("windows", sections * fields["v_section"]),
            Buffer("gradients", sections * fields["z_section"]),
            Buffer("sums", points * fields["m_point"]),
        ]
        if p.x_strides[1] == 1 and (any(p.pad_low) or any(p.pad_high)):
            buffers.append(Buffer("zeros", row, per_thread=True))
        return Sizes(tiles, total, sections, channels, outputs, fields, tuple(buffers))

    @property
    def slices(self) -> int:
        """How often sections are staged."""
        return -(-self.total // self.sections)

    @property
    def staged_bytes(self) -> int:
        """Windows and gradients."""
        return self.buffers[0].nbytes + self.buffers[1].nbytes


class Part:
    """So many input and output channels of a group as a problem of their own; wherever they are, phases are alike."""

    def __init__(
        self, p: Problem, host: Host, tiling: Tiling, sizes: Sizes, threads: int, channels: int, outputs: int
    ) -> None:
        self.problem = replace(p, in_channels=channels, out_channels=outputs, groups=1, has_bias=False)
        self.host, self.tiling, self.sizes = host, tiling, sizes
        self.panels = panels_of(self.problem, host)
        self.threads, self.fields = threads, self._fields()
        self.steps = self._windows(), self._gradients(), self._products(threads), self._taps(threads)

    def phases(self, offsets: Mapping[str, int], *, windows: bool) -> list[Phase]:
        """All steps, on arrays that begin `offsets` bytes further on; `windows`: they are not left by another part."""
        s, count, threads, result = self.sizes, self.fields["tile_count"], self.threads, []
        reading, gradients, products, taps = self.steps
        here = {role: {role: offset} for role, offset in offsets.items()}
        for first in range(0, s.total, s.sections):
            number = min(s.sections, s.total - first)
            tiles = min((first + number) * s.tiles, count) - first * s.tiles
            own = {"section_first": first, "section_count": number, "tiles_here": tiles}
            blocks = min(s.tiles, -(-_CHUNKS_A_THREAD * threads // number)) if threads > 1 else 1
            staged = self.fields | own | {"s_div": blocks, "s_count": number, "b_div": 1, "b_count": blocks}
            if windows:
                result.append(Phase("windows", reading, staged, number * blocks, offsets=here["x"]))
            result.append(Phase("gradients", gradients, staged, number * blocks, offsets=here["weights"]))
            result.append(replace(products, fields={**products.fields, **own}))
        return [*result, replace(taps, offsets=here["out"])]

    def _fields(self) -> dict[str, int]:
        p, lanes = self.problem, self.host.target.lanes(self.problem.dtype)
        fields = tile_fields(p, self.tiling) | self.sizes.fields
        fields |= {"y_n": p.out_strides[0] * p.itemsize, "y_k": p.out_strides[1] * p.itemsize}
        fields |= {f"y_{d}": stride * p.itemsize for d, stride in enumerate(p.out_strides[2:])}
        fields |= {"channels": p.in_channels, "channels_vec": p.in_channels // lanes * lanes}
        fields |= {"vectors": self.panels.registers, "panel_count": self.panels.total}
        return fields | {"panel_whole": self.panels.count}

    def _windows(self) -> WindowStageSpec:
        p, target = self.problem, self.host.target
        blocks = BlocksOfTiles(p, self.host, self.tiling)
        tail = p.in_channels % target.lanes(p.dtype)
        step = InputStep(target, p.dtype, self.tiling, blocks.padded, p.pad_mode, blocks.adjacent, blocks.runs, tail)
        return WindowStageSpec(step)

    def _gradients(self) -> GradientStageSpec:
        p = self.problem
        adjacent = p.out_strides[1] == 1
        runs = not adjacent and p.out_strides[-1] == 1
        return GradientStageSpec(self.host.target, p.dtype, self.tiling, self.panels.shape, adjacent, runs)

    def _products(self, threads: int) -> Phase:
        p, panels, points = self.problem, self.panels, self.tiling.points
        target = self.host.target
        widths = (panels.vectors, panels.last or panels.vectors)
        kinds = [TileRows.of(p.in_channels, tile_rows(target, width, apart=False)) for width in widths]
        wanted = 2 * _CHUNKS_A_THREAD * threads if threads > 1 else 1
        groups = min(panels.total, -(-wanted // points))
        group = -(-panels.total // groups)
        groups = -(-panels.total // group)
        parts = min(min(kind.tiles for kind in kinds), -(-wanted // (points * groups)))
        counts = {"c": parts, "k": groups, "e": points}
        step = 1
        fields = dict(self.fields)
        for letter, count in counts.items():
            fields |= {f"{letter}_div": step, f"{letter}_count": count}
            step *= count
        fields["panels"] = group
        for number, kind in enumerate(kinds):
            fields |= {f"tiles_of{number}": kind.tiles, f"long{number}": kind.tiles - kind.short}
        rows, short = (kinds[0].rows, kinds[1].rows), (kinds[0].short > 0, kinds[1].short > 0)
        return Phase("products", ProductSpec(target, p.dtype, self.tiling, panels.shape, rows, short), fields, step)

    def _taps(self, threads: int) -> Phase:
        p, panels = self.problem, self.panels
        dense = dense_strides((1, 1, *p.kernel), "NCHW")[2:]
        near = all(s == d for s, d, n in zip(p.w_strides[2:], dense, p.kernel, strict=True) if n > 1)
        lanes = self.host.target.lanes(p.dtype)
        valid = panels.valid if panels.last else lanes
        channels_near = not near and p.w_strides[1] == 1
        spec = TapSpec(self.host.target, p.dtype, self.tiling, valid, near, channels_near)
        block = min(16, -(-p.in_channels // (_CHUNKS_A_THREAD * threads))) if threads > 1 else 16
        block = -(-block // lanes) * lanes if channels_near else block
        fields = self.fields | {"c_block": block, "o_k": p.w_strides[0] * p.itemsize}
        fields |= {"o_c": p.w_strides[1] * p.itemsize}
        fields |= {f"o_{d}": stride * p.itemsize for d, stride in enumerate(p.w_strides[2:])}
        return Phase("taps", spec, fields, -(-p.in_channels // block))
