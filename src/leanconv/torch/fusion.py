"""What of a traced network becomes one layer: a convolution, its batch norm, an addition and an activation.

A chain ends where anything else wants the value in between, where a module has hooks, or where something in between
changes tensors in place. The fused layer stands where the chain ended, so that a residual is there by then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

_MODULES: dict[type, Callable[[Any], Any]] = {
    nn.ReLU: lambda m: "relu",
    nn.ReLU6: lambda m: "relu6",
    nn.Hardtanh: lambda m: ("clip", m.min_val, m.max_val),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.Sigmoid: lambda m: "sigmoid",
    nn.SiLU: lambda m: "silu",
    nn.Hardswish: lambda m: "hardswish",
    nn.Hardsigmoid: lambda m: "hardsigmoid",
    nn.GELU: lambda m: "gelu" if m.approximate == "none" else None,
    nn.Tanh: lambda m: "tanh",
}
# Called with the tensor alone, but for `inplace`.
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.relu6: "relu6",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.gelu: "gelu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh"}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass
class Chain:
    """A convolution and what is fused with it.

    Attributes:
        conv: its node.
        nodes: all of the chain, the convolution first.
        norm: the node of its batch norm, or None.
        activation: as leanconv spells it, or None.
        residual: the node that is added, or None.
        residual_order: "before" or "after" the activation.
    """

    conv: fx.Node
    nodes: list[fx.Node]
    norm: fx.Node | None = None
    activation: Any = None
    residual: fx.Node | None = None
    residual_order: str = "before"
    done: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        """What is fused, in words: "conv+bn+add+relu"."""
        name = self.activation if isinstance(self.activation, str) else self.activation and self.activation[0]
        words = ["conv", "bn" if self.norm else None, name]
        if self.residual is not None:
            words.insert(2 if self.residual_order == "before" else 3, "add")
        return "+".join(word for word in words if word)


class Modules:
    """Reads a graph whose nodes call modules."""

    def __init__(self, modules: dict[str, nn.Module], convolutions: dict[str, nn.Module]) -> None:
        """`convolutions`: those of `modules` that are to be computed here."""
        self.modules, self.convolutions = modules, convolutions

    def is_convolution(self, node: fx.Node) -> bool:
        """Whether a chain may begin here."""
        known = node.op == "call_module" and node.target in self.convolutions
        return known and len(node.args) == 1 and not node.kwargs

    def is_norm(self, node: fx.Node, conv: fx.Node) -> bool:
        """Whether a node is a batch norm that can be folded into a convolution."""
        module: Any = self.modules[str(node.target)] if node.op == "call_module" else None
        theirs: Any = self.modules[str(conv.target)]
        return (
            not theirs.transposed
            and type(module) is _NORMS[len(theirs.kernel_size)]
            and not module.training
            and module.running_mean is not None
            and module.running_mean.dtype == theirs.weight.dtype
            and not hooked(module)
        )


def chains(graph: fx.Graph, reader: Any) -> list[Chain]:
    """The chains of a graph of a network in evaluation, in its order; `reader`: `Modules`, or what is like it."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    found: list[Chain] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if reader.is_convolution(node):
            chain = Chain(node, [node])
            while _extend(chain, reader, order, taken):
                pass
            taken |= set(chain.nodes)
            found.append(chain)
    return found


def _extend(chain: Chain, reader: Any, order: dict[fx.Node, int], taken: set[fx.Node]) -> bool:
    """Take the next node into the chain, if it can be."""
    last = chain.nodes[-1]
    users = list(last.users)
    if len(users) != 1 or users[0] in taken or users[0].all_input_nodes.count(last) != 1:
        return False
    node = users[0]
    if not _untouched(chain, node, reader.modules, order):
        return False
    if not chain.done and reader.is_norm(node, chain.conv):
        chain.norm = node
        chain.done.add("norm")
    elif "activation" not in chain.done and (name := _activation(node, reader.modules)) is not None:
        chain.activation = name
        chain.done |= {"norm", "activation"}
    elif "residual" not in chain.done and (other := _addend(node, last)) is not None:
        if not _same_shape(last, other):
            return False
        chain.residual = other
        chain.residual_order = "after" if "activation" in chain.done else "before"
        chain.done |= {"norm", "residual"}
    else:
        return False
    chain.nodes.append(node)
    return True


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    if node.op == "call_module":
        module = modules[str(node.target)]
        make = _MODULES.get(type(module))
        return None if make is None or hooked(module) else make(module)
    if set(node.kwargs) - {"inplace"} or not (len(node.args) == 1 or node.args[1:] in ((True,), (False,))):
        return None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return _METHODS.get(str(node.target)) if node.op == "call_method" else None


def _addend(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The other operand of an addition, which must be a tensor that the addition does not change."""
    is_addition = (node.op == "call_function" and node.target in _ADDITIONS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not is_addition or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    in_place = node.target in (operator.iadd, "add_")
    other = second if first is mine else None if in_place else first
    return other if isinstance(other, fx.Node) and other is not mine else None


def _same_shape(mine: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes have one shape and element type, as was seen when the network ran on its example."""
    a, b = (_type_of(node) for node in (mine, other))
    return a is not None and a == b


def _type_of(node: fx.Node) -> Any:
    """What `swap` or Dynamo knows of a node's result; None if nothing."""
    seen = node.meta.get("example_value")
    return node.meta.get("type") if seen is None else (getattr(seen, "shape", None), getattr(seen, "dtype", None))


def views_as_reshapes(graph: fx.Graph) -> None:
    """Let `view` copy where it must: what it is given may be channels last now, which some views do not allow."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
            node.target = "reshape"


def hooked(module: nn.Module) -> bool:
    """Whether something wants to see what goes in or out of a module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _untouched(chain: Chain, node: fx.Node, modules: dict[str, nn.Module], order: dict[fx.Node, int]) -> bool:
    """Whether nothing between the convolution and a node changes tensors in place, but for the chain itself."""
    between = (other for other in chain.conv.graph.nodes if order[chain.conv] < order[other] < order[node])
    return not any(other not in chain.nodes and _in_place(other, modules) for other in between)


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        operators = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}
        asked = node.kwargs.get("inplace") or (node.target in _FUNCTIONS and node.args[1:2] == (True,))
        return bool(asked or node.kwargs.get("out") is not None or name.endswith("_")) or (node.target in operators)
    return node.op == "call_method" and str(node.target).endswith("_")
