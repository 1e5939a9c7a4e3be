"""Inverted residual blocks of few rows: threads share the middle channels, phase by phase.

Threads that share few rows would expand several of them twice. So each group of sections is two phases: threads take
sections, expand them into slabs of their own and filter them into a tensor that all share; then the core adds the
group's part of the projection to the output, in blocks of pixels and panels as a pointwise layer of so many channels.
A phase more takes 0.3 us, a chunk more 0.1: each thread has one run of sections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.blocking import panels_of, tile_heights
from leanconv.algorithms.dense import dense_phase, panel_fields, rows_input
from leanconv.algorithms.sharing import shared
from leanconv.blocks.bands import FEWEST_ROWS, WIDE, Cut, Grouping, quarter_between, slab_bytes
from leanconv.blocks.base import BlockLowering
from leanconv.blocks.expansion import expansion, most_rows
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.reduction import FEW, SECTION, reduction_fields
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase


def phase_grouping(layers: Sequence[Problem], host: Host) -> Grouping | None:
    """The groups of an image of few rows; None if it has many, or if no group fits.

    The groups decide in which order sums are added up, so they do not depend on the number of threads. Each adds up
    the output once more, as each section of a longer sum does (`reduction`): as few of both as there can be, of which
    slabs of three rows on two threads, and of one row on four, take less than a quarter of what the layers apart would
    write between them, and half the second-level cache. Two threads have as many sections each, where there are two.
    """
    p = layers[1]
    lanes = host.target.lanes(p.dtype)
    total = Grouping(WIDE, 1, p.in_channels, lanes).panels.total
    if p.batch != 1 or p.out_size[0] > FEWEST_ROWS:
        return None

    def allowed(grouping: Grouping) -> bool:
        if grouping.groups > 1 and (p.in_channels % lanes or grouping.least <= FEW):  # whole registers, two rounds
            return False
        high = p.out_size[0]
        cuts = {2: Cut(min(3, high), high), 4: Cut(1, high)}
        sizes = [arena_bytes(_buffers(p, grouping, cut), threads) for threads, cut in cuts.items()]
        return max(sizes) < min(quarter_between(layers), host.l2 // 2)

    def additions(grouping: Grouping) -> tuple[int, int, bool]:
        return grouping.groups * -(-grouping.channels // SECTION), grouping.groups, grouping.sections % 2 > 0

    counts = {-(-total // groups) for groups in range(1, total + 1)}
    counts |= {min(total, count + count % 2) for count in counts}
    ways = (Grouping(WIDE, count, p.in_channels, lanes) for count in sorted(counts))
    return min(filter(allowed, ways), key=additions, default=None)


def _buffers(depthwise: Problem, grouping: Grouping, cut: Cut) -> tuple[Buffer, ...]:
    """A slab of each thread, and the outputs of the depthwise layer, which all share."""
    filtered = math.prod(depthwise.out_size) * grouping.channels * depthwise.itemsize
    return (
        Buffer("expanded", slab_bytes(depthwise, grouping, cut), per_thread=True),
        Buffer("filtered", filtered),
    )


def in_phases(
    layers: Sequence[Problem],
    grouping: Grouping,
    host: Host,
    threads: int,
    workspace: int | None,
    packed: Mapping[str, WeightPacking],
) -> BlockLowering:
    """Two phases a group."""
    _, depthwise, project = layers
    cut = _cut(layers, grouping, host, threads, workspace)
    first, parameters = _expansions(layers, grouping, cut, host, threads)
    second, final = _projections(project, grouping, host, threads)
    several = f"for each of {grouping.groups} groups of {grouping.channels} middle channels: " * (grouping.groups > 1)
    steps = (
        f"{several}{grouping.width} channels at a time, and {cut.band} rows, expand pixels into a thread's own memory, "
        "and filter them there into memory of all threads",
        f"core {final['tile']} {'adds the part of the projection to the output' if several else 'projects'}",
    )
    return BlockLowering(
        tuple(phase for both in zip(first, second, strict=True) for phase in both),
        _buffers(depthwise, grouping, cut),
        tuple(packed.items()),
        steps,
        parameters,
    )


def _cut(layers: Sequence[Problem], grouping: Grouping, host: Host, threads: int, workspace: int | None) -> Cut:
    """The highest bands of which slabs fit; blocks of rows only if there are more threads than sections."""
    p = layers[1]
    high = p.out_size[0]
    block = -(-high // -(-threads // min(grouping.sections, grouping.panels.total)))
    budget = min(quarter_between(layers) - 1, math.inf if workspace is None else workspace)
    fits = [b for b in range(1, block + 1) if arena_bytes(_buffers(p, grouping, Cut(b, block)), threads) <= budget]
    bands = -(-block // max(fits, default=1))
    return Cut(-(-block // bands), block)


def _expansions(
    layers: Sequence[Problem], grouping: Grouping, cut: Cut, host: Host, threads: int
) -> tuple[list[Phase], dict[str, int | str]]:
    """The phase of each group that expands and filters its sections."""
    spec, fields = expansion(layers, grouping, cut, host)
    panels, blocks = grouping.panels, -(-layers[1].out_size[0] // cut.block)
    fields |= {"s_div": 1, "b_count": blocks}
    roles = {f"{name}_w": f"{name} weights" for name in ("expand", "depthwise")}
    phases = []
    for begin in range(0, panels.total, grouping.sections):
        end = min(begin + grouping.sections, panels.total)
        each = -(-(end - begin) // threads)
        chunks = -(-(end - begin) // each)
        own = {"s_count": chunks, "b_div": chunks, "sections": each, "first_section": begin, "end_section": end}
        phases.append(Phase("expand", spec, fields | own, chunks * blocks, roles))
    parameters: dict[str, int | str] = {
        "section": grouping.width,
        "group": grouping.channels,
        "band": cut.band,
        "rows": cut.block,
        "chunks": phases[0].chunks,
        "tiles": f"{spec.expand.rows[0]}, {spec.depthwise.width}",
    }
    return phases, parameters


def _projections(
    project: Problem, grouping: Grouping, host: Host, threads: int
) -> tuple[list[Phase], dict[str, int | str]]:
    """The phase of each group that adds its part of the projection to the output."""
    channels, groups = grouping.channels, grouping.groups
    part = replace(
        project, in_channels=channels, x_strides=dense_strides((1, channels, *project.in_size), project.layout)
    )
    source = rows_input(part)
    assert source is not None
    pixels, panels = math.prod(part.out_size), panels_of(part, host)
    whole, last = tile_heights(pixels, host, panels, apart=source.fields["x_row"], even=True)
    heights, cut = shared(part, host, threads, (min(whole, most_rows(host)), min(last, most_rows(host))))
    if cut.blocks == 1:  # a run of panels a thread, as of sections
        cut = replace(cut, group=-(-panels.total // threads))
    phase, parameters = dense_phase(part, host, replace(source, buffer="filtered"), heights, cut, threads=threads)
    phase = replace(phase, name="project", roles={**phase.roles, "w": "project weights", "residual": "x"})
    if groups == 1:
        return [phase], parameters
    assert isinstance(phase.spec, DenseSpec)
    phase = replace(phase, spec=replace(phase.spec, grouped=True, past=False))
    # Packed weights are those of all groups.
    sizes = panel_fields(project, host)
    fields = {**phase.fields, **sizes}
    for name in {"w_later", "w_back"} & set(fields):
        fields[name] = fields[name] // phase.fields["w_panel"] * sizes["w_panel"]
    phases = []
    for number in range(groups):
        before = number * channels
        own = {"terms_before": before, "is_first": number == 0, "is_last": number + 1 == groups}
        own |= reduction_fields(min(channels, project.in_channels - before))
        phases.append(replace(phase, fields=fields | own))
    return phases, parameters
