"""Operators that make values of nothing or of few numbers, and those that change the element type."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, known, known_ints, present

# Numbers of ONNX's TensorProto.DataType, of the element types that NumPy itself has.
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}

# Before version 6 of the operator set Cast names its element type.
_NAMES = {name.upper(): name for name in ELEMENT_TYPES.values()} | {"FLOAT": "float32", "DOUBLE": "float64"}


def constant_value(node: Node) -> Array:
    """The value of a Constant."""
    attributes = node.attributes
    if "value" in attributes:
        return np.asarray(attributes["value"])
    for name, dtype in (("value_float", "f4"), ("value_floats", "f4"), ("value_int", "i8"), ("value_ints", "i8")):
        if name in attributes:
            return np.asarray(attributes[name], dtype)
    raise ValueError(f"it has no value of a type that is supported, only {', '.join(attributes) or 'nothing'}")


def _constant_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    value = constant_value(node)
    return (ValueType(value.shape, value.dtype.name),)


def _constant(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (constant_value(node),)


def _check_constant(node: Node) -> str | None:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            return f"{name} is not supported"
    return None


def _fill(node: Node) -> Array:
    return np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)[:1]


def _filled_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(known_ints(node, types, constants, 0) or (), _fill(node).dtype.name),)


def _filled(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    # One element seen as many: whoever needs it dense copies it.
    return (np.broadcast_to(_fill(node).reshape(()), tuple(int(n) for n in given(arrays, 0))),)


def _range_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    start, limit, step = (known(node, types, constants, position) for position in range(3))
    if start is None or limit is None or step is None or not step.reshape(()):
        raise ValueError("it needs a start, a limit and a step that is not zero")
    a, b, s = (value.reshape(())[()].item() for value in (start, limit, step))
    exact = isinstance(a, int)
    return (ValueType((max(-((a - b) // s) if exact else int(np.ceil((b - a) / s)), 0),), start.dtype.name),)


def _range(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    start, limit, step = (given(arrays, position).reshape(())[()] for position in range(3))
    count = max(int(np.ceil((limit - start) / step)), 0)
    return ((start + np.arange(count) * step).astype(start.dtype),)


def _eye_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    if len(x.shape) != 2:
        raise ValueError(f"the shape {x.shape} is not that of a matrix")
    return (
        ValueType(x.shape, ELEMENT_TYPES[int(node.attributes["dtype"])] if "dtype" in node.attributes else x.dtype),
    )


def _eye(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    dtype: Any = ELEMENT_TYPES[int(node.attributes["dtype"])] if "dtype" in node.attributes else x.dtype
    return (np.eye(x.shape[0], x.shape[1], k=int(node.attributes.get("k", 0)), dtype=dtype),)


def _target(node: Node) -> str | None:
    to = node.attributes.get("to")
    if isinstance(to, str | bytes):
        return _NAMES.get(to.decode() if isinstance(to, bytes) else to)
    return None if to is None else ELEMENT_TYPES.get(int(to))


def _cast_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(present(types, 0).shape, str(_target(node))),)


def cast(x: Array, dtype: str) -> Array:
    """Elements in another type; what does not fit wraps round, as NumPy has it."""
    return x.astype(dtype, copy=False)


def _cast(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (cast(given(arrays, 0), str(_target(node))),)


def _check_cast(node: Node) -> str | None:
    return None if _target(node) else f"to={node.attributes.get('to')!r} is an element type that is not supported"


def _cast_like_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(present(types, 0).shape, present(types, 1).dtype),)


def _cast_like(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (cast(given(arrays, 0), given(arrays, 1).dtype.name),)


OPERATORS = (
    Operator("Constant", _constant_infer, _constant, since=(1, 11, 12), check=_check_constant),
    Operator("ConstantOfShape", _filled_infer, _filled, since=(9,)),
    Operator("Range", _range_infer, _range, since=(11,)),
    Operator("EyeLike", _eye_infer, _eye, since=(9,)),
    Operator("Cast", _cast_infer, _cast, since=(1, 6, 9), check=_check_cast),
    Operator("CastLike", _cast_like_infer, _cast_like, since=(15,)),
)
