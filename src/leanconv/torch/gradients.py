"""Gradients of a convolution with respect to its image and its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.torch.options import LayerOptions
from leanconv.torch.padding import padded
from leanconv.torch.tensors import check_tensor


def data_gradient(options: LayerOptions, grad: Tensor, weight: Tensor, in_size: Sequence[int]) -> Tensor:
    """The gradient with respect to an image of extents `in_size`, padded by zeros."""
    check_tensor("grad", grad)
    check_tensor("weight", weight)
    sizes = [n + low + high for n, (low, high) in zip(in_size, options.pads, strict=True)]
    shape = (grad.shape[0], weight.shape[1] * options.groups, *sizes)
    whole = _aten(options, grad, weight.new_empty(1).expand(shape), weight, (True, False, False))[0]
    for axis, (n, (low, _)) in enumerate(zip(in_size, options.pads, strict=True), 2):
        whole = whole.narrow(axis, low, n)
    return whole.contiguous()


def weight_gradient(options: LayerOptions, x: Tensor, grad: Tensor, kernel: Sequence[int]) -> Tensor:
    """The gradient with respect to weights of extents `kernel`."""
    check_tensor("input", x)
    check_tensor("grad", grad)
    image = padded(x, options.pads, "zeros")
    shape = (grad.shape[1], x.shape[1] // options.groups, *kernel)
    return _aten(options, grad, image, x.new_empty(1).expand(shape), (False, True, False))[1]


def _aten(
    options: LayerOptions, grad: Tensor, image: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor]:
    zeros = [0] * options.ndim
    found: tuple[Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, image, weight, None, options.stride, zeros, options.dilation, False, zeros, options.groups, mask
    )
    return found
