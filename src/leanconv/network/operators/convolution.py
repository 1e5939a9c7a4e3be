"""Conv, and Conv with all that passes fuse into it: `leanconv.Conv`.

`leanconv.Conv` has the inputs x, w, b (or `""`) and residual (or `""`), Conv's attributes, and

    activation  a tuple of a name and its numbers, as `leanconv.conv2d` takes it: ("relu",), ("clip", 0.0, 6.0),
                ("leaky_relu", 0.1), ...; missing for none
    residual    "before" or "after" the activation: when the residual is added; missing without one
    pad_mode    what padding holds: "zeros" (if missing), "reflect", "replicate"
"""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.api import conv1d, conv2d, conv3d
from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, maybe, present
from leanconv.network.operators.geometry import Windows, windows
from leanconv.options import make_problem
from leanconv.problem import Problem

_CONVOLVE = {1: conv1d, 2: conv2d, 3: conv3d}


def conv_windows(node: Node, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> Windows:
    """Windows of a Conv after the checks of its shapes."""
    if not 3 <= len(x_shape) <= 5 or len(w_shape) != len(x_shape):
        raise ValueError(f"an image of shape {x_shape} with weights of shape {w_shape}: 1 to 3 spatial axes of both")
    if "kernel_shape" in node.attributes and tuple(node.attributes["kernel_shape"]) != w_shape[2:]:
        raise ValueError(f"kernel_shape={tuple(node.attributes['kernel_shape'])}, but weights of shape {w_shape}")
    groups = conv_groups(node)
    if x_shape[1] != w_shape[1] * groups or w_shape[0] % groups or not w_shape[0]:
        raise ValueError(f"{x_shape[1]} channels in {groups} groups do not fit weights of shape {w_shape}")
    return windows(node, x_shape[2:], w_shape[2:])


def conv_groups(node: Node) -> int:
    """Number of groups."""
    groups = int(node.attributes.get("group", 1))
    if groups < 1:
        raise ValueError(f"group={groups} must be positive")
    return groups


def conv_problem(node: Node, x: ValueType, w: ValueType, *, bias: bool) -> Problem:
    """The problem that a Conv or a `leanconv.Conv` states, on dense arrays with channels first."""
    place = conv_windows(node, x.shape, w.shape)
    residual = node.attributes.get("residual")
    return make_problem(
        len(x.shape) - 2,
        x.shape,
        w.shape,
        dtype=x.dtype,
        bias=bias,
        stride=place.stride,
        padding=tuple(zip(place.low, place.high, strict=True)),
        dilation=place.dilation,
        groups=conv_groups(node),
        pad_mode=node.attributes.get("pad_mode", "zeros"),
        activation=node.attributes.get("activation"),
        residual=residual is not None,
        residual_order=residual or "before",
    )


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w = present(types, 0), present(types, 1)
    place = conv_windows(node, x.shape, w.shape)
    shape = (x.shape[0], w.shape[0], *place.out)
    bias = types[2] if len(types) > 2 else None
    if bias is not None and bias.shape != (w.shape[0],):
        raise ValueError(f"a bias of shape {bias.shape} for {w.shape[0]} output channels")
    residual = types[3] if len(types) > 3 else None
    if residual is not None and residual.shape != shape:
        raise ValueError(f"a residual of shape {residual.shape} for an output of shape {shape}")
    return (ValueType(shape, x.dtype),)


def _evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, w, bias, residual = given(arrays, 0), given(arrays, 1), maybe(arrays, 2), maybe(arrays, 3)
    if x.dtype in (np.float32, np.float64):
        return (convolve(node, x, w, bias, residual),)
    # Kernels have two element types; others are computed in the next that holds them.
    wide = np.float32 if x.dtype == np.float16 else np.float64
    widened = (None if array is None else array.astype(wide) for array in (x, w, bias, residual))
    return (convolve(node, *widened).astype(x.dtype),)  # type: ignore[arg-type]


def convolve(
    node: Node, x: Array, w: Array, bias: Array | None, residual: Array | None = None, *, accuracy: str = "standard"
) -> Array:
    """What a Conv or a `leanconv.Conv` computes, on float32 or float64 arrays."""
    place = conv_windows(node, x.shape, w.shape)
    options: dict[str, Any] = {}
    if residual is not None:
        options = {"residual": residual, "residual_order": node.attributes["residual"]}
    result: Array = _CONVOLVE[x.ndim - 2](
        x,
        w,
        bias,
        stride=place.stride,
        padding=tuple(zip(place.low, place.high, strict=True)),
        dilation=place.dilation,
        groups=conv_groups(node),
        pad_mode=node.attributes.get("pad_mode", "zeros"),
        activation=node.attributes.get("activation"),
        accuracy=accuracy,
        **options,
    )
    return result


def exact_convolution(node: Node, x: Array, w: Array) -> Array:
    """A convolution of whole numbers, exact while sums stay below 2**53; as float64."""
    return convolve(node, x.astype(np.float64), w.astype(np.float64), None, accuracy="exact")


OPERATORS = (
    Operator("Conv", _infer, _evaluate, since=(1, 11)),
    Operator("leanconv.Conv", _infer, _evaluate),
)
