"""Slopes of the activations, for gradients: from the result where it tells, else from what went in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.problem import Activation


def _between(a: Tensor, low: float, high: float) -> Tensor:
    return ((a > low) & (a < high)).to(a.dtype)


def _gelu(a: Tensor) -> Tensor:
    return 0.5 * torch.erfc(a * -math.sqrt(0.5)) + a * torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)


def _silu(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 + a * (1 - s))


def _hardswish(a: Tensor) -> Tensor:
    return torch.where(a.abs() < 3, a / 3 + 0.5, (a > 0).to(a.dtype))


# Where an activation bends, PyTorch's choice of the two slopes.
_BY_OUTPUT: dict[str, Callable[..., Tensor]] = {
    "relu": lambda y: (y > 0).to(y.dtype),
    "relu6": lambda y: _between(y, 0.0, 6.0),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "hardsigmoid": lambda y: _between(y, 0.0, 1.0) / 6,
}
_BY_INPUT: dict[str, Callable[..., Tensor]] = {
    "clip": lambda a, low, high: ((a >= low) & (a <= high)).to(a.dtype),
    "leaky_relu": lambda a, slope: (a > 0).to(a.dtype) * (1 - slope) + slope,
    "silu": _silu,
    "hardswish": _hardswish,
    "gelu": _gelu,
}


def slope_from_output(activation: Activation | None) -> bool:
    """Whether the slope follows from the activation's result; true of no activation."""
    return activation is None or activation.name in _BY_OUTPUT


def slope(activation: Activation, *, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
    """The activation's derivative, from what went into it or from its result."""
    if after is not None:
        return _BY_OUTPUT[activation.name](after)
    assert before is not None
    if activation.name in _BY_OUTPUT:
        return _BY_OUTPUT[activation.name](apply(activation, before))
    return _BY_INPUT[activation.name](before, *activation.params)


def apply(activation: Activation, tensor: Tensor) -> Tensor:
    """The activation by PyTorch's own operator."""
    return by_name(activation.name, activation.params, tensor)


def by_name(name: str, numbers: Sequence[float], tensor: Tensor) -> Tensor:
    """The activation of a name, with its numbers, by PyTorch's own operator."""
    return _FUNCTIONS[name](tensor, *numbers)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "clip": torch.clamp,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
