"""Gradients with respect to weights, in NumPy and float64: for each tap, the pixels under it times the gradient."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from leanconv.problem import Problem

Array = np.ndarray[Any, Any]


def weight_gradient(problem: Problem, x: Array, grad: Array) -> tuple[Array, Array]:
    """The gradients of weights, (K, C/g, *kernel), and of the bias; arrays in the problem's layout."""
    p = problem
    if p.layout == "NHWC":
        x, grad = np.moveaxis(x, -1, 1), np.moveaxis(grad, -1, 1)
    x, grad = x.astype(np.float64), grad.astype(np.float64)
    mode: Any = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[p.pad_mode]
    image = np.pad(x, [(0, 0), (0, 0), *zip(p.pad_low, p.pad_high, strict=True)], mode=mode)
    result = np.zeros(p.w_shape)
    for tap in itertools.product(*map(range, p.kernel)):
        axes = zip(tap, p.dilation, p.stride, p.out_size, strict=True)
        under: Any = (..., *(slice(t * d, t * d + s * (q - 1) + 1, s) for t, d, s, q in axes))
        pixels = image[under].reshape(p.batch, p.groups, p.group_in, math.prod(p.out_size))
        filters = grad.reshape(p.batch, p.groups, p.group_out, math.prod(p.out_size))
        at: Any = (..., *tap)
        result[at] = np.einsum("ngci,ngki->gkc", pixels, filters).reshape(p.out_channels, p.group_in)
    return result, grad.sum(axis=(0, *range(2, p.ndim + 2)))
