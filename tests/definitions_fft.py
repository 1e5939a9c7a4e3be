"""Convolution by FFT in NumPy, as it is defined: what the generated kernels are fused and blocked forms of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from leanconv.oracle import pad
from leanconv.problem import Problem

Array = np.ndarray[Any, Any]


def fft_tiles(problem: Problem, x: Array, w: Array, sizes: tuple[int, ...]) -> Array:
    """Overlap-save: of each window of `sizes` places, the outputs that no wrap-around has touched.

    Channels first, stride 1, no dilation, one group.
    """
    axes = tuple(range(2, 2 + problem.ndim))
    outputs = [n - taps + 1 for n, taps in zip(sizes, problem.kernel, strict=True)]
    counts = [math.ceil(out / m) for out, m in zip(problem.out_size, outputs, strict=True)]
    image = pad(np.asarray(x, np.float64), problem.pad_low, problem.pad_high, problem.pad_mode)
    over = [(c - 1) * m + n for c, m, n in zip(counts, outputs, sizes, strict=True)]
    image = np.pad(image, [(0, 0), (0, 0), *((0, max(0, n - h)) for n, h in zip(over, image.shape[2:], strict=True))])
    weights = np.fft.rfftn(np.asarray(w, np.float64), sizes, axes).conj()
    result = np.zeros((problem.batch, problem.out_channels, *(c * m for c, m in zip(counts, outputs, strict=True))))
    for tile in np.ndindex(*counts):
        starts = [i * m for i, m in zip(tile, outputs, strict=True)]
        window = image[(..., *(slice(s, s + n) for s, n in zip(starts, sizes, strict=True)))]
        products = np.einsum("nc...,kc...->nk...", np.fft.rfftn(window, sizes, axes), weights)
        pixels = np.fft.irfftn(products, sizes, axes)[(..., *map(slice, outputs))]
        result[(..., *(slice(s, s + m) for s, m in zip(starts, outputs, strict=True)))] = pixels
    return result[(..., *map(slice, problem.out_size))]


def fft_whole(problem: Problem, x: Array, w: Array, sizes: tuple[int, ...]) -> Array:
    """One window for the whole image: zeros behind the image are the padding before it as well, taps stand earlier."""
    axes = tuple(range(2, 2 + problem.ndim))
    shifted = np.zeros((*w.shape[:2], *sizes))
    places = [(np.arange(k) - low) % n for k, low, n in zip(problem.kernel, problem.pad_low, sizes, strict=True)]
    shifted[(..., *np.ix_(*places))] = w
    spectrum = np.fft.rfftn(np.asarray(x, np.float64), sizes, axes)
    products = np.einsum("nc...,kc...->nk...", spectrum, np.fft.rfftn(shifted, sizes, axes).conj())
    return np.fft.irfftn(products, sizes, axes)[(..., *map(slice, problem.out_size))]


def gauss(a: complex, c: complex) -> complex:
    """A product of complex numbers by three real ones, as the kernels have it."""
    both, b, rest = c.real * (a.real + a.imag), a.real * (c.imag - c.real), a.imag * (c.real + c.imag)
    return complex(both - rest, both + b)


def packed(line: Array) -> Array:
    """The packed spectrum of real numbers: real bins first, then real and imaginary parts of the others."""
    bins = np.fft.rfft(line)
    n = len(line)
    real = [bins[0].real] + ([bins[-1].real] if n % 2 == 0 else [])
    return np.array(real + [part for k in range(1, (n + 1) // 2) for part in (bins[k].real, bins[k].imag)])
