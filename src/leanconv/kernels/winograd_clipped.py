"""A fused Winograd kernel for images of any extents, so that a network runs at a size that it never saw.

A kernel made for one size leaves out the products of the last tiles of an axis whose outputs do not exist: what is left
out is in its code.  This one computes whole tiles, and stores what exists of them.  Weights are the same for both.
"""

from __future__ import annotations

from leanconv.classes import replace
from leanconv.kernels.winograd import WinogradSpec
from leanconv.kernels.winograd_input import InputStep
from leanconv.kernels.winograd_output import OutputStep

ASKED = 4  # lines of weights that a round asks for in blocks of some 50 tiles


def clipped(spec: WinogradSpec) -> WinogradSpec | None:
    """The kernel on whole tiles, with the same fields; None where a window or a row would reach over what is there."""
    read, write = spec.read, spec.write
    if spec.staged or not isinstance(read, InputStep) or not isinstance(write, OutputStep):
        return None
    if not read.padded or read.pad_mode != "zeros" or read.runs or write.runs:
        return None
    tiling = spec.tiling.clipped
    return replace(
        spec,
        tiling=tiling,
        read=replace(read, tiling=tiling),
        write=replace(write, tiling=tiling),
        asked=min(spec.asked, 1) * ASKED,
        ahead=0,
    )
