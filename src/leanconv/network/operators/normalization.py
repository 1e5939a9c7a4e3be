"""Normalization by statistics of the batch, an image, a group, a layer or a neighbourhood."""

from __future__ import annotations

import math

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import (
    Arrays,
    Evaluate,
    Operator,
    Types,
    axes_of,
    axis_of,
    given,
    ints,
    maybe,
    present,
)
from leanconv.options import make_activation
from leanconv.problem import numpy_activation


def per_channel(values: Array, rank: int) -> Array:
    """Numbers of channels, shaped to be broadcast over (N, C, *spatial)."""
    return values.reshape(-1, *(1,) * (rank - 2))


def _batch_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    channels = x.shape[1] if len(x.shape) > 1 else 1
    for position in range(1, 5):
        if present(types, position).size != channels:
            raise ValueError(f"input {position} has shape {present(types, position).shape} for {channels} channels")
    return (x, *(present(types, position) for position in (3, 4, 3, 4)))


def _batch(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, bias, mean, variance = (given(arrays, position) for position in range(5))
    more: tuple[Array, ...] = ()
    if node.attributes.get("training_mode", 0):
        axes = (0, *range(2, x.ndim))
        momentum = float(node.attributes.get("momentum", 0.9))
        here, spread = x.mean(axis=axes), x.var(axis=axes)
        more = (
            (mean * momentum + here * (1 - momentum)).astype(mean.dtype),
            (variance * momentum + spread * (1 - momentum)).astype(variance.dtype),
        )
        mean, variance = here, spread
    factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    y = x * per_channel(factor, x.ndim) + per_channel(bias - mean * factor, x.ndim)
    return (y.astype(x.dtype), *more)


def _check_batch(node: Node) -> str | None:
    if node.version < 9 and not node.attributes.get("spatial", 1):
        return "statistics for each pixel (spatial=0) are not supported"
    if node.version < 7 and not node.attributes.get("is_test", 0):
        return "training (is_test=0) is not supported before version 7 of the operator set"
    if node.version >= 14 and not node.attributes.get("training_mode", 0) and len(node.outputs) > 1:
        return "running statistics are outputs of training only"
    return None


def _instance(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, bias = (given(arrays, position) for position in range(3))
    axes = tuple(range(2, x.ndim))
    y = _standard(x, axes, float(node.attributes.get("epsilon", 1e-5)))
    return ((y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype),)


def _standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon))


def _scaled_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    """The type of the operand; scale and bias must have one number a channel, or (GroupNormalization) a group."""
    x = present(types, 0)
    if len(x.shape) < 2:
        raise ValueError(f"a tensor of shape {x.shape} has no channels")
    counts = [x.shape[1]]
    if node.op == "GroupNormalization":
        groups = int(node.attributes["num_groups"])
        if groups < 1 or x.shape[1] % groups:
            raise ValueError(f"{x.shape[1]} channels in {groups} groups")
        counts.append(groups)
    if present(types, 1).size not in counts or present(types, 2).size != present(types, 1).size:
        shapes = f"{present(types, 1).shape} and {present(types, 2).shape}"
        raise ValueError(f"scale and bias of shapes {shapes} for {x.shape[1]} channels")
    return (x,)


def _axes_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    """The type of the operand; the axes that attributes name must be there."""
    x = present(types, 0)
    if "axes" in node.attributes or node.op == "MeanVarianceNormalization":
        axes_of(ints(node.attributes.get("axes", (0, 2, 3))), len(x.shape))
    else:
        axis_of(int(node.attributes.get("axis", -1)), len(x.shape))
    return (x,)


def _group(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, bias = (given(arrays, position) for position in range(3))
    groups = int(node.attributes["num_groups"])
    y = _standard(x.reshape(x.shape[0], groups, -1), (2,), float(node.attributes.get("epsilon", 1e-5)))
    if scale.size == groups != x.shape[1]:  # version 18: numbers of groups
        scale, bias = (np.repeat(values, x.shape[1] // groups) for values in (scale, bias))
    return ((y.reshape(x.shape) * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype),)


def _layer_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    axis = axis_of(int(node.attributes.get("axis", -1)), len(x.shape))
    statistics = ValueType((*x.shape[:axis], *(1,) * (len(x.shape) - axis)), "float32")
    return x, statistics, statistics


def _layer(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale, bias = given(arrays, 0), given(arrays, 1), maybe(arrays, 2)
    axes = tuple(range(axis_of(int(node.attributes.get("axis", -1)), x.ndim), x.ndim))
    wide = x.astype(np.result_type(x.dtype, np.float32))
    mean = wide.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(wide.var(axis=axes, keepdims=True) + float(node.attributes.get("epsilon", 1e-5)))
    y = (wide - mean) * inverse * scale + (0 if bias is None else bias)
    return y.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32)


def _rms(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, scale = given(arrays, 0), given(arrays, 1)
    axes = tuple(range(axis_of(int(node.attributes.get("axis", -1)), x.ndim), x.ndim))
    wide = x.astype(np.result_type(x.dtype, np.float32))
    square = (wide * wide).mean(axis=axes, keepdims=True) + float(node.attributes.get("epsilon", 1e-5))
    return ((wide / np.sqrt(square) * scale).astype(x.dtype),)


def _mean_variance(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    axes = ints(node.attributes.get("axes", (0, 2, 3)))
    spread = np.sqrt((x * x).mean(axis=axes, keepdims=True) - x.mean(axis=axes, keepdims=True) ** 2)
    return (((x - x.mean(axis=axes, keepdims=True)) / (spread + 1e-9)).astype(x.dtype),)


def _lrn(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, size = given(arrays, 0), int(node.attributes["size"])
    alpha, beta = float(node.attributes.get("alpha", 1e-4)), float(node.attributes.get("beta", 0.75))
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    squares = np.pad(x * x, [(0, 0), (before, after), *((0, 0),) * (x.ndim - 2)])
    total = np.zeros(x.shape, x.dtype)
    for shift in range(size):
        total += squares[:, shift : shift + x.shape[1]]
    return ((x / (float(node.attributes.get("bias", 1.0)) + alpha / size * total) ** beta).astype(x.dtype),)


def _lrn_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    if int(node.attributes["size"]) < 1:
        raise ValueError(f"size={node.attributes['size']} must be positive")
    return (present(types, 0),)


def _lp(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    axis = axis_of(int(node.attributes.get("axis", -1)), x.ndim)
    absolute = np.abs(x)
    if int(node.attributes.get("p", 2)) == 1:
        norm = absolute.sum(axis=axis, keepdims=True)
    else:
        norm = np.sqrt((absolute * absolute).sum(axis=axis, keepdims=True))
    # Where all is zero the answer is zero.
    return (np.where(norm == 0, 0, x / norm).astype(x.dtype),)


def _fused(evaluate: Evaluate) -> Evaluate:
    """The same with an activation after it, as `leanconv.Conv` has one."""

    def both(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        (y,) = evaluate(node, arrays)
        activation = make_activation(node.attributes.get("activation"))
        return (y if activation is None else numpy_activation(activation, y.astype(np.float64)).astype(y.dtype),)

    return both


OPERATORS = (
    Operator("leanconv.InstanceNormalization", _scaled_infer, _fused(_instance)),
    Operator("leanconv.GroupNormalization", _scaled_infer, _fused(_group)),
    Operator("BatchNormalization", _batch_infer, _batch, since=(1, 6, 7, 9, 14), check=_check_batch),
    Operator("InstanceNormalization", _scaled_infer, _instance, since=(1, 6)),
    Operator("GroupNormalization", _scaled_infer, _group, since=(18, 21)),
    Operator("LayerNormalization", _layer_infer, _layer, since=(17,)),
    Operator("RMSNormalization", _axes_infer, _rms, since=(23,)),
    Operator("MeanVarianceNormalization", _axes_infer, _mean_variance, since=(9,)),
    Operator("LRN", _lrn_infer, _lrn),
    Operator("LpNormalization", _axes_infer, _lp),
)
