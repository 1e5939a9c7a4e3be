"""Operators that compute each element from the elements at its place; operands are broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, broadcast, given, present, same_type

Function = Callable[..., Any]

_erf: Function = np.vectorize(math.erf, otypes=[np.float64])


def _first_broadcast(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(broadcast(*_spread(node, types)), present(types, 0).dtype),)


def _truth(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(broadcast(*_spread(node, types)), "bool"),)


def _spread(node: Node, types: Types) -> list[ValueType | None]:
    """Types of operands, the second with ones behind it where an old operator says at which axis it begins."""
    found = list(types)
    if _has_axis(node) and len(found) == 2:
        a, b = present(types, 0), present(types, 1)
        found[1] = ValueType(_at_axis(node, a.shape, b.shape), b.dtype)
    return found


def _has_axis(node: Node) -> bool:
    # Before version 7 of the operator set, broadcasting was asked for, from an axis on.
    return node.version < 7 and bool(node.attributes.get("broadcast", 0)) and "axis" in node.attributes


def _at_axis(node: Node, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    axis = int(node.attributes["axis"])
    axis += len(a) if axis < 0 else 0
    return (*b, *(1,) * max(len(a) - axis - len(b), 0))


def _operands(node: Node, arrays: Arrays) -> list[Array]:
    found = [given(arrays, position) for position in range(len(arrays))]
    if _has_axis(node) and len(found) == 2:
        found[1] = found[1].reshape(_at_axis(node, found[0].shape, found[1].shape))
    return found


def _unary(name: str, function: Function, since: tuple[int, ...] = (1,)) -> Operator:
    """An operator of one operand and the same element type; the function may widen on its way."""

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x = given(arrays, 0)
        return (np.asarray(function(x)).astype(x.dtype, copy=False),)

    return Operator(name, same_type, evaluate, since=since)


def _test(name: str, function: Function) -> Operator:
    """An operator of one operand that answers yes or no."""

    def infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
        return (ValueType(present(types, 0).shape, "bool"),)

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        return (np.asarray(function(node, given(arrays, 0)), dtype=bool),)

    return Operator(name, infer, evaluate)


def _binary(name: str, function: Function, *, truth: bool = False, since: tuple[int, ...] = (1, 7)) -> Operator:
    """An operator of two operands; the output's element type is that of the first, or bool."""

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        a, b = _operands(node, arrays)
        return (np.asarray(function(a, b)).astype(bool if truth else a.dtype, copy=False),)

    return Operator(name, _truth if truth else _first_broadcast, evaluate, since=since)


def _many(name: str, function: Function) -> Operator:
    """An operator of any number of operands, taken two by two."""

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        result, *others = _operands(node, arrays)
        for other in others:
            result = function(result, other)
        return ((result / len(arrays)).astype(result.dtype) if name == "Mean" else result,)

    return Operator(name, _first_broadcast, evaluate, since=(1, 8))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "i":  # towards zero, as in C
        quotient = quotient + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.asarray(quotient)


def _mod(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a, b = _operands(node, arrays)
    return ((np.fmod if node.attributes.get("fmod", 0) else np.mod)(a, b).astype(a.dtype),)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu" and (b.dtype.kind == "f" or (b.dtype.kind == "i" and (b < 0).any())):
        return np.asarray(np.power(a.astype(np.float64), b.astype(np.float64)))
    return np.asarray(np.power(a, b.astype(np.result_type(a, b))))


def _shift(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a, b = _operands(node, arrays)
    left = node.attributes.get("direction") in ("LEFT", b"LEFT")
    return ((np.left_shift if left else np.right_shift)(a, b).astype(a.dtype),)


def _is_inf(node: Node, x: Array) -> Array:
    found = np.isinf(x)
    if not node.attributes.get("detect_positive", 1):
        found &= x < 0
    if not node.attributes.get("detect_negative", 1):
        found &= x > 0
    return np.asarray(found)


def _where_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(broadcast(*types), present(types, 1).dtype),)


def _where(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    condition, a, b = (given(arrays, position) for position in range(3))
    return (np.where(condition, a, b),)


def erf(x: Array) -> Array:
    """The error function, in float64 within."""
    return np.asarray(_erf(x.astype(np.float64))).reshape(x.shape).astype(x.dtype)


def _round(x: Array) -> Array:
    return np.asarray(np.rint(x))  # to even, as ONNX has it


_UNARY = (
    ("Abs", np.abs, (1, 6)),
    ("Acos", np.arccos, (7,)),
    ("Acosh", np.arccosh, (9,)),
    ("Asin", np.arcsin, (7,)),
    ("Asinh", np.arcsinh, (9,)),
    ("Atan", np.arctan, (7,)),
    ("Atanh", np.arctanh, (9,)),
    ("BitwiseNot", np.invert, (18,)),
    ("Ceil", np.ceil, (1, 6)),
    ("Cos", np.cos, (7,)),
    ("Cosh", np.cosh, (9,)),
    ("Erf", erf, (9,)),
    ("Exp", np.exp, (1, 6)),
    ("Floor", np.floor, (1, 6)),
    ("Log", np.log, (1, 6)),
    ("Neg", np.negative, (1, 6)),
    ("Not", np.logical_not, (1,)),
    ("Reciprocal", np.reciprocal, (1, 6)),
    ("Round", _round, (11,)),
    ("Sign", np.sign, (9,)),
    ("Sin", np.sin, (7,)),
    ("Sinh", np.sinh, (9,)),
    ("Sqrt", np.sqrt, (1, 6)),
    ("Tan", np.tan, (7,)),
)

_BINARY = (
    ("Add", np.add),
    ("And", np.logical_and),
    ("BitwiseAnd", np.bitwise_and),
    ("BitwiseOr", np.bitwise_or),
    ("BitwiseXor", np.bitwise_xor),
    ("Div", _divide),
    ("Mul", np.multiply),
    ("Or", np.logical_or),
    ("Pow", _power),
    ("Sub", np.subtract),
    ("Xor", np.logical_xor),
)

_COMPARISONS = (
    ("Equal", np.equal),
    ("Greater", np.greater),
    ("GreaterOrEqual", np.greater_equal),
    ("Less", np.less),
    ("LessOrEqual", np.less_equal),
)

OPERATORS = (
    *(_unary(name, function, since) for name, function, since in _UNARY),
    *(_binary(name, function) for name, function in _BINARY),
    *(_binary(name, function, truth=True) for name, function in _COMPARISONS),
    *(_many(name, f) for name, f in (("Max", np.maximum), ("Min", np.minimum), ("Sum", np.add), ("Mean", np.add))),
    _test("IsNaN", lambda node, x: np.isnan(x)),
    _test("IsInf", _is_inf),
    Operator("Mod", _first_broadcast, _mod, since=(10,)),
    Operator("BitShift", _first_broadcast, _shift, since=(11,)),
    Operator("Where", _where_infer, _where, since=(9,)),
)
