"""`torch.compile(model, backend="leanconv")`: graphs with convolutions as one network in evaluation, or layer by layer.

Layer by layer means: convolutions fused and computed here, everything else by PyTorch eagerly. Registered through the
entry point `torch_dynamo_backends` of the installed package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.torch import activations, functional
from leanconv.torch.captured import CONVOLUTIONS, Captured
from leanconv.torch.fusion import Chain, chains, views_as_reshapes
from leanconv.torch.layer import Fold
from leanconv.torch.options import LayerOptions
from leanconv.torch.options import options as layer_options
from leanconv.torch.packed import PackedWeights

_NDIM = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_NAMES = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "cudnn_enabled",
)


_SETTINGS = ("algorithm", "accuracy", "deterministic", "memory_limit", "threads")


def backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """A backend of `torch.compile`: graphs with convolutions by leanconv, all else as it is.

    A graph in evaluation without gradients is compiled into one native call when it first runs with inputs of a kind;
    one that cannot be, or records gradients, runs layer by layer.

    Args:
        module: what was captured; weights are among its inputs.
        example_inputs: one for each input, to tell weights from images.
        options: what `torch.compile(..., options=)` was given: algorithm, accuracy, deterministic, memory_limit and
            threads, as in `leanconv.torch.swap`; layer by layer the limit is for each layer.

    Raises:
        ArgumentTypeError: an option of the wrong type.
        ArgumentValueError: an option that does not exist, or a value that is not allowed.
    """
    settings = _settings(options)
    if not any(node.op == "call_function" and node.target in CONVOLUTIONS for node in module.graph.nodes):
        forward: Callable[..., Any] = module.forward
        return forward
    captured = Captured(module, example_inputs, layer_options(2, **settings))
    captured.layers = by_layers(module, settings)
    return captured


def _settings(given: Any) -> dict[str, Any]:
    """Options, checked."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ArgumentTypeError("options", given, "must be a dict")
    for name in given:
        if name not in _SETTINGS:
            raise ArgumentValueError("options", name, f"must be of {', '.join(_SETTINGS)}")
    return given


def by_layers(module: fx.GraphModule, settings: dict[str, Any]) -> Callable[..., Any]:
    """A graph with its convolutions computed here, and what can be fused with them; `module` is changed."""
    graph = module.graph
    instead: dict[fx.Node | None, fx.Node] = {}
    for chain in chains(graph, _Functions()):
        given = _arguments(chain.conv, _NAMES)
        layer = CompiledLayer(_NDIM[chain.conv.target], given, chain, settings)
        norm = {} if chain.norm is None else _arguments(chain.norm, _NORM_NAMES)
        sources = [given["weight"], given.get("bias")]
        if chain.norm is not None:
            sources += [norm.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
        last = chain.nodes[-1]
        with graph.inserting_after(last):
            residual = instead.get(chain.residual, chain.residual)
            node = graph.call_function(layer, (given["input"], residual, *sources))
        last.replace_all_uses_with(node)
        instead[last] = node
        for old in reversed(chain.nodes):
            graph.erase_node(old)
    views_as_reshapes(graph)
    graph.lint()
    module.recompile()
    forward: Callable[..., Any] = module.forward
    return forward


class CompiledLayer:
    """A chain as one function of its tensors: fused where no gradient is recorded, else step by step."""

    def __init__(self, ndim: int, given: dict[str, Any], chain: Chain, settings: dict[str, Any]) -> None:
        """`given`: the convolution's arguments, of which those that are numbers count here."""
        geometry = [given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
        self._given = (ndim, *map(_hashable, geometry), given.get("groups", 1))
        self._settings = settings
        self._more = {"activation": chain.activation, "residual_order": chain.residual_order}
        eps = None if chain.norm is None else _arguments(chain.norm, _NORM_NAMES).get("eps", 1e-5)
        self._eps = eps
        self._packed = PackedWeights(Fold(eps))
        self.__name__ = chain.text.replace("+", "_")

    def options(self, weight: Tensor, fused: bool) -> LayerOptions:
        """Of the layer; without what is fused if it runs step by step."""
        if not fused:
            return layer_options(*self._given, tuple(weight.shape[2:]), **self._settings)
        last = True if weight.dim() > 3 else None
        return layer_options(*self._given, tuple(weight.shape[2:]), channels_last=last, **self._more, **self._settings)

    def __call__(self, x: Tensor, residual: Tensor | None, *sources: Tensor | None) -> Tensor:
        """The layer; `sources`: weight, bias, and the four tensors of the batch norm if there is one."""
        weight, bias, *norm = sources
        assert weight is not None
        others = [t for t in norm if t is not None]
        if (
            functional.plain(x, weight, bias, residual)
            and not functional.recorded(x, weight, bias, residual)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in others))
            and functional.unobserved()
        ):
            return self._packed.run(self.options(weight, True), x, sources, residual)
        y = functional.apply(self.options(weight, False), x, weight, bias, None)
        if norm:
            gain, shift, mean, variance = norm
            y = F.batch_norm(y, mean, variance, gain, shift, False, 0.0, self._eps or 0.0)
        before = self._more["residual_order"] == "before"
        if residual is not None and before:
            y = y + residual
        activation = self.options(weight, True).activation
        if activation is not None:
            y = activations.apply(activation, y)
        return y + residual if residual is not None and not before else y


class _Functions:
    """Reads a graph whose nodes call functions, as Dynamo makes them."""

    modules: dict[str, Any]

    def __init__(self) -> None:
        self.modules = {}

    def is_convolution(self, node: fx.Node) -> bool:
        if node.op != "call_function" or node.target not in _NDIM:
            return False
        given = _arguments(node, _NAMES)
        numbers = (given.get(name) for name in ("stride", "padding", "dilation", "groups"))
        kinds = {getattr(_value(given.get(name)), "dtype", None) for name in ("input", "weight")}
        devices = {getattr(_value(given.get(name)), "device", None) for name in ("input", "weight")}
        plain = not any(isinstance(entry, fx.Node) for value in numbers for entry in _flat(value))
        return (
            plain and len(kinds) == 1 and kinds <= {torch.float32, torch.float64} and devices == {torch.device("cpu")}
        )

    def is_norm(self, node: fx.Node, conv: fx.Node) -> bool:
        if node.op != "call_function" or node.target is not F.batch_norm:
            return False
        given = _arguments(node, _NORM_NAMES)
        same = getattr(_value(given.get("running_mean")), "dtype", None) == getattr(_value(conv), "dtype", None)
        return not given.get("training", False) and given.get("running_mean") is not None and same


def _value(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _arguments(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
