"""Resize and Upsample: images in other sizes, one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, axes_of, given, ints, known, present

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_MODES = ("nearest", "linear", "cubic")


@dataclass(frozen=True, slots=True)
class Resampling:
    """Of a Resize: the extent of each axis afterwards, the factor, and the part (0 to 1) of the image it shows."""

    out: tuple[int, ...]
    scales: tuple[float, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis: for each output position the input positions and their weights, both (out, taps).

    `outside` marks output positions that lie beyond the image (only with tf_crop_and_resize).
    """

    index: Array
    weight: Array
    outside: Array


def option(node: Node, name: str, default: str) -> str:
    """A text attribute."""
    value = node.attributes.get(name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def coordinate_mode(node: Node) -> str:
    """How output positions are mapped to input positions."""
    old = node.op == "Upsample" or node.version < 11
    return "asymmetric" if old else option(node, "coordinate_transformation_mode", "half_pixel")


def nearest_mode(node: Node) -> str:
    """Which neighbour is the nearest."""
    old = node.op == "Upsample" or node.version < 11
    return "floor" if old else option(node, "nearest_mode", "round_prefer_floor")


def mode(node: Node) -> str:
    """Nearest, linear or cubic."""
    found = option(node, "mode", "nearest")
    return "linear" if found in ("bilinear", "trilinear") else found


def _floats(value: Array | None) -> tuple[float, ...]:
    return () if value is None else tuple(float(v) for v in value.reshape(-1))


def resampling(node: Node, shape: tuple[int, ...], inputs: Sequence[Array | None]) -> Resampling:
    """Extents and factors of a Resize or Upsample, from its inputs after the first."""
    rank = len(shape)
    roi: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    if node.op == "Upsample" or node.version < 11:
        scales = _floats(inputs[0]) if inputs else tuple(map(float, node.attributes["scales"]))
    else:
        roi_, scales_, sizes_ = (*inputs, None, None, None)[:3]
        roi, scales, sizes = _floats(roi_), _floats(scales_), _floats(sizes_)
    axes = axes_of(ints(node.attributes.get("axes", range(rank))), rank)
    out, factor = list(shape), [1.0] * rank
    first, last = [0.0] * rank, [1.0] * rank
    for axis, a, b in zip(axes, roi[: len(axes)], roi[len(axes) :], strict=False):
        first[axis], last[axis] = a, b
    if bool(scales) == bool(sizes):
        raise ValueError("exactly one of scales and sizes must be given")
    if len(scales or sizes) != len(axes):
        raise ValueError(f"{len(scales or sizes)} numbers for {len(axes)} axes")
    if scales:
        for axis, scale in zip(axes, scales, strict=True):
            if not 0 < scale < 2**31:
                raise ValueError(f"a factor of {scale}")
            factor[axis], out[axis] = scale, math.floor(shape[axis] * scale)
        return Resampling(tuple(out), tuple(factor), tuple(first), tuple(last))
    policy = option(node, "keep_aspect_ratio_policy", "stretch")
    wanted = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        common = min(wanted) if policy == "not_larger" else max(wanted)
        wanted = [common] * len(axes)
        sizes = tuple(math.floor(common * shape[axis] + 0.5) for axis in axes)
    for axis, scale, size in zip(axes, wanted, sizes, strict=True):
        factor[axis], out[axis] = scale, int(size)
    return Resampling(tuple(out), tuple(factor), tuple(first), tuple(last))


def coordinates(node: Node, extent: int, out: int, scale: float, first: float, last: float) -> Array:
    """Where each output position lies in the input, in float64."""
    x, how, width = np.arange(out, dtype=np.float64), coordinate_mode(node), scale * extent
    if how == "asymmetric":
        return x / scale
    if how == "align_corners":
        return np.zeros(out) if width == 1 else x * (extent - 1) / (width - 1)
    if how == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if how == "tf_crop_and_resize":
        if out == 1:
            return np.full(1, 0.5 * (first + last) * (extent - 1))
        return first * (extent - 1) + x * (last - first) * (extent - 1) / (width - 1)
    if how == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    offset = extent / 2 * (1 - out / width) if how == "half_pixel_symmetric" else 0.0
    return offset + (x + 0.5) / scale - 0.5


def axis_taps(node: Node, extent: int, out: int, scale: float, first: float, last: float) -> Taps:
    """Input positions and weights along one axis."""
    at = coordinates(node, extent, out, scale, first, last)
    outside = ((at < 0) | (at > extent - 1)) & (coordinate_mode(node) == "tf_crop_and_resize")
    how = mode(node)
    if how == "nearest":
        nearest = {
            "round_prefer_floor": lambda: np.ceil(at - 0.5),
            "round_prefer_ceil": lambda: np.floor(at + 0.5),
            "floor": lambda: np.floor(at),
            "ceil": lambda: np.ceil(at),
        }[nearest_mode(node)]()
        index = np.clip(nearest, 0, extent - 1).astype(np.int64)[:, None]
        return Taps(index, np.ones(index.shape), outside)
    reach = 1 if how == "linear" else 2
    # Without antialiasing, or when enlarging, the kernel keeps its width.
    narrow = min(scale, 1.0) if node.attributes.get("antialias", 0) else 1.0
    before = math.floor(-reach / narrow) + 1
    index = np.floor(at).astype(np.int64)[:, None] + np.arange(before, 2 - before)
    distance = np.abs(index - at[:, None]) * narrow
    if how == "linear":
        weight = np.maximum(1 - distance, 0)
    else:
        a = float(node.attributes.get("cubic_coeff_a", -0.75))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    if node.attributes.get("exclude_outside", 0):
        weight = np.where((index >= 0) & (index < extent), weight, 0)
    if narrow < 1 or node.attributes.get("exclude_outside", 0):
        weight = weight / weight.sum(axis=1, keepdims=True)
    return Taps(np.clip(index, 0, extent - 1), weight, outside)


def _inputs(node: Node, types: Types, constants: Arrays) -> list[Array | None]:
    found = [known(node, types, constants, position) for position in range(1, len(types))]
    # An empty tensor stands for an absent one.
    return [None if value is not None and not value.size else value for value in found]


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    out = resampling(node, x.shape, _inputs(node, types, constants)).out
    if any(n < 1 for n in out) or 0 in x.shape:
        raise ValueError(f"the shape {x.shape} would become {out}")
    return (ValueType(out, x.dtype),)


def _evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    place = resampling(node, x.shape, [None if a is None or not a.size else a for a in arrays[1:]])
    y = x.astype(np.result_type(x.dtype, np.float32), copy=False) if mode(node) != "nearest" else x
    outside = np.zeros((1,) * x.ndim, bool)
    for axis, (n, m, scale) in enumerate(zip(x.shape, place.out, place.scales, strict=True)):
        cropped = coordinate_mode(node) == "tf_crop_and_resize" and (place.first[axis], place.last[axis]) != (0, 1)
        if n == m and scale == 1 and not cropped:
            continue
        taps = axis_taps(node, n, m, scale, place.first[axis], place.last[axis])
        column = (-1, *(1,) * (x.ndim - 1 - axis))
        outside = outside | taps.outside.reshape(column)
        if mode(node) == "nearest":
            y = np.take(y, taps.index[:, 0], axis)
            continue
        total = np.zeros((*y.shape[:axis], m, *y.shape[axis + 1 :]), y.dtype)
        for tap in range(taps.index.shape[1]):
            total += np.take(y, taps.index[:, tap], axis) * taps.weight[:, tap].reshape(column).astype(y.dtype)
        y = total
    if outside.any():
        y = np.where(outside, y.dtype.type(node.attributes.get("extrapolation_value", 0.0)), y)
    if x.dtype.kind in "iu" and mode(node) != "nearest":
        limits = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), limits.min, limits.max)
    return (y.astype(x.dtype, copy=False),)


def _check(node: Node) -> str | None:
    for name, found, allowed in (
        ("mode", mode(node), _MODES),
        ("coordinate_transformation_mode", coordinate_mode(node), _COORDINATES),
        ("nearest_mode", nearest_mode(node), _NEAREST),
    ):
        if found not in allowed:
            return f"{name}={found!r} is unknown"
    return None


OPERATORS = (
    Operator("Resize", _infer, _evaluate, since=(10, 11, 13, 18, 19), check=_check),
    Operator("Upsample", _infer, _evaluate, since=(7, 9), check=_check),
)
