"""The kn2row family in a few lines of NumPy each: what the papers do to one image, before anything is made fast.

x is (C, H, W), w is (K, C, R, S); stride 1 unless said otherwise, `pad` zeros above and on the left. Float64.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]


def shift_add(out: Array, product: Array, down: int, right: int) -> None:
    """out[:, y, x] += product[:, y + down, x + right] where that exists."""
    (p, q), (h, w) = out.shape[1:], product.shape[1:]
    y0, y1, x0, x1 = max(0, -down), min(p, h - down), max(0, -right), min(q, w - right)
    if y0 < y1 and x0 < x1:
        out[:, y0:y1, x0:x1] += product[:, y0 + down : y1 + down, x0 + right : x1 + right]


def taps(w: Array) -> list[Pair]:
    return list(itertools.product(range(w.shape[2]), range(w.shape[3])))


def kn2row(x: Array, w: Array, pad: Pair, dilation: Pair, size: Pair) -> Array:
    """One product of all taps with the image, then shift and add."""
    k, c, r, s = w.shape
    maps = (w.transpose(2, 3, 0, 1).reshape(r * s * k, c) @ x.reshape(c, -1)).reshape(r, s, k, *x.shape[1:])
    out = np.zeros((k, *size))
    for i, j in taps(w):
        shift_add(out, maps[i, j], i * dilation[0] - pad[0], j * dilation[1] - pad[1])
    return out


def kn2row_as(x: Array, w: Array, pad: Pair, dilation: Pair, size: Pair) -> Array:
    """One map, used by one tap after the other."""
    out = np.zeros((w.shape[0], *size))
    for i, j in taps(w):
        product = (w[:, :, i, j] @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])
        shift_add(out, product, i * dilation[0] - pad[0], j * dilation[1] - pad[1])
    return out


def kn2row_aa(x: Array, w: Array, pad: Pair, dilation: Pair, size: Pair) -> Array:
    """Products added to the output in one piece, from images with holes; the output as wide as the image.

    The holes come from a table of S x W numbers, and what lies beyond the image is left out.
    """
    (c, h, width), (k, _, _, s) = x.shape, w.shape
    assert size[1] == width
    columns = np.arange(width)
    read = columns + np.arange(s)[:, None] * dilation[1] - pad[1]
    holes = (read >= 0) & (read < width)
    out, flat = np.zeros((k, size[0] * width)), x.reshape(c, -1)
    for i, j in taps(w):
        down, right = i * dilation[0] - pad[0], j * dilation[1] - pad[1]
        for y in range(max(0, -down), min(size[0], h - down)):
            at = y * width + columns
            pixels = np.where(holes[j], flat[:, (at + down * width + right) % flat.shape[1]], 0.0)
            out[:, at] += w[:, :, i, j] @ pixels
    return out.reshape(k, *size)


def kn2row_exact(x: Array, w: Array, pad: Pair, dilation: Pair, size: Pair, stride: Pair = (1, 1)) -> Array:
    """Every tap adds to the rectangle of outputs that it reaches."""
    out = np.zeros((w.shape[0], *size))
    for tap in taps(w):
        reached, read = [], []
        for t, p, d, s, n, m in zip(tap, pad, dilation, stride, x.shape[1:], size, strict=True):
            shift = t * d - p
            low, high = max(0, -(shift // s)), min(m, -((shift - n) // s))
            reached.append(slice(low, max(low, high)))
            read.append(slice(low * s + shift, max(low, high - 1) * s + shift + (high > low), s))
        out[:, *reached] += np.einsum("kc,cyx->kyx", w[:, :, *tap], x[:, *read])
    return out
