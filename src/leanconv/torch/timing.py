"""What a model's nodes give, and how long they take: the least of a few rounds, after one to warm up."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, fx, nn

ROUNDS = 3


def whole(model: nn.Module, example: tuple[Any, ...]) -> float:
    """Seconds of a call without gradients."""
    with torch.no_grad():
        model(*example)
        return min(_timed(model, example) for _ in range(ROUNDS))


def _timed(model: nn.Module, example: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    model(*example)
    return time.perf_counter() - start


class _Timer(fx.Interpreter):  # type: ignore[misc]
    """Runs a graph node by node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, float] = {}

    def run_node(self, node: fx.Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(node)
        taken = time.perf_counter() - start
        self.seconds[node.name] = min(taken, self.seconds.get(node.name, taken))
        return result


class _Types(fx.Interpreter):  # type: ignore[misc]
    """Notes the shape and element type of each node's result; `torch.fx`'s own loads more modules than PyTorch's."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.types: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            self.types[node.name] = (tuple(result.shape), result.dtype)
        return result


def types(model: nn.Module, graph: fx.Graph, example: tuple[Any, ...]) -> dict[str, Any]:
    """Something for each node that is equal where shape and element type of its result are."""
    found = _Types(fx.GraphModule(model, graph))
    found.run(*example)
    return found.types


def nodes(model: nn.Module, graph: fx.Graph | fx.GraphModule, example: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of each node of a graph, by name."""
    timer = _Timer(graph if isinstance(graph, fx.GraphModule) else fx.GraphModule(model, graph))
    with torch.no_grad():
        timer.run(*example)
        timer.seconds.clear()
        for _ in range(ROUNDS):
            timer.run(*example)
    return timer.seconds
