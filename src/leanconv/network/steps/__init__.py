"""The steps of compiled networks: for each operator with kernels, how it becomes phases."""

from __future__ import annotations

from leanconv.network.steps import (
    blocks,
    convolution,
    elementwise,
    moments,
    normalization,
    pooling,
    products,
    reductions,
    resampling,
    row_norms,
    shaping,
    softmax,
)
from leanconv.network.steps.base import Placer, Registry

REGISTRY = Registry()
_MODULES = (
    *(shaping, convolution, elementwise, pooling, softmax, resampling, normalization, moments, row_norms),
    *(reductions, blocks, products),
)
for _module in _MODULES:
    _module.register(REGISTRY)

COPY = shaping.Copy()


def placer(op: str) -> Placer | None:
    """What knows an operator natively, or None."""
    return REGISTRY.by_op.get(op)


__all__ = ["COPY", "placer"]
