"""A graph that `torch.compile` has captured, as one network: its weights are among its inputs, and told apart here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from leanconv.torch.engine import limit_of, readable
from leanconv.torch.functional import unobserved
from leanconv.torch.options import LayerOptions
from leanconv.torch.ready import Ready
from leanconv.torch.recipe import recipe_of
from leanconv.torch.tensors import DTYPES
from leanconv.torch.threads import num_threads
from leanconv.torch.whole import Whole

CONVOLUTIONS = (
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)
_WEIGHTED = (*CONVOLUTIONS, F.batch_norm, F.linear, F.prelu)  # all tensors but the first are weights

_log = logging.getLogger("leanconv.torch")


class Captured:
    """What runs in a graph's place: one native call where evaluation allows it, else layer by layer.

    Why it is layer by layer is logged, once for each reason. Two modules of one class may share a graph; their weights
    are looked at in each call.

    Attributes:
        layers: the graph layer by layer.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], options: LayerOptions) -> None:
        """Read the graph, which may be changed afterwards.

        Args:
            module: what was captured.
            example_inputs: one for each of its placeholders.
            options: of all layers; their geometry means nothing here.
        """
        self._whole = Whole(recipe_of(module.graph), module, options)
        self._weights = weights(module.graph, example_inputs)
        self._options = options
        self.layers: Callable[..., Any] = module.forward
        self._said: set[str] = set()

    def __call__(self, *args: Any) -> Any:
        """Run the graph."""
        recording = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if recording or not unobserved():
            return self.layers(*args)
        images: dict[str, Tensor] = {}
        known: dict[str, Any] = {}
        for name, value in zip(self._whole.inputs, args, strict=True):
            (known if name in self._weights or not isinstance(value, Tensor) else images)[name] = value
        why = next((f"{name} is {_kind(t)}" for name, t in images.items() if not _taken(t)), None)
        with torch.no_grad():
            threads, limit = self._options.threads or num_threads(), limit_of(self._options)
            ready = why or self._whole.ready(images, threads, limit, known)
            if isinstance(ready, Ready):
                return ready.run(images)
        if ready not in self._said:
            self._said.add(ready)
            _log.warning("torch.compile: a graph runs layer by layer: %s", ready)
        return self.layers(*args)


def weights(graph: fx.Graph, example_inputs: Sequence[Any]) -> set[str]:
    """Names of the placeholders that layers are made of: parameters, and what only stands where weights do."""
    found = set()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, example in zip(placeholders, example_inputs, strict=True):
        only = bool(node.users) and all(
            user.op == "call_function"
            and user.target in _WEIGHTED
            and node not in (*user.args[:1], user.kwargs.get("input"))
            for user in node.users
        )
        if only or isinstance(example, nn.Parameter):
            found.add(node.name)
    return found


def _taken(tensor: Tensor) -> bool:
    return readable(tensor) and tensor.dtype in DTYPES


def _kind(tensor: Tensor) -> str:
    return f"a {type(tensor).__name__} of {tensor.dtype} on {tensor.device}"
