"""A swapped model compiled as one network: one native call over one arena, for each kind of inputs.

What the model is made of is looked at before each call: weights that have changed are packed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.arrays import Array
from leanconv.errors import LeanconvError
from leanconv.locks import new_lock
from leanconv.network.arrange import arrange
from leanconv.network.arrangement import live_bytes
from leanconv.network.compile import CompiledNetwork, compile_graph
from leanconv.network.constants import Constant
from leanconv.network.fusion import INVERTED, SEPARABLE, find_blocks
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators.convolution import conv_problem
from leanconv.network.passes import run_passes
from leanconv.network.passes.activations import FUSED
from leanconv.torch.engine import readable
from leanconv.torch.lowering import Lowered, NotLoweredError, Value, lower
from leanconv.torch.options import LayerOptions
from leanconv.torch.packed import RESTLESS, SAMPLES, Mark
from leanconv.torch.parked import Parked
from leanconv.torch.recipe import Recipe
from leanconv.torch.tensors import DTYPES, as_array, is_channels_last

SIGNATURES_KEPT = 8  # kinds of inputs whose networks a model keeps
FEW_SAMPLES = 4  # elements that are compared of a tensor in a file, each of which takes a page


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


class Whole:
    """The networks of one model, by kind of inputs."""

    def __init__(self, recipe: Recipe, model: nn.Module, options: LayerOptions) -> None:
        """`recipe`: of the model in evaluation."""
        self.recipe, self.model, self.options = recipe, model, options
        self.inputs = [step.name for step in recipe if step.kind == "placeholder"]
        self.names = [str(step.target) for step in recipe if step.kind == "placeholder"]
        self._start()

    def _start(self) -> None:
        self._lock = new_lock()
        self._ready: dict[Any, Ready | str] = {}
        self._marks: list[tuple[Mark, list[tuple[dict[str, Any], str]]]] = []
        self._restless = 0
        self.parked: Parked | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("recipe", "model", "options", "inputs", "names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor] | None:
        """The inputs by instruction; None if they are not just tensors that the engine reads."""
        given = [*args, *(kwargs[name] for name in self.names[len(args) :] if name in kwargs)]
        if len(given) != len(self.inputs) or len(args) + len(kwargs) != len(given):
            return None
        if not all(readable(tensor) and tensor.dtype in DTYPES for tensor in given):
            return None
        return dict(zip(self.inputs, given, strict=True))

    def ready(self, tensors: Mapping[str, Tensor], threads: int, limit: int | None) -> Ready | str:
        """The network for such inputs and the weights as they are, or why there is none."""
        if not self._current():
            with self._lock:
                if not self._current():
                    self._ready, self._marks = {}, []
                    self._restless += 1
        elif self._marks:
            self._restless = 0
        if self._restless > RESTLESS:
            return "its weights change at every call"
        key = (threads, limit, *((tuple(t.shape), t.dtype, _is_last(t)) for t in tensors.values()))
        found = self._ready.get(key)
        if found is None:
            with self._lock:
                found = self._ready.get(key)
                if found is None:
                    found = self._build(tensors, threads, limit)
                    if len(self._ready) >= SIGNATURES_KEPT:
                        self._ready.clear()
                    self._ready[key] = found
        return found

    def types(self, args: tuple[Any, ...]) -> dict[str, ValueType] | None:
        """Types of the results of the trace's instructions; None where the model cannot be one network."""
        tensors = self.tensors(args, {})
        if tensors is None:
            return None
        with contextlib.suppress(NotLoweredError):
            given = {name: ValueType(tuple(t.shape), DTYPES[t.dtype]) for name, t in tensors.items()}
            return lower(self.recipe, self.model, given, self._held).types
        return None

    def _current(self) -> bool:
        """Whether all that networks were made of is as it was."""
        for mark, owners in self._marks:
            for owner, name in owners:
                tensor = owner.get(name)
                if tensor is None or not mark.holds(tensor):
                    return False
        return True

    def _build(self, tensors: Mapping[str, Tensor], threads: int, limit: int | None) -> Ready | str:
        if callable(self.options.algorithm):
            return "the algorithm is a function"
        types = {name: ValueType(tuple(t.shape), DTYPES[t.dtype]) for name, t in tensors.items()}
        try:
            lowered = lower(self.recipe, self.model, types, self._held)
            marks = self._marked(lowered.sources)
            turned = {name: _is_last(tensor) for name, tensor in tensors.items()}
            with contextlib.nullcontext() if self.parked is None else self.parked.reading():
                found = Ready(lowered, turned, self.options, threads, limit)
        except (NotLoweredError, LeanconvError) as error:
            return str(error)
        self._marks = self._marks or marks  # the trace reads the same ones whatever its inputs
        return found

    def _held(self, tensor: Tensor) -> Array | Constant:
        """A tensor of the model as a constant; of one in a file only what is looked at is read."""
        parked = self.parked
        return parked.constant(tensor) if parked is not None and tensor in parked else as_array(tensor)

    def _marked(self, sources: list[Tensor]) -> list[tuple[Mark, list[tuple[dict[str, Any], str]]]]:
        """Marks of the tensors, and where the model keeps them."""
        owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in self.model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    owners.setdefault(id(tensor), []).append((kept, name))
        if any(id(tensor) not in owners for tensor in sources):
            raise NotLoweredError("a tensor that is neither a parameter nor a buffer")
        if any(tensor.is_inference() for tensor in sources):
            raise NotLoweredError("weights made in inference mode, whose changes are not counted")
        parked = self.parked
        few = set() if parked is None else {id(tensor) for tensor in sources if tensor in parked}
        counts = [FEW_SAMPLES if id(tensor) in few else SAMPLES for tensor in sources]
        return [(Mark(tensor, n), owners[id(tensor)]) for tensor, n in zip(sources, counts, strict=True)]


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


def _is_last(tensor: Tensor) -> bool:
    return tensor.dim() in (4, 5) and is_channels_last(tuple(tensor.shape), tensor.stride())


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
