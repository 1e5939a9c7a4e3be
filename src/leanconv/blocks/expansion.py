"""The kernels of an inverted residual block: the core over rows of a matrix, and the expansion with its filters."""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.algorithms.channelwise import block_bytes, channel_kernel
from leanconv.algorithms.dense import panel_fields
from leanconv.algorithms.traffic import ahead, from_afar, lines_of_next
from leanconv.blocks.bands import Cut, Grouping, pixel_counts, slab_bytes, tile_height
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.expansion import ExpansionSpec
from leanconv.kernels.fields import prefixed
from leanconv.kernels.image import Rows
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.problem import Problem, dense_strides


def core_spec(
    problem: Problem, host: Host, panels: Panels, counts: set[int], channels: int, epilogue: Epilogue
) -> DenseSpec:
    """The core over rows of a matrix of so many channels, in panels of output channels."""
    heights = [
        min(most_rows(host), host.target.tile_rows(vectors, even=True))
        for vectors in (panels.vectors, panels.last or panels.vectors)
    ]
    panel = panel_fields(problem, host, panels=panels)["w_panel"]
    afar = from_afar(panel, panels, host)
    rows = tile_height(counts, heights[0]), tile_height(counts, heights[1])
    later = lines_of_next(panel, panels, -(-max(counts) // rows[0]), host)
    return DenseSpec(
        target=host.target,
        dtype=problem.dtype,
        source=Rows(None, ahead=host.target.masks),  # fewer registers have none for another address
        reduction=Reduction.of((1,), channels, unit_channel=True, merged=False, stream=afar),
        panels=panels.shape,
        rows=rows,
        ragged=True,
        bias=problem.has_bias,
        columns=False,
        epilogue=epilogue,
        later=later,
    )


def core_fields(
    problem: Problem, host: Host, spec: DenseSpec, panels: Panels, channels: int, pixel_in: int, pixel_out: int
) -> dict[str, int]:
    """Fields of that core; bytes between input and output pixels."""
    panel = panels.vectors * host.target.vector_bytes
    return {
        **panel_fields(problem, host, panels=panels),
        **reduction_fields(channels),
        "x_row": pixel_in,
        "x_ahead": ahead(channels, spec.rows[0], panels) * pixel_in,
        "o_row": pixel_out,
        "o_panel": panel,
        "r_row": pixel_out,
        "r_panel": panel,
    }


def most_rows(host: Host) -> int:
    """Rows of a tile at most: nine addresses are pointers to LLVM, which then loads pairs ahead on NEON, and spills."""
    return 8 if host.target.pairs else 2 * host.target.pointers


def _filters(
    depthwise: Problem, host: Host, lanes: Lanes, group: Grouping
) -> list[tuple[ChannelwiseSpec, dict[str, int]]]:
    """The depthwise kernel of a section, and of the last one if it is narrower; and their fields."""
    p, panels, found = depthwise, group.panels, []
    last = p.in_channels - (panels.total - 1) * group.vectors * lanes.lanes
    for channels in dict.fromkeys(([group.width] if panels.count else []) + [last]):
        slab = dense_strides((1, group.width, *p.in_size), "NHWC")
        band = dense_strides((1, group.channels, *p.out_size), "NHWC")
        part = replace(
            p,
            batch=1,
            in_channels=channels,
            out_channels=channels,
            groups=channels,
            x_strides=slab,
            out_strides=band,
        )
        found.append(channel_kernel(part, host, lanes, near=True))
    return found


def expansion(
    layers: Sequence[Problem], grouping: Grouping, cut: Cut, host: Host
) -> tuple[ExpansionSpec, dict[str, int]]:
    """The kernel that expands and filters sections, and its fields but for those that say which."""
    expand, depthwise, _ = layers
    item, panels = expand.itemsize, grouping.panels
    filters = _filters(depthwise, host, section_lanes(depthwise, host), grouping)
    counts = pixel_counts(depthwise, cut)[0]
    core = core_spec(expand, host, panels, counts, expand.in_channels, Epilogue(expand.activation))
    spec = ExpansionSpec(
        target=host.target,
        dtype=expand.dtype,
        expand=core,
        depthwise=filters[0][0],
        narrow=filters[1][0] if len(filters) > 1 else None,
    )
    pixels = expand.in_channels * item, grouping.width * item
    fields = {
        "block": cut.block,
        "band": cut.band,
        "row_count": depthwise.out_size[0],
        "section_w": grouping.vectors * block_bytes(depthwise, host),
        "section_out": grouping.width * item,
        **prefixed(core_fields(expand, host, core, panels, expand.in_channels, *pixels), "expand_"),
        "expand_o_panel": 0 if cut.single else slab_bytes(depthwise, grouping, cut),
    }
    for prefix, (_, values) in zip(("depthwise_", "narrow_"), filters, strict=False):
        fields |= prefixed(values, prefix)
    return spec, fields


def section_lanes(depthwise: Problem, host: Host) -> Lanes:
    """Channels a register."""
    return Lanes(host.target.lanes(depthwise.dtype), 1, 1)
