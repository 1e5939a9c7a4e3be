"""Blocks of windows: sizes, where everything lies in a thread's scratch, and the one phase made from them."""

from __future__ import annotations

from typing import ClassVar

from leanconv.algorithms.winograd_blocks import BlocksOfTiles
from leanconv.algorithms.winograd_fields import odd_lines
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fft import FftSpec
from leanconv.kernels.fft_grid import FftTiling, Grid
from leanconv.kernels.fft_read import FftInput
from leanconv.kernels.fft_weights import FftWeightStep
from leanconv.kernels.fft_write import FftOutput
from leanconv.kernels.reduction import Reduction
from leanconv.problem import Problem


def reaches_outside(problem: Problem, tiling: FftTiling) -> bool:
    """Whether a window lies partly outside the image."""
    for axis, window, out, size in zip(
        tiling.axes, tiling.grid.windows, problem.out_size, problem.in_size, strict=True
    ):
        last = (-(-out // window.outputs) - 1) * window.outputs - axis.pad_low
        if axis.dilation > 1 or axis.pad_low > 0 or last + window.filled > size:
            return True
    return False


def steps_of(
    problem: Problem, target: Target, tiling: FftTiling, padded: bool, tail: int
) -> tuple[FftInput, FftOutput]:
    """How windows are read and outputs written; `tail` channels are left over by whole vectors."""
    p, d = problem, tiling.grid.axis
    outputs = [strides for strides in (p.out_strides, p.residual_strides) if strides is not None]

    def runs(strides: tuple[int, ...]) -> bool:
        return strides[1] != 1 == strides[2 + d] and p.dilation[d] == 1

    read = FftInput(target, p.dtype, tiling, padded, p.pad_mode, p.x_strides[1] == 1, runs(p.x_strides), tail)
    write = FftOutput(
        target,
        p.dtype,
        tiling,
        all(strides[1] == 1 for strides in outputs),
        all(map(runs, outputs)),
        p.has_bias,
        Epilogue(p.activation, p.residual),
    )
    return read, write


class BlocksOfWindows(BlocksOfTiles):
    """Sizes and phases, as Winograd's but for the steps."""

    phase: ClassVar[str] = "fft"
    asks: ClassVar[bool] = False
    tiling: FftTiling

    def __init__(self, problem: Problem, host: Host, grid: Grid) -> None:
        p = problem
        super().__init__(p, host, FftTiling.of(grid, p.out_size, p.dilation, p.pad_low))
        self.padded = reaches_outside(p, self.tiling)
        self.grid = grid

    @property
    def heavy(self) -> bool:
        """Windows are large: more of them at a time would not stay in a cache either."""
        return False

    def scratch(self, tiles: int) -> tuple[dict[str, int], int]:
        """Where everything lies in a thread's scratch for blocks of so many tiles, and its bytes."""
        width = self.host.target.vector_bytes
        point, product = odd_lines(tiles * self.row), odd_lines(tiles * self.width)
        m_at = self.tiling.points * point
        plane_at = m_at + self.tiling.points * product
        fields = {"v_point": point, "m_point": product, "v_row": self.row, "v_at": 0, "m_at": m_at}
        fields |= {"plane_at": plane_at, "plane_back": plane_at - m_at}
        return fields, plane_at + self.grid.plane_bytes(width) + self.grid.longest * width

    def weight_step(self) -> FftWeightStep:
        """How filters are transformed."""
        return FftWeightStep(self.host.target, self.problem.dtype, self.tiling, gauss=True)

    def steps(self, tiles: int) -> tuple[str, ...]:
        """What runs, in words."""
        sizes = "x".join(map(str, self.grid.sizes))
        return (
            f"transform windows of {sizes} pixels, {tiles} at a time, to {self.tiling.points} points",
            f"{self.tiling.points} matrix products for each panel of output channels",
            "transform products to outputs",
        )

    @property
    def section(self) -> int:
        """All channels: the transforms write them side by side."""
        return -(-self.problem.group_in // self.lanes) * self.lanes

    def transforms(self) -> tuple[FftInput, FftOutput]:
        """How windows are read and outputs written."""
        p = self.problem
        return steps_of(p, self.host.target, self.tiling, self.padded, p.group_in % self.lanes)

    def spec(self, tiles: int) -> FftSpec:
        """The kernel."""
        p, target = self.problem, self.host.target
        read, write = self.transforms()
        reduction = Reduction.of((1,), p.group_in, unit_channel=True, merged=False, stream=True)
        return FftSpec(target, p.dtype, self.tiling, read, write, reduction, self.panels.shape, False)
