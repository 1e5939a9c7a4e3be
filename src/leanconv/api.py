"""The functions that most users call; `leanconv/__init__.py` says where the others are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from numpy.typing import DTypeLike

from leanconv.calls import convolve
from leanconv.checks import integer
from leanconv.errors import ArgumentValueError
from leanconv.keywords import AnyProblemOptions, CallOptions, takes
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.plan import Plan
from leanconv.planning.choice import choose as choose_plan
from leanconv.planning.limits import resolve_limit
from leanconv.planning.wanted import AlgorithmLike
from leanconv.select import AlgorithmInfo
from leanconv.sizes import parse_bytes
from leanconv.threads import get_num_threads


@takes(CallOptions)
def conv1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """One-dimensional convolution; as `conv2d`, with x (N, C, W) and w (K, C/groups, S)."""
    return convolve(1, x, w, bias, stride, padding, dilation, groups, **options)


@takes(CallOptions)
def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Two-dimensional convolution (cross-correlation, as in neural networks).

    Args:
        x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image. A NumPy array or
            anything that offers DLPack on the CPU; float32 or float64; strides are taken as they are.
        w: weights, (K, C/groups, R, S) in either layout. They are packed at each call, since they may have changed;
            `plan(...).bind(w)` packs once. They must be finite where windows reach into padding: whether padding times
            an infinite weight is NaN or nothing is not defined.
        bias: (K,), or None.
        stride: an int, or one for each spatial axis.
        padding: an int; one for each axis; (low, high) pairs; "same" or "valid".
        dilation: an int, or one for each spatial axis.
        groups: groups of channels that do not mix.
        **options: layout ("NCHW"; "NHWC", "CHWN" or "CHWN8"), pad_mode ("zeros", "reflect", "replicate", "circular"),
            activation (a name, or ("clip", low, high), ("leaky_relu", slope)), residual (an array of the output's
            shape to be added), residual_order ("before" or "after" the activation), algorithm, accuracy,
            deterministic and choose (see `plan`), memory_limit (bytes or "256KiB": most that workspace and packed
            weights may take), threads, out (array for the result).

    Returns:
        The output, (N, K, P, Q) or (N, P, Q, K), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
        AllocationError: no memory for workspace or result.
    """
    return convolve(2, x, w, bias, stride, padding, dilation, groups, **options)


@takes(CallOptions)
def conv3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Three-dimensional convolution; as `conv2d`, with x (N, C, D, H, W) and w (K, C/groups, T, R, S)."""
    return convolve(3, x, w, bias, stride, padding, dilation, groups, **options)


def plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: DTypeLike = "float32",
    bias: bool = False,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    pad_mode: str = "zeros",
    activation: ActivationLike = None,
    residual: bool = False,
    residual_order: str = "before",
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    choose: str = "model",
    budget: float = 1.0,
    memory_limit: int | str | None = None,
    workspace_limit: int | str | None = None,
    threads: int | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Plan:
    """Decide how a convolution will be computed, without computing it.

    Args:
        x_shape: (N, C, *spatial), or (N, *spatial, C) with layout="NHWC", (C, *spatial, N) with "CHWN", or
            (N/8, C, *spatial, 8) with "CHWN8"; 1, 2 or 3 spatial axes.
        w_shape: (K, C/groups, *kernel).
        dtype: "float32" or "float64".
        bias: whether there is a bias.
        stride: as in `conv2d`; so are padding, dilation, groups, layout, pad_mode, activation and residual_order.
        padding: see there.
        dilation: see there.
        groups: see there.
        layout: see there.
        pad_mode: see there.
        activation: see there.
        residual: whether an array of the output's shape is added.
        residual_order: see there.
        algorithm: "auto"; a name from `algorithms`; several, to choose among; exclusions such as "!mec", which
            take every algorithm of that name or whose name begins with `mec_`; or a function that is called
            with the problem and the candidates that fit, best first, and returns one of them or its name.
        accuracy: "exact" for sums of the products themselves, "standard" for errors of at most four times those,
            "fast" for any. An algorithm that is named is taken whatever its accuracy.
        deterministic: whether only sums in one order will do, so that the bits of a result depend on its problem only,
            not on threads, memory limit or measured times.
        choose: "model" for the fastest by the cost model; "measure" to time the best few of them; "exhaustive" to time
            every algorithm with every setting. What was measured is remembered on disk.
        budget: seconds that "measure" takes at most for a problem not measured before.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the size
            of the plain ones, may take together.
        workspace_limit: most bytes of workspace of each thread, such as its share of a cache, however much packed
            weights take: those are part of the model, as for the limits of cuDNN. Both limits hold if both are given.
        threads: most threads a call uses; `get_num_threads()` if None.
        parameters: settings of the algorithm named, such as {"strip": 4} output rows for "im2row_strip".

    Returns:
        A plan with `.algorithm`, `.workspace_bytes`, `.packed_weight_bytes`, `.steps` and `.bind(w, bias)`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    problem = make_problem(
        spatial_axes(x_shape, layout),
        x_shape,
        w_shape,
        dtype=dtype,
        bias=bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        layout=layout,
        pad_mode=pad_mode,
        activation=activation,
        residual=residual,
        residual_order=residual_order,
    )
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    return choose_plan(
        problem,
        algorithm,
        count,
        resolve_limit(memory_limit),
        workspace_limit=parse_bytes(workspace_limit, "workspace_limit"),
        parameters=parameters,
        accuracy=accuracy,
        deterministic=deterministic,
        how=choose,
        budget=budget,
    )


@takes(AnyProblemOptions, residual=False)
def algorithms(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    direction: str = "forward",
    dtype: DTypeLike = "float32",
    threads: int | None = None,
    **options: Unpack[AnyProblemOptions],
) -> list[AlgorithmInfo]:
    """Every algorithm, whether it applies to a problem and in how many bytes, or why not.

    Args:
        x_shape: as in `plan`; so are w_shape, dtype, threads and the further options that describe the problem.
        w_shape: see there.
        direction: "forward"; "transposed", "backward_data" or "backward_weights": shapes and options are then those of
            `plan_transpose`, `plan_backward_data` or `plan_backward_weights`.
        dtype: see there.
        threads: see there; some workspaces are per thread.
        **options: bias, stride, padding, dilation, groups, layout, pad_mode, activation, residual, residual_order.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
    """
    from leanconv.directions import algorithms_of

    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    return algorithms_of(
        direction, spatial_axes(x_shape, options.get("layout")), x_shape, w_shape, dtype, options, count
    )


def spatial_axes(x_shape: Sequence[int], layout: Any) -> int:
    """How many spatial axes an image of this shape has.

    Raises:
        ArgumentValueError: none, or more than three.
    """
    axes = len(x_shape) - (layout == "CHWN8") if isinstance(x_shape, tuple | list) else 0
    if not 3 <= axes <= 5:
        raise ArgumentValueError("x_shape", x_shape, "must have a batch, a channel and 1 to 3 spatial axes")
    return axes - 2
