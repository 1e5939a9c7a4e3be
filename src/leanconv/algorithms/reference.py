"""The definition of convolution, one output at a time, summed in float64.

Idea        seven loops, no blocking: what every other algorithm is compared with
Workspace   none, and weights are read as they are
Good for    checking
Bad for     speed

    output [n][k][p][q]   =   sum over c, r, s of image [n][c][p + r][q + s] * weights [k][c][r][s]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.naive import NaiveSpec
from leanconv.problem import Problem
from leanconv.program import Phase


class Reference(Algorithm):
    """The definition."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "reference"
    title: ClassVar[str] = "the definition, summed in float64"
    paper: ClassVar[str] = "Y. LeCun et al.: Backpropagation Applied to Handwritten Zip Code Recognition, 1989"
    error_class: ClassVar[str] = "float64"

    def refusal(self, problem: Problem) -> str | None:
        """Applies to everything."""
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase, a chunk for each image and output channel."""
        p, item = problem, problem.itemsize
        spec = NaiveSpec(
            host.target,
            p.dtype,
            p.kernel,
            p.stride,
            p.dilation,
            p.pad_low,
            p.pad_mode,
            p.has_bias,
            Epilogue(p.activation, p.residual),
        )
        fields = {
            "k_div": 1,
            "k_count": p.out_channels,
            "n_div": p.out_channels,
            "n_count": p.batch,
            "channels": p.group_in,
            "group_out": p.group_out,
        }
        named = (("x", p.x_strides, "nc"), ("w", p.w_strides, "kc"), ("o", p.out_strides, "nk"))
        for letter, strides, axes in (*named, ("r", p.residual_strides or (0,) * (p.ndim + 2), "nk")):
            for axis, stride in zip([*axes, *range(p.ndim)], strides, strict=True):
                fields[f"{letter}_{axis}"] = stride * item
        for d in range(p.ndim):
            fields |= {f"out{d}": p.out_size[d], f"in{d}": p.in_size[d], f"at{d}": p.x_strides[2 + d] * item}
        phase = Phase("reference", spec, fields, p.batch * p.out_channels)
        return Lowering((phase,), steps=("loops over outputs, taps and channels, sums in float64",))
