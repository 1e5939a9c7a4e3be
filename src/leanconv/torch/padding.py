"""Padding that repeats the image, as PyTorch's operators: to be differentiated, where the engine is not asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def padded(x: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """An image (N, C, *spatial) with (low, high) elements added along each spatial axis."""
    if not any(map(any, pads)):
        return x
    # PyTorch's order is the last axis first.
    return F.pad(x, [end for pair in reversed(pads) for end in pair], mode=_MODES[mode])


def fold(grad: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Add what belongs to padding to the elements that it repeats: the gradient of `padded`."""
    for axis, (low, high) in enumerate(pads, 2):
        if low or high:
            source = _source(grad.shape[axis] - low - high, low, high, mode, grad.device)
            shape = [*grad.shape[:axis], grad.shape[axis] - low - high, *grad.shape[axis + 1 :]]
            grad = grad.new_zeros(shape).index_add(axis, source, grad)
    return grad


def _source(n: int, low: int, high: int, mode: str, device: torch.device) -> Tensor:
    """For each position of a padded axis, the one of the image that it repeats."""
    at = torch.arange(-low, n + high, device=device)
    if mode == "replicate":
        return at.clamp(0, n - 1)
    if mode == "circular":
        return at.remainder(n)
    return n - 1 - (n - 1 - at.abs()).abs()
