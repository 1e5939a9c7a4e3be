"""Depthwise convolution by FFT: each channel's spectrum times that of its filter.

Idea        lanes of a vector are channels; rows of a window are transformed, then each column is transformed,
            multiplied and transformed back where it lies, then rows are transformed back; windows are tiles or the
            whole image, as costs least, and take the same time whatever the number of taps in them
Workspace   a thread: the window of a vector of channels (channels last: of those in a cache line); 72 x 72 places of
            8 channels are 166 KB
Weights     a window for each channel
Good for    depthwise kernels of 15x15 and more, stride 1
Bad for     small kernels, strides

M. Mathieu, M. Henaff, Y. LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014; large depthwise
kernels as in X. Ding et al.: Scaling Up Your Kernels to 31x31, CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

from leanconv.algorithms.base import Lowering, WeightPacking
from leanconv.algorithms.fft import Fft, transform_slots
from leanconv.algorithms.fft_blocks import reaches_outside, steps_of
from leanconv.algorithms.fft_windows import LONGEST, Extent, best_grid, extent
from leanconv.algorithms.winograd_fields import tile_fields
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fft_grid import FftTiling, Grid
from leanconv.kernels.fft_lanes import FftLanesSpec
from leanconv.kernels.fft_weights import FftWeightStep
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.winograd_weights import WinogradPackSpec
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem
from leanconv.program import Phase


@lru_cache(maxsize=512)
def depthwise_grid(problem: Problem) -> Grid | None:
    """The windows of least cost, tiles or whole axes."""

    def slots(of: Extent) -> float:
        return of.tiles * transform_slots(of) * 2 + of.places

    return best_grid(problem, slots, whole=False, longest=LONGEST)


class FftDepthwise(Fft):
    """Depthwise convolution by FFT."""

    name: ClassVar[str] = "fft_depthwise"
    title: ClassVar[str] = "FFT, a channel a lane"
    paper: ClassVar[str] = (
        "M. Mathieu, M. Henaff, Y. LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014; large "
        "depthwise kernels as in X. Ding et al.: Scaling Up Your Kernels to 31x31, CVPR 2022"
    )
    tunables: ClassVar[Mapping[str, str]] = {}
    longest: ClassVar[int] = LONGEST

    def refusal(self, problem: Problem) -> str | None:
        """One channel in and out of each group, and what all FFTs want."""
        p = problem
        if p.group_in != 1 or p.group_out != 1:
            return f"each group has {p.group_in} channels in and {p.group_out} out, fft_depthwise takes one and one"
        return super().refusal(problem)

    def cost(self, problem: Problem, host: Host, threads: int, lowering: Lowering) -> Cost | None:
        """Two transforms of each window."""
        p, grid = problem, depthwise_grid(problem)
        assert grid is not None
        of = extent(p, grid)
        vectors = -(-p.groups // host.target.lanes(p.dtype))
        weights = vectors * of.places * host.target.vector_bytes
        out = p.batch * p.out_channels * math.prod(p.out_size) * p.itemsize
        counts = {"vector": of.tiles * vectors * transform_slots(of) * 2}
        return Cost(counts, ((of.tiles * weights, weights),), ((out, out),), lowering.phases[0].chunks)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase, a chunk for each tile and vector of channels."""
        p, target = problem, host.target
        grid = depthwise_grid(p)
        assert grid is not None
        tiling = FftTiling.of(grid, p.out_size, p.dilation, p.pad_low)
        lanes, width = target.lanes(p.dtype), target.vector_bytes
        vectors = -(-p.groups // lanes)
        panel = (math.prod(grid.sizes) + p.has_bias) * width
        read, write = steps_of(p, target, tiling, reaches_outside(p, tiling), p.groups % lanes)
        tiles = tile_fields(p, tiling)
        # Vectors of channels that lie in one cache line are read, and written, at the same time.
        group = max(1, min(ALIGNMENT // width, vectors)) if read.adjacent or write.adjacent else 1
        runs = -(-vectors // group)
        fields = tiles | {
            "k_div": 1,
            "k_count": runs,
            "b_div": runs,
            "b_count": tiles["tile_count"],
            "vectors": vectors,
            "w_panel": panel,
        }
        chunks = tiles["tile_count"] * runs
        scratch = Buffer("scratch", group * grid.plane_bytes(width) + grid.longest * width, per_thread=True)
        sizes = "x".join(map(str, grid.sizes))
        return Lowering(
            (Phase("fft depthwise", FftLanesSpec(target, p.dtype, tiling, read, write, group), fields, chunks),),
            (scratch,),
            self._packing(p, host, tiling, panel),
            (
                f"transform windows of {sizes} pixels along rows",
                "transform columns, multiply them with those of the filters, and transform them back",
                "transform rows back",
            ),
            {"tile": "x".join(str(w.outputs) for w in grid.windows), "window": sizes, "chunks": chunks},
        )

    def _packing(self, problem: Problem, host: Host, tiling: FftTiling, panel: int) -> WeightPacking:
        """The phase that transforms all filters."""
        p, target, item = problem, host.target, problem.itemsize
        lanes = target.lanes(p.dtype)
        whole, rest = divmod(p.groups, lanes)
        shape = PanelShape(1, whole > 0, 1 if rest else 0, rest)
        step = FftWeightStep(target, p.dtype, tiling, gauss=False)
        vectors = whole + (rest > 0)
        strides = [s * item for s in p.w_strides]
        fields = {
            "g_div": vectors,
            "g_count": 1,
            "p_div": 1,
            "p_count": vectors,
            "p_g": 0,
            "p_panel": panel,
            "panel_count": vectors,
            "channels": 1,
            "w_k": strides[0],
            "w_c": strides[1],
            "w_g": 0,
            "bias_g": 0,
            "group_out": 1,
            "u_point": target.vector_bytes,
            "u_last": target.vector_bytes,
            **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
        }
        spec = WinogradPackSpec(step, shape, p.has_bias)
        return WeightPacking(vectors * panel, Phase("transform weights", spec, fields, vectors))
