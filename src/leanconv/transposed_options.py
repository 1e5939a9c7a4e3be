"""From the user's spelling to the `Problem` of a transposed convolution, or of a gradient with respect to the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.checks import LARGEST_EXTENT, canonical_strides, dtype_name, flag, integer, one_of, per_axis
from leanconv.classes import replace
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.options import (
    _AXES,
    _KERNEL_AXES,
    RESIDUAL_ORDERS,
    ActivationLike,
    Ints,
    Padding,
    _check_bytes,
    _padding,
    _shape,
    layout_name,
    make_activation,
    make_problem,
)
from leanconv.problem import BATCH_LAST, Problem, to_canonical, to_user


def make_transposed_problem(
    ndim: int,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: DTypeLike,
    bias: bool = False,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    pad_mode: str = "zeros",
    activation: ActivationLike = None,
    residual: bool | None = None,
    residual_order: str = "before",
    x_strides: Sequence[int] | None = None,
    w_strides: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    residual_strides: Sequence[int] | None = None,
) -> Problem:
    """Check the arguments of a transposed convolution and return it as a `Problem`.

    Args:
        ndim: number of spatial axes, 1 to 3.
        x_shape: (N, C, *spatial) or (N, *spatial, C), by `layout`. N may be 0.
        w_shape: (C, K/groups, *kernel) in every layout.
        dtype: element type of all arrays.
        bias: whether a bias of K numbers is added.
        stride: elements of output from one element of input to the next; one int, or one for each spatial axis.
        padding: what is cut off the output; one int, or for each spatial axis an int or a (low, high) pair.
        output_padding: what is added to the output at its end, less than stride or dilation; one int, or one for each
            spatial axis.
        dilation: one int, or one for each spatial axis.
        groups: number of groups that do not mix; divides C.
        layout: as in `make_problem`.
        pad_mode: "zeros"; no other has a meaning here.
        activation: as in `make_problem`; so are residual, residual_order and the strides of arrays.
        residual: see there.
        residual_order: see there.
        x_strides: see there.
        w_strides: see there.
        out_strides: see there.
        residual_strides: see there.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument has a value that is not allowed, or does not fit the others.
    """
    if type(ndim) is not int or ndim not in _AXES:
        raise ArgumentValueError("ndim", ndim, "must be 1, 2 or 3")
    layout = one_image_layout(layout, ndim)
    element = dtype_name("dtype", dtype)
    x = _shape("x_shape", x_shape, ("N", "C", *_AXES[ndim]), layout, smallest_batch=0)
    w = _shape("w_shape", w_shape, ("C", "K/groups", *_KERNEL_AXES[ndim]), "NCHW")
    groups = integer("groups", groups, 1)
    if x[1] % groups:
        raise ArgumentValueError("groups", groups, f"must divide the {x[1]} input channels")
    if w[0] != x[1]:
        raise ArgumentValueError("w_shape", tuple(w_shape), f"must have C = {x[1]} channels, as x has, has {w[0]}")
    one_of("pad_mode", pad_mode, ("zeros",))
    steps = per_axis("stride", stride, ndim)
    spacing = per_axis("dilation", dilation, ndim)
    gaps = tuple(d if k > 1 else 1 for d, k in zip(spacing, w[2:], strict=True))
    pads = _cut(padding, ndim)
    more = _output_padding(output_padding, steps, spacing)
    outputs = w[1] * groups
    problem = Problem(
        ndim=ndim,
        batch=x[0],
        in_channels=x[1],
        out_channels=outputs,
        in_size=x[2:],
        kernel=w[2:],
        stride=steps,
        dilation=gaps,
        pad_low=tuple(low for low, _ in pads),
        pad_high=tuple(high - extra for (_, high), extra in zip(pads, more, strict=True)),
        pad_mode="zeros",
        groups=groups,
        dtype=element,
        layout=layout,
        x_strides=canonical_strides("x_strides", x_strides, x, layout),
        w_strides=canonical_strides("w_strides", w_strides, w, "NCHW"),
        out_strides=(),
        direction="transposed",
    )
    for axis, extent in zip(_AXES[ndim], problem.out_size, strict=True):
        if not 1 <= extent <= LARGEST_EXTENT:
            rule = f"leaves an output of extent {extent} along {axis}, must be 1 to {LARGEST_EXTENT}"
            raise ArgumentValueError("padding", padding, rule)
    _check_bytes(element, to_user(x, layout), w, problem.out_shape)
    return _completed(
        problem, bias, activation, residual, residual_order, out_strides=out_strides, residual_strides=residual_strides
    )


def make_backward_data_problem(
    ndim: int,
    grad_shape: Sequence[int] | None,
    w_shape: Sequence[int],
    *,
    x_shape: Sequence[int],
    dtype: DTypeLike,
    bias: bool = False,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    pad_mode: str = "zeros",
    activation: ActivationLike = None,
    residual: bool | None = None,
    residual_order: str = "before",
    x_strides: Sequence[int] | None = None,
    w_strides: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    residual_strides: Sequence[int] | None = None,
) -> Problem:
    """Check the arguments of a gradient with respect to the image and return it as a transposed `Problem`.

    Args:
        ndim: number of spatial axes, 1 to 3.
        grad_shape: shape of the gradient of the convolution's output; None for what it has to be.
        w_shape: (K, C/groups, *kernel), the weights of the convolution.
        x_shape: shape of the image, and of the result.
        dtype: element type of all arrays.
        bias: must be False: the gradient has none.
        stride: that of the convolution; so are padding, dilation, groups and layout, and "same" and pairs are allowed.
        padding: see there.
        dilation: see there.
        groups: see there.
        layout: see there.
        pad_mode: "zeros".
        activation: applied to the result, as in `make_problem`.
        residual: whether an array of the image's shape is added to the result.
        residual_order: see `make_problem`.
        x_strides: strides of the gradient, in elements.
        w_strides: of the weights.
        out_strides: of the result.
        residual_strides: of the residual.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument has a value that is not allowed, or does not fit the others.
    """
    one_of("pad_mode", pad_mode, ("zeros",))
    one_image_layout(layout, ndim)
    if bias:
        raise ArgumentValueError("bias", bias, "must be None, a gradient has no bias")
    forward = make_problem(
        ndim,
        x_shape,
        w_shape,
        dtype=dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        layout=layout,
        w_strides=w_strides,
    )
    if grad_shape is not None and tuple(grad_shape) != forward.out_shape:
        rule = f"must be {forward.out_shape}, the shape of the convolution's output"
        raise ArgumentValueError("grad_out", tuple(grad_shape), rule)
    axes = zip(forward.out_size, forward.stride, forward.dilation, forward.kernel, strict=True)
    reach = [(q - 1) * s + d * (k - 1) + 1 for q, s, d, k in axes]
    grad = (forward.batch, forward.out_channels, *forward.out_size)
    problem = replace(
        forward,
        in_channels=forward.out_channels,
        out_channels=forward.in_channels,
        in_size=forward.out_size,
        pad_high=tuple(span - low - n for span, low, n in zip(reach, forward.pad_low, forward.in_size, strict=True)),
        pad_mode="zeros",
        x_strides=canonical_strides("x_strides", x_strides, grad, forward.layout),
        direction="transposed",
    )
    return _completed(
        problem, False, activation, residual, residual_order, out_strides=out_strides, residual_strides=residual_strides
    )


def backward_data_of(ndim: int, x_shape: Sequence[int], w_shape: Sequence[int], **options: Any) -> Problem:
    """`make_backward_data_problem` for a gradient whose shape is what it has to be."""
    return make_backward_data_problem(ndim, None, w_shape, x_shape=x_shape, **options)


def one_image_layout(layout: str, ndim: int) -> str:
    """Return "NCHW" or "NHWC"; images of a block in one line are for forward convolutions only."""
    name = layout_name(layout, ndim)
    if name in BATCH_LAST:
        raise ArgumentValueError("layout", layout, "must be 'NCHW' or 'NHWC' for transposed convolutions and gradients")
    return name


def _completed(
    problem: Problem,
    bias: bool,
    activation: ActivationLike,
    residual: bool | None,
    residual_order: str,
    *,
    out_strides: Sequence[int] | None,
    residual_strides: Sequence[int] | None,
) -> Problem:
    """The problem with its output and what is done to it."""
    has_residual = residual is not None and flag("residual", residual)
    if residual_strides is not None and not has_residual:
        raise ArgumentValueError("residual_strides", residual_strides, "must be None without a residual")
    order = one_of("residual_order", residual_order, RESIDUAL_ORDERS)
    function = make_activation(activation)
    out, layout = to_canonical(problem.out_shape, problem.layout), problem.layout
    return replace(
        problem,
        out_strides=canonical_strides("out_strides", out_strides, out, layout, written=True),
        residual_strides=canonical_strides("residual_strides", residual_strides, out, layout) if has_residual else None,
        has_bias=flag("bias", bias),
        activation=function,
        residual=(order if function else "before") if has_residual else None,
    )


def _cut(padding: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """What is cut off at both ends of each spatial axis."""
    if isinstance(padding, str):
        raise ArgumentTypeError("padding", padding, "must be numbers")
    return _padding(padding, (1,) * ndim, (1,) * ndim, (1,) * ndim)


def _output_padding(value: Any, stride: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """What is added at the end of each spatial axis."""
    ndim = len(stride)
    entries = value if isinstance(value, tuple | list) else (value,) * ndim
    if len(entries) != ndim:
        rule = f"must be an int or a tuple of {ndim}, one for each spatial axis"
        raise ArgumentValueError("output_padding", value, rule)
    result = tuple(integer("output_padding", entry, 0, shown=value, what="entries") for entry in entries)
    if any(n >= max(s, d) for n, s, d in zip(result, stride, dilation, strict=True)):
        rule = f"must be smaller than stride {tuple(stride)} or dilation {tuple(dilation)}"
        raise ArgumentValueError("output_padding", value, rule)
    return result
