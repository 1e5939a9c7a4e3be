"""PyTorch's functions and methods as operators of a network; each handler has the signature of what it stands for."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.torch.lowered_layers import (
    adaptive_pool,
    average_pool,
    batch_norm,
    convolution,
    interpolate,
    linear,
    max_pool,
    transposed,
)
from leanconv.torch.lowered_shapes import (
    attribute,
    cat,
    chunk,
    contiguous,
    flatten,
    item,
    mean,
    pad,
    permute,
    pixel_shuffle,
    rank,
    reshape,
    size,
    split,
    squeeze,
    transpose,
    unsqueeze,
)
from leanconv.torch.lowering import Builder, Handler, NotLoweredError, Value, one


def unary(op: str, version: int, **attributes: Any) -> Handler:
    """An operator of one operand; `inplace` is looked at by the caller."""

    def handle(builder: Builder, input: Value, inplace: bool = False) -> Value:
        return one(builder, op, input, version, **attributes)

    return handle


def clip(builder: Builder, input: Value, min: Any = None, max: Any = None, inplace: bool = False) -> Value:
    """Clamp between two numbers."""
    if isinstance(min, Value | Tensor) or isinstance(max, Value | Tensor):
        raise NotLoweredError(f"{builder.here}: bounds that are tensors")
    bounds = ["" if n is None else builder.array(np.asarray(n, builder.dtype(input))) for n in (min, max)]
    result: Value = builder.add("Clip", (input, *bounds), version=13)
    return result


def hardtanh(
    builder: Builder, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    """Clamp, by the names of `F.hardtanh`."""
    return clip(builder, input, min_val, max_val)


def leaky_relu(builder: Builder, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """As `F.leaky_relu`."""
    return one(builder, "LeakyRelu", input, 16, alpha=negative_slope)


def elu(builder: Builder, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """As `F.elu`."""
    return one(builder, "Elu", input, 6, alpha=alpha)


def gelu(builder: Builder, input: Value, approximate: str = "none") -> Value:
    """As `F.gelu`."""
    return one(builder, "Gelu", input, 20, approximate=approximate)


def prelu(builder: Builder, input: Value, weight: Tensor) -> Value:
    """As `F.prelu`: one slope, or one for each channel."""
    slopes = builder.graph.constants[builder.tensor(weight)]
    spread = slopes.reshape(-1, *(1,) * (len(builder.shape(input)) - 2)) if slopes.size > 1 else slopes
    result: Value = builder.add("PRelu", (input, builder.array(spread)), version=16)
    return result


def softmax(builder: Builder, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    """As `F.softmax` along a named axis."""
    if dim is None or dtype is not None:
        raise NotLoweredError(f"{builder.here}: no axis is named, or another element type")
    return one(builder, "Softmax", input, 13, axis=dim)


def binary(op: str) -> Handler:
    """An operator of two operands, of which one may be a number or a tensor of the model."""

    def handle(builder: Builder, input: Any, other: Any, *, alpha: Any = 1) -> Value:
        if alpha != 1:
            raise NotLoweredError(f"{builder.here}: alpha={alpha}")
        of = input if isinstance(input, Value) else other
        result: Value = builder.add(op, (_operand(builder, input, of), _operand(builder, other, of)), version=14)
        return result

    return handle


def _operand(builder: Builder, value: Any, of: Value) -> Value | str:
    dtype = builder.dtype(of)
    if isinstance(value, Value):
        if builder.dtype(value) != dtype:
            raise NotLoweredError(f"{builder.here}: two element types")
        return value
    if isinstance(value, Tensor):
        name = builder.tensor(value)
        if builder.graph.types[name].dtype != dtype:
            raise NotLoweredError(f"{builder.here}: two element types")
        return name
    if type(value) not in (int, float):
        raise NotLoweredError(f"{builder.here}: an operand that is a {type(value).__name__}")
    return builder.array(np.asarray(value, dtype))


def same(builder: Builder, input: Value, *args: Any, **kwargs: Any) -> Value:
    """What gives its input in evaluation."""
    if kwargs.get("training") or (args[1:2] and args[1]):
        raise NotLoweredError(f"{builder.here}: dropout that is on")
    return input


_relu, _relu6 = unary("Relu", 14), (lambda builder, input, inplace=False: clip(builder, input, 0.0, 6.0))
_sigmoid, _tanh = unary("Sigmoid", 13), unary("Tanh", 13)
_hardsigmoid = unary("HardSigmoid", 6, alpha=1 / 6, beta=0.5)
_add, _sub, _mul, _div = (binary(op) for op in ("Add", "Sub", "Mul", "Div"))

FUNCTIONS: dict[Any, Handler] = {
    **dict.fromkeys((torch.relu, F.relu), _relu),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), _sigmoid),
    **dict.fromkeys((torch.tanh, F.tanh), _tanh),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d), convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), transposed),
    **dict.fromkeys((operator.add, torch.add), _add),
    **dict.fromkeys((operator.sub, torch.sub), _sub),
    **dict.fromkeys((operator.mul, torch.mul), _mul),
    **dict.fromkeys((operator.truediv, torch.div), _div),
    F.relu6: _relu6,
    F.hardtanh: hardtanh,
    F.leaky_relu: leaky_relu,
    F.elu: elu,
    F.gelu: gelu,
    F.silu: unary("Swish", 24),
    F.mish: unary("Mish", 18),
    F.hardswish: unary("HardSwish", 14),
    F.hardsigmoid: _hardsigmoid,
    F.prelu: prelu,
    F.dropout: same,
    F.dropout2d: same,
    F.softmax: softmax,
    torch.softmax: softmax,
    torch.clamp: clip,
    torch.exp: unary("Exp", 13),
    torch.sqrt: unary("Sqrt", 13),
    torch.abs: unary("Abs", 13),
    torch.neg: unary("Neg", 13),
    operator.neg: unary("Neg", 13),
    F.batch_norm: batch_norm,
    F.linear: linear,
    **{f: max_pool(n) for n, f in enumerate((F.max_pool1d, F.max_pool2d, F.max_pool3d), 1)},
    **{f: average_pool(n) for n, f in enumerate((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), 1)},
    **{
        f: adaptive_pool(n, "AveragePool", "GlobalAveragePool")
        for n, f in enumerate((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), 1)
    },
    **{
        f: adaptive_pool(n, "MaxPool", "GlobalMaxPool")
        for n, f in enumerate((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), 1)
    },
    F.interpolate: interpolate,
    F.pad: pad,
    F.pixel_shuffle: pixel_shuffle,
    torch.pixel_shuffle: pixel_shuffle,
    torch.mean: mean,
    torch.flatten: flatten,
    torch.reshape: reshape,
    torch.permute: permute,
    torch.transpose: transpose,
    torch.unsqueeze: unsqueeze,
    torch.squeeze: squeeze,
    torch.cat: cat,
    torch.chunk: chunk,
    torch.split: split,
    operator.getitem: item,
    getattr: attribute,
    operator.floordiv: lambda builder, a, b: a // b,  # numbers only: of tensors it is not known
}
_IN_PLACE: dict[Any, Handler] = {
    torch.relu_: _relu,
    operator.iadd: _add,
    operator.isub: _sub,
    operator.imul: _mul,
    operator.itruediv: _div,
}
METHODS: dict[str, Handler] = {
    "relu": _relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "clamp": clip,
    "softmax": softmax,
    "mean": mean,
    "view": reshape,
    "reshape": reshape,
    "flatten": flatten,
    "permute": permute,
    "transpose": transpose,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "chunk": chunk,
    "split": split,
    "size": size,
    "dim": rank,
    "contiguous": contiguous,
}


def handler(kind: str, target: Any) -> tuple[Callable[..., Any], bool] | None:
    """What adds the nodes of a function or a method, and whether it changes its first argument; None if unknown."""
    if kind == "call_function":
        if target in _IN_PLACE:
            return _IN_PLACE[target], True
        return (FUNCTIONS[target], False) if target in FUNCTIONS else None
    name = str(target)
    changes = name.endswith("_")
    found = METHODS.get(name.removesuffix("_"))
    return None if found is None else (found, changes)
