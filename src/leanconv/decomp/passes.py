"""The two passes of a filter of low rank: their layers, and the kernel that fuses them."""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.algorithms.planes import pack_planes
from leanconv.algorithms.separable import HORIZONTAL, VERTICAL, two_passes
from leanconv.blocks.base import BlockLowering, BlockPlan, left_for_workspace
from leanconv.blocks.chain import lower_chain
from leanconv.classes import dataclass, replace
from leanconv.host import Host, this_host
from leanconv.options import make_problem
from leanconv.problem import Problem, dense_strides, to_user

NAMES = ("vertical", "horizontal")
MOST_RANK = 16  # columns of a filter of its own, channels last: all of them are written out in the code of one tap


@dataclass(frozen=True, slots=True)
class Passes:
    """The layers of a filter as two: `shared` a common basis, else `rank` columns for each filter.

    `uniform`: all filters are the same one.
    """

    whole: Problem
    rank: int
    shared: bool
    uniform: bool

    @property
    def layers(self) -> tuple[Problem, Problem]:
        """Down, then along; stride, padding and dilation taken apart, bias, activation and residual in the second."""
        p = self.whole
        pads = tuple(zip(p.pad_low, p.pad_high, strict=True))
        filters = self.rank if self.shared else p.out_channels * self.rank
        vertical = make_problem(
            2,
            p.x_shape,
            (filters, p.group_in, p.kernel[0], 1),
            dtype=p.dtype,
            stride=(p.stride[0], 1),
            padding=(pads[0], (0, 0)),
            dilation=(p.dilation[0], 1),
            groups=p.groups,
            layout=p.layout,
            pad_mode=p.pad_mode,
            x_strides=to_user(p.x_strides, p.layout),
        )
        horizontal = make_problem(
            2,
            vertical.out_shape,
            (p.out_channels, self.rank, 1, p.kernel[1]),
            dtype=p.dtype,
            bias=p.has_bias,
            stride=(1, p.stride[1]),
            padding=((0, 0), pads[1]),
            dilation=(1, p.dilation[1]),
            groups=1 if self.shared else p.out_channels,
            layout=p.layout,
            pad_mode=p.pad_mode,
            activation=p.activation,
            residual=p.residual is not None,
            residual_order=p.residual or "before",
        )
        return vertical, horizontal

    @property
    def flops(self) -> int:
        """Multiplications and additions of both passes."""
        return sum(layer.flops for layer in self.layers)

    @property
    def planes(self) -> bool:
        """Whether vectors of pixels can go along the rows of every filter's output."""
        p = self.whole
        return not self.shared and (p.layout == "NCHW" or p.out_channels == p.in_channels == 1 or self.interleaved)

    @property
    def interleaved(self) -> bool:
        """Whether an image with channels last can be seen as one channel whose taps lie C pixels apart."""
        p = self.whole
        dense = p.x_strides[1] == 1 and p.x_strides[3] == p.in_channels
        known = p.pad_mode in ("zeros", "circular") and not p.has_bias and p.stride[1] == 1 and dense
        return self.uniform and known and p.layout == "NHWC" and p.in_channels == p.out_channels > 1

    def refusal(self) -> str | None:
        """Why the two passes cannot be fused, or None."""
        p = self.whole
        if self.planes:
            if p.x_strides[3] != 1 and p.in_size[1] > 1 and not self.interleaved:
                return "the pixels of a row of x are not adjacent in memory"
            return None
        if not self.shared and p.groups > 1:
            if p.x_strides[1] != 1:
                return "the channels of x are not adjacent in memory"
            if self.rank > MOST_RANK:
                return f"the rank is {self.rank}, two passes take {MOST_RANK} at the most with channels last"
        return None

    def plan(self, threads: int, memory_limit: int | None) -> BlockPlan:
        """The two passes in one kernel.

        Raises:
            MemoryLimitError: bands of one row need more than the limit.
        """
        layers = self.layers
        lower = _planes if self.planes else _chain
        return BlockPlan(layers, NAMES, lower(self, layers, this_host(), threads, memory_limit), threads, memory_limit)


def _chain(passes: Passes, layers: Sequence[Problem], host: Host, threads: int, limit: int | None) -> BlockLowering:
    """Channels adjacent between the passes."""
    return lower_chain(layers, NAMES, host, threads, limit)


def _planes(passes: Passes, layers: Sequence[Problem], host: Host, threads: int, limit: int | None) -> BlockLowering:
    """Pixels adjacent between the passes."""
    vertical, horizontal = layers
    if passes.interleaved:
        channels = vertical.in_channels
        vertical = _as_one_plane(vertical, channels, 1, passes.rank)
        horizontal = _as_one_plane(horizontal, channels, passes.rank, 1)
    packings = ((VERTICAL, pack_planes(vertical, host)), (HORIZONTAL, pack_planes(horizontal, host)))
    workspace = left_for_workspace(limit, layers, [packing for _, packing in packings])
    phase, buffers, parameters = two_passes(vertical, horizontal, host, threads, workspace)
    return BlockLowering(
        (phase,),
        buffers,
        packings,
        (
            "for each band of output rows: filter down the columns, a row for each output row and rank, into a "
            "thread's own memory",
            f"tiles of {parameters['tile']} (rows x pixels) filter those rows along",
        ),
        parameters,
    )


def _as_one_plane(problem: Problem, channels: int, inputs: int, outputs: int) -> Problem:
    """A layer with one filter for all channels, channels last, as a layer on planes of W * C pixels."""
    p, c = problem, channels
    wide = replace(
        p,
        in_channels=inputs,
        out_channels=outputs,
        groups=1,
        in_size=(p.in_size[0], p.in_size[1] * c),
        dilation=(p.dilation[0], p.dilation[1] * c),
        pad_low=(p.pad_low[0], p.pad_low[1] * c),
        pad_high=(p.pad_high[0], p.pad_high[1] * c),
        layout="NCHW",
    )
    out = dense_strides((p.batch, outputs, *wide.out_size), "NCHW")
    return replace(
        wide,
        x_strides=(p.x_strides[0], p.x_strides[0], p.x_strides[2], 1),
        out_strides=out,
        residual_strides=out if p.residual else None,
    )
