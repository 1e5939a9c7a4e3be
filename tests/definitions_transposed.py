"""Transposed convolution as its stride phases, in NumPy: what `leanconv.transposed` lowers, written plainly."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv import oracle
from leanconv.problem import Problem
from leanconv.transposed import stride_phases

Array = np.ndarray[Any, Any]


def by_phases(problem: Problem, x: Array, w: Array) -> Array:
    """The sums in canonical axis order, each phase an ordinary convolution of a part of the image with a sub-filter."""
    p = problem
    assert p.layout == "NCHW"
    out = np.zeros((p.batch, p.out_channels, *p.out_size))
    for part in stride_phases(p):
        inner = part.problem
        # The sub-filter of every output and input channel, taken through the strides that kernels take it through.
        dense = np.ascontiguousarray(w).ravel()
        filters = np.zeros(inner.w_shape)
        for k, c, *tap in np.ndindex(*inner.w_shape):
            group, row = divmod(k, p.group_out)
            at = (group * p.group_in + c) * p.w_strides[0] + row * p.w_strides[1] + part.offsets["weights"]
            filters[(k, c, *tap)] = dense[at + sum(t * s for t, s in zip(tap, inner.w_strides[2:], strict=True))]
        start = np.unravel_index(part.offsets["x"], (1, p.in_channels, *p.in_size))[2:]
        image = x[(..., *(slice(f, f + n) for f, n in zip(start, inner.in_size, strict=True)))]
        first = np.unravel_index(part.offsets["out"], (1, *out.shape[1:]))[2:]
        out[(..., *(slice(f, None, s) for f, s in zip(first, p.stride, strict=True)))] = oracle.reference(
            inner, image, filters
        )
    return out
