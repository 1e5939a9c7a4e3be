"""The kernel of `channelwise` for rows of any length, so that a network runs at a size that it never saw.

A kernel made for one size has in its code how wide its tiles are, whether some are a pixel shorter, what of the last
one lies outside the image, and what is asked for ahead.  This one has tiles of a few widths, of which a field says
which are taken: a row is tiles of one width and of one pixel less.  What of the last tile lies outside the image it
finds out when it runs.  It takes longer than the kernel made for the size, a tenth mostly and half where a row is one
tile there, so that it stands in only where that one is not at hand.

The order of a sum does not depend on the width of its tile: both kernels compute the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction, Overlaid
from leanconv.kernels.nexttile import LINEAR
from leanconv.kernels.taporder import TapOrder
from leanconv.kernels.window import Edges

WIDEST = 8
"""Pixels of a tile, or one less, where there are 16 registers for its sums: 8 and 7 make all rows of 42 and more."""

OTHERS = (4, 3)
"""The same for shorter rows: 4 and 3 make all of 6 and more, 3 and 2 the others that are more than one tile."""

NARROW = 3
"""Pixels of a tile at most where the image comes from far away, and kernels have strides (`channeltiles` says why)."""


@dataclass(frozen=True, slots=True)
class ChannelRowsSpec:
    """A kernel of several others, of which the field `variant` says which is run.

    Fields: `variant`; those of `ChannelwiseSpec`, but for `strips strip_count strip_long`, which are `row_strips
    row_strip_count row_strip_long` here.
    """

    variants: tuple[ChannelwiseSpec, ...]

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.variants[0].target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, own = kernel.fn, ("strips", "strip_count", "strip_long")
        fields = Overlaid(kernel.fields, {name: kernel.fields[f"row_{name}"] for name in own})
        for number, variant in enumerate(self.variants):

            def run(variant: ChannelwiseSpec = variant) -> list[Value]:
                variant.emit_chunk(kernel, fields)
                return []

            fn.if_(fn.cmp("eq", kernel.fields["variant"], number), run, hint="variant")
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """That of the variant, which is near enough that of the kernel it stands in for."""
        return self.variants[0].cost(f, chunks, host)


def for_other_extents(
    spec: ChannelwiseSpec, fields: Mapping[str, int]
) -> tuple[ChannelRowsSpec, dict[str, int]] | None:
    """A kernel that stands in for another, and its fields; None for rows of few pixels beside their padding."""
    window, inner = spec.window, spec.window.dims - 1
    padded, pad, stride = window.padded[inner], window.pad_low[inner], window.stride[inner]
    known = not padded or (window.pad_mode == "zeros" and TapOrder(window.kernel, spec.lanes.group_in).single)
    edges = Edges(True, pad, None, padded) if known else Edges(False, 0, None)
    asks = window.dims <= 2 and spec.lanes.group_in == 1 and window.pad_mode == "zeros"
    alike = replace(spec, edges=edges, short=True, perhaps=True, single=False, stream=False, linear=False)
    widths = (min(WIDEST, spec.target.accumulators // 2), *OTHERS)
    variants = tuple(replace(alike, fetch=2 if asks else 0, width=width) for width in widths)
    out, size = fields[f"out{inner}"], fields[f"in{inner}"]
    reach = (window.kernel[inner] - 1) * window.dilation[inner]
    right = out - ((size - 1 - reach + pad) // stride + 1)  # outputs whose windows reach over the right edge
    for number, width in enumerate(widths):
        if spec.fetch and any(step > 1 for step in window.stride) and width > NARROW:
            continue
        strips = -(-out // width)
        short = strips * width - out
        fits = not padded or not known or (-(-pad // stride) < width and right < width)
        if strips > 1 and short <= strips and fits:
            more = {
                "variant": number,
                "asks": 0 if not spec.fetch else LINEAR if spec.linear else 1,
                "row_strips": -(-strips // fields["t_count"]),
                "row_strip_count": strips,
                "row_strip_long": strips - short,
            }
            return ChannelRowsSpec(variants), {**fields, **more}
    return None
