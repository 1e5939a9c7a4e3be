"""Convolutions, norms, products, pooling and resizing as operators of a network; handlers as in `lowered_functions`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from leanconv.torch.lowered_shapes import reshaped
from leanconv.torch.lowering import Builder, Handler, NotLoweredError, Value, batched, one
from leanconv.torch.lowering import number as numbers


def convolution(
    builder: Builder,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
) -> Value:
    """As `F.conv2d` and its kin."""
    if not isinstance(weight, Tensor):
        raise NotLoweredError(f"{builder.here}: its weights are computed")
    image = batched(builder, input, weight.dim())
    kernel, ndim = weight.shape[2:], weight.dim() - 2
    stride, dilation = spread(stride, ndim), spread(dilation, ndim)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = list(spread(0 if padding == "valid" else padding, ndim)) * 2
    attributes = {"strides": stride, "dilations": dilation, "pads": tuple(pads), "group": groups}
    if pad_mode != "zeros":
        attributes["pad_mode"] = pad_mode
    operands: list[Value | str] = [image, builder.tensor(weight), *([] if bias is None else [builder.tensor(bias)])]
    result: Value = builder.add("leanconv.Conv", operands, attributes, version=11)
    return result


def transposed(
    builder: Builder,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """As `F.conv_transpose2d` and its kin."""
    if not isinstance(weight, Tensor):
        raise NotLoweredError(f"{builder.here}: its weights are computed")
    image = batched(builder, input, weight.dim())
    ndim = weight.dim() - 2
    attributes = {
        "strides": spread(stride, ndim),
        "dilations": spread(dilation, ndim),
        "pads": spread(padding, ndim) * 2,
        "output_padding": spread(output_padding, ndim),
        "group": groups,
    }
    operands: list[Value | str] = [image, builder.tensor(weight), *([] if bias is None else [builder.tensor(bias)])]
    result: Value = builder.add("leanconv.ConvTranspose", operands, attributes, version=11)
    return result


def spread(value: Any, ndim: int) -> tuple[int, ...]:
    """A number for each spatial axis."""
    entries = tuple(value) if isinstance(value, tuple | list) else (value,)
    entries = entries * ndim if len(entries) == 1 else entries
    if len(entries) != ndim or not all(isinstance(n, int) for n in entries):
        raise NotLoweredError(f"{value!r} is not one number for each of {ndim} axes")
    return entries


def batch_norm(
    builder: Builder,
    input: Value,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """By running statistics, as `F.batch_norm` in evaluation."""
    if training or running_mean is None or running_var is None:
        raise NotLoweredError(f"{builder.here}: statistics of the batch")
    ones = np.ones(tuple(running_mean.shape), builder.dtype(input))
    operands = (
        input,
        builder.array(ones) if weight is None else builder.tensor(weight),
        builder.array(ones * 0) if bias is None else builder.tensor(bias),
        builder.tensor(running_mean),
        builder.tensor(running_var),
    )
    result: Value = builder.add("BatchNormalization", operands, {"epsilon": eps}, version=15)
    return result


def linear(builder: Builder, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    """As `F.linear`; rows of any number of axes."""
    shape = builder.shape(input)
    if len(shape) < 2:
        raise NotLoweredError(f"{builder.here}: a single vector")
    rows = input if len(shape) == 2 else reshaped(builder, input, (math.prod(shape[:-1]), shape[-1]))
    operands: list[Value | str] = [rows, builder.tensor(weight), *([] if bias is None else [builder.tensor(bias)])]
    result: Value = builder.add("Gemm", operands, {"transB": 1}, version=13)
    return result if len(shape) == 2 else reshaped(builder, result, (*shape[:-1], weight.shape[0]))


def max_pool(ndim: int) -> Handler:
    """As `F.max_pool2d` and its kin."""

    def handle(
        builder: Builder,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        if return_indices:
            raise NotLoweredError(f"{builder.here}: indices are wanted")
        attributes = _window(ndim, kernel_size, stride, padding, ceil_mode) | {"dilations": spread(dilation, ndim)}
        result: Value = builder.add("MaxPool", (batched(builder, input, ndim + 2),), attributes, version=12)
        return result

    return handle


def average_pool(ndim: int) -> Handler:
    """As `F.avg_pool2d` and its kin."""

    def handle(
        builder: Builder,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Value:
        if divisor_override is not None:
            raise NotLoweredError(f"{builder.here}: a divisor of its own")
        attributes = _window(ndim, kernel_size, stride, padding, ceil_mode)
        attributes["count_include_pad"] = int(count_include_pad)
        result: Value = builder.add("AveragePool", (batched(builder, input, ndim + 2),), attributes, version=19)
        return result

    return handle


def _window(ndim: int, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    size = spread(kernel, ndim)
    return {
        "kernel_shape": size,
        "strides": size if stride is None or stride == [] else spread(stride, ndim),
        "pads": spread(padding, ndim) * 2,
        "ceil_mode": int(ceil_mode),
    }


def adaptive_pool(ndim: int, op: str, whole: str) -> Handler:
    """To one pixel, or to a size that divides the image's."""

    def handle(builder: Builder, input: Value, output_size: Any, return_indices: bool = False) -> Value:
        size = builder.shape(batched(builder, input, ndim + 2))[2:]
        given = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * ndim
        wanted = tuple(n if w is None else w for n, w in zip(size, given, strict=True))
        if return_indices or any(w < 1 or n % w for n, w in zip(size, wanted, strict=True)):
            raise NotLoweredError(f"{builder.here}: windows of several sizes, from {size} to {wanted}")
        if wanted == size:
            return input
        if set(wanted) == {1}:
            return one(builder, whole, input, 1)
        kernel = tuple(n // w for n, w in zip(size, wanted, strict=True))
        return one(builder, op, input, 12, kernel_shape=kernel, strides=kernel, pads=(0,) * (2 * ndim))

    return handle


def interpolate(
    builder: Builder,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    """As `F.interpolate`: nearest, linear and cubic."""
    shape = builder.shape(input)
    ndim = len(shape) - 2
    modes = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
    if mode not in modes or antialias or ndim < 1:
        raise NotLoweredError(f"{builder.here}: mode={mode!r}, antialias={antialias}")
    if scale_factor is not None:
        factors = [float(f) for f in (scale_factor if isinstance(scale_factor, tuple | list) else [scale_factor])]
        factors = factors * ndim if len(factors) == 1 else factors
        out = [math.floor(n * f) for n, f in zip(shape[2:], factors, strict=True)]
        if recompute_scale_factor:
            factors = [m / n for m, n in zip(out, shape[2:], strict=True)]
    else:
        out = list(spread(size, ndim))
        factors = [m / n for m, n in zip(out, shape[2:], strict=True)]
    if mode == "nearest":
        _check_nearest(builder, shape[2:], out, factors)
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        how = {"coordinate_transformation_mode": "align_corners" if align_corners else "pytorch_half_pixel"}
    attributes = {"mode": modes[mode], "cubic_coeff_a": -0.75, **how}
    if scale_factor is None:
        operands = ("", "", builder.array(numbers([*shape[:2], *out])))
    else:
        operands = ("", builder.array(np.asarray([1.0, 1.0, *factors], np.float32)), "")
    result: Value = builder.add("Resize", (input, *operands), attributes, version=13)
    if builder.shape(result)[2:] != tuple(out):
        raise NotLoweredError(f"{builder.here}: a factor that rounds to another size")
    return result


def _check_nearest(builder: Builder, size: tuple[int, ...], out: list[int], factors: list[float]) -> None:
    """PyTorch multiplies in single precision; refuse where that meets other pixels than division does."""
    for n, m, factor in zip(size, out, factors, strict=True):
        theirs = np.floor(np.arange(m, dtype=np.float32) * np.float32(1 / factor))
        if not np.array_equal(np.minimum(theirs, n - 1), np.minimum(np.floor(np.arange(m) / factor), n - 1)):
            raise NotLoweredError(f"{builder.here}: pixels between two, from {n} to {m}")
