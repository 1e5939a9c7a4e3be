"""Convolutions in a chain as one pass over bands of rows: how they are cut, and in how many bytes.

The layers' own kernels do the work (`kernels.chain`): the register-tiled core for dense layers, vectors of channels for
groups with few of them.  Between layers there are only the rows that a band needs, in each thread's own memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.channelwise import channel_kernel, pack_lanes
from leanconv.algorithms.dense import (
    image_input,
    output_fields,
    pack_weights,
    panel_fields,
    rows_input,
    store_columns,
)
from leanconv.blocks.bands import tile_height
from leanconv.blocks.base import BlockLowering, left_for_workspace
from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.chain import ChainSpec, RowWindow, fresh_rows, prefix
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import prefixed
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

CHUNKS_A_THREAD = 4


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer as the kernel has it: specification, fields and packing."""

    spec: DenseSpec | ChannelwiseSpec
    fields: dict[str, int]
    packing: WeightPacking


def lower_chain(
    layers: Sequence[Problem], names: Sequence[str], host: Host, threads: int, limit: int | None
) -> BlockLowering:
    """The chain in the highest bands that a limit and the caches allow.

    Layers are two-dimensional, dense (one group) or with few channels a group.  All but the first pad with zeros along
    the rows.
    """
    inner = [_between(p, first=i == 0, last=i == len(layers) - 1) for i, p in enumerate(layers)]
    made = [_layer(p, host, {1}) for p in inner]
    workspace = left_for_workspace(limit, layers, [layer.packing for layer in made])
    windows = tuple(RowWindow(p.kernel[0], p.stride[0], p.dilation[0], p.pad_low[0]) for p in layers)
    block = _block(layers, windows, threads)
    band, buffers = _band(layers, windows, block, host, threads, workspace)
    fields = _chunk_fields(layers, block, band)
    for i, p in enumerate(layers):
        fields[f"{prefix(i)}row_count"] = p.out_size[0]
    # Tiles have to cover the pixels of every band.
    counts = fresh_rows(windows, fields)
    made = [_layer(p, host, {n * p.out_size[1] for n in rows}) for p, rows in zip(inner, counts, strict=True)]
    for i, layer in enumerate(made):
        fields |= prefixed(layer.fields, prefix(i))
    spec = ChainSpec(host.target, layers[0].dtype, tuple(layer.spec for layer in made), windows)
    roles = {f"{prefix(i)}w": f"{name} weights" for i, name in enumerate(names)}
    chunks = layers[0].batch * fields["b_count"]
    return BlockLowering(
        (Phase("chain", spec, fields, chunks, roles),),
        buffers,
        tuple((f"{name} weights", layer.packing) for name, layer in zip(names, made, strict=True)),
        (
            f"for each band of {band} output rows:",
            *(f"{name}, into a thread's own memory" for name in names[:-1]),
            f"{names[-1]}, into the output",
        ),
        {
            "band": band,
            "rows": block,
            "chunks": chunks,
            "tiles": ", ".join(str(s.rows[0] if isinstance(s, DenseSpec) else s.width) for s in spec.layers),
        },
    )


def _between(problem: Problem, *, first: bool, last: bool) -> Problem:
    """The problem with channels adjacent in what lies between layers."""
    p = problem
    if not first:
        p = replace(p, x_strides=dense_strides((1, p.in_channels, *p.in_size), "NHWC"))
    if not last:
        p = replace(p, out_strides=dense_strides((1, p.out_channels, *p.out_size), "NHWC"))
    return p


def _layer(problem: Problem, host: Host, counts: set[int]) -> _Layer:
    """The kernel of a layer that computes so many pixels at a time: the core, or vectors of channels for groups."""
    p, item = problem, problem.itemsize
    spec: DenseSpec | ChannelwiseSpec
    if p.groups == 1:
        spec, fields, packing = _core(p, host, counts)
    else:
        lanes = Lanes(host.target.lanes(p.dtype), p.group_in, p.group_out)
        spec, fields = channel_kernel(p, host, lanes, near=True)
        packing = pack_lanes(p, host, lanes)
    rows = {"row_count": p.out_size[0], "width": p.out_size[1], "pitch": p.out_size[1] * p.out_channels * item}
    return _Layer(spec, {**fields, **rows}, packing)


def _core(problem: Problem, host: Host, counts: set[int]) -> tuple[DenseSpec, dict[str, int], WeightPacking]:
    """The register-tiled core for a layer of one group."""
    p, panels = problem, panels_of(problem, host)
    plain = p.taps == 1 and set(p.stride) == {1} and not any(p.pad_low) and not any(p.pad_high)
    source = (rows_input(p) if plain else None) or image_input(p)
    sizes = panel_fields(p, host)
    heights = [host.target.tile_rows(vectors) for vectors in (panels.vectors, panels.last or panels.vectors)]
    spec = DenseSpec(
        target=host.target,
        dtype=p.dtype,
        source=source.source,
        reduction=Reduction.of(
            source.kernel,
            source.channels,
            unit_channel=source.unit_channel,
            merged=source.merged,
            stream=sizes["w_panel"] > host.l1 // 2,
        ),
        panels=panels.shape,
        rows=(tile_height(counts, heights[0]), tile_height(counts, heights[1])),
        ragged=True,
        bias=p.has_bias,
        columns=store_columns(p),
        epilogue=Epilogue(p.activation, p.residual),
    )
    fields = {**sizes, **source.fields, **reduction_fields(source.channels), **output_fields(p, host)}
    tap = source.channels
    for d in reversed(range(len(source.kernel))):
        fields[f"w_rows{d}"] = tap
        tap *= source.kernel[d]
    return spec, fields, pack_weights(p, host)


def _block(layers: Sequence[Problem], windows: Sequence[RowWindow], threads: int) -> int:
    """Output rows of a chunk: several chunks a thread, unless the rows that two of them compute would be many."""
    rows, batch = layers[-1].out_size[0], max(1, layers[0].batch)
    if threads == 1:
        return rows
    twice = sum(max(0, w.reach - w.stride) for w in windows[1:])
    wanted = -(-CHUNKS_A_THREAD * threads // batch)
    while wanted > -(-threads // batch) and rows < 8 * twice * wanted:
        wanted -= 1
    return -(-rows // min(rows, wanted))


def _band(
    layers: Sequence[Problem],
    windows: Sequence[RowWindow],
    block: int,
    host: Host,
    threads: int,
    workspace: int | None,
) -> tuple[int, tuple[Buffer, ...]]:
    """The highest band of which all that lies between the layers is small; its buffers.

    It stays in half the second-level cache, and is for all threads a quarter of what the layers apart would write.
    """
    item = layers[0].itemsize
    apart = sum(math.prod(p.out_shape) * item for p in layers[:-1])
    most = apart // 4 if workspace is None else min(workspace, apart // 4)

    def buffers(band: int) -> tuple[Buffer, ...]:
        rows, found = band, []
        for i in reversed(range(1, len(layers))):
            p, window = layers[i], windows[i]
            rows = min(p.in_size[0], (rows - 1) * window.stride + window.reach)
            nbytes = rows * p.in_size[1] * p.in_channels * item
            found.append(Buffer(f"between{i - 1}", nbytes, per_thread=True))
        return tuple(reversed(found))

    def fits(band: int) -> bool:
        return sum(b.nbytes for b in buffers(band)) <= host.l2 // 2 and arena_bytes(buffers(band), threads) <= most

    band = 1
    while band < block and fits(band + 1):
        band += 1
    band = -(-block // -(-block // band))
    return band, buffers(band)


def _chunk_fields(layers: Sequence[Problem], block: int, band: int) -> dict[str, int]:
    """The fields that cut the chain into chunks and bands."""
    first, last = layers[0], layers[-1]
    blocks = -(-last.out_size[0] // block)
    fields = {
        "b_div": 1,
        "b_count": blocks,
        "n_div": blocks,
        "n_count": first.batch,
        "block": block,
        "band": band,
        "row_count": last.out_size[0],
        "x_n": first.x_strides[0] * first.itemsize,
        "o_n": last.out_strides[0] * last.itemsize,
    }
    if last.residual_strides is not None:
        fields["r_n"] = last.residual_strides[0] * last.itemsize
    return fields
