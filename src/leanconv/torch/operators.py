"""The operators as PyTorch's dispatcher knows them: what `torch.compile` and `torch.export` keep in their graphs.

`leanconv::convolution` and its two gradients, with options as ints, texts and lists of ints
(`LayerOptions.arguments`). Calls that nothing traces do not come here: see `maps.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.torch import engine, gradients
from leanconv.torch.options import from_arguments
from leanconv.torch.tensors import check_tensors, dense_strides, is_channels_last

OPTIONS = (
    "int[] stride, int[] pads, int[] dilation, int groups, str pad_mode, str activation, str residual_order, "
    "str algorithm, str accuracy, bool deterministic, str choose, int? memory_limit, int? threads, bool? channels_last"
)
COUNT = OPTIONS.count(",") + 1


def _operator(name: str, arguments: str, function: Any) -> Any:
    schema = f"({arguments}, {OPTIONS}) -> Tensor"
    op = torch.library.custom_op(f"leanconv::{name}", function, mutates_args=(), device_types="cpu", schema=schema)
    # Half types are widened: the engine computes in single and double precision.
    op.register_autocast("cpu", torch.float32)
    return op


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    return engine.forward(from_arguments(weight.dim() - 2, arguments), x, weight, bias, residual)


def _data(grad: Tensor, weight: Tensor, in_size: Sequence[int], *arguments: Any) -> Tensor:
    return gradients.data_gradient(from_arguments(weight.dim() - 2, arguments), grad, weight, in_size)


def _weights(x: Tensor, grad: Tensor, kernel: Sequence[int], *arguments: Any) -> Tensor:
    return gradients.weight_gradient(from_arguments(len(kernel), arguments), x, grad, kernel)


convolution = _operator("convolution", "Tensor input, Tensor weight, Tensor? bias, Tensor? residual", _forward)
convolution_data = _operator("convolution_data", "Tensor grad, Tensor weight, SymInt[] in_size", _data)
convolution_weights = _operator("convolution_weights", "Tensor input, Tensor grad, SymInt[] kernel", _weights)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    return like.new_empty_strided(tuple(shape), dense_strides(tuple(shape), channels_last))


@convolution.register_fake  # type: ignore[untyped-decorator]
def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    options = from_arguments(weight.dim() - 2, arguments)
    check_tensors(options.ndim, x, weight, bias, residual)
    single = x.dim() == options.ndim + 1
    shape, strides = engine.batched(x, single)
    torch._check(
        shape[1] == weight.shape[1] * options.groups,
        lambda: f"input has {shape[1]} channels, weight and groups want {weight.shape[1] * options.groups}",
    )
    out = (shape[0], weight.shape[0], *options.output_size(shape[2:], weight.shape[2:]))
    last = is_channels_last(shape, strides) if options.channels_last is None else options.channels_last
    if single:
        return x.new_empty_strided(out[1:], dense_strides(out, last)[1:])
    return _empty(x, out, last)


@convolution_data.register_fake  # type: ignore[untyped-decorator]
def _fake_data(grad: Tensor, weight: Tensor, in_size: Sequence[int], *arguments: Any) -> Tensor:
    options = from_arguments(weight.dim() - 2, arguments)
    shape = (grad.shape[0], weight.shape[1] * options.groups, *in_size)
    return _empty(grad, shape, is_channels_last(tuple(grad.shape), tuple(grad.stride())))


@convolution_weights.register_fake  # type: ignore[untyped-decorator]
def _fake_weights(x: Tensor, grad: Tensor, kernel: Sequence[int], *arguments: Any) -> Tensor:
    options = from_arguments(len(kernel), arguments)
    return _empty(x, (grad.shape[1], x.shape[1] // options.groups, *kernel), False)
