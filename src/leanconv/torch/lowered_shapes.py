"""Reshaping, joining, cutting and reducing tensors, as operators of a network; handlers as in `lowered_functions`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from leanconv.torch.lowering import Builder, NotLoweredError, Value, batched, one
from leanconv.torch.lowering import number as numbers


def reshaped(builder: Builder, input: Value, shape: Any) -> Value:
    """The same elements in order, under another shape."""
    operands = (input, builder.array(numbers(shape)))
    result: Value = builder.add("Reshape", operands, {"allowzero": 1}, version=14, view=True)
    return result


def flatten(builder: Builder, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """As `torch.flatten`."""
    shape = builder.shape(input)
    first, last = start_dim % len(shape), end_dim % len(shape)
    return reshaped(builder, input, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


def reshape(builder: Builder, input: Value, *shape: Any) -> Value:
    """As `Tensor.reshape` and `Tensor.view`."""
    wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if not all(isinstance(n, int) for n in wanted):
        raise NotLoweredError(f"{builder.here}: not a shape")
    return reshaped(builder, input, wanted)


def permute(builder: Builder, input: Value, *dims: Any) -> Value:
    """As `Tensor.permute`."""
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    perm = tuple(axis % len(order) for axis in order)
    result: Value = builder.add("Transpose", (input,), {"perm": perm}, version=13, view=True)
    return result


def transpose(builder: Builder, input: Value, dim0: int, dim1: int) -> Value:
    """As `torch.transpose`."""
    order = list(range(len(builder.shape(input))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(builder, input, order)


def unsqueeze(builder: Builder, input: Value, dim: int) -> Value:
    """As `torch.unsqueeze`."""
    result: Value = builder.add("Unsqueeze", (input, builder.array(numbers(dim))), version=13, view=True)
    return result


def squeeze(builder: Builder, input: Value, dim: int) -> Value:
    """As `torch.squeeze` of one named axis."""
    if builder.shape(input)[dim] != 1:
        return input
    result: Value = builder.add("Squeeze", (input, builder.array(numbers(dim))), version=13, view=True)
    return result


def cat(builder: Builder, tensors: Any, dim: int = 0) -> Value:
    """As `torch.cat`."""
    if len({builder.dtype(each) for each in tensors}) != 1:
        raise NotLoweredError(f"{builder.here}: several element types")
    axis = dim % len(builder.shape(tensors[0]))
    result: Value = builder.add("Concat", tuple(tensors), {"axis": axis}, version=13)
    return result


def chunk(builder: Builder, input: Value, chunks: int, dim: int = 0) -> Any:
    """As `torch.chunk`."""
    extent = builder.shape(input)[dim]
    return split(builder, input, -(-extent // chunks), dim)


def split(builder: Builder, input: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    """As `torch.split`."""
    extent, axis = builder.shape(input)[dim], dim % len(builder.shape(input))
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        sections = [min(size, extent - first) for first in range(0, extent, size)]
    else:
        sections = list(split_size_or_sections)
    operands = (input, builder.array(numbers(sections)))
    found = builder.add("Split", operands, {"axis": axis}, version=13, outputs=len(sections), view=True)
    return found if len(sections) > 1 else (found,)


def item(builder: Builder, container: Any, index: Any) -> Any:
    """An element of a tuple or of a shape, or slices of a tensor."""
    if not isinstance(container, Value):
        return container[index]
    parts = list(index) if isinstance(index, tuple) else [index]
    shape = builder.shape(container)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    if len(parts) > len(shape) or not all(isinstance(part, slice | int) for part in parts):
        raise NotLoweredError(f"{builder.here}: an index that is no slice")
    starts: list[int] = []
    ends: list[int] = []
    axes: list[int] = []
    steps: list[int] = []
    dropped: list[int] = []
    for axis, (part, n) in enumerate(zip(parts, shape, strict=False)):
        if isinstance(part, int):
            at = range(n)[part]
            part = slice(at, at + 1)
            dropped.append(axis)
        found = part.indices(n)
        if found != (0, n, 1):
            for values, value in zip((starts, ends, axes, steps), (found[0], found[1], axis, found[2]), strict=True):
                values.append(value)
    result = container
    if axes:
        operands: tuple[Value | str, ...] = (
            container,
            *(builder.array(numbers(values)) for values in (starts, ends, axes, steps)),
        )
        result = builder.add("Slice", operands, version=13, view=True)
    if dropped:
        result = builder.add("Squeeze", (result, builder.array(numbers(dropped))), version=13, view=True)
    return result


def size(builder: Builder, input: Value, dim: int | None = None) -> Any:
    """As `Tensor.size`."""
    return torch.Size(builder.shape(input)) if dim is None else builder.shape(input)[dim]


def attribute(builder: Builder, input: Any, name: str) -> Any:
    """`x.shape` and `x.ndim`."""
    if isinstance(input, Value) and name in ("shape", "ndim"):
        return torch.Size(builder.shape(input)) if name == "shape" else len(builder.shape(input))
    raise NotLoweredError(f"{builder.here}: .{name}")


def rank(builder: Builder, input: Value) -> int:
    """As `Tensor.dim`."""
    return len(builder.shape(input))


def pixel_shuffle(builder: Builder, input: Value, upscale_factor: int) -> Value:
    """As `F.pixel_shuffle`."""
    image = batched(builder, input, 4)
    return one(builder, "DepthToSpace", image, 13, blocksize=upscale_factor, mode="CRD")


def pad(builder: Builder, input: Value, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    """As `F.pad`; nothing is cut off."""
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    rank, found = len(builder.shape(input)), list(pad)
    if mode not in modes or any(not isinstance(n, int) or n < 0 for n in found) or len(found) > 2 * rank:
        raise NotLoweredError(f"{builder.here}: pad={pad}, mode={mode!r}")
    low = [0] * (rank - len(found) // 2) + found[::2][::-1]
    high = [0] * (rank - len(found) // 2) + found[1::2][::-1]
    operands: list[Value | str] = [input, builder.array(numbers([*low, *high]))]
    if mode == "constant":
        operands.append(builder.array(np.asarray(value or 0.0, builder.dtype(input))))
    result: Value = builder.add("Pad", operands, {"mode": modes[mode]}, version=13)
    return result


def mean(builder: Builder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """As `torch.mean` over named axes."""
    if dim is None or dtype is not None:
        raise NotLoweredError(f"{builder.here}: a mean over all axes, or of another element type")
    axes = builder.array(numbers(dim))
    result: Value = builder.add("ReduceMean", (input, axes), {"keepdims": 1}, version=18)
    if keepdim:
        return result
    found: Value = builder.add("Squeeze", (result, axes), version=13)
    return found


def contiguous(builder: Builder, input: Value, memory_format: Any = None) -> Value:
    """Memory formats are the network's own affair."""
    return input
