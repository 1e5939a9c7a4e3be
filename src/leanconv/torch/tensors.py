"""Tensors at the border: which ones the engine reads where they lie, and in which order of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Buffer, Parameter

from leanconv.arrays import Array
from leanconv.errors import ArgumentTypeError, ArgumentValueError

PLAIN = frozenset((Tensor, Parameter, Buffer))
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
STRIDED = torch.strided


def check_tensor(argument: str, tensor: Any) -> None:
    """Check that something is a tensor of an element type, layout and device that the engine reads.

    Raises:
        ArgumentTypeError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(argument, tensor, f"must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise ArgumentTypeError(argument, tensor, "must have element type torch.float32 or torch.float64")
    if tensor.layout is not STRIDED:
        raise ArgumentTypeError(argument, tensor, f"must be a dense tensor, not one of {tensor.layout}")
    if tensor.device.type not in ("cpu", "meta"):
        raise ArgumentTypeError(argument, tensor, f"must be in the CPU's memory, not on {tensor.device}")


def check_tensors(ndim: int, x: Any, weight: Any, bias: Any, residual: Any, transposed: bool = False) -> None:
    """Check the tensors of a layer against each other; the engine checks the rest.

    Raises:
        ArgumentTypeError: something that is no tensor that the engine reads, or two element types.
        ArgumentValueError: a number of axes or channels, or a bias, that does not fit.
    """
    for argument, tensor in (("input", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is None and argument in ("bias", "residual"):
            continue
        check_tensor(argument, tensor)
        if tensor.dtype != x.dtype:
            raise ArgumentTypeError(argument, tensor, f"must have the element type of input, {x.dtype}")
    axes = {1: "L", 2: "H, W", 3: "D, H, W"}[ndim]
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ArgumentValueError("input", x, f"must have the axes (N, C, {axes}), or (C, {axes}) for a single image")
    if weight.dim() != ndim + 2:
        kernel = {1: "S", 2: "R, S", 3: "T, R, S"}[ndim]
        first = "C, K/groups" if transposed else "K, C/groups"
        raise ArgumentValueError("weight", weight, f"must have the axes ({first}, {kernel})")
    if bias is not None and bias.dim() != 1:
        raise ArgumentValueError("bias", bias, "must have one axis, (K,)")


def check_transposed(options: Any, x: Tensor, weight: Tensor, bias: Any, residual: Any) -> None:
    """Check the tensors of a transposed convolution against each other.

    Raises:
        ArgumentTypeError: something that is no tensor that the engine reads, or two element types.
        ArgumentValueError: shapes that do not fit.
    """
    ndim = options.ndim
    check_tensors(ndim, x, weight, bias, residual, True)
    channels = x.shape[-1 - ndim]
    if channels % options.groups:
        raise ArgumentValueError("groups", options.groups, f"must divide the {channels} input channels")
    if weight.shape[0] != channels:
        raise ArgumentValueError("weight", weight, f"must have C = {channels} channels, as input has")
    outputs = weight.shape[1] * options.groups
    if bias is not None and bias.shape[0] != outputs:
        raise ArgumentValueError("bias", bias, f"must have shape ({outputs},), one for each output channel")
    size = options.output_size(x.shape[-ndim:], weight.shape[2:])
    if min(size) < 1:
        raise ArgumentValueError("padding", options.pads, f"leaves an output of extents {tuple(size)}")
    shape = (*x.shape[: -1 - ndim], outputs, *size)
    if residual is not None and tuple(residual.shape) != shape:
        raise ArgumentValueError("residual", residual, f"must have the output's shape {shape}")


def is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the channels of a batched image (N, C, *spatial) are neighbours in memory.

    Where an image of one pixel or one channel could be either, its strides decide as in PyTorch.
    """
    if strides[1] != 1:
        return False
    if strides[-1] != 1:
        return True
    pixels = 1
    for extent in shape[2:]:
        pixels *= extent
    return shape[1] == 1 and pixels > 1


def dense_strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Strides of a dense tensor (N, C, *spatial) of a memory format."""
    order = (*range(len(shape) - 1, 1, -1), 1, 0) if not channels_last else (1, *range(len(shape) - 1, 1, -1), 0)
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step = step * max(shape[axis], 1)
    return tuple(strides)


def as_array(tensor: Tensor) -> Array:
    """A tensor's elements as an array on the same memory; of a negated view, a copy."""
    array: Array = tensor.detach().resolve_neg().numpy()
    return array


def numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    """The element type as NumPy names it."""
    return np.dtype(DTYPES[tensor.dtype])
