"""Operators on eight-bit numbers and the way to them and back."""

from __future__ import annotations

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, axis_of, given, maybe, present
from leanconv.network.operators.convolution import conv_windows, exact_convolution
from leanconv.network.operators.creation import ELEMENT_TYPES
from leanconv.network.operators.linear import matmul_shape


def _spread(node: Node, values: Array, shape: tuple[int, ...]) -> Array:
    """Scales or zero points, shaped to be broadcast over the tensor: one, one a slice of an axis, or one a block."""
    if values.size == 1 and values.ndim < 2:
        return values.reshape(())
    axis = axis_of(int(node.attributes.get("axis", 1)), len(shape))
    if values.ndim == 1:
        return values.reshape(-1, *(1,) * (len(shape) - 1 - axis))
    block = int(node.attributes.get("block_size", 0)) or -(-shape[axis] // values.shape[axis])
    return np.repeat(values, block, axis)[(slice(None),) * axis + (slice(shape[axis]),)]


def saturate(values: Array, dtype: str) -> Array:
    """Numbers rounded to even and clipped to the range of an integer type."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _quantize_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    zero = types[2] if len(types) > 2 else None
    named = int(node.attributes.get("output_dtype", 0))
    dtype = zero.dtype if zero is not None else ELEMENT_TYPES[named] if named else "uint8"
    if np.dtype(dtype).kind not in "iu":
        raise ValueError(f"to quantize to {dtype} is not supported")
    return (ValueType(present(types, 0).shape, dtype),)


def _quantize(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, zero = given(arrays, 0), given(arrays, 1), maybe(arrays, 2)
    named = int(node.attributes.get("output_dtype", 0))
    dtype = zero.dtype.name if zero is not None else ELEMENT_TYPES[named] if named else "uint8"
    steps = np.rint(x / _spread(node, scale, x.shape).astype(np.result_type(x.dtype, np.float32)))
    shift = 0 if zero is None else _spread(node, zero, x.shape).astype(np.int64)
    return (saturate(steps + shift, dtype),)


def _dequantize_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(present(types, 0).shape, present(types, 1).dtype),)


def _dequantize(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, zero = given(arrays, 0), given(arrays, 1), maybe(arrays, 2)
    steps = x.astype(np.int64) - (0 if zero is None else _spread(node, zero, x.shape).astype(np.int64))
    return ((steps * _spread(node, scale, x.shape)).astype(scale.dtype),)


def _check_quantize(node: Node) -> str | None:
    named = int(node.attributes.get("output_dtype", 0))
    if named and ELEMENT_TYPES.get(named, "float") not in ("int8", "uint8", "int16", "uint16", "int32"):
        return f"output_dtype={named} is not supported"
    return None


def _dynamic_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return ValueType(present(types, 0).shape, "uint8"), ValueType((), "float32"), ValueType((), "uint8")


def _dynamic(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    low, high = min(x.min(initial=0), np.float32(0)), max(x.max(initial=0), np.float32(0))
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = saturate(np.asarray(0 - low / scale), "uint8")
    return saturate(np.rint(x / scale) + zero, "uint8"), np.asarray(scale), zero


def _shifted(x: Array, zero: Array | None, axis: int | None = None) -> Array:
    """Whole numbers less their zero point (one, or one for each slice of an axis), in float64, where they are exact."""
    if zero is None:
        return x.astype(np.float64)
    if zero.size > 1 and axis is not None and zero.ndim == 1:
        zero = zero.reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))
    elif zero.size == 1:
        zero = zero.reshape(())
    return x.astype(np.float64) - zero


def _conv_integer_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w = present(types, 0), present(types, 1)
    return (ValueType((x.shape[0], w.shape[0], *conv_windows(node, x.shape, w.shape).out), "int32"),)


def _conv_integer(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    # Padding holds the zero point, which is zero once it has been subtracted.
    x, w = _shifted(given(arrays, 0), maybe(arrays, 2)), _shifted(given(arrays, 1), maybe(arrays, 3), 0)
    return (exact_convolution(node, x, w).astype(np.int32),)


def _qlinear_conv_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w = present(types, 0), present(types, 3)
    shape = (x.shape[0], w.shape[0], *conv_windows(node, x.shape, w.shape).out)
    return (ValueType(shape, present(types, 7).dtype),)


def _qlinear_conv(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (given(arrays, i) for i in range(8))
    bias, channels = maybe(arrays, 8), (-1, *(1,) * (x.ndim - 2))
    total = exact_convolution(node, _shifted(x, x_zero), _shifted(w, w_zero, 0))
    if bias is not None:
        total = total + bias.reshape(channels)
    factor = x_scale.astype(np.float64) * w_scale / y_scale
    factor = factor.reshape(channels) if factor.size > 1 else factor.reshape(())
    return (saturate(np.rint(total * factor) + y_zero, y_zero.dtype.name),)


def _matmul_integer_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(matmul_shape(present(types, 0).shape, present(types, 1).shape), "int32"),)


def _matmul_integer(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a = _shifted(given(arrays, 0), maybe(arrays, 2), -2)
    b = _shifted(given(arrays, 1), maybe(arrays, 3), -1)
    return (np.asarray(np.matmul(a, b)).astype(np.int32),)


def _qlinear_matmul_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType(matmul_shape(present(types, 0).shape, present(types, 3).shape), present(types, 7).dtype),)


def _qlinear_matmul(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (given(arrays, i) for i in range(8))
    total = np.matmul(_shifted(a, a_zero, -2), _shifted(b, b_zero, -1))
    factor = a_scale.astype(np.float64) * b_scale / y_scale
    factor = factor.reshape(()) if factor.size == 1 else factor
    return (saturate(np.rint(total * factor) + y_zero, y_zero.dtype.name),)


OPERATORS = (
    Operator("QuantizeLinear", _quantize_infer, _quantize, since=(10, 13, 19, 21), check=_check_quantize),
    Operator("DequantizeLinear", _dequantize_infer, _dequantize, since=(10, 13, 19, 21)),
    Operator("DynamicQuantizeLinear", _dynamic_infer, _dynamic, since=(11,)),
    Operator("ConvInteger", _conv_integer_infer, _conv_integer, since=(10,)),
    Operator("QLinearConv", _qlinear_conv_infer, _qlinear_conv, since=(10,)),
    Operator("MatMulInteger", _matmul_integer_infer, _matmul_integer, since=(10,)),
    Operator("QLinearMatMul", _qlinear_matmul_infer, _qlinear_matmul, since=(10, 21)),
)
