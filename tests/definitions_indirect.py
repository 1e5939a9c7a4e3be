"""Indirect and mapped convolution in NumPy, as the papers define them; written to be read, not to be fast."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from leanconv.problem import Problem

Array = np.ndarray[Any, Any]
PADDING = -1


def position(problem: Problem, dim: int, at: int, tap: int) -> int:
    """The input position under a tap along one axis; PADDING where it is a zero."""
    size = problem.in_size[dim]
    where = at * problem.stride[dim] - problem.pad_low[dim] + tap * problem.dilation[dim]
    if 0 <= where < size:
        return where
    if problem.pad_mode == "zeros":
        return PADDING
    if problem.pad_mode == "replicate":
        return min(max(where, 0), size - 1)
    if problem.pad_mode == "circular":
        return where % size
    return -where if where < 0 else 2 * (size - 1) - where


def indirection_table(problem: Problem) -> Array:
    """For every output pixel and tap, the number of the input pixel; PADDING where it is a zero.

    Pixels count along the last axis first.  Shape (pixels of the output, taps).
    """
    rows = []
    for at in itertools.product(*map(range, problem.out_size)):
        row = []
        for tap in itertools.product(*map(range, problem.kernel)):
            where = [position(problem, dim, q, t) for dim, (q, t) in enumerate(zip(at, tap, strict=True))]
            inside = PADDING not in where
            row.append(int(np.ravel_multi_index(where, problem.in_size)) if inside else PADDING)
        rows.append(row)
    return np.array(rows)


def indirect(problem: Problem, x: Array, w: Array) -> Array:
    """Convolution through the table: x (N, C, *spatial), w (K, C/g, *kernel), result (N, K, *spatial), float64."""
    p, table = problem, indirection_table(problem)
    pixels = np.concatenate([x.reshape(p.batch, p.in_channels, -1), np.zeros((p.batch, p.in_channels, 1))], axis=2)
    # PADDING is -1, so it finds the pixel of zeros that stands last.
    windows = pixels[:, :, table].reshape(p.batch, p.groups, p.group_in, *table.shape)
    filters = w.astype(np.float64).reshape(p.groups, p.group_out, p.group_in, p.taps)
    return np.einsum("ngcqt,gkct->ngkq", windows, filters).reshape(p.batch, p.out_channels, *p.out_size)


def sample(x: Array, at: Array, interpolation: str, modes: tuple[str, str]) -> Array:
    """Channels of x (N, C, H, W) at positions `at` (..., 2): shape (N, C, ...), float64."""
    low = np.floor(at + 0.5) if interpolation == "nearest" else np.floor(at)
    part = np.zeros_like(at) if interpolation == "nearest" else at - low
    result = np.zeros((*x.shape[:2], *at.shape[:-1]))
    for down, right in itertools.product((0, 1), repeat=2):
        weight: Array = np.ones(at.shape[:-1])
        places = []
        for axis, step in enumerate((down, right)):
            size, where = x.shape[2 + axis], low[..., axis].astype(int) + step
            weight = weight * np.abs(1 - step - part[..., axis])
            if modes[axis] == "zeros":
                weight = weight * ((where >= 0) & (where < size))
            places.append(where % size if modes[axis] == "circular" else np.clip(where, 0, size - 1))
        result += weight * x[:, :, places[0], places[1]]
    return result


def mapped(x: Array, w: Array, at: Array, interpolation: str, modes: tuple[str, str], groups: int = 1) -> Array:
    """Mapped convolution: x (N, C, H, W), w (K, C/g, R, S), at (P, Q, R, S, 2), result (N, K, P, Q), float64."""
    windows = sample(x, at.astype(np.float64), interpolation, modes)
    windows = windows.reshape(len(x), groups, x.shape[1] // groups, *at.shape[:-1])
    filters = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    result = np.einsum("ngcpqrs,gkcrs->ngkpq", windows, filters)
    return result.reshape(len(x), len(w), *at.shape[:2])
