"""One layer of a fused network: convolution, batch norm folded into it, residual and activation in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.locks import new_lock
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.torch import engine
from leanconv.torch.options import LayerOptions
from leanconv.torch.packed import PackedWeights, Sources
from leanconv.torch.threads import num_threads


class Network:
    """What the layers of one network share: plans made together, and the guard of limited memory."""

    def __init__(self) -> None:
        self.plans: dict[tuple[int, Problem, int, int | None], Plan] = {}
        self.guard = new_lock()  # concurrent callers share the one workspace that a limit leaves room for
        self.recorded: list[tuple[FusedLayer, Problem]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Network, ()


class FusedLayer(nn.Module):  # type: ignore[misc]
    """A layer of a graph that stands for several modules; their parameters stay where they are.

    Called with the image and, if there is one, the residual. Nothing of it records gradients.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module | None, options: LayerOptions, network: Network) -> None:
        """`conv`, `norm`: modules of the model, looked at at each call."""
        super().__init__()
        self.conv, self.norm = conv, norm
        self.options = options
        self.network = network
        self.packed = PackedWeights(Fold(None if norm is None else norm.eps))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer, channels last inside and out."""
        network = self.network
        if network.recorded is not None and not engine.readable(x):
            return self._record(x, residual)
        if not engine.readable(x) or (residual is not None and not engine.readable(residual)):
            return engine.forward(self.options, x, *self.packed.fold(self.sources()), residual)
        guard = None if engine.limit_of(self.options) is None else network.guard
        return self.packed.run(self.options, x, self.sources(), residual, self._planned, guard)

    def sources(self) -> Sources:
        """The tensors that weights and bias are made of."""
        conv, norm = self.conv, self.norm
        if norm is None:
            return conv.weight, conv.bias
        return conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var

    def _planned(self, problem: Problem) -> Plan | None:
        options = self.options
        return self.network.plans.get((id(self), problem, options.threads or num_threads(), engine.limit_of(options)))

    def _record(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Note the problem of a tensor without memory, and return such an output."""
        weight, bias = self.packed.fold(self.sources())
        problem = engine.problem_of(self.options, x, weight, bias, residual)
        assert self.network.recorded is not None
        self.network.recorded.append((self, problem))
        shape, strides = engine.output_of(problem, x.dim() == self.options.ndim + 1)
        return x.new_empty_strided(shape, strides)


class Fold:
    """Batch norm folded into weights and bias: w * scale and (bias - mean) * scale + shift."""

    def __init__(self, eps: float | None) -> None:
        self.eps = eps

    def __call__(self, sources: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Weights and bias of (weight, bias), or of these and the norm's gain, shift, mean and variance."""
        weight, bias, *norm = sources
        if self.eps is None:
            return weight, bias
        with torch.no_grad():
            wide: list[Any] = [None if t is None else t.double() for t in norm]
            gain, shift, mean, variance = wide
            scale = torch.rsqrt(variance + self.eps)
            if gain is not None:
                scale = scale * gain
            folded = -mean * scale if bias is None else (bias.double() - mean) * scale
            if shift is not None:
                folded = folded + shift
            ones = [1] * (weight.dim() - 1)
            # The weights themselves are not widened: that would take three times their size.
            return weight * scale.to(weight.dtype).view(-1, *ones), folded.to(weight.dtype)
