"""MEC and im2win in NumPy, as the papers define them; written to be read, not to be fast.

Images are (C, *spatial), weights (K, C, *kernel), results (K, *spatial): one image and group, any dimensions.  `slide`
is the dimension along which windows overlap in the tensor: the first for MEC, the last for im2win.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from leanconv import oracle
from leanconv.problem import Problem

Array = np.ndarray[Any, Any]


def window_tensor(problem: Problem, x: Array, slide: int) -> Array:
    """Shape (output positions of the others, padded positions along `slide`, taps of the others, C).

    Two dimensions: MEC's L [Q][H][S][C], or im2win's [P][W][R][C] in the layout NHWC.
    """
    p = problem
    padded = oracle.pad(x[None], p.pad_low, p.pad_high, p.pad_mode)[0]
    others = [d for d in range(p.ndim) if d != slide]
    length = padded.shape[1 + slide]
    out = [p.out_size[d] for d in others]
    taps = [p.kernel[d] for d in others]
    tensor = np.zeros((*out, length, *taps, p.group_in))
    for position in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, taps)):
            at: list[Any] = [slice(None)] * (1 + p.ndim)
            for d, q, t in zip(others, position, tap, strict=True):
                at[1 + d] = q * p.stride[d] + t * p.dilation[d]
            tensor[(*position, slice(None), *tap)] = padded[tuple(at)].T
    return tensor


def window_tensor_nchw(problem: Problem, x: Array) -> Array:
    """im2win's tensor in the layout NCHW: [C][P][W][R], a window of R * S numbers for each channel."""
    return np.moveaxis(window_tensor(problem, x, problem.ndim - 1), -1, 0)


def multiplied(problem: Problem, tensor: Array, w: Array, slide: int) -> Array:
    """Every output pixel's window cut from its row of the tensor, one run of numbers, times the reordered weights."""
    p = problem
    others = [d for d in range(p.ndim) if d != slide]
    entry = int(np.prod([p.kernel[d] for d in others])) * p.group_in
    filters = w.transpose(0, 2 + slide, *(2 + d for d in others), 1).reshape(len(w), p.kernel[slide], entry)
    out = np.zeros((len(w), *p.out_size))
    for position in itertools.product(*(range(p.out_size[d]) for d in others)):
        row = tensor[position].reshape(-1)  # all entries of this strip, one after the other
        for q in range(p.out_size[slide]):
            first = q * p.stride[slide] * entry
            at = [0] * p.ndim
            at[slide] = q
            for d, place in zip(others, position, strict=True):
                at[d] = place
            for tap in range(p.kernel[slide]):  # without dilation all these runs are one
                start = first + tap * p.dilation[slide] * entry
                out[(slice(None), *at)] += filters[:, tap] @ row[start : start + entry]
    return out


def mec(problem: Problem, x: Array, w: Array) -> Array:
    """Solution B for one image."""
    return multiplied(problem, window_tensor(problem, x, 0), w, 0)


def mec_solution_a(problem: Problem, x: Array, w: Array) -> Array:
    """Two dimensions, N images (N, C, H, W): one product for each output row over all images, then put in order."""
    p = problem
    tensors = np.stack([window_tensor(p, image, 0) for image in x])  # [N][Q][H][S][C]
    n, q, h = tensors.shape[:3]
    matrix = tensors.reshape(n * q, h, -1)
    filters = w.transpose(2, 3, 1, 0).reshape(-1, len(w))
    rows = []
    for y in range(p.out_size[0]):
        first = y * p.stride[0]
        window = matrix[:, first : first + p.dilation[0] * (p.kernel[0] - 1) + 1 : p.dilation[0]]
        rows.append(window.reshape(n * q, -1) @ filters)
    return np.stack(rows).reshape(p.out_size[0], n, q, len(w)).transpose(1, 3, 0, 2)


def im2win(problem: Problem, x: Array, w: Array) -> Array:
    """One image."""
    last = problem.ndim - 1
    return multiplied(problem, window_tensor(problem, x, last), w, last)
