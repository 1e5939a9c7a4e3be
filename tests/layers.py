"""A small layer for tests that care about something else than its shape."""

from __future__ import annotations

from typing import Any

import numpy as np

import leanconv

Array = np.ndarray[Any, Any]


def random_layer(seed: int = 0, size: int = 40) -> tuple[Array, Array, Array]:
    """A small 3x3 layer: an image, weights and the result."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 16, size, size)).astype(np.float32)
    w = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    return x, w, leanconv.conv2d(x, w, algorithm="reference", threads=1)


def roughly_equal(got: Array, want: Array) -> bool:
    """Whether all elements are within what rounding explains."""
    return bool(np.abs(got - want).max() < 1e-4)
