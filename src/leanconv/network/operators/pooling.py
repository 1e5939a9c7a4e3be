"""Pooling over windows, and over all pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, ints, known_ints, present, product
from leanconv.network.operators.geometry import Windows, attribute_text, padded, taps, windows


def pool_windows(node: Node, x_shape: tuple[int, ...]) -> Windows:
    """Windows of a pooling operator."""
    if len(x_shape) < 3:
        raise ValueError(f"an image of shape {x_shape} has no spatial axes")
    return windows(node, x_shape[2:], ints(node.attributes["kernel_shape"]))


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    return (ValueType((*x.shape[:2], *pool_windows(node, x.shape).out), x.dtype),)


def _infer_max(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    (y,) = _infer(node, types, constants)
    return y, ValueType(y.shape, "int64")


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _max_pool(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    place = pool_windows(node, x.shape)
    image = padded(x, place, _lowest(x.dtype))
    best = np.full((*x.shape[:2], *place.out), _lowest(x.dtype), x.dtype)
    if len(node.outputs) < 2 or not node.outputs[1]:
        for _, pixels in taps(image, place):
            np.maximum(best, pixels, out=best)
        return best, np.empty(best.shape, np.int64)
    where = np.zeros(best.shape, np.int64)
    by_columns = bool(node.attributes.get("storage_order", 0))
    for tap, pixels in taps(image, place):
        # At the first tap every window takes what it finds, so that one of NaN or -inf has an index too.
        better = pixels > best if any(tap) else np.ones(best.shape, bool)
        best = np.where(better, pixels, best)
        where = np.where(better, _places(x.shape, place, tap, by_columns), where)
    return best, where


def _places(x_shape: tuple[int, ...], place: Windows, tap: tuple[int, ...], by_columns: bool) -> Array:
    """Index in the flattened image, batch and channels included, of the pixel under a tap of every window."""
    spatial = x_shape[2:]
    steps = [product(spatial[:i]) if by_columns else product(spatial[i + 1 :]) for i in range(len(spatial))]
    index = np.arange(x_shape[0] * x_shape[1], dtype=np.int64).reshape(*x_shape[:2], *(1,) * len(spatial))
    index = index * product(spatial)
    rows = zip(place.out, place.stride, place.dilation, place.low, tap, steps, spatial, strict=True)
    for axis, (q, s, d, low, t, step, n) in enumerate(rows):
        coordinate = np.clip(np.arange(q) * s + t * d - low, 0, n - 1) * step
        index = index + coordinate.reshape(-1, *(1,) * (len(spatial) - 1 - axis))
    return index


def _average_pool(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    place = pool_windows(node, x.shape)
    total = np.zeros((*x.shape[:2], *place.out), np.result_type(x.dtype, np.float32))
    for _, pixels in taps(padded(x, place, 0), place):
        total += pixels
    return ((total / window_counts(node, x.shape[2:], place)).astype(x.dtype),)


def window_counts(node: Node, in_size: tuple[int, ...], place: Windows) -> Array:
    """How many elements the mean of each window is over, (*out): those of the image, or of its padding too."""
    inside = np.ones((1, 1, *in_size), np.float32)
    if node.attributes.get("count_include_pad", 0):
        inside = np.pad(inside, [(0, 0), (0, 0), *zip(place.low, place.high, strict=True)], constant_values=1)
        inside = np.pad(inside, [(0, 0), (0, 0), *((0, over) for over in place.overhang)])
    else:
        inside = padded(inside, place, 0)
    count = np.zeros((1, 1, *place.out), np.float32)
    for _, pixels in taps(inside, place):
        count += pixels
    counts: Array = count[0, 0]
    return counts


def _lp_pool(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, power = given(arrays, 0), float(node.attributes.get("p", 2))
    place = pool_windows(node, x.shape)
    total = np.zeros((*x.shape[:2], *place.out), np.result_type(x.dtype, np.float32))
    for _, pixels in taps(padded(x, place, 0), place):
        total += np.abs(pixels) ** power
    return ((total ** (1 / power)).astype(x.dtype),)


def _max_unpool_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    if len(types) > 2 and types[2] is not None:
        return (ValueType(known_ints(node, types, constants, 2) or (), x.dtype),)
    return (ValueType((*x.shape[:2], *_unpooled(node, x.shape)), x.dtype),)


def _unpooled(node: Node, x_shape: tuple[int, ...]) -> tuple[int, ...]:
    ndim = len(x_shape) - 2
    kernel = ints(node.attributes["kernel_shape"])
    stride = ints(node.attributes.get("strides", (1,) * ndim))
    pads = ints(node.attributes.get("pads", (0,) * (2 * ndim)))
    rows = zip(x_shape[2:], stride, kernel, pads[:ndim], pads[ndim:], strict=True)
    return tuple((n - 1) * s + k - a - b for n, s, k, a, b in rows)


def _max_unpool(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, where = given(arrays, 0), given(arrays, 1)
    plain = (*x.shape[:2], *_unpooled(node, x.shape))
    shape = plain if len(arrays) < 3 or arrays[2] is None else ints(arrays[2])
    small = np.zeros(plain, x.dtype)
    small.reshape(-1)[where.reshape(-1)] = x.reshape(-1)
    out = np.zeros(shape, x.dtype)
    out[tuple(slice(0, extent) for extent in plain)] = small
    return (out,)


def _global_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    if len(x.shape) < 2:
        raise ValueError(f"an image of shape {x.shape} has no channels")
    return (ValueType((*x.shape[:2], *(1,) * (len(x.shape) - 2)), x.dtype),)


def _global_average(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True).astype(x.dtype),)


def _global_max(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _global_lp(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, power = given(arrays, 0), float(node.attributes.get("p", 2))
    total = (np.abs(x) ** power).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return ((total ** (1 / power)).astype(x.dtype),)


def _check(node: Node) -> str | None:
    if attribute_text(node, "auto_pad") not in ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return f"auto_pad={attribute_text(node, 'auto_pad')!r} is unknown"
    return None


OPERATORS = (
    Operator("MaxPool", _infer_max, _max_pool, since=(1, 8, 10, 11, 12), check=_check),
    Operator("AveragePool", _infer, _average_pool, since=(1, 7, 10, 11, 19), check=_check),
    Operator("LpPool", _infer, _lp_pool, since=(1, 2, 11, 18), check=_check),
    Operator("MaxUnpool", _max_unpool_infer, _max_unpool, since=(9, 11)),
    Operator("GlobalAveragePool", _global_infer, _global_average),
    Operator("GlobalMaxPool", _global_infer, _global_max),
    Operator("GlobalLpPool", _global_infer, _global_lp, since=(1, 2)),
)
