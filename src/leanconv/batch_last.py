"""Problems with the batch last, from the user's spelling: the images of a block become a spatial axis of one tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanconv.checks import canonical_strides, integer
from leanconv.classes import replace
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import Problem

BLOCK = 8  # images in a block of CHWN8
_AXES = ("H", "W")


def make_batch_last(
    ndim: int,
    x_shape: Any,
    w_shape: Any,
    layout: str,
    strides: Mapping[str, Sequence[int] | None],
    **options: Any,
) -> Problem:
    """Check the arguments of a convolution in CHWN or CHWN8 and return it as a `Problem`.

    Args:
        ndim: spatial axes, without that of the images.
        x_shape: (C, *spatial, N) or (N/8, C, *spatial, 8).
        w_shape: (K, C/groups, *kernel).
        layout: "CHWN" or "CHWN8".
        strides: x_strides, out_strides and residual_strides as `make_problem` takes them.
        **options: further arguments of `make_problem`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument has a value that is not allowed, or does not fit the others.
    """
    from leanconv.options import make_problem

    blocks, channels, *spatial, lanes = _shape(x_shape, _AXES[-ndim:], layout)
    plain = make_problem(ndim, (blocks * lanes, channels, *spatial), w_shape, layout="NCHW", **options)
    x = (blocks, channels, *plain.in_size, lanes)
    out = (blocks, plain.out_channels, *plain.out_size, lanes)
    if strides["residual_strides"] is not None and plain.residual is None:
        raise ArgumentValueError("residual_strides", strides["residual_strides"], "must be None without a residual")
    extra = canonical_strides("residual_strides", strides["residual_strides"], out, layout)
    return replace(
        plain,
        ndim=ndim + 1,
        batch=blocks,
        in_size=(*plain.in_size, lanes),
        kernel=(*plain.kernel, 1),
        stride=(*plain.stride, 1),
        dilation=(*plain.dilation, 1),
        pad_low=(*plain.pad_low, 0),
        pad_high=(*plain.pad_high, 0),
        layout=layout,
        x_strides=canonical_strides("x_strides", strides["x_strides"], x, layout),
        w_strides=(*plain.w_strides, 1),
        out_strides=canonical_strides("out_strides", strides["out_strides"], out, layout, written=True),
        residual_strides=extra if plain.residual else None,
    )


def _shape(shape: Any, axes: tuple[str, ...], layout: str) -> tuple[int, ...]:
    """The shape as (blocks, C, *spatial, images of a block)."""
    names = ("C", *axes, "N") if layout == "CHWN" else (f"N/{BLOCK}", "C", *axes, str(BLOCK))
    if not isinstance(shape, tuple | list):
        raise ArgumentTypeError("x_shape", shape, f"must be a tuple of {len(names)} ints")
    if len(shape) != len(names):
        raise ArgumentValueError("x_shape", shape, f"must have {len(names)} axes, ({', '.join(names)})")
    sizes = tuple(integer("x_shape", n, 0, shown=shape, what="extents") for n in shape)
    if layout == "CHWN":
        sizes = (1, *sizes)
    elif sizes[-1] != BLOCK:
        raise ArgumentValueError("x_shape", shape, f"must have {BLOCK} images in its last axis; see to_layout")
    if 0 in sizes[1:]:
        which = "extents" if layout == "CHWN" else "extents other than the first"
        raise ArgumentValueError("x_shape", shape, f"{which} must be at least 1")
    return sizes
