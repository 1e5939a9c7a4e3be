"""Patch matrices and the four copy strategies in NumPy; the strategies for any stride, dilation and zero padding.

All take one image x (C, H, W) and a problem in two dimensions.  Rows of im2col, and columns of im2row, are in the order
of taps, then channels.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from definitions_indirect import PADDING, indirection_table
from leanconv.problem import Problem

Array = np.ndarray[Any, Any]


def im2col(p: Problem, x: Array) -> Array:
    """The matrix itself, (taps * C, P * Q), for any number of dimensions."""
    channels = len(x)
    pixels = np.concatenate([x.reshape(channels, -1), np.zeros((channels, 1), x.dtype)], axis=1)
    table = indirection_table(p)  # PADDING is -1 and finds the zero that stands last
    assert PADDING == -1
    return np.moveaxis(pixels[:, table], 2, 0).reshape(-1, len(table))


def scan(p: Problem, x: Array) -> Array:
    """Element by element."""
    (channels, height, width), (rows, columns) = x.shape, p.out_size
    matrix = np.zeros((*p.kernel, channels, rows, columns), x.dtype)
    for i, j, c, y, q in np.ndindex(matrix.shape):
        at = y * p.stride[0] - p.pad_low[0] + i * p.dilation[0]
        to = q * p.stride[1] - p.pad_low[1] + j * p.dilation[1]
        if 0 <= at < height and 0 <= to < width:
            matrix[i, j, c, y, q] = x[c, at, to]
    return matrix.reshape(-1, rows * columns)


def copy_short(p: Problem, x: Array) -> Array:
    """One run for each output row of a tap and channel: the pixels of one row of the image."""
    (channels, height, width), (rows, columns) = x.shape, p.out_size
    matrix = np.zeros((*p.kernel, channels, rows, columns), x.dtype)
    for i, j, c, y in np.ndindex(matrix.shape[:-1]):
        at = y * p.stride[0] - p.pad_low[0] + i * p.dilation[0]
        to = np.arange(columns) * p.stride[1] - p.pad_low[1] + j * p.dilation[1]
        inside = (to >= 0) & (to < width)
        if 0 <= at < height:
            matrix[i, j, c, y, inside] = x[c, at, to[inside]]
    return matrix.reshape(-1, rows * columns)


def copy_self(p: Problem, x: Array) -> Array:
    """The row of the matrix `taps` rows of taps earlier, moved by `outputs` rows; the image only for the last rows."""
    common = gcd(p.stride[0], p.dilation[0])
    taps, outputs = p.stride[0] // common, p.dilation[0] // common
    image = copy_short(p, x).reshape(*p.kernel, len(x), *p.out_size)
    matrix = np.full_like(image, np.nan)
    for i in range(p.kernel[0]):
        known = p.out_size[0] - outputs if i >= taps else 0
        matrix[i, :, :, :known] = matrix[i - taps, :, :, outputs : outputs + known]
        matrix[i, :, :, known:] = image[i, :, :, known:]
    return matrix.reshape(-1, p.out_size[0] * p.out_size[1])


def copy_long(p: Problem, x: Array) -> Array:
    """One run for each tap and channel: the plane, moved; then zeros for what wrapped to another row.

    Stride 1, and output rows as long as the image's.
    """
    (channels, height, width), (rows, columns) = x.shape, p.out_size
    assert p.stride == (1, 1) and columns == width
    matrix = np.zeros((*p.kernel, channels, rows * columns), x.dtype)
    for i, j, c in np.ndindex(matrix.shape[:-1]):
        down, right = i * p.dilation[0] - p.pad_low[0], j * p.dilation[1] - p.pad_low[1]
        offset = down * width + right
        first = min(max(0, -offset), rows * columns)
        end = max(first, min(rows * columns, height * width - offset))
        row = matrix[i, j, c]
        row[first:end] = x[c].ravel()[first + offset : end + offset]
        row.reshape(rows, columns)[:, max(0, width - right) :] = 0
        row.reshape(rows, columns)[:, : max(0, -right)] = 0
    return matrix.reshape(-1, rows * columns)
