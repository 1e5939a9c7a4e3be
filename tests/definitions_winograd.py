"""Winograd convolution in NumPy, as it is defined: what the generated kernels are fused and blocked forms of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.kernels.cook_toom import CookToom, Matrix
from leanconv.oracle import pad
from leanconv.problem import Problem

Array = np.ndarray[Any, Any]


def as_floats(matrix: Matrix) -> Array:
    """An exact matrix in float64."""
    return np.array([[float(value) for value in row] for row in matrix])


def along_axes(matrices: Sequence[Array], tensor: Array) -> Array:
    """Apply one matrix along each of the last axes."""
    first = tensor.ndim - len(matrices)
    for d, matrix in enumerate(matrices, first):
        tensor = np.moveaxis(np.tensordot(matrix, tensor, (1, d)), 0, d)
    return tensor


def winograd(problem: Problem, x: Array, w: Array, outputs: int) -> Array:
    """Y = A^T [ sum over channels (G w G^T) * (B^T x B) ] A for every tile; channels first, stride 1, one group."""
    transforms = [CookToom.of(outputs if taps > 1 else 1, taps) for taps in problem.kernel]
    counts = [math.ceil(out / t.outputs) for out, t in zip(problem.out_size, transforms, strict=True)]
    # Zeros behind the image, so that every tile is whole; what they lead to is cut off in the end.
    over = [n * t.outputs - out for n, t, out in zip(counts, transforms, problem.out_size, strict=True)]
    image = pad(np.asarray(x, np.float64), problem.pad_low, problem.pad_high, problem.pad_mode)
    image = np.pad(image, [(0, 0), (0, 0), *((0, n) for n in over)])
    weights = along_axes([as_floats(t.weights()) for t in transforms], np.asarray(w, np.float64))
    whole = [n * t.outputs for n, t in zip(counts, transforms, strict=True)]
    result = np.zeros((problem.batch, problem.out_channels, *whole))
    for tile in np.ndindex(*counts):
        starts = [i * t.outputs for i, t in zip(tile, transforms, strict=True)]
        window = image[(..., *(slice(s, s + t.size) for s, t in zip(starts, transforms, strict=True)))]
        points = along_axes([as_floats(t.inputs()) for t in transforms], window)
        products = np.einsum("nc...,kc...->nk...", points, weights)
        pixels = along_axes([as_floats(t.results()) for t in transforms], products)
        result[(..., *(slice(s, s + t.outputs) for s, t in zip(starts, transforms, strict=True)))] = pixels
    return result[(..., *(slice(out) for out in problem.out_size))]
