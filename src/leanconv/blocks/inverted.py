"""Inverted residual: expand (1x1), depthwise, project (1x1), as one pass over bands of rows and sections of channels.

Idea        Of the middle channels a section at a time, of the rows a band: a thread expands what the band reads into
            its own memory, filters it there, and adds the section's part of the projection to the output.
Workspace   section * (rows * W + band * Q) elements a thread, rows = (band - 1) * stride + R; where P is 16 or less,
            K * P * Q more; the layers apart write E * (H * W + P * Q), E the middle channels.
Good for    MobileNetV2 and what came after it: E is six times as many channels as go in.
Bad for     Many threads on few rows: rows that two chunks read are expanded twice. Of few rows two threads share the
            sections.

M. Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (the block).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.channelwise import block_bytes, channel_kernel, pack_lanes
from leanconv.algorithms.dense import pack_weights, panel_fields
from leanconv.arrays import as_array
from leanconv.blocks.bands import (
    band_buffers,
    cut_into_bands,
    part_count,
    pixel_counts,
    section_counts,
    tile_height,
)
from leanconv.blocks.base import BlockLowering, BlockPlan, left_for_workspace
from leanconv.blocks.separable import pair, pointwise_problem
from leanconv.checks import integer
from leanconv.classes import replace
from leanconv.errors import ArgumentValueError
from leanconv.host import Host, this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import prefixed
from leanconv.kernels.image import Rows
from leanconv.kernels.inverted import InvertedSpec
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.net_expression import Formula, Step
from leanconv.kernels.net_map import UNIT, MapSpec
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.memory import Buffer, arena_bytes
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.planning.limits import resolve_limit
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase
from leanconv.threads import get_num_threads

NAMES = ("expand", "depthwise", "project")
_JOINED = 1024  # elements of a chunk that adds up, at least


def plan_inverted_residual(
    x_shape: Sequence[int],
    expand_shape: Sequence[int],
    depthwise_shape: Sequence[int],
    project_shape: Sequence[int],
    *,
    dtype: DTypeLike = "float32",
    biases: Sequence[bool] = (False, False, False),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    activations: Sequence[ActivationLike] = ("relu6", "relu6", None),
    residual: bool = False,
    memory_limit: int | str | None = None,
    threads: int | None = None,
) -> BlockPlan:
    """Decide how an inverted residual block is computed in one pass.

    Args:
        x_shape: (N, H, W, C), channels last.
        expand_shape: (E, C, 1, 1).
        depthwise_shape: (E, 1, R, S).
        project_shape: (K, E, 1, 1).
        dtype: "float32" or "float64".
        biases: whether each layer has a bias.
        stride: of the depthwise layer, as in `leanconv.conv2d`; so are padding (of zeros) and dilation.
        padding: see there.
        dilation: see there.
        activations: of each layer, as in `leanconv.conv2d`.
        residual: whether the image itself is added to the projection, before the last activation; the result must then
            have the image's shape.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the size
            of the plain ones, may take together.
        threads: most threads a call uses; `leanconv.get_num_threads()` if None.

    Returns:
        A plan with `.workspace_bytes`, `.packed_weight_bytes`, `.intermediate_bytes`, `.steps` and
        `.bind(expand, depthwise, project, biases=...)`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        MemoryLimitError: the least section of one row is more than the limit allows; says how much it needs.
    """
    if len(tuple(x_shape)) != 4:
        raise ArgumentValueError("x_shape", x_shape, "must be (N, H, W, C)")
    has = pair("biases", biases, 3)
    acts = pair("activations", activations, 3)
    if len(tuple(expand_shape)) != 4 or tuple(expand_shape)[2:] != (1, 1):
        raise ArgumentValueError("expand_shape", expand_shape, "must be (E, C, 1, 1)")
    expand = make_problem(2, x_shape, expand_shape, dtype=dtype, bias=bool(has[0]), layout="NHWC", activation=acts[0])
    middle = expand.out_channels
    depthwise = make_problem(
        2,
        expand.out_shape,
        depthwise_shape,
        dtype=dtype,
        bias=bool(has[1]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=middle,
        layout="NHWC",
        activation=acts[1],
    )
    if depthwise.w_shape[:2] != (middle, 1):
        raise ArgumentValueError("depthwise_shape", depthwise_shape, f"must be ({middle}, 1, R, S)")
    options = {"bias": bool(has[2]), "activation": acts[2], "residual": residual}
    project = pointwise_problem("project_shape", depthwise, project_shape, **options)
    if residual and project.out_shape != expand.x_shape:
        rule = f"must be False, the result has shape {project.out_shape} and the image {expand.x_shape}"
        raise ArgumentValueError("residual", residual, rule)
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    limit = resolve_limit(memory_limit)
    layers = (expand, depthwise, project)
    return BlockPlan(layers, NAMES, _lower(layers, this_host(), count, limit), count, limit, adds_image=residual)


def _core(problem: Problem, host: Host, counts: set[int], channels: int, epilogue: Epilogue) -> DenseSpec:
    """The core over rows of a matrix of so many channels, for the output channels of one group of a problem."""
    panels = panels_of(problem, host)
    heights = [host.target.tile_rows(vectors) for vectors in (panels.vectors, panels.last or panels.vectors)]
    rows = tile_height(counts, heights[0]), tile_height(counts, heights[1])
    return DenseSpec(
        target=host.target,
        dtype=problem.dtype,
        source=Rows(None),
        reduction=Reduction.of((1,), channels, unit_channel=True, merged=False, stream=False),
        panels=panels.shape,
        rows=rows,
        ragged=True,
        bias=problem.has_bias,
        columns=False,
        epilogue=epilogue,
    )


def _core_fields(problem: Problem, host: Host, channels: int, pixel_in: int, pixel_out: int) -> dict[str, int]:
    """Fields of that core; bytes between input and output pixels."""
    panel = panels_of(problem, host).vectors * host.target.vector_bytes
    return {
        **panel_fields(problem, host),
        **reduction_fields(channels),
        "x_row": pixel_in,
        "o_row": pixel_out,
        "o_panel": panel,
        "r_row": pixel_out,
        "r_panel": panel,
    }


def _lower(layers: Sequence[Problem], host: Host, threads: int, limit: int | None) -> BlockLowering:
    """The largest sections and highest bands that fit a limit."""
    found = None
    for number in section_counts(layers, host):
        found = _sectioned(layers, number, host, threads, limit)
        packed = [packing for _, packing in found.packings]
        room = left_for_workspace(limit, layers, packed)
        if room is None or arena_bytes(found.workspace, threads) <= room:
            return found
    assert found is not None
    return found


def _sectioned(layers: Sequence[Problem], sections: int, host: Host, threads: int, limit: int | None) -> BlockLowering:
    """One phase that computes the whole block, in so many sections."""
    expand, depthwise, project = layers
    item = expand.itemsize
    # Sections of the expansion are like groups that read the same channels.
    grouped = replace(expand, groups=sections, in_channels=sections * expand.in_channels)
    lanes = Lanes(host.target.lanes(expand.dtype), 1, 1)
    packings = (pack_weights(grouped, host), pack_lanes(depthwise, host, lanes), pack_weights(project, host))
    parts = part_count(layers, sections) if limit is None else 1
    cut = cut_into_bands(layers, sections, host, threads, left_for_workspace(limit, layers, packings), parts)
    width, section = depthwise.in_size[1], cut.section
    shape, out_shape = (1, section, *depthwise.in_size), (1, section, *depthwise.out_size)
    part = replace(
        depthwise,
        batch=1,
        in_channels=section,
        out_channels=section,
        groups=section,
        x_strides=dense_strides(shape, "NHWC"),
        out_strides=dense_strides(out_shape, "NHWC"),
    )
    dw_spec, dw_fields = channel_kernel(part, host, lanes, near=True)
    counts = pixel_counts(depthwise, cut)
    last = Epilogue(project.activation, project.residual)
    spec = InvertedSpec(
        target=host.target,
        dtype=expand.dtype,
        expand=_core(grouped, host, counts[0], expand.in_channels, Epilogue(expand.activation)),
        depthwise=dw_spec,
        project=_core(project, host, counts[1], section, last if parts == 1 else Epilogue()),
        sections=cut.sections > 1,
        residual=project.residual is not None and parts == 1,
        parts=parts > 1,
    )
    blocks = -(-depthwise.out_size[0] // cut.block)
    chunks = expand.batch * blocks * parts
    pixel = section * item
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
        "sections": cut.sections,
        "section_rows": section,
        "x_n": expand.x_strides[0] * item,
        "o_n": project.out_strides[0] * item,
        **prefixed(_core_fields(grouped, host, expand.in_channels, expand.in_channels * item, pixel), "expand_"),
        **prefixed(dw_fields, "depthwise_"),
        "depthwise_w_g": -(-section // lanes.lanes) * block_bytes(depthwise, host),
        **prefixed(_core_fields(project, host, section, pixel, project.out_channels * item), "project_"),
    }
    roles = {f"{name}_w": f"{name} weights" for name in NAMES}
    parameters: dict[str, int | str] = {
        "section": section,
        "band": cut.band,
        "rows": cut.block,
        "chunks": chunks,
        "tiles": f"{spec.expand.rows[0]}, {dw_spec.width}, {spec.project.rows[0]}",
    }
    phases = [Phase("block", spec, fields, chunks, roles)]
    buffers: tuple[Buffer, ...] = band_buffers(depthwise, section, cut.band)
    steps = [
        f"for each of {cut.sections} sections of {section} middle channels, for each band of {cut.band} rows:",
        f"expand the rows of {width} pixels that the band reads into a thread's own memory",
        "filter them there, and add the section's part of the projection to the output",
    ]
    if parts > 1:
        phases.append(_joined(project, last, host, threads))
        buffers = (*buffers, Buffer("second", math.prod(project.out_shape) * item))
        steps.append("one half of the sections to the output, the other to memory of its own; at last, add that up")
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


def inverted_residual(
    x: Any,
    expand: Any,
    depthwise: Any,
    project: Any,
    biases: Sequence[Any] | None = None,
    *,
    out: Any = None,
    **options: Any,
) -> Any:
    """An inverted residual block in one pass; packs the weights at each call.

    Args:
        x: image, (N, H, W, C), dense.
        expand: weights (E, C, 1, 1).
        depthwise: weights (E, 1, R, S).
        project: weights (K, E, 1, 1).
        biases: of each layer, or None for a layer without; None if no layer has one.
        out: array for the result, or None for a new one.
        **options: as in `plan_inverted_residual`: stride, padding, dilation, activations, residual, memory_limit,
            threads.

    Returns:
        (N, P, Q, K), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        MemoryLimitError: the least section of one row is more than the limit allows.
        AllocationError: no memory for weights, workspace or result.
    """
    image, _ = as_array(x, "x")
    weights = [as_array(w, name)[0] for name, w in zip(NAMES, (expand, depthwise, project), strict=True)]
    shifts = pair("biases", (None,) * 3 if biases is None else biases, 3)
    has = tuple(shift is not None for shift in shifts)
    plan = plan_inverted_residual(image.shape, *(w.shape for w in weights), dtype=image.dtype, biases=has, **options)
    return plan.bind(*weights, biases=shifts)(x, out=out)
