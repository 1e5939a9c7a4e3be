"""An inverted residual block as a program: its kernel, where everything lies, and the buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.channelwise import block_bytes, channel_kernel, pack_lanes
from leanconv.algorithms.dense import pack_weights, panel_fields
from leanconv.algorithms.traffic import ahead, from_afar, lines_of_next
from leanconv.blocks.bands import (
    Grouping,
    band_buffers,
    cut_into_bands,
    groupings,
    part_count,
    pixel_counts,
    slab_bytes,
    tile_height,
)
from leanconv.blocks.base import BlockLowering, left_for_workspace
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import prefixed
from leanconv.kernels.image import Rows
from leanconv.kernels.inverted import InvertedSpec
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.net_expression import Formula, Step
from leanconv.kernels.net_map import UNIT, MapSpec
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

NAMES = ("expand", "depthwise", "project")
_JOINED = 1024  # elements of a chunk that adds up, at least


def lower_inverted(layers: Sequence[Problem], host: Host, threads: int, limit: int | None) -> BlockLowering:
    """The largest groups and highest bands that fit a limit."""
    found = None
    for grouping in groupings(layers, host):
        found = grouped(layers, grouping, host, threads, limit)
        packed = [packing for _, packing in found.packings]
        room = left_for_workspace(limit, layers, packed)
        if room is None or arena_bytes(found.workspace, threads) <= room:
            return found
    assert found is not None
    return found


def _core(
    problem: Problem, host: Host, panels: Panels, counts: set[int], channels: int, epilogue: Epilogue
) -> DenseSpec:
    """The core over rows of a matrix of so many channels, in panels of output channels."""
    # Nine addresses that move with an offset are pointers to LLVM, which then loads pairs ahead on NEON, and spills.
    most = 8 if host.target.pairs else 2 * host.target.pointers
    heights = [
        min(most, host.target.tile_rows(vectors, even=True))
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


def _core_fields(
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


def grouped(
    layers: Sequence[Problem], grouping: Grouping, host: Host, threads: int, limit: int | None
) -> BlockLowering:
    """One phase that computes the whole block, in such groups."""
    expand, depthwise, project = layers
    item = expand.itemsize
    lanes = Lanes(host.target.lanes(expand.dtype), 1, 1)
    sections, panels = grouping.panels, panels_of(project, host)
    packings = (
        pack_weights(expand, host, panels=sections),
        pack_lanes(depthwise, host, lanes),
        pack_weights(project, host),
    )
    parts = part_count(layers, grouping.groups) if limit is None else 1
    cut = cut_into_bands(layers, grouping, host, threads, left_for_workspace(limit, layers, packings), parts)
    width, channels = depthwise.in_size[1], grouping.channels
    filters = _filters(depthwise, host, lanes, grouping)
    counts = pixel_counts(depthwise, cut)
    last = Epilogue(project.activation, project.residual)
    core = _core(expand, host, sections, counts[0], expand.in_channels, Epilogue(expand.activation))
    final = _core(project, host, panels, counts[1], channels, last if parts == 1 else Epilogue())
    spec = InvertedSpec(
        target=host.target,
        dtype=expand.dtype,
        expand=core,
        depthwise=filters[0][0],
        narrow=filters[1][0] if len(filters) > 1 else None,
        project=final,
        groups=grouping.groups > 1,
        residual=project.residual is not None and parts == 1,
        parts=parts > 1,
    )
    blocks = -(-depthwise.out_size[0] // cut.block)
    chunks = expand.batch * blocks * parts
    x_pixel, pixel, band_pixel, o_pixel = (
        n * item for n in (expand.in_channels, grouping.width, channels, project.out_channels)
    )
    fields = {
        "b_div": 1,
        "b_count": blocks,
        "p_div": blocks,
        "p_count": parts,
        "n_div": blocks * parts,
        "n_count": expand.batch,
        "block": cut.block,
        "band": cut.band,
        "row_count": depthwise.out_size[0],
        "groups": grouping.groups,
        "group_sections": grouping.sections,
        "group_rows": channels,
        "rows": depthwise.in_channels,
        "section_w": grouping.vectors * block_bytes(depthwise, host),
        "section_out": grouping.width * item,
        "x_n": expand.x_strides[0] * item,
        "o_n": project.out_strides[0] * item,
        **prefixed(_core_fields(expand, host, core, sections, expand.in_channels, x_pixel, pixel), "expand_"),
        **prefixed(_core_fields(project, host, final, panels, channels, band_pixel, o_pixel), "project_"),
        "expand_o_panel": slab_bytes(depthwise, grouping, cut.band),
    }
    for prefix, (_, values) in zip(("depthwise_", "narrow_"), filters, strict=False):
        fields |= prefixed(values, prefix)
    roles = {f"{name}_w": f"{name} weights" for name in NAMES}
    parameters: dict[str, int | str] = {
        "section": grouping.width,
        "group": channels,
        "band": cut.band,
        "rows": cut.block,
        "chunks": chunks,
        "tiles": f"{core.rows[0]}, {filters[0][0].width}, {final.rows[0]}",
    }
    phases = [Phase("block", spec, fields, chunks, roles)]
    buffers: tuple[Buffer, ...] = band_buffers(depthwise, grouping, cut.band)
    several = f"for each of {grouping.groups} groups of {channels} middle channels, " if grouping.groups > 1 else ""
    steps = [
        f"{several}for each band of {cut.band} rows:",
        f"{grouping.width} channels at a time expand the rows of {width} pixels that the band reads into a thread's "
        "own memory, and filter them there",
        "add the group's part of the projection to the output" if several else "project the band",
    ]
    if parts > 1:
        phases.append(_joined(project, last, host, threads))
        buffers = (*buffers, Buffer("second", math.prod(project.out_shape) * item))
        steps.append("one half of the groups to the output, the other to memory of its own; at last, add that up")
    packed = tuple((f"{name} weights", packing) for name, packing in zip(NAMES, packings, strict=True))
    return BlockLowering(tuple(phases), buffers, packed, tuple(steps), parameters)


def _joined(project: Problem, last: Epilogue, host: Host, threads: int) -> Phase:
    """What adds the second half's sums to the output, then the image, and activates."""
    steps = [Step("add", (0, 1))]

    def then(step: Callable[[int], Step]) -> None:
        steps.append(step(inputs + len(steps) - 1))

    inputs = 3 if last.residual else 2
    if last.residual == "before":
        then(lambda at: Step("add", (at, 2)))
    if last.activation is not None:
        name, numbers = last.activation.name, last.activation.params
        then(lambda at: Step(name, (at,), numbers))
    if last.residual == "after":
        then(lambda at: Step("add", (at, 2)))
    length = math.prod(project.out_shape)
    block = max(_JOINED, -(-length // threads // _JOINED) * _JOINED)
    fields = {"b_div": 1, "b_count": -(-length // block), "block": block, "length": length}
    fields |= {"r_div": fields["b_count"], "r_count": 1, "rows": 1, "row_count": 1}
    spec = MapSpec(host.target, project.dtype, Formula(inputs, tuple(steps)), 0, (UNIT,) * (inputs + 1))
    return Phase("add up", spec, fields, fields["b_count"], {"in0": "out", "in1": "second", "in2": "x", "out": "out"})
