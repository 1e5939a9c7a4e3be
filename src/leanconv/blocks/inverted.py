"""Inverted residual: expand (1x1), depthwise, project (1x1), as one pass over bands of rows.

Idea        Of some rows, a band, two registers of the middle channels at a time: a thread expands what the band reads
            into its own memory and filters it there. Then it projects the band, all middle channels or a group of them.
            Of few rows (`phases`) threads share a group in two phases: what is filtered is memory of all.
Workspace   G * (rows * W + band * Q) elements a thread, rows = (band - 1) * stride + R, G the channels of a group; if
            a chunk is one band, those of a section in place of G * rows * W; where many, rows that two chunks read. In
            phases G * P * Q, and rows of a section a thread. The layers apart write E * (H * W + P * Q), E the middle
            channels.
Good for    MobileNetV2 and what came after it: E is six times as many channels as go in.
Bad for     Many threads on few rows: rows that two chunks read are expanded twice where memory has no room for them.

M. Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (the block).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.arrays import as_array
from leanconv.blocks.base import BlockPlan
from leanconv.blocks.inverted_lower import NAMES, lower_inverted
from leanconv.blocks.separable import pair, pointwise_problem
from leanconv.checks import integer
from leanconv.errors import ArgumentValueError
from leanconv.host import this_host
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.planning.limits import resolve_limit
from leanconv.threads import get_num_threads


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
    return BlockPlan(
        layers, NAMES, lower_inverted(layers, this_host(), count, limit), count, limit, adds_image=residual
    )


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
