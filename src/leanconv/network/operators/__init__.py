"""The operators of networks: types of outputs, and meaning in NumPy."""

from __future__ import annotations

from leanconv.network.operators import (
    activations,
    causal,
    convolution,
    creation,
    elementwise,
    indexing,
    linear,
    normalization,
    pointwise,
    pooling,
    quantized,
    reductions,
    resize,
    sampling,
    shaping,
    slicing,
    transposed,
)
from leanconv.network.operators.base import NodeError, Operator, UnknownValueError, evaluate_node, infer_node

_MODULES = (
    activations,
    causal,
    convolution,
    creation,
    elementwise,
    indexing,
    linear,
    normalization,
    pointwise,
    pooling,
    quantized,
    reductions,
    resize,
    sampling,
    shaping,
    slicing,
    transposed,
)
_REGISTRY: dict[str, Operator] = {each.name: each for module in _MODULES for each in module.OPERATORS}


def operator(op: str) -> Operator | None:
    """The operator of a name, such as `"Conv"` or `"leanconv.Conv"`; None if there is none."""
    return _REGISTRY.get(op)


def operator_names() -> list[str]:
    """Names of all operators, in alphabetical order."""
    return sorted(_REGISTRY)


__all__ = ["NodeError", "Operator", "UnknownValueError", "evaluate_node", "infer_node", "operator", "operator_names"]
