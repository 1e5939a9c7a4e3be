"""The oracle: a convolution in float64 NumPy, written to be plainly right.

Every kernel is tested against it. One tap at a time, the pixels under that tap are cut from the padded image
and multiplied with the tap's weights. Nothing depends on memory order and no speed is intended.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.problem import Problem, numpy_activation

Float64 = NDArray[np.float64]

_NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def reference(
    problem: Problem,
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None = None,
    residual: NDArray[Any] | None = None,
) -> Float64:
    """Return the convolution of `x` with `w`, computed in float64.

    Args:
        problem: what to compute; strides and element type are ignored, those of the arrays count.
        x: array of shape `problem.x_shape`, in the user's axis order.
        w: array of shape `problem.w_shape`, (K, C/g, *kernel) in every layout; (C, K/g, *kernel) if transposed.
        bias: K numbers, if `problem.has_bias`.
        residual: array of shape `problem.out_shape`, if `problem.residual`.

    Returns:
        A new float64 array of shape `problem.out_shape`, in the user's axis order.
    """
    p = problem
    sums = _transposed if p.direction == "transposed" else _sums
    out = sums(p, _channels_first(x, p.layout), np.asarray(w, dtype=np.float64))
    if bias is not None:
        out += np.reshape(bias, (-1,) + (1,) * p.ndim)
    if residual is not None and p.residual == "before":
        out += _channels_first(residual, p.layout)
    if p.activation is not None:
        out = numpy_activation(p.activation, out)
    if residual is not None and p.residual == "after":
        out += _channels_first(residual, p.layout)
    if p.layout == "CHWN":
        return np.asarray(out[0])
    return np.ascontiguousarray(np.moveaxis(out, 1, -1)) if p.layout == "NHWC" else out


def _sums(p: Problem, x: Float64, weights: Float64) -> Float64:
    """The sums of a convolution, of an image (N, C, *spatial)."""
    image = pad(x, p.pad_low, p.pad_high, p.pad_mode)
    weights = weights.reshape(p.out_channels, p.group_in, *p.kernel)
    taps: list[tuple[Any, ...]] = list(itertools.product(*map(range, p.kernel)))
    out = np.zeros((p.batch, p.out_channels, *p.out_size))
    for group in range(p.groups):
        inputs = slice(group * p.group_in, (group + 1) * p.group_in)
        outputs = slice(group * p.group_out, (group + 1) * p.group_out)
        for tap in taps:
            # The pixel under this tap for output position q is at q * stride + tap * dilation.
            under_tap: tuple[Any, ...] = tuple(
                slice(t * d, t * d + s * (q - 1) + 1, s)
                for t, d, s, q in zip(tap, p.dilation, p.stride, p.out_size, strict=True)
            )
            pixels = image[:, inputs][(..., *under_tap)]
            filters = weights[outputs][(..., *tap)]
            out[:, outputs] += np.einsum("nc...,kc->nk...", pixels, filters)
    return out


def _transposed(p: Problem, x: Float64, weights: Float64) -> Float64:
    """The sums of a transposed convolution: every pixel puts its multiple of each tap where it belongs, or nowhere."""
    out = np.zeros((p.batch, p.out_channels, *p.out_size))
    taps: list[tuple[Any, ...]] = list(itertools.product(*map(range, p.kernel)))
    for tap in taps:
        # Input position i goes to output position i * stride - pad_low + tap * dilation.
        sources, targets = [slice(None), slice(None)], [slice(None), slice(None)]
        for t, d, s, low, n, q in zip(tap, p.dilation, p.stride, p.pad_low, p.in_size, p.out_size, strict=True):
            at = t * d - low
            first, end = max(0, -(at // s)), min(n, -((at - q) // s))
            sources.append(slice(first, max(first, end)))
            targets.append(slice(first * s + at, max(first, end) * s + at, s))
        for group in range(p.groups):
            inputs = slice(group * p.group_in, (group + 1) * p.group_in)
            outputs = slice(group * p.group_out, (group + 1) * p.group_out)
            pixels = x[(sources[0], inputs, *sources[2:])]
            if pixels.size:
                filters = weights[inputs][(..., *tap)]
                added = np.einsum("nc...,ck->nk...", pixels, filters)
                out[(targets[0], outputs, *targets[2:])] += added
    return out


def pad(image: Float64, low: tuple[int, ...], high: tuple[int, ...], mode: str) -> Float64:
    """Return an image (N, C, *spatial) with `low` and `high` elements added along the spatial axes."""
    widths = [(0, 0), (0, 0), *zip(low, high, strict=True)]
    return np.pad(image, widths, mode=_NUMPY_MODE[mode])  # type: ignore[call-overload, no-any-return]


def _channels_first(array: NDArray[Any], layout: str) -> Float64:
    """Return the array in a problem's canonical axis order, as float64."""
    canonical = array[None] if layout == "CHWN" else array
    if layout == "NHWC":
        canonical = np.moveaxis(array, -1, 1)
    return np.asarray(canonical, dtype=np.float64)
