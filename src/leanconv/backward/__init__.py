"""Gradients with respect to weights: their algorithms, plans and functions."""

from __future__ import annotations

from leanconv.backward.api import (
    conv1d_backward_weights,
    conv2d_backward_weights,
    conv3d_backward_weights,
    plan_backward_weights,
)
from leanconv.backward.plan import BackwardWeightsPlan

__all__ = [
    "BackwardWeightsPlan",
    "conv1d_backward_weights",
    "conv2d_backward_weights",
    "conv3d_backward_weights",
    "plan_backward_weights",
]
