"""Depthwise, then pointwise, band by band.

Idea        A thread computes the depthwise outputs of some rows into its own memory, channels last, and the
            register-tiled core multiplies them while they are in its cache.
Workspace   rows * Q * C' elements a thread, C' the depthwise outputs; the layers apart write P * Q * C'.
Good for    Every such block: MobileNet (A. Howard et al.: MobileNets, 2017), Xception.
Bad for     Nothing is gained where the tensor between the layers stays in the cache anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.algorithms.channelwise import channel_kernel, pack_lanes
from leanconv.algorithms.dense import CoreInput, dense_phase, pack_weights
from leanconv.algorithms.lowered import fitting_strips
from leanconv.arrays import as_array
from leanconv.blocks.base import BlockLowering, BlockPlan, left_for_workspace
from leanconv.checks import integer
from leanconv.errors import ArgumentValueError
from leanconv.host import Host, this_host
from leanconv.kernels.depthwise_stage import PREFIX, DepthwiseStage
from leanconv.kernels.fields import prefixed
from leanconv.kernels.image import Rows
from leanconv.kernels.lanes import Lanes
from leanconv.memory import Buffer
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.planning.limits import resolve_limit
from leanconv.problem import Problem
from leanconv.program import Phase
from leanconv.threads import get_num_threads

NAMES = ("depthwise", "pointwise")
FEWEST_PIXELS = 48  # of a strip, for which all weights are read: four tiles


def plan_separable(
    x_shape: Sequence[int],
    depthwise_shape: Sequence[int],
    pointwise_shape: Sequence[int],
    *,
    dtype: DTypeLike = "float32",
    biases: Sequence[bool] = (False, False),
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    pad_mode: str = "zeros",
    activations: Sequence[ActivationLike] = (None, None),
    residual: bool = False,
    residual_order: str = "before",
    memory_limit: int | str | None = None,
    threads: int | None = None,
) -> BlockPlan:
    """Decide how a depthwise layer and a pointwise one are computed in one pass.

    Args:
        x_shape: (N, *spatial, C), channels last; 1 to 3 spatial axes.
        depthwise_shape: (C', 1, *kernel), C' a multiple of C.
        pointwise_shape: (K, C', 1, ...), a one for each spatial axis.
        dtype: "float32" or "float64".
        biases: whether each layer has a bias.
        stride: of the depthwise layer, as in `leanconv.conv2d`; so are padding, dilation and pad_mode.
        padding: see there.
        dilation: see there.
        pad_mode: see there.
        activations: of each layer, as in `leanconv.conv2d`.
        residual: whether an array of the result's shape is added.
        residual_order: "before" or "after" the last activation.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the size
            of the plain ones, may take together.
        threads: most threads a call uses; `leanconv.get_num_threads()` if None.

    Returns:
        A plan with `.workspace_bytes`, `.packed_weight_bytes`, `.intermediate_bytes`, `.steps` and
        `.bind(depthwise, pointwise, biases=...)`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        MemoryLimitError: one row is more than the limit allows; says how much it needs.
    """
    ndim = len(tuple(x_shape)) - 2
    if ndim not in (1, 2, 3):
        raise ArgumentValueError("x_shape", x_shape, "must have a batch, 1 to 3 spatial axes and a channel axis")
    has = pair("biases", biases, 2)
    acts = pair("activations", activations, 2)
    groups = tuple(x_shape)[-1]
    depthwise = make_problem(
        ndim,
        x_shape,
        depthwise_shape,
        dtype=dtype,
        bias=bool(has[0]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pad_mode=pad_mode,
        layout="NHWC",
        activation=acts[0],
    )
    if depthwise.group_in != 1:
        raise ArgumentValueError("depthwise_shape", depthwise_shape, "must be (C', 1, *kernel)")
    pointwise = pointwise_problem(
        "pointwise_shape",
        depthwise,
        pointwise_shape,
        bias=bool(has[1]),
        activation=acts[1],
        residual=residual,
        residual_order=residual_order,
    )
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    limit = resolve_limit(memory_limit)
    layers = (depthwise, pointwise)
    return BlockPlan(layers, NAMES, _lower(*layers, this_host(), count, limit), count, limit)


def pair(argument: str, values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """One value for each layer."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ArgumentValueError(argument, values, f"must have {count} entries, one a layer")
    return tuple(values)


def pointwise_problem(argument: str, before: Problem, w_shape: Sequence[int], **options: Any) -> Problem:
    """The pointwise layer on the output of another."""
    shape = tuple(w_shape)
    if len(shape) != before.ndim + 2 or any(n != 1 for n in shape[2:]):
        rule = f"must be (K, {before.out_channels}{', 1' * before.ndim})"
        raise ArgumentValueError(argument, w_shape, rule)
    if shape[1] != before.out_channels:
        rule = f"must take the {before.out_channels} channels of the layer before"
        raise ArgumentValueError(argument, w_shape, rule)
    return make_problem(before.ndim, before.out_shape, shape, dtype=before.dtype, layout="NHWC", **options)


def _lower(depthwise: Problem, pointwise: Problem, host: Host, threads: int, limit: int | None) -> BlockLowering:
    """Strips of whole rows: the depthwise kernel as the stage of the core."""
    dw, pw = depthwise, pointwise
    lanes = Lanes(host.target.lanes(dw.dtype), 1, dw.group_out)
    packings = (pack_lanes(dw, host, lanes), pack_weights(pw, host))
    workspace = left_for_workspace(limit, (dw, pw), packings)
    pixels, width, pitch = math.prod(pw.out_size), pw.out_size[-1], pw.in_channels * pw.itemsize
    budget = host.l2 // 4 if workspace is None else min(host.l2 // 4, workspace // threads // 64 * 64)
    size = max(width, min(pixels, budget // pitch // width * width))
    if threads > 1:
        size = min(size, _shared_rows(pixels // width, width, pw.batch, threads) * width)
    heights, cut = fitting_strips(pw, host, size, width)
    spec, fields = channel_kernel(dw, host, lanes)
    stage_fields = prefixed({**fields, "o_row": pitch}, PREFIX)
    source = CoreInput(
        Rows(None),
        (1,),
        pw.in_channels,
        True,
        False,
        {**stage_fields, "x_n": dw.x_strides[0] * dw.itemsize, "x_g": 0, "x_row": pitch, "x_c": pw.itemsize},
        "x",
        DepthwiseStage(spec),
    )
    phase, parameters = dense_phase(pw, host, source, heights, cut)
    phase = Phase(phase.name, phase.spec, phase.fields, phase.chunks, {**phase.roles, "w": "pointwise weights"})
    phase = phase.renamed({PREFIX + "w": "depthwise weights"})
    return BlockLowering(
        (phase,),
        (Buffer("scratch", cut.block * pitch, per_thread=True),),
        (("depthwise weights", packings[0]), ("pointwise weights", packings[1])),
        (
            f"each thread computes the depthwise outputs of {cut.block} pixels into its own memory",
            f"core {parameters['tile']} multiplies them while they are in the cache",
        ),
        {**parameters, "strip": cut.block},
    )


def _shared_rows(rows: int, width: int, batch: int, threads: int) -> int:
    """Rows of a strip: of several tiles, and such that the busiest thread has as few rows as it can have.

    512 to 512 channels at 14x14 on two threads: seven strips of two rows take 1.05 of the time of two of seven.
    """

    def busiest(strip: int) -> int:
        return -(-batch * -(-rows // strip) // threads) * strip

    each = [min(rows, max(1, -(-rows * batch // (count * threads)))) for count in (4, 3, 2, 1)]
    return min([strip for strip in each if strip * width >= FEWEST_PIXELS] or each[-1:], key=busiest)


def separable_conv2d(
    x: Any,
    depthwise: Any,
    pointwise: Any,
    depthwise_bias: Any = None,
    pointwise_bias: Any = None,
    *,
    residual: Any = None,
    out: Any = None,
    **options: Any,
) -> Any:
    """A depthwise layer and a pointwise one in one pass; packs the weights at each call.

    Args:
        x: image, (N, H, W, C), dense.
        depthwise: weights (C', 1, R, S).
        pointwise: weights (K, C', 1, 1).
        depthwise_bias: (C',), or None.
        pointwise_bias: (K,), or None.
        residual: array of the result's shape to be added, or None.
        out: array for the result, or None for a new one.
        **options: as in `plan_separable`: stride, padding, dilation, pad_mode, activations, residual_order,
            memory_limit, threads.

    Returns:
        (N, P, Q, K), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        MemoryLimitError: one row is more than the limit allows.
        AllocationError: no memory for weights, workspace or result.
    """
    image, first, second = (
        as_array(a, n)[0] for a, n in ((x, "x"), (depthwise, "depthwise"), (pointwise, "pointwise"))
    )
    has = (depthwise_bias is not None, pointwise_bias is not None)
    extra = residual is not None
    plan = plan_separable(
        image.shape, first.shape, second.shape, dtype=image.dtype, biases=has, residual=extra, **options
    )
    return plan.bind(first, second, biases=(depthwise_bias, pointwise_bias))(x, out=out, residual=residual)
