"""A model compiled for one kind of inputs: one native call over one arena, between PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.network.arrange import arrange
from leanconv.network.arrangement import live_bytes
from leanconv.network.compile import CompiledNetwork, compile_graph
from leanconv.network.fusion import INVERTED, SEPARABLE, find_blocks
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators.convolution import conv_problem
from leanconv.network.passes import run_passes
from leanconv.network.passes.activations import FUSED
from leanconv.torch.lowering import Lowered, NotLoweredError, Value
from leanconv.torch.options import LayerOptions


@dataclass(frozen=True, slots=True)
class Layer:
    """One step with convolutions.

    Attributes:
        names: of the convolutions' modules (or instructions): several where a block of layers is one step.
        fused: what runs in one pass, for each.
        problems: in a line, for each.
        step: its number among the network's steps.
    """

    names: tuple[str, ...]
    fused: tuple[str, ...]
    problems: tuple[str, ...]
    step: int


class Ready:
    """A model compiled for one kind of inputs."""

    def __init__(
        self, lowered: Lowered, turned: Mapping[str, bool], options: LayerOptions, threads: int, limit: int | None
    ) -> None:
        """`turned`: whether each input of the network is channels last in memory.

        Raises:
            NotLoweredError: a step has no kernels.
            LeanconvError: no algorithm, or nothing fits the limit.
        """
        graph = lowered.graph
        self._turned = turned
        names = list(graph.outputs)
        self._shapes = {name: graph.types[name] for name in names}
        # Outputs are in the memory format of the inputs, as in PyTorch.
        self._last = {n: any(turned.values()) and len(graph.types[n].shape) in (4, 5) for n in names}
        _turn(graph, turned, self._last)
        normed = {
            conv for node in graph.nodes if node.op == "BatchNormalization" for conv in _made(graph, node.inputs[0])
        }
        run_passes(graph)
        found = arrange(graph)
        numpy = next((step for step in found.steps if step.lowerer is None), None)
        if numpy is not None:
            raise NotLoweredError(f"{numpy.name}: {numpy.reason}")
        self.activation_bytes = live_bytes(found)
        # The limit is for what the engine takes beyond the values between the layers, which any engine holds.
        whole = None if limit is None else limit + self.activation_bytes
        self.network: CompiledNetwork = compile_graph(
            graph,
            threads=threads,
            memory_limit=whole,
            algorithm=options.algorithm,
            accuracy=options.accuracy,
            deterministic=options.deterministic,
        )
        self._dtypes = {"float32": torch.float32, "float64": torch.float64}
        self._output = lowered.output
        self.layers = _layers(graph, normed, self.network)

    def arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tensors as the network takes them."""
        result = {}
        for name, tensor in tensors.items():
            found = tensor.detach()
            result[name] = (_last(found) if self._turned[name] else found).numpy()
        return result

    def run(self, tensors: Mapping[str, Tensor]) -> Any:
        """What the model returns."""
        made, out = {}, {}
        for name, type_ in self._shapes.items():
            shape, dtype = type_.shape, self._dtypes[type_.dtype]
            if self._last[name]:
                turned = torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype)
                made[name] = turned.movedim(-1, 1)
                out[f"{name} turned"] = turned.numpy()
            else:
                made[name] = torch.empty(shape, dtype=dtype)
                out[name] = made[name].numpy()
        self.network.run(self.arrays(tensors), out)
        return _filled(self._output, made)


def _made(graph: Graph, value: str) -> tuple[str, ...]:
    """The name of the convolution that computes a value."""
    node = graph.producer(value)
    return (node.name,) if node is not None and node.op in FUSED else ()


def _layers(graph: Graph, normed: Collection[str], network: CompiledNetwork) -> list[Layer]:
    """The convolutions of a network by step."""
    convolutions = {node.name: node for node in graph.nodes if node.op in FUSED}
    blocks = {block.node.name: block.nodes for block in find_blocks(graph)}
    found = []
    for number, step in enumerate(network.steps):
        nodes = [convolutions[step.name]] if step.op in FUSED else []
        if step.op in (SEPARABLE, INVERTED):
            nodes = list(blocks[step.name])
        if nodes:
            texts = tuple(_text(node, node.name in normed) for node in nodes)
            problems = tuple(_problem(graph, node) for node in nodes)
            found.append(Layer(tuple(node.name for node in nodes), texts, problems, number))
    return found


def _text(node: Node, normed: bool) -> str:
    """What is fused, in words."""
    activation, residual = node.attributes.get("activation"), node.attributes.get("residual")
    words = ["conv", *(["bn"] if normed else []), *(["add"] if residual == "before" else [])]
    words += [*([activation[0]] if activation else []), *(["add"] if residual == "after" else [])]
    return "+".join(words)


def _problem(graph: Graph, node: Node) -> str:
    """The problem of a layer in a line."""
    x, w, out = (graph.types[name] for name in (node.inputs[0], node.inputs[1], node.outputs[0]))
    bias = len(node.inputs) > 2 and bool(node.inputs[2])
    if not node.op.endswith("ConvTranspose"):
        return conv_problem(node, x, w, bias=bias).describe()
    return f"transposed {'x'.join(map(str, x.shape))} to {'x'.join(map(str, out.shape))}"


def _turn(graph: Graph, inputs: Mapping[str, bool], outputs: Mapping[str, bool]) -> None:
    """Let the network take and give images as they lie in memory, channels last."""
    first, last = [], []
    for name, turned in inputs.items():
        if turned:
            type_ = graph.inputs[name]
            rank = len(type_.shape)
            graph.inputs[name] = ValueType((type_.shape[0], *type_.shape[2:], type_.shape[1]), type_.dtype)
            graph.types[f"{name} turned"] = type_
            perm = (0, rank - 1, *range(1, rank - 1))
            first.append(Node("Transpose", f"{name} turned", (name,), (f"{name} turned",), {"perm": perm}, 13))
    renamed = {name: f"{name} turned" for name, turned in inputs.items() if turned}
    nodes = []
    for node in graph.nodes:
        names = tuple(renamed.get(name, name) for name in node.inputs)
        nodes.append(Node(node.op, node.name, names, node.outputs, node.attributes, node.version))
    for name in inputs:
        graph.types[name] = graph.inputs[name]
    for i, name in enumerate(graph.outputs):
        if outputs[name]:
            type_ = graph.types[name]
            rank = len(type_.shape)
            turned_name = f"{name} turned"
            graph.types[turned_name] = ValueType((type_.shape[0], *type_.shape[2:], type_.shape[1]), type_.dtype)
            perm = (0, *range(2, rank), 1)
            last.append(Node("Transpose", turned_name, (name,), (turned_name,), {"perm": perm}, 13))
            graph.outputs[i] = turned_name
    graph.nodes = [*first, *nodes, *last]


def _last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1)


def _filled(output: Any, made: Mapping[str, Tensor]) -> Any:
    """The model's output with tensors in place of values."""
    if isinstance(output, Value):
        return made[output.name]
    if isinstance(output, dict):
        return {key: _filled(value, made) for key, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(_filled(value, made) for value in output)
    return output
