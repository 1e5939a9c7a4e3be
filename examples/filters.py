"""Weights for the demo: filters of a photograph, and banks of filters shaped like a network's first layer.

All are in the order leanconv takes them, (K, C, R, S), and float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LUMA = np.array([0.299, 0.587, 0.114])  # brightness of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Filter:
    """A filter of an RGB photograph: one convolution.

    Attributes:
        name: what people call it.
        weights: (K, 3, R, S); K is 3, an RGB picture, or 2 for a gradient.
        offset: added to the result for display, so that negative values are seen.
        gradient: the two outputs are the parts of a gradient; its length is shown.
    """

    name: str
    weights: Array
    offset: float = 0.0
    gradient: bool = False


def photo_filters() -> list[Filter]:
    """Return the filters of the contact sheet."""
    y, x = _pixels(9)
    squares = (x**2 + y**2) / (2 * 1.4**2)
    laplacian = (squares - 1) * np.exp(-squares)
    laplacian -= laplacian.mean()  # exactly zero on even areas
    sobel = np.outer([1, 2, 1], [-1, 0, 1]) / 4
    gradient = np.stack([np.multiply.outer(LUMA, sobel), np.multiply.outer(LUMA, sobel.T)])
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    y, x = _pixels(13)
    disc = np.clip(6.5 - np.hypot(x, y), 0, 1)  # soft at the rim
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    return [
        Filter("Gaussian blur", _each_colour(_gaussian(11, 2.2))),
        Filter("defocus", _each_colour(disc / disc.sum())),
        Filter("motion blur", _each_colour(np.eye(15) / 15)),
        Filter("sharpen", _each_colour(2.5 * impulse - 1.5 * _gaussian(5, 1.2))),
        Filter("emboss", _each_colour(emboss)),
        Filter("Laplacian of Gaussian", _each_colour(-0.7 * laplacian), offset=0.5),
        Filter("Sobel edges", gradient.astype(np.float32), gradient=True),
    ]


def first_layer(outputs: int, size: int) -> Array:
    """Return a bank of filters like those that image networks learn in their first layer, made by a formula.

    With n = outputs / 8 orientations or hues, in this order: coarse Gabor filters of brightness, odd and
    even (2n), fine ones (2n), odd ones between red and green (n), between blue and yellow (n), and blobs of
    one hue against the opposite hue, wide and narrow (2n). None of them responds to an even grey area; the
    absolute weights of each sum to 1.

    Args:
        outputs: number of filters, K; a multiple of 8.
        size: R = S.

    Returns:
        Weights of shape (outputs, 3, size, size).
    """
    n = outputs // 8
    angles = np.pi * np.arange(n) / n
    coarse = max(4.0, 0.9 * size)
    fine = max(2.5, coarse / 2)
    bank = [
        np.multiply.outer(np.full(3, 1 / 3), _gabor(size, period, angle, phase))
        for period in (coarse, fine)
        for phase in (np.pi / 2, 0.0)
        for angle in angles
    ]
    for axis in ([1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]):
        bank += [np.multiply.outer(axis, _gabor(size, coarse, angle, np.pi / 2)) for angle in angles]
    for width in (size / 3, size / 6):
        for hue in 2 * angles:
            colour = np.cos(hue - np.array([0, 2, 4]) * np.pi / 3)  # against red, green and blue; sums to zero
            bank.append(np.multiply.outer(colour, _gaussian(size, width)))
    weights = np.stack(bank)
    weights /= np.abs(weights).sum(axis=(1, 2, 3), keepdims=True)
    return weights.astype(np.float32)


def shown_channels(outputs: int) -> list[int]:
    """Return eight channels of `first_layer`: four Gabor filters, two colour edges, two blobs."""
    n = outputs // 8
    return [0, n // 2, n + n // 4, 2 * n + 3 * n // 4, 4 * n, 5 * n + n // 2, 6 * n, 6 * n + 2 * n // 3]


def _pixels(size: int) -> tuple[Array, Array]:
    """Return y and x of each pixel of a square window, from its centre."""
    axis = np.arange(size) - (size - 1) / 2
    return axis[:, None], axis[None, :]


def _gaussian(size: int, sigma: float) -> Array:
    y, x = _pixels(size)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    result: Array = window / window.sum()
    return result


def _gabor(size: int, period: float, angle: float, phase: float) -> Array:
    """Return a wave in a Gaussian window, without its mean; phase 0 is even, a quarter turn odd."""
    y, x = _pixels(size)
    window = _gaussian(size, size / 4)
    wave = window * np.cos(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)) - phase)
    result: Array = wave - window * wave.sum()
    return result


def _each_colour(kernel: Array) -> Array:
    """Return weights that apply one kernel to red, green and blue alike and do not mix them."""
    return np.multiply.outer(np.eye(3), kernel).astype(np.float32)
