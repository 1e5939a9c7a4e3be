"""A depthwise convolution as the first step of a dense kernel: what the core then reads never leaves the cache."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.channelstrips import Channelwise
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.fields import Fields, Prefixed

PREFIX = "dw_"


@dataclass(frozen=True, slots=True)
class DepthwiseStage:
    """Whole output rows of a depthwise convolution, written to scratch pixel by pixel, channels adjacent.

    Buffer: dw_w (packed).  Fields: those of `ChannelwiseSpec` but for the chunk, all prefixed with "dw_"; `dw_o_row` is
    the distance of pixels in scratch.
    """

    spec: ChannelwiseSpec

    def emit(
        self, fn: Function, fields: Fields, x: Value, scratch: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Compute the output pixels [first, end), which are whole rows, from the image at `x`."""
        own = Prefixed(fields, PREFIX)
        width = own[f"out{self.spec.window.dims - 1}"]
        rows = fn.i64(fn.udiv(first, width)), fn.i64(fn.udiv(end, width))
        out = fn.gep(scratch, fn.sub(0, fn.mul(first, own["o_row"])))
        zero = fn.i64(0)
        Channelwise(fn, own, self.spec, x, own.buffer("w"), out, None).run(
            rows, (zero, own["strip_count"]), (zero, own["unit_count"])
        )
        return scratch, 0
