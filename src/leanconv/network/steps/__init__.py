"""The steps of compiled networks: for each operator with kernels, how it becomes phases."""

from __future__ import annotations

from leanconv.network.steps import (
    blocks,
    convolution,
    elementwise,
    normalization,
    pooling,
    resampling,
    shaping,
    softmax,
)
from leanconv.network.steps.base import Lowerer, Registry

REGISTRY = Registry()
for _module in (shaping, convolution, elementwise, pooling, softmax, resampling, normalization, blocks):
    _module.register(REGISTRY)

COPY = REGISTRY.by_op["leanconv.Copy"]


def lowerer(op: str) -> Lowerer | None:
    """What has kernels for an operator, or None."""
    return REGISTRY.by_op.get(op)


__all__ = ["COPY", "lowerer"]
