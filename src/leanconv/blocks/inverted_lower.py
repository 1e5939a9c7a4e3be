"""An inverted residual block as a program: one phase of its own kernel, where everything lies, and the buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.channelwise import pack_lanes
from leanconv.algorithms.dense import pack_weights
from leanconv.blocks.bands import Grouping, band_buffers, cut_into_bands, groupings, pixel_counts
from leanconv.blocks.base import BlockLowering, left_for_workspace
from leanconv.blocks.expansion import core_fields, core_spec, expansion, section_lanes
from leanconv.blocks.phases import in_phases, phase_grouping
from leanconv.blocks.sharedrows import shared_rows
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import prefixed
from leanconv.kernels.inverted import InvertedSpec
from leanconv.memory import arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

NAMES = ("expand", "depthwise", "project")


def lower_inverted(layers: Sequence[Problem], host: Host, threads: int, limit: int | None) -> BlockLowering:
    """In phases where rows are few, else in bands: the largest groups and highest bands that fit a limit."""

    def ways() -> Iterator[BlockLowering]:
        shared = phase_grouping(layers, host)
        if shared is not None:
            packed = packings(layers, shared, host)
            yield in_phases(layers, shared, host, threads, left_for_workspace(limit, layers, packed.values()), packed)
        for grouping in groupings(layers, host):
            yield grouped(layers, grouping, host, threads, limit)

    for found in ways():
        room = left_for_workspace(limit, layers, [packing for _, packing in found.packings])
        if room is None or arena_bytes(found.workspace, threads) <= room:
            break
    return found


def packings(layers: Sequence[Problem], grouping: Grouping, host: Host) -> dict[str, WeightPacking]:
    """How the weights of each layer are packed, by the names of the buffers."""
    expand, depthwise, project = layers
    packed = (
        pack_weights(expand, host, panels=grouping.panels),
        pack_lanes(depthwise, host, section_lanes(depthwise, host)),
        pack_weights(project, host),
    )
    return {f"{name} weights": packing for name, packing in zip(NAMES, packed, strict=True)}


def grouped(
    layers: Sequence[Problem], grouping: Grouping, host: Host, threads: int, limit: int | None
) -> BlockLowering:
    """One phase that computes the whole block, in such groups."""
    expand, depthwise, project = layers
    item, panels, packed = expand.itemsize, panels_of(project, host), packings(layers, grouping, host)
    cut = cut_into_bands(layers, grouping, host, threads, left_for_workspace(limit, layers, packed.values()))
    channels = grouping.channels
    first, fields = expansion(layers, grouping, cut, host)
    counts = pixel_counts(depthwise, cut)[1]
    final = core_spec(project, host, panels, counts, channels, Epilogue(project.activation, project.residual))
    spec = InvertedSpec(
        target=host.target,
        dtype=expand.dtype,
        expansion=first,
        project=final,
        groups=grouping.groups > 1,
        residual=project.residual is not None,
        shared=cut.shared,
    )
    blocks = cut.blocks(depthwise)
    chunks = expand.batch * blocks
    pixels = channels * item, project.out_channels * item
    fields |= {
        "b_div": 1,
        "b_count": blocks,
        "n_div": blocks,
        "n_count": expand.batch,
        "groups": grouping.groups,
        "group_sections": grouping.sections,
        "group_rows": channels,
        "rows": depthwise.in_channels,
        "x_n": expand.x_strides[0] * item,
        "o_n": project.out_strides[0] * item,
        **prefixed(core_fields(project, host, final, panels, channels, *pixels), "project_"),
    }
    roles = {f"{name}_w": f"{name} weights" for name in NAMES}
    parameters: dict[str, int | str] = {
        "section": grouping.width,
        "group": channels,
        "band": cut.band,
        "rows": cut.block,
        "chunks": chunks,
        "tiles": f"{first.expand.rows[0]}, {first.depthwise.width}, {final.rows[0]}",
    }
    several = f"for each of {grouping.groups} groups of {channels} middle channels, " if grouping.groups > 1 else ""
    steps: tuple[str, ...] = (
        f"{several}for each band of {cut.band} rows:",
        f"{grouping.width} channels at a time expand the rows of {depthwise.in_size[1]} pixels that the band reads "
        "into a thread's own memory, and filter them there",
        "add the group's part of the projection to the output" if several else "project the band",
    )
    phases: tuple[Phase, ...] = ()
    if cut.shared:
        before, values = shared_rows(expand, depthwise, grouping, cut, host, threads)
        phases, fields = (before,), fields | values
        steps = (f"expand {cut.shared} rows between chunks of {cut.block} into memory of all threads", *steps)
    phases = (*phases, Phase("block", spec, fields, chunks, roles))
    return BlockLowering(phases, band_buffers(depthwise, grouping, cut), tuple(packed.items()), steps, parameters)
