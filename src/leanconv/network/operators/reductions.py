"""Sums, means, extrema and the like along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import (
    Arrays,
    Operator,
    Types,
    axes_of,
    axis_of,
    given,
    ints,
    known_ints,
    maybe,
    present,
    same_type,
)

Reduce = Callable[[Array, tuple[int, ...]], Any]


def reduced_axes(node: Node, rank: int, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """Axes of a reduction: from its second input, or the attribute of older versions; all if there are none."""
    if axes is None and "axes" in node.attributes:
        axes = ints(node.attributes["axes"])
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return axes_of(axes, rank)


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    axes = reduced_axes(node, len(x.shape), known_ints(node, types, constants, 1))
    keep = node.attributes.get("keepdims", 1)
    shape = (1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    return (ValueType(tuple(shape), x.dtype),)


def _reduction(name: str, reduce: Reduce) -> Operator:
    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x, wanted = given(arrays, 0), maybe(arrays, 1)
        axes = reduced_axes(node, x.ndim, None if wanted is None else ints(wanted))
        kept = np.asarray(reduce(x, axes)).astype(x.dtype, copy=False)
        return (kept if node.attributes.get("keepdims", 1) else np.squeeze(kept, axis=axes),)

    return Operator(name, _infer, evaluate, since=(1, 11, 13, 18))


def _sum(x: Array, axes: tuple[int, ...]) -> Any:
    return x.sum(axis=axes, keepdims=True, dtype=x.dtype)


def _extremum(function: Any, empty_float: float, empty_int: str) -> Reduce:
    def reduce(x: Array, axes: tuple[int, ...]) -> Any:
        if x.dtype == bool:
            return function(x.astype(np.uint8), axis=axes, keepdims=True, initial=0 if empty_int == "min" else 1)
        empty = empty_float if x.dtype.kind == "f" else getattr(np.iinfo(x.dtype), empty_int)
        return function(x, axis=axes, keepdims=True, initial=empty)

    return reduce


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Any:
    peak = x.max(axis=axes, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0)
    return np.log(np.exp(x - peak).sum(axis=axes, keepdims=True)) + peak


def _arg_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    axis = axis_of(int(node.attributes.get("axis", 0)), len(x.shape))
    if not x.shape[axis]:
        raise ValueError(f"axis {axis} of shape {x.shape} is empty")
    kept = (1,) if node.attributes.get("keepdims", 1) else ()
    return (ValueType((*x.shape[:axis], *kept, *x.shape[axis + 1 :]), "int64"),)


def _arg(function: Any) -> Callable[[Node, Arrays], tuple[Array, ...]]:
    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x = given(arrays, 0)
        axis = axis_of(int(node.attributes.get("axis", 0)), x.ndim)
        if node.attributes.get("select_last_index", 0):
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            found = function(x, axis=axis)
        found = np.asarray(found, np.int64)
        return (np.expand_dims(found, axis) if node.attributes.get("keepdims", 1) else found,)

    return evaluate


def _cumulative(function: Any, neutral: int) -> Callable[[Node, Arrays], tuple[Array, ...]]:
    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x = given(arrays, 0)
        axis = axis_of(int(given(arrays, 1).reshape(())), x.ndim)
        backwards = node.attributes.get("reverse", 0)
        y = np.flip(x, axis) if backwards else x
        y = function(y, axis=axis, dtype=x.dtype)
        if node.attributes.get("exclusive", 0):
            y = np.roll(y, 1, axis)
            y[(slice(None),) * axis + (slice(0, 1),)] = neutral
        return (np.flip(y, axis) if backwards else y,)

    return evaluate


OPERATORS = (
    _reduction("ReduceSum", _sum),
    _reduction("ReduceMean", lambda x, axes: x.mean(axis=axes, keepdims=True)),
    _reduction("ReduceMax", _extremum(np.max, -np.inf, "min")),
    _reduction("ReduceMin", _extremum(np.min, np.inf, "max")),
    _reduction("ReduceProd", lambda x, axes: x.prod(axis=axes, keepdims=True, dtype=x.dtype)),
    _reduction("ReduceL1", lambda x, axes: _sum(np.abs(x), axes)),
    _reduction("ReduceL2", lambda x, axes: np.sqrt(_sum(x * x, axes))),
    _reduction("ReduceSumSquare", lambda x, axes: _sum(x * x, axes)),
    _reduction("ReduceLogSum", lambda x, axes: np.log(_sum(x, axes))),
    _reduction("ReduceLogSumExp", _log_sum_exp),
    Operator("ArgMax", _arg_infer, _arg(np.argmax), since=(1, 12)),
    Operator("ArgMin", _arg_infer, _arg(np.argmin), since=(1, 12)),
    Operator("CumSum", same_type, _cumulative(np.cumsum, 0), since=(11,)),
    Operator("CumProd", same_type, _cumulative(np.cumprod, 1), since=(26,)),
)
