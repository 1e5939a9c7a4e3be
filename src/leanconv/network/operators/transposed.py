"""ConvTranspose, and `leanconv.ConvTranspose`, which has an activation too (as `leanconv.Conv`)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, ints, maybe, present
from leanconv.network.operators.convolution import conv_groups
from leanconv.network.operators.geometry import attribute_text, per_axis
from leanconv.options import make_activation
from leanconv.problem import numpy_activation


@dataclass(frozen=True, slots=True)
class Scatter:
    """Where a transposed convolution adds its products: `out` is what `low` and `high` leave of all positions."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    out: tuple[int, ...]


def scatter(node: Node, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> Scatter:
    """Strides and padding of a ConvTranspose; padding is negative where the output reaches beyond all products."""
    if len(x_shape) < 3 or len(w_shape) != len(x_shape):
        raise ValueError(f"an image of shape {x_shape} with weights of shape {w_shape}")
    ndim, kernel = len(x_shape) - 2, w_shape[2:]
    groups = conv_groups(node)
    if x_shape[1] != w_shape[0] or w_shape[0] % groups:
        raise ValueError(f"{x_shape[1]} channels in {groups} groups do not fit weights of shape {w_shape}")
    stride, dilation = per_axis(node, "strides", ndim), per_axis(node, "dilations", ndim)
    extra = ints(node.attributes.get("output_padding", (0,) * ndim))
    if len(extra) != ndim or any(e < 0 for e in extra):
        raise ValueError(f"output_padding={extra} must be {ndim} ints that are not negative")
    full = [
        s * (n - 1) + e + d * (k - 1) + 1
        for s, n, e, d, k in zip(stride, x_shape[2:], extra, dilation, kernel, strict=True)
    ]
    how = attribute_text(node, "auto_pad") or "NOTSET"
    wanted = node.attributes.get("output_shape")
    if wanted is not None:
        out = ints(wanted)[-ndim:]
    elif how.startswith("SAME"):
        out = tuple(n * s for n, s in zip(x_shape[2:], stride, strict=True))
    else:
        found = ints(node.attributes.get("pads", (0,) * (2 * ndim))) if how == "NOTSET" else (0,) * (2 * ndim)
        if len(found) != 2 * ndim:
            raise ValueError(f"pads={found} must be {2 * ndim} ints")
        low, high = found[:ndim], tuple(h - e for h, e in zip(found[ndim:], extra, strict=True))
        out = tuple(f - a - b for f, a, b in zip(full, found[:ndim], found[ndim:], strict=True))
        return Scatter(stride, dilation, low, high, out)
    lows, highs = [], []
    for f, o, e in zip(full, out, extra, strict=True):
        total = f - o
        less, more = (0, total) if total < 0 else (total // 2, total - total // 2)
        low_, high_ = (less, more) if how == "SAME_UPPER" or total < 0 else (more, less)
        lows.append(low_)
        highs.append(high_ - e)
    return Scatter(stride, dilation, tuple(lows), tuple(highs), out)


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w = present(types, 0), present(types, 1)
    place = scatter(node, x.shape, w.shape)
    if any(o < 1 for o in place.out):
        raise ValueError(f"an output of {place.out} pixels")
    channels = w.shape[1] * conv_groups(node)
    bias = types[2] if len(types) > 2 else None
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"a bias of shape {bias.shape} for {channels} output channels")
    return (ValueType((x.shape[0], channels, *place.out), x.dtype),)


def _evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, w, bias, residual = given(arrays, 0), given(arrays, 1), maybe(arrays, 2), maybe(arrays, 3)
    place, groups, ndim = scatter(node, x.shape, w.shape), conv_groups(node), x.ndim - 2
    batch, channels, kernel = x.shape[0], w.shape[1] * groups, w.shape[2:]
    dtype = np.dtype(np.float32) if x.dtype == np.float16 else x.dtype
    sizes = zip(place.stride, x.shape[2:], place.dilation, kernel, strict=True)
    full = np.zeros((batch, channels, *(s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in sizes)), dtype)
    pixels = x.reshape(batch, groups, x.shape[1] // groups, -1).astype(dtype, copy=False)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], *kernel).astype(dtype, copy=False)
    for tap in product(*map(range, kernel)):
        here: tuple[Any, ...] = (..., *tap)
        maps = np.matmul(np.swapaxes(weights[here], 1, 2), pixels)
        at = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, place.dilation, place.stride, x.shape[2:], strict=True)
        )
        full[(slice(None), slice(None), *at)] += maps.reshape(batch, channels, *x.shape[2:])
    out = np.zeros((batch, channels, *place.out), dtype)
    source, target = [], []
    for a, o, f in zip(place.low, place.out, full.shape[2:], strict=True):
        first, last = max(a, 0), min(a + o, f)
        source.append(slice(first, last))
        target.append(slice(first - a, last - a))
    out[(slice(None), slice(None), *target)] = full[(slice(None), slice(None), *source)]
    if bias is not None:
        out += bias.reshape(-1, *(1,) * ndim)
    if residual is not None and node.attributes["residual"] == "before":
        out += residual
    activation = make_activation(node.attributes.get("activation"))
    if activation is not None:
        out = numpy_activation(activation, out.astype(np.float64))
    if residual is not None and node.attributes["residual"] == "after":
        out = out + residual
    return (out.astype(x.dtype, copy=False),)


OPERATORS = (
    Operator("ConvTranspose", _infer, _evaluate, since=(1, 11)),
    Operator("leanconv.ConvTranspose", _infer, _evaluate),
)
