"""The gradient with respect to depthwise weights, in vectors of channels or of pixels.

Idea        each channel is on its own: its gradient is multiplied with its pixels under each tap, vectors of channels
            where these are adjacent, else vectors of pixels whose lanes are added up at the end
Workspace   a thread: totals of a vector for each tap of what a chunk owns
Good for    one input and one output channel a group, channels or pixels adjacent
Bad for     nothing else is accepted; pixels adjacent and stride 2 or more: the image is read one by one
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.backward.boxes import box_sizes
from leanconv.backward.direct import CHUNKS_A_THREAD, weights_error_bound
from leanconv.host import Host
from leanconv.kernels.backward_depthwise import BackwardDepthwiseSpec
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

PIXELS = 128  # a box: its lines, one of image and gradient a pixel, stay in the first-level cache for all taps
VECTORS = 2  # of channels a unit: whole lines of cache


class DepthwiseWeights(Algorithm):
    """Sums over pixels, channel by channel."""

    name: ClassVar[str] = "depthwise"
    title: ClassVar[str] = "sums over pixels, channel by channel"
    paper: ClassVar[str] = (
        "P. Zhang, E. Lo, B. Lu: High Performance Depthwise and Pointwise Convolutions on Mobile Devices, AAAI 2020 "
        "(depthwise layers in vectors of channels)"
    )

    def refusal(self, problem: Problem) -> str | None:
        """One channel a group, adjacent channels or adjacent pixels of both arrays."""
        p = problem
        if p.group_in != 1 or p.group_out != 1:
            return f"groups have {p.group_in} input and {p.group_out} output channels, depthwise takes one of each"
        if p.pad_mode != "zeros":
            return f"pad_mode {p.pad_mode!r}: the image is read without a copy"
        if not _channels(p) and p.out_strides[-1] != 1:
            return "neither channels nor pixels are adjacent in memory"
        return None

    def error_bound(self, problem: Problem) -> float:
        """Of sums of boxes of some 256 pixels, added up one after the other."""
        return weights_error_bound(super().error_bound(problem), problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase."""
        p, item, lanes = problem, problem.itemsize, host.target.lanes(problem.dtype)
        channels = _channels(p)
        vectors = min(VECTORS, -(-p.groups // lanes)) if channels else 0
        wide = vectors * lanes or 1
        units = -(-p.groups // wide)
        unit_bytes = (p.taps + p.has_bias) * max(1, vectors) * host.target.vector_bytes
        chunk = max(1, units // (CHUNKS_A_THREAD * threads)) if threads > 1 else min(units, 16)
        while chunk > 1 and workspace is not None and arena_bytes(_buffers(chunk * unit_bytes), threads) > workspace:
            chunk //= 2
        boxes = box_sizes(p.batch, p.out_size, PIXELS)
        spec = BackwardDepthwiseSpec(
            host.target,
            p.dtype,
            p.kernel,
            p.stride,
            p.dilation,
            p.pad_low,
            vectors,
            p.groups % wide,
            p.x_strides[-1] == 1 and p.stride[-1] == 1,
            p.has_bias,
        )
        x, y, o = ([s * item for s in strides] for strides in (p.x_strides, p.out_strides, p.w_strides))
        chunks = -(-units // chunk)
        fields = {"u_div": 1, "u_count": chunks, "units": chunk, "unit_count": units, "batch": p.batch, "b_n": boxes[0]}
        fields |= {"x_n": x[0], "x_u": wide * x[1], "y_n": y[0], "y_u": wide * y[1], "o_k": o[0], "tap_count": p.taps}
        fields |= {"sum_unit": unit_bytes, "sum_bytes": chunk * unit_bytes}
        for d in range(p.ndim):
            fields |= {f"out{d}": p.out_size[d], f"in{d}": p.in_size[d], f"b_{d}": boxes[1 + d]}
            fields |= {f"at{d}": x[2 + d], f"step{d}": p.stride[d] * x[2 + d], f"tap{d}": p.dilation[d] * x[2 + d]}
            fields |= {f"y_{d}": y[2 + d], f"o_{d}": o[2 + d]}
        return Lowering(
            phases=(Phase("backward weights", spec, fields, chunks),),
            workspace=_buffers(chunk * unit_bytes),
            steps=(f"vectors of {'channels' if channels else 'pixels'}, tap by tap, added to totals",),
            parameters={"box": math.prod(boxes), "units": chunk, "chunks": chunks},
        )


def _channels(p: Problem) -> bool:
    """Whether channels are adjacent in both arrays."""
    return p.x_strides[1] == 1 and p.out_strides[1] == 1 and (p.groups > 1 or p.out_strides[-1] != 1)


def _buffers(nbytes: int) -> tuple[Buffer, ...]:
    return (Buffer("sums", nbytes, per_thread=True),)
