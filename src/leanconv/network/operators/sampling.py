"""Operators that read images at computed places: GridSample, AffineGrid, DeformConv.

GridSample: Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015.  DeformConv: Dai et al., "Deformable
Convolutional Networks", ICCV 2017, and Zhu et al., "Deformable ConvNets v2", CVPR 2019, for the mask.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, known_ints, maybe, present
from leanconv.network.operators.convolution import conv_groups, conv_windows
from leanconv.network.operators.geometry import attribute_text

_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}
_PADDINGS = ("zeros", "border", "reflection")
_CUBIC = -0.75


def _sample_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, grid = present(types, 0), present(types, 1)
    rank = len(x.shape)
    if rank < 3 or len(grid.shape) != rank or grid.shape[-1] != rank - 2 or grid.shape[0] != x.shape[0]:
        raise ValueError(f"a grid of shape {grid.shape} for images of shape {x.shape}")
    if 0 in x.shape[2:]:
        raise ValueError(f"images of shape {x.shape} have no pixels")
    return (ValueType((*x.shape[:2], *grid.shape[1:-1]), x.dtype),)


def _sample(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, grid = given(arrays, 0), given(arrays, 1).astype(np.float64)
    how = _MODES[attribute_text(node, "mode") or "linear"]
    padding = attribute_text(node, "padding_mode") or "zeros"
    corners = bool(node.attributes.get("align_corners", 0))
    taps: list[list[tuple[Array, Array]]] = []
    for axis, n in enumerate(x.shape[2:]):
        g = grid[..., x.ndim - 3 - axis]  # the last coordinate is that of the first axis
        at = (g + 1) / 2 * (n - 1) if corners else ((g + 1) * n - 1) / 2
        at = np.rint(at) if how == "nearest" else at
        if padding == "border":
            at = np.clip(at, 0, n - 1)
        elif padding == "reflection":
            at = _reflected(at, n, corners)
        taps.append(_axis_taps(at, how))
    return (_weighted(x, taps, padding, corners),)


def _axis_taps(at: Array, how: str) -> list[tuple[Array, Array]]:
    """Along one axis: (positions, weights) of each tap."""
    if how == "nearest":
        return [(at.astype(np.int64), np.ones(at.shape))]
    base = np.floor(at)
    places, part = base.astype(np.int64), at - base
    if how == "linear":
        return [(places, 1 - part), (places + 1, part)]
    found = []
    for shift in range(-1, 3):
        d = np.abs(part - shift)
        near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
        far = ((_CUBIC * d - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC
        found.append((places + shift, np.where(d <= 1, near, far)))
    return found


def _reflected(at: Array, n: int, corners: bool) -> Array:
    """Positions mirrored at the centres of the outer pixels, or at their outer edges, until they are inside."""
    low, high = (0.0, n - 1.0) if corners else (-0.5, n - 0.5)
    span = high - low
    if span <= 0:
        return np.zeros_like(at)
    folded = np.abs(at - low) % (2 * span)
    mirrored = low + np.where(folded > span, 2 * span - folded, folded)
    return np.asarray(np.where((at < low) | (at > high), mirrored, at))


def _weighted(x: Array, taps: list[list[tuple[Array, Array]]], padding: str, corners: bool) -> Array:
    """The sum over all combinations of taps of the axes, (N, C, *positions)."""
    shape = taps[0][0][0].shape
    total = np.zeros((*x.shape[:2], *shape[1:]), np.result_type(x.dtype, np.float32))
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    last = np.moveaxis(x, 1, -1)
    for combination in product(*taps):
        weight, places = np.ones(shape), []
        for n, (place, part) in zip(x.shape[2:], combination, strict=True):
            if padding == "zeros":
                part = np.where((place >= 0) & (place < n), part, 0)
            elif padding == "reflection":
                place = np.rint(_reflected(place.astype(np.float64), n, corners)).astype(np.int64)
            weight = weight * part
            places.append(np.clip(place, 0, n - 1))
        values = last[(batch, *places)] * weight[..., None]
        total += np.moveaxis(values, -1, 1).astype(total.dtype)
    return total.astype(x.dtype)


def _check_sample(node: Node) -> str | None:
    if (attribute_text(node, "mode") or "linear") not in _MODES:
        return f"mode={attribute_text(node, 'mode')!r} is unknown"
    if (attribute_text(node, "padding_mode") or "zeros") not in _PADDINGS:
        return f"padding_mode={attribute_text(node, 'padding_mode')!r} is unknown"
    return None


def _affine_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    theta, size = present(types, 0), known_ints(node, types, constants, 1) or ()
    ndim = len(size) - 2
    if ndim not in (2, 3) or theta.shape != (size[0], ndim, ndim + 1):
        raise ValueError(f"matrices of shape {theta.shape} for images of shape {size}")
    return (ValueType((size[0], *size[2:], ndim), theta.dtype),)


def _affine(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    theta, size = given(arrays, 0), [int(n) for n in given(arrays, 1)]
    corners, axes = bool(node.attributes.get("align_corners", 0)), []
    for n in size[2:]:
        steps = np.arange(n, dtype=np.float64)
        axes.append((2 * steps / max(n - 1, 1) - 1) if corners else (2 * steps + 1) / n - 1)
    grid = np.stack([*reversed(np.meshgrid(*axes, indexing="ij")), np.ones(size[2:])], axis=-1)
    return (np.einsum("...k,nik->n...i", grid, theta.astype(np.float64)).astype(theta.dtype),)


def _deform_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w, offset = present(types, 0), present(types, 1), present(types, 2)
    if len(x.shape) != 4:
        raise ValueError(f"an image of shape {x.shape}: deformable convolutions have two spatial axes")
    place = conv_windows(node, x.shape, w.shape)
    groups, taps = int(node.attributes.get("offset_group", 1)), w.shape[2] * w.shape[3]
    if groups < 1 or x.shape[1] % groups or offset.shape != (x.shape[0], 2 * groups * taps, *place.out):
        raise ValueError(f"offsets of shape {offset.shape} for {groups} groups of {taps} taps at {place.out} positions")
    mask = types[4] if len(types) > 4 else None
    if mask is not None and mask.shape != (x.shape[0], groups * taps, *place.out):
        raise ValueError(f"a mask of shape {mask.shape}")
    return (ValueType((x.shape[0], w.shape[0], *place.out), x.dtype),)


def _deform(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, w, offset, bias, mask = given(arrays, 0), given(arrays, 1), given(arrays, 2), maybe(arrays, 3), maybe(arrays, 4)
    place, groups = conv_windows(node, x.shape, w.shape), conv_groups(node)
    parts, count = int(node.attributes.get("offset_group", 1)), w.shape[2] * w.shape[3]
    n, c = x.shape[:2]
    offsets = offset.reshape(n, parts, count, 2, *place.out).astype(np.float64)
    masks = None if mask is None else mask.reshape(n, parts, count, *place.out)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], count)
    out = np.zeros((n, groups, w.shape[0] // groups, place.out[0] * place.out[1]), np.result_type(x.dtype, np.float32))
    for number, tap in enumerate(product(*map(range, place.kernel))):
        regular = [
            np.arange(q) * s - low + t * d
            for q, s, low, t, d in zip(place.out, place.stride, place.low, tap, place.dilation, strict=True)
        ]
        pixels = []
        for part in range(parts):
            channels = x[:, part * c // parts : (part + 1) * c // parts]
            rows = regular[0][:, None] + offsets[:, part, number, 0]
            columns = regular[1][None, :] + offsets[:, part, number, 1]
            sampled = _weighted(channels, [_axis_taps(rows, "linear"), _axis_taps(columns, "linear")], "zeros", False)
            pixels.append(sampled if masks is None else sampled * masks[:, part, number][:, None])
        columns_ = np.concatenate(pixels, axis=1).reshape(n, groups, c // groups, -1)
        out += np.matmul(weights[..., number], columns_)
    found = out.reshape(n, w.shape[0], *place.out)
    if bias is not None:
        found = found + bias.reshape(-1, 1, 1)
    return (found.astype(x.dtype),)


OPERATORS = (
    Operator("GridSample", _sample_infer, _sample, since=(16, 20), check=_check_sample),
    Operator("AffineGrid", _affine_infer, _affine, since=(20,)),
    Operator("DeformConv", _deform_infer, _deform, since=(19,)),
)
