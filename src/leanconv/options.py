"""From the user's spelling to a `Problem`; shapes and options are checked here and nowhere else.

Spellings follow PyTorch where it has them. A broken rule raises an `ArgumentError` that names the argument,
what was passed and what is required.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import DTypeLike

from leanconv.checks import (
    LARGEST_ARRAY,
    LARGEST_EXTENT,
    canonical_strides,
    dtype_name,
    flag,
    integer,
    one_of,
    per_axis,
)
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import ACTIVATIONS, BATCH_LAST, Activation, Problem, to_canonical, to_user

PAD_MODES = ("zeros", "reflect", "replicate", "circular")
RESIDUAL_ORDERS = ("before", "after")

Ints: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int | Sequence[int]]
ActivationLike: TypeAlias = str | Sequence[Any] | Activation | None

_AXES = {1: ("W",), 2: ("H", "W"), 3: ("D", "H", "W")}
_KERNEL_AXES = {1: ("S",), 2: ("R", "S"), 3: ("T", "R", "S")}
_LAYOUTS = {
    1: {"NCW": "NCHW", "NCL": "NCHW", "NWC": "NHWC", "NLC": "NHWC", "CWN": "CHWN", "CWN8": "CHWN8"},
    2: {},
    3: {"NCDHW": "NCHW", "NDHWC": "NHWC"},
}

_NUMBERS = {"clip": ("low", "high"), "leaky_relu": ("slope",)}
_DEFAULTS = {"leaky_relu": (0.01,)}


def make_problem(
    ndim: int,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
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
    """Check the arguments of a convolution and return it as a `Problem`.

    Args:
        ndim: number of spatial axes, 1 to 3.
        x_shape: (N, C, *spatial), (N, *spatial, C), (C, *spatial, N) or (N/8, C, *spatial, 8), by `layout`. N may be
            0, but not in CHWN.
        w_shape: (K, C/groups, *kernel) in every layout (as PyTorch has it for channels_last too).
        dtype: element type of all arrays, float32 or float64, in the machine's byte order.
        bias: whether a bias of K numbers is added.
        stride: one int, or one for each spatial axis.
        padding: one int, or for each spatial axis an int or a (low, high) pair; "valid" for none; "same" for
            an output extent of ceil(input / stride), an odd element going to the end. For stride 1 that is
            PyTorch's rule, for others TensorFlow's, where the padding depends on the input's extent.
        dilation: one int, or one for each spatial axis.
        groups: number of groups that do not mix; divides C and K.
        layout: "NCHW" or "NHWC" for any `ndim`, "CHWN" or "CHWN8" for 1-D and 2-D; also "NCW", "NCL", "NWC", "NLC",
            "CWN", "CWN8" (1-D) and "NCDHW", "NDHWC" (3-D).
        pad_mode: what padding holds: "zeros", "reflect", "replicate" or "circular".
        activation: None, a name, or a tuple of name and numbers: ("clip", low, high), ("leaky_relu", slope).
        residual: whether an array of the output's shape is added.
        residual_order: whether that happens "before" the activation or "after" it.
        x_strides: elements from neighbour to neighbour along each axis, in the order of `x_shape`; may be
            zero or negative. None for an array without gaps; so for the next three.
        w_strides: the same for the weights.
        out_strides: the same for the output; positive, and no two elements may share memory.
        residual_strides: the same for the residual; may be zero or negative.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument has a value that is not allowed, or does not fit the others.
    """
    if type(ndim) is not int or ndim not in _AXES:
        raise ArgumentValueError("ndim", ndim, "must be 1, 2 or 3")
    layout = layout_name(layout, ndim)
    if layout in BATCH_LAST:
        from leanconv.batch_last import make_batch_last

        return make_batch_last(
            ndim,
            x_shape,
            w_shape,
            layout,
            {"x_strides": x_strides, "out_strides": out_strides, "residual_strides": residual_strides},
            dtype=dtype,
            bias=bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            pad_mode=pad_mode,
            activation=activation,
            residual=residual,
            residual_order=residual_order,
            w_strides=w_strides,
        )
    element = dtype_name("dtype", dtype)
    x = _shape("x_shape", x_shape, ("N", "C", *_AXES[ndim]), layout, smallest_batch=0)
    w = _shape("w_shape", w_shape, ("K", "C/groups", *_KERNEL_AXES[ndim]), "NCHW")
    in_size, kernel = x[2:], w[2:]

    groups = integer("groups", groups, 1)
    for count, side in ((x[1], "input"), (w[0], "output")):
        if count % groups:
            raise ArgumentValueError("groups", groups, f"must divide the {count} {side} channels")
    if w[1] * groups != x[1]:
        rule = f"must have C/groups = {x[1]}/{groups} = {x[1] // groups} channels, has {w[1]}"
        raise ArgumentValueError("w_shape", tuple(w_shape), rule)

    steps = per_axis("stride", stride, ndim)
    # The distance between the taps of a single tap means nothing, and equal problems must be equal.
    gaps = tuple(d if k > 1 else 1 for d, k in zip(per_axis("dilation", dilation, ndim), kernel, strict=True))
    spans = tuple(d * (k - 1) + 1 for d, k in zip(gaps, kernel, strict=True))
    pads = _padding(padding, in_size, spans, steps)
    _check_pads(padding, pads, one_of("pad_mode", pad_mode, PAD_MODES), in_size)
    out = (x[0], w[0], *_out_size(w_shape, in_size, spans, steps, pads))
    _check_bytes(element, to_user(x, layout), w, to_user(out, layout))

    has_residual = residual is not None and flag("residual", residual)
    if residual_strides is not None and not has_residual:
        raise ArgumentValueError("residual_strides", residual_strides, "must be None without a residual")
    order = one_of("residual_order", residual_order, RESIDUAL_ORDERS)
    function = make_activation(activation)
    return Problem(
        ndim=ndim,
        batch=x[0],
        in_channels=x[1],
        out_channels=w[0],
        in_size=in_size,
        kernel=kernel,
        stride=steps,
        dilation=gaps,
        pad_low=tuple(low for low, _ in pads),
        pad_high=tuple(high for _, high in pads),
        pad_mode=pad_mode if any(map(any, pads)) else "zeros",
        groups=groups,
        dtype=element,
        layout=layout,
        x_strides=canonical_strides("x_strides", x_strides, x, layout),
        w_strides=canonical_strides("w_strides", w_strides, w, "NCHW"),
        out_strides=canonical_strides("out_strides", out_strides, out, layout, written=True),
        residual_strides=canonical_strides("residual_strides", residual_strides, out, layout) if has_residual else None,
        has_bias=flag("bias", bias),
        activation=function,
        # Without an activation the two orders are the same sum.
        residual=(order if function else "before") if has_residual else None,
    )


def make_activation(activation: Any) -> Activation | None:
    """Return the `Activation` that a name or a tuple of name and numbers stands for."""
    if activation is None:
        return None
    if isinstance(activation, Activation):
        name, numbers = activation.name, activation.params
    elif isinstance(activation, tuple | list) and activation:
        name, numbers = activation[0], tuple(activation[1:])
    else:
        name, numbers = activation, ()
    if not isinstance(name, str):
        raise ArgumentTypeError("activation", activation, "must be None, a name, or a tuple of name and numbers")
    if name not in ACTIVATIONS:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ArgumentValueError("activation", activation, f"must be one of {names}")
    wanted = _NUMBERS.get(name, ())
    numbers = numbers or _DEFAULTS.get(name, ())
    if len(numbers) != len(wanted):
        spelling = ", ".join([repr(name), *wanted])
        rule = f"must be ({spelling})" if wanted else "takes no numbers"
        raise ArgumentValueError("activation", activation, rule)
    try:
        if any(isinstance(number, bool | str | bytes) for number in numbers):
            raise TypeError
        params = tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        raise ArgumentTypeError("activation", activation, f"{' and '.join(wanted)} must be numbers") from None
    if any(map(math.isnan, params)):
        raise ArgumentValueError("activation", activation, f"{' and '.join(wanted)} must not be nan")
    if name == "clip" and params[0] > params[1]:
        raise ArgumentValueError("activation", activation, "low must not be greater than high")
    return Activation(name, params)


def layout_name(layout: Any, ndim: int) -> str:
    """Return "NCHW", "NHWC", "CHWN" or "CHWN8"."""
    known = ("NCHW", "NHWC") if ndim == 3 else ("NCHW", "NHWC", *BATCH_LAST)
    name = one_of("layout", layout, (*known, *_LAYOUTS[ndim]))
    return _LAYOUTS[ndim].get(name, name)


def _shape(
    argument: str, shape: Any, axes: tuple[str, ...], layout: str, *, smallest_batch: int = 1
) -> tuple[int, ...]:
    """Return a shape in canonical order; `axes` are the names of its axes in that order."""
    if not isinstance(shape, tuple | list):
        raise ArgumentTypeError(argument, shape, f"must be a tuple of {len(axes)} ints")
    if len(shape) != len(axes):
        names = axes if layout == "NCHW" else (axes[0], *axes[2:], axes[1])
        raise ArgumentValueError(argument, shape, f"must have {len(axes)} axes, ({', '.join(names)})")
    first, *others = (integer(argument, n, 0, shown=shape, what="extents") for n in shape)
    if first < smallest_batch or 0 in others:
        which = "extents other than the batch" if smallest_batch == 0 else "extents"
        raise ArgumentValueError(argument, shape, f"{which} must be at least 1")
    return to_canonical((first, *others), layout)


def _padding(
    padding: Any, in_size: Sequence[int], spans: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return (low, high) for each spatial axis."""
    ndim = len(in_size)
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding != "same":
            raise ArgumentValueError("padding", padding, "must be 'same', 'valid' or numbers")
        totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(in_size, spans, stride, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if not isinstance(padding, tuple | list):
        return ((integer("padding", padding, 0),) * 2,) * ndim
    pairs = [entry if isinstance(entry, tuple | list) else (entry, entry) for entry in padding]
    if len(pairs) != ndim or any(len(pair) != 2 for pair in pairs):
        rule = f"must be an int or a tuple of {ndim}: for each spatial axis an int or a (low, high) pair"
        raise ArgumentValueError("padding", padding, rule)
    low_high = [[integer("padding", end, 0, shown=padding, what="entries") for end in pair] for pair in pairs]
    return tuple((low, high) for low, high in low_high)


def _check_pads(padding: Any, pads: Sequence[tuple[int, int]], mode: str, in_size: Sequence[int]) -> None:
    """Check that the image has the elements that padding repeats, and that extents stay countable."""
    for axis, n, (low, high) in zip(_AXES[len(in_size)], in_size, pads, strict=True):
        if low + n + high > LARGEST_EXTENT:
            raise ArgumentValueError("padding", padding, f"the padded {axis} must be at most {LARGEST_EXTENT}")
        if mode == "reflect" and max(low, high) >= n:
            rule = f"must be less than {axis}={n} with pad_mode='reflect'"
            raise ArgumentValueError("padding", padding, rule)
        if mode == "circular" and max(low, high) > n:
            raise ArgumentValueError("padding", padding, f"must be at most {axis}={n} with pad_mode='circular'")


def _out_size(
    w_shape: Sequence[int],
    in_size: Sequence[int],
    spans: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """Return the extents of the output; at least one position of the kernel must fit along each axis."""
    sizes = []
    for axis, n, span, step, (low, high) in zip(_AXES[len(in_size)], in_size, spans, stride, pads, strict=True):
        if span > low + n + high:
            rule = f"the dilated kernel spans {span} along {axis}, more than the padded input's {low + n + high}"
            raise ArgumentValueError("w_shape", tuple(w_shape), rule)
        sizes.append((low + n + high - span) // step + 1)
    return tuple(sizes)


def _check_bytes(dtype: str, x: tuple[int, ...], w: tuple[int, ...], out: tuple[int, ...]) -> None:
    """Check that every array of the call can be addressed; shapes are in the user's axis order."""
    itemsize = 4 if dtype == "float32" else 8
    for argument, shape, what in (
        ("x_shape", x, "the image"),
        ("w_shape", w, "the array of weights"),
        ("x_shape", out, f"the output of shape {out}"),
    ):
        if math.prod(shape) * itemsize > LARGEST_ARRAY:
            rule = f"{what} would take more than 2**62 bytes"
            raise ArgumentValueError(argument, x if argument == "x_shape" else w, rule)
