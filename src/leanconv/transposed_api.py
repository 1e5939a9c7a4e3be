"""Transposed convolutions and gradients with respect to the image, as users call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from numpy.typing import DTypeLike

from leanconv.calls import convolve
from leanconv.checks import integer
from leanconv.directions import problem_of
from leanconv.errors import ArgumentValueError
from leanconv.keywords import AnyProblemOptions, CallOptions, PlanOptions, takes
from leanconv.options import Ints, Padding
from leanconv.plan import Plan
from leanconv.planning.choice import choose as choose_plan
from leanconv.planning.limits import resolve_limit
from leanconv.planning.wanted import AlgorithmLike
from leanconv.sizes import parse_bytes
from leanconv.threads import get_num_threads
from leanconv.transposed_options import make_backward_data_problem, make_transposed_problem


@takes(CallOptions, without=("pad_mode",))
def conv_transpose1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """One-dimensional transposed convolution; as `conv_transpose2d`, with x (N, C, W) and w (C, K/groups, S)."""
    more = (("output_padding", output_padding),)
    return convolve(1, x, w, bias, stride, padding, dilation, groups, make_transposed_problem, more, **options)


@takes(CallOptions, without=("pad_mode",))
def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Two-dimensional transposed convolution: every pixel puts its multiples of the filters at stride * its position.

    Computed as one ordinary convolution for each phase of the stride; no zeros are inserted. PyTorch's order of
    arguments.

    Args:
        x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image.
        w: weights, (C, K/groups, R, S) in either layout.
        bias: (K,), or None.
        stride: an int, or one for each spatial axis.
        padding: what is cut off the output at both ends: an int; one for each axis; (low, high) pairs.
        output_padding: what is added to the output at its end; smaller than stride or dilation.
        groups: groups of channels that do not mix.
        dilation: an int, or one for each spatial axis.
        **options: as in `conv2d`, without pad_mode.

    Returns:
        The output, (N, K, P, Q) or (N, P, Q, K) with P = (H - 1) * stride - 2 * padding + dilation * (R - 1) +
        output_padding + 1, in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        NotApplicableError: the algorithm asked for cannot compute a phase; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
        AllocationError: no memory for workspace or result.
    """
    more = (("output_padding", output_padding),)
    return convolve(2, x, w, bias, stride, padding, dilation, groups, make_transposed_problem, more, **options)


@takes(CallOptions, without=("pad_mode",))
def conv_transpose3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Three-dimensional transposed convolution; as `conv_transpose2d`, with w (C, K/groups, T, R, S)."""
    more = (("output_padding", output_padding),)
    return convolve(3, x, w, bias, stride, padding, dilation, groups, make_transposed_problem, more, **options)


@takes(CallOptions, without=("pad_mode",))
def conv1d_backward_data(
    grad_out: Any,
    w: Any,
    x_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Gradient of `conv1d` with respect to its image; as `conv2d_backward_data`."""
    return _backward_data(1, grad_out, w, x_shape, stride, padding, dilation, groups, options)


@takes(CallOptions, without=("pad_mode",))
def conv2d_backward_data(
    grad_out: Any,
    w: Any,
    x_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Gradient of `conv2d` with respect to its image: the transposed convolution of the output's gradient.

    Args:
        grad_out: gradient of the output, (N, K, P, Q), or (N, P, Q, K) with layout="NHWC"; any strides, broadcast ones
            too.
        w: the weights of the convolution, (K, C/groups, R, S).
        x_shape: shape of the image.
        stride: that of the convolution; so are padding ("same" and pairs too), dilation and groups.
        padding: see there.
        dilation: see there.
        groups: see there.
        **options: as in `conv2d`, without pad_mode; with residual= the gradient is added to that array, which may be
            `out` itself.

    Returns:
        The gradient, of `x_shape`, in the kind of array that grad_out is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        NotApplicableError: the algorithm asked for cannot compute a phase; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
        AllocationError: no memory for workspace or result.
    """
    return _backward_data(2, grad_out, w, x_shape, stride, padding, dilation, groups, options)


@takes(CallOptions, without=("pad_mode",))
def conv3d_backward_data(
    grad_out: Any,
    w: Any,
    x_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[CallOptions],
) -> Any:
    """Gradient of `conv3d` with respect to its image; as `conv2d_backward_data`."""
    return _backward_data(3, grad_out, w, x_shape, stride, padding, dilation, groups, options)


def _backward_data(
    ndim: int,
    grad_out: Any,
    w: Any,
    x_shape: Sequence[int],
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    options: CallOptions,
) -> Any:
    more = (("x_shape", _shape_of(x_shape)),)
    arguments = (ndim, grad_out, w, None, stride, padding, dilation, groups, make_backward_data_problem, more)
    return convolve(*arguments, "grad_out", **options)


def _shape_of(x_shape: Any) -> tuple[int, ...]:
    if not isinstance(x_shape, tuple | list):
        raise ArgumentValueError("x_shape", x_shape, "must be the shape of the image")
    return tuple(x_shape)


@takes(PlanOptions, without=("pad_mode",), residual=False)
def plan_transpose(x_shape: Sequence[int], w_shape: Sequence[int], **options: Unpack[PlanOptions]) -> Plan:
    """Decide how a transposed convolution will be computed, without computing it.

    Args:
        x_shape: (N, C, *spatial), or (N, *spatial, C) with layout="NHWC"; 1, 2 or 3 spatial axes.
        w_shape: (C, K/groups, *kernel).
        **options: as in `plan`, without pad_mode, and output_padding.

    Returns:
        A plan; its `bind(w, bias)` takes weights of `w_shape`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute a phase; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    return _plan("transposed", x_shape, w_shape, **options)


@takes(PlanOptions, without=("bias", "output_padding", "pad_mode"), residual=False)
def plan_backward_data(x_shape: Sequence[int], w_shape: Sequence[int], **options: Unpack[PlanOptions]) -> Plan:
    """Decide how the gradient of a convolution with respect to its image will be computed.

    Args:
        x_shape: shape of the image, which is that of the result.
        w_shape: (K, C/groups, *kernel), of the convolution.
        **options: of the convolution, and how to choose, as in `plan`; without bias and pad_mode.

    Returns:
        A plan; its `bind(w)` takes the weights of the convolution, and what that gives is called with the gradient of
        the output.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute a phase; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    return _plan("backward_data", x_shape, w_shape, **options)


def _plan(
    direction: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: DTypeLike = "float32",
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    choose: str = "model",
    budget: float = 1.0,
    memory_limit: int | str | None = None,
    workspace_limit: int | str | None = None,
    threads: int | None = None,
    parameters: Mapping[str, int] | None = None,
    **options: Unpack[AnyProblemOptions],
) -> Plan:
    if not isinstance(x_shape, tuple | list) or not 3 <= len(x_shape) <= 5:
        raise ArgumentValueError("x_shape", x_shape, "must have a batch, a channel and 1 to 3 spatial axes")
    problem = problem_of(direction, len(x_shape) - 2, x_shape, w_shape, dtype, options)
    return choose_plan(
        problem,
        algorithm,
        get_num_threads() if threads is None else integer("threads", threads, 1),
        resolve_limit(memory_limit),
        workspace_limit=parse_bytes(workspace_limit, "workspace_limit"),
        parameters=parameters,
        accuracy=accuracy,
        deterministic=deterministic,
        how=choose,
        budget=budget,
    )
