"""What vmap does with a layer: the extra axis becomes part of the batch, or of the groups.

Images that differ join the batch. Weights that differ become groups of one larger convolution. Each rule is given the
map that it is for, and returns the result with the mapped axis first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from leanconv.torch.options import LayerOptions

Dims = Sequence[int | None]


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the mapped axis first; repeated (without a copy) if it has none."""
    return tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)


def _into(tensor: Tensor, axis: int) -> Tensor:
    """The first axis merged into a later one, before its elements; `axis` counts without the first."""
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def _out_of(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The first axis again, from the axis that it was merged into."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size)).movedim(axis, 0)


def convolution(
    convolve: Callable[..., Tensor],
    size: int,
    dims: Dims,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    residual: Any,
    options: LayerOptions,
) -> tuple[Tensor, int]:
    """Of C(x, w), with bias and residual."""
    images = _front(x, dims[0], size)
    extra = None if residual is None else _front(residual, dims[3], size)
    single = images.dim() == options.ndim + 2
    if single:
        images = images.unsqueeze(1)
        extra = None if extra is None else extra.unsqueeze(1)
    if dims[1] is None and dims[2] is None:
        joined = None if extra is None else extra.flatten(0, 1)
        out = _out_of(convolve(options, images.flatten(0, 1), weight, bias, joined), 0, size)
    else:
        shift = None if bias is None else _front(bias, dims[2], size).flatten()
        joined = None if extra is None else _into(extra, 1)
        weights = _front(weight, dims[1], size).flatten(0, 1)
        out = _out_of(convolve(options.grouped(size), _into(images, 1), weights, shift, joined), 1, size)
    return (out.squeeze(1) if single else out), 0


def data_gradient(
    image_gradient: Callable[..., Tensor],
    size: int,
    dims: Dims,
    grad: Tensor,
    weight: Tensor,
    in_size: Sequence[int],
    options: LayerOptions,
) -> tuple[Tensor, int]:
    """Of D(g, w)."""
    grads = _front(grad, dims[0], size)
    if dims[1] is None:
        return _out_of(image_gradient(options, grads.flatten(0, 1), weight, in_size), 0, size), 0
    weights = _front(weight, dims[1], size).flatten(0, 1)
    return _out_of(image_gradient(options.grouped(size), _into(grads, 1), weights, in_size), 1, size), 0


def weight_gradient(
    kernel_gradient: Callable[..., Tensor],
    size: int,
    dims: Dims,
    x: Tensor,
    grad: Tensor,
    kernel: Sequence[int],
    options: LayerOptions,
) -> tuple[Tensor, int]:
    """Of W(x, g)."""
    images, grads = _front(x, dims[0], size), _front(grad, dims[1], size)
    found = kernel_gradient(options.grouped(size), _into(images, 1), _into(grads, 1), kernel)
    return _out_of(found, 0, size), 0
