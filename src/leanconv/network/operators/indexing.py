"""Operators that read or write elements at indices, and order them."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, axis_of, given, known, present, same_type


def _checked(index: Array, extent: int) -> Array:
    """Indices counted from the front."""
    if index.size and not (-extent <= index.min() and index.max() < extent):
        raise IndexError(f"an index is outside the {extent} elements there are")
    return np.where(index < 0, index + extent, index)


def _gather_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, index = present(types, 0), present(types, 1)
    axis = axis_of(int(node.attributes.get("axis", 0)), len(x.shape))
    return (ValueType((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype),)


def _gather(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, index = given(arrays, 0), given(arrays, 1)
    axis = axis_of(int(node.attributes.get("axis", 0)), x.ndim)
    return (np.take(x, _checked(index, x.shape[axis]), axis=axis),)


def _gather_elements_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, index = present(types, 0), present(types, 1)
    if len(x.shape) != len(index.shape):
        raise ValueError(f"shapes {x.shape} and {index.shape} have different numbers of axes")
    return (ValueType(index.shape, x.dtype),)


def _gather_elements(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, index = given(arrays, 0), given(arrays, 1)
    axis = axis_of(int(node.attributes.get("axis", 0)), x.ndim)
    return (np.take_along_axis(x[_leading(x, index, axis)], _checked(index, x.shape[axis]), axis),)


def _leading(x: Array, index: Array, axis: int) -> tuple[slice, ...]:
    """The part of x that indices of a smaller shape belong to."""
    return tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape))


def _gather_nd_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, index = present(types, 0), present(types, 1)
    batch = int(node.attributes.get("batch_dims", 0))
    if not 0 <= batch < min(len(x.shape), len(index.shape)) or index.shape[-1] > len(x.shape) - batch:
        raise ValueError(f"indices of shape {index.shape} do not fit the shape {x.shape} with batch_dims={batch}")
    return (ValueType((*index.shape[:-1], *x.shape[batch + index.shape[-1] :]), x.dtype),)


def _gather_nd(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, index = given(arrays, 0), given(arrays, 1)
    batch = int(node.attributes.get("batch_dims", 0))
    axes: list[Array] = [
        np.arange(n).reshape(*(1,) * i, n, *(1,) * (index.ndim - 2 - i)) for i, n in enumerate(index.shape[:batch])
    ]
    axes += [_checked(index[..., i], x.shape[batch + i]) for i in range(index.shape[-1])]
    return (x[tuple(axes)],)


_ADD: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _combine(node: Node, out: Array, where: tuple[Any, ...], values: Array) -> None:
    how = node.attributes.get("reduction", "none")
    how = how.decode() if isinstance(how, bytes) else how
    if how == "none":
        out[where] = values
    else:
        _ADD[how].at(out, where, values)


def _scatter_elements(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, index, values = given(arrays, 0), given(arrays, 1), given(arrays, 2)
    axis = axis_of(int(node.attributes.get("axis", 0)), x.ndim)
    out = x.copy()
    where: list[Array] = list(np.indices(index.shape, sparse=True))
    where[axis] = _checked(index, x.shape[axis])
    _combine(node, out, tuple(where), values)
    return (out,)


def _scatter_nd(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, index, values = given(arrays, 0), given(arrays, 1), given(arrays, 2)
    out = x.copy()
    where = tuple(_checked(index[..., i], x.shape[i]) for i in range(index.shape[-1]))
    _combine(node, out, where, values)
    return (out,)


def _top_k_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    axis = axis_of(int(node.attributes.get("axis", -1)), len(x.shape))
    count = _count(node, known(node, types, constants, 1) if node.version >= 10 else None)
    if not 0 <= count <= x.shape[axis]:
        raise ValueError(f"the {count} largest of {x.shape[axis]} elements")
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return ValueType(shape, x.dtype), ValueType(shape, "int64")


def _count(node: Node, k: Array | None) -> int:
    return int(node.attributes["k"]) if k is None else int(k.reshape(()))


def _top_k(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    axis = axis_of(int(node.attributes.get("axis", -1)), x.ndim)
    count = _count(node, arrays[1] if len(arrays) > 1 else None)
    if node.attributes.get("largest", 1):
        # A stable order backwards: of equal elements the first comes first.
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    order = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


def _one_hot_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    index, values = present(types, 0), present(types, 2)
    depth = known(node, types, constants, 1)
    axis = axis_of(int(node.attributes.get("axis", -1)), len(index.shape) + 1)
    count = 0 if depth is None else int(depth.reshape(()))
    return (ValueType((*index.shape[:axis], count, *index.shape[axis:]), values.dtype),)


def _one_hot(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    index, depth, (off, on) = given(arrays, 0), int(given(arrays, 1).reshape(())), given(arrays, 2)
    axis = axis_of(int(node.attributes.get("axis", -1)), index.ndim + 1)
    wanted = np.expand_dims(np.where(index < 0, index + depth, index), axis)
    places = np.arange(depth).reshape(-1, *(1,) * (index.ndim - axis))
    return (np.where(wanted == places, on, off).astype(given(arrays, 2).dtype),)


def _non_zero_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    value = known(node, types, constants, 0)
    if value is None:
        raise ValueError("its input is missing")
    return (ValueType((max(value.ndim, 1), int(np.count_nonzero(value))), "int64"),)


def _non_zero(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (np.array(np.nonzero(np.atleast_1d(given(arrays, 0))), np.int64),)


def _triangle(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    k = int(arrays[1].reshape(())) if len(arrays) > 1 and arrays[1] is not None else 0
    return ((np.triu if node.attributes.get("upper", 1) else np.tril)(x, k),)


def _compress_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, wanted = present(types, 0), known(node, types, constants, 1)
    count = 0 if wanted is None else int(np.count_nonzero(wanted))
    if "axis" not in node.attributes:
        return (ValueType((count,), x.dtype),)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    return (ValueType((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype),)


def _compress(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, wanted = given(arrays, 0), given(arrays, 1)
    axis = node.attributes.get("axis")
    return (np.compress(wanted, x, axis=None if axis is None else axis_of(int(axis), x.ndim)),)


def _reverse_sequence(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, lengths = given(arrays, 0), given(arrays, 1)
    time, batch = int(node.attributes.get("time_axis", 0)), int(node.attributes.get("batch_axis", 1))
    places = np.arange(x.shape[time]).reshape(-1, 1)
    order = np.where(places < lengths, lengths - 1 - places, places)  # (time, batch)
    order = order if time < batch else order.T
    return (np.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), time),)


def _check_reduction(node: Node) -> str | None:
    how = node.attributes.get("reduction", "none")
    how = how.decode(errors="replace") if isinstance(how, bytes) else how
    return None if how == "none" or how in _ADD else f"reduction={how!r} is unknown"


OPERATORS = (
    Operator("Gather", _gather_infer, _gather, since=(1, 11)),
    Operator("GatherElements", _gather_elements_infer, _gather_elements, since=(11,)),
    Operator("GatherND", _gather_nd_infer, _gather_nd, since=(11, 12)),
    Operator("Scatter", same_type, _scatter_elements, since=(9,)),
    Operator("ScatterElements", same_type, _scatter_elements, since=(11, 16, 18), check=_check_reduction),
    Operator("ScatterND", same_type, _scatter_nd, since=(11, 16, 18), check=_check_reduction),
    Operator("TopK", _top_k_infer, _top_k, since=(1, 10, 11)),
    Operator("OneHot", _one_hot_infer, _one_hot, since=(9, 11)),
    Operator("NonZero", _non_zero_infer, _non_zero, since=(9,)),
    Operator("Trilu", same_type, _triangle, since=(14,)),
    Operator("Compress", _compress_infer, _compress, since=(9, 11)),
    Operator("ReverseSequence", same_type, _reverse_sequence, since=(10,)),
)
