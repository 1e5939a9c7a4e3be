"""Activation functions, with ONNX's defaults; defined in the element type of their operand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, axis_of, given, maybe, present, same_type
from leanconv.network.operators.elementwise import erf

Number = Callable[[str, float], float]


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))  # never overflows
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _gelu(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    if node.attributes.get("approximate") in ("tanh", b"tanh"):
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        y = 0.5 * x * (1 + erf(x / x.dtype.type(math.sqrt(2))))
    return (y.astype(x.dtype),)


def _clip(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, low, high = given(arrays, 0), *clip_bounds(node, arrays)
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype).reshape(()))
    if high is not None:
        x = np.minimum(x, np.asarray(high, x.dtype).reshape(()))
    return (x,)


def clip_bounds(node: Node, arrays: Arrays) -> tuple[Any, Any]:
    """Bounds of a Clip, from attributes (before version 11) or inputs; None for none."""
    if node.version < 11 and not any(array is not None for array in arrays[1:]):
        return node.attributes.get("min"), node.attributes.get("max")
    return maybe(arrays, 1), maybe(arrays, 2)


def _along_axis(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    """The type of the operand; its axis must be there."""
    x = present(types, 0)
    if node.version >= 13:
        axis_of(int(node.attributes.get("axis", -1)), len(x.shape))
    else:
        axis_of(int(node.attributes.get("axis", 1)), len(x.shape), beyond=1)
    return (x,)


def _prelu_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, slope = present(types, 0), present(types, 1)
    shape = slope.shape
    if node.version < 7 and len(shape) == 1 and len(x.shape) > 2:
        shape = (*shape, *(1,) * (len(x.shape) - 2))
    if np.broadcast_shapes(x.shape, shape) != x.shape:
        raise ValueError(f"slopes of shape {slope.shape} for a tensor of shape {x.shape}")
    return (x,)


def _prelu(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, slope = given(arrays, 0), given(arrays, 1)
    if node.version < 7 and slope.ndim == 1 and x.ndim > 2:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return (np.where(x < 0, slope * x, x).astype(x.dtype),)


def _softmax(function: Callable[[Array, int], Array]) -> Callable[[Node, Arrays], tuple[Array, ...]]:
    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x = given(arrays, 0)
        if node.version >= 13:
            return (function(x, axis_of(int(node.attributes.get("axis", -1)), x.ndim)).astype(x.dtype),)
        # Before version 13 all axes from this one on count as one.
        axis = axis_of(int(node.attributes.get("axis", 1)), x.ndim, beyond=1)
        rows = x.reshape(math.prod(x.shape[:axis]), -1)
        return (function(rows, 1).reshape(x.shape).astype(x.dtype),)

    return evaluate


def _soft(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _log_soft(x: Array, axis: int) -> Array:
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _hard_max(x: Array, axis: int) -> Array:
    places = np.arange(x.shape[axis]).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return np.asarray(places == np.expand_dims(x.argmax(axis=axis), axis))


def _of_numbers(name: str, function: Callable[[Array, Number], Any], since: tuple[int, ...] = (1, 6)) -> Operator:
    """An operator of one operand and attributes that are numbers."""

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x = given(arrays, 0)
        y = function(x, lambda key, default: float(node.attributes.get(key, default)))
        return (np.asarray(y).astype(x.dtype, copy=False),)

    return Operator(name, same_type, evaluate, since=since)


_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _shrink(x: Array, number: Number) -> Array:
    bias, edge = number("bias", 0.0), number("lambd", 0.5)
    return np.where(x < -edge, x + bias, np.where(x > edge, x - bias, 0))


OPERATORS = (
    _of_numbers("Relu", lambda x, n: np.maximum(x, 0), (1, 6, 13, 14)),
    _of_numbers("Sigmoid", lambda x, n: _sigmoid(x)),
    _of_numbers("Tanh", lambda x, n: np.tanh(x)),
    _of_numbers("Softplus", lambda x, n: _softplus(x), (1,)),
    _of_numbers("Softsign", lambda x, n: x / (1 + np.abs(x)), (1,)),
    _of_numbers("Mish", lambda x, n: x * np.tanh(_softplus(x)), (18,)),
    _of_numbers("Swish", lambda x, n: x * _sigmoid(n("alpha", 1.0) * x), (24,)),
    _of_numbers("HardSwish", lambda x, n: x * np.clip(x / 6 + 0.5, 0, 1), (14,)),
    _of_numbers("HardSigmoid", lambda x, n: np.clip(n("alpha", 0.2) * x + n("beta", 0.5), 0, 1)),
    _of_numbers("LeakyRelu", lambda x, n: np.where(x < 0, n("alpha", 0.01) * x, x)),
    _of_numbers("Elu", lambda x, n: np.where(x < 0, n("alpha", 1.0) * np.expm1(x), x)),
    _of_numbers(
        "Celu",
        lambda x, n: np.maximum(x, 0) + np.minimum(0, n("alpha", 1.0) * np.expm1(x / n("alpha", 1.0))),
        (12,),
    ),
    _of_numbers(
        "Selu",
        lambda x, n: n("gamma", _SELU_GAMMA) * np.where(x > 0, x, n("alpha", _SELU_ALPHA) * np.expm1(x)),
    ),
    _of_numbers("ThresholdedRelu", lambda x, n: np.where(x > n("alpha", 1.0), x, 0), (10,)),
    _of_numbers("Shrink", _shrink, (9,)),
    Operator("Gelu", same_type, _gelu, since=(20,)),
    Operator("Clip", same_type, _clip, since=(1, 6, 11)),
    Operator("PRelu", _prelu_infer, _prelu, since=(1, 6, 7)),
    Operator("Softmax", _along_axis, _softmax(_soft), since=(1, 11, 13)),
    Operator("LogSoftmax", _along_axis, _softmax(_log_soft), since=(1, 11, 13)),
    Operator("Hardmax", _along_axis, _softmax(_hard_max), since=(1, 11, 13)),
)
