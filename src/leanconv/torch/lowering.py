"""A traced model as a graph of `leanconv.network`, for inputs of given shapes: what the whole of it is compiled from.

Shapes are numbers here, so what a model computes with them is done on the way. Operations in place become ordinary
ones, where nothing that looks at the same memory is read afterwards. Whatever cannot be said in operators of a network
is refused with a sentence; such a model runs layer by layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from leanconv.arrays import Array
from leanconv.errors import LeanconvError
from leanconv.network.constants import Constant, Constants
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators import infer_node, operator
from leanconv.torch.fusion import hooked
from leanconv.torch.recipe import Recipe, Ref, references
from leanconv.torch.tensors import DTYPES, as_array


class NotLoweredError(Exception):
    """A model, or these inputs, cannot be a graph of a network; says why."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that the network computes, or is given."""

    name: str


@dataclass(slots=True)
class Lowered:
    """What came of it.

    Attributes:
        graph: of the network; its constants are the model's own memory.
        sources: the tensors that constants are made of.
        output: what the model returns, with a `Value` in place of each tensor.
        types: of the instructions' results, where these are one value.
    """

    graph: Graph
    sources: list[Tensor]
    output: Any
    types: dict[str, ValueType]


class Builder:
    """A graph while it grows. Handlers of operations are given it first, then what the operation is given."""

    def __init__(self, inputs: Mapping[str, ValueType], held: Callable[[Tensor], Array | Constant]) -> None:
        """`inputs`: of the network, by name; `held`: makes constants of the model's tensors."""
        self._held = held
        self.graph = Graph([], dict(inputs), [], Constants({}), dict(inputs))
        self.sources: list[Tensor] = []
        self.here = ""  # the instruction at hand
        self._constants: dict[int, str] = {}
        self._named: set[str] = set()
        # Values that look at the same memory in PyTorch, by the value whose memory it is.
        self.memory: dict[str, str] = {name: name for name in inputs}

    def shape(self, value: Value) -> tuple[int, ...]:
        """Its extents, in PyTorch's order."""
        return self.graph.types[value.name].shape

    def dtype(self, value: Value) -> str:
        """NumPy's name of its element type."""
        return self.graph.types[value.name].dtype

    def tensor(self, tensor: Tensor) -> str:
        """A tensor of the model as a constant."""
        if id(tensor) not in self._constants:
            if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or not tensor.numel():
                raise NotLoweredError(f"{self.here}: a tensor of {tensor.dtype} on {tensor.device}")
            self._constants[id(tensor)] = self.array(self._held(tensor))
            self.sources.append(tensor)
        return self._constants[id(tensor)]

    def array(self, array: Array | Constant) -> str:
        """An array as a constant."""
        name = f"constant {len(self.graph.constants)}"
        self.graph.constants[name] = array
        self.graph.types[name] = ValueType(array.shape, array.dtype.name)
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[Value | str],
        attributes: Mapping[str, Any] | None = None,
        *,
        version: int,
        outputs: int = 1,
        view: bool = False,
    ) -> Any:
        """Add a node and return its value, or a tuple of them; `view`: where PyTorch's result shares the memory."""
        names = tuple(each.name if isinstance(each, Value) else each for each in inputs)
        count = len(self.graph.nodes)
        results = tuple(f"{self.here} {count}.{i}" for i in range(outputs))
        # A convolution has its module's name, for reports; further calls of the module have numbers too.
        own = op in ("leanconv.Conv", "leanconv.ConvTranspose") and self.here not in self._named
        name = self.here if own else f"{self.here} {count}"
        self._named.add(name)
        node = Node(op, name, names, results, dict(attributes or {}), version)
        found = operator(op)
        assert found is not None, op
        types = [self.graph.types[name] if name else None for name in names]
        try:
            inferred = infer_node(found, node, types, [self.graph.constants.get(name) for name in names])
        except LeanconvError as error:
            raise NotLoweredError(str(error)) from error
        self.graph.nodes.append(node)
        for result, type_ in zip(results, inferred, strict=True):
            self.graph.types[result] = type_
            self.memory[result] = self.memory.get(names[0], result) if view else result
        values = tuple(map(Value, results))
        return values if outputs > 1 else values[0]


Handler = Callable[..., Any]


def lower(
    recipe: Recipe,
    model: nn.Module,
    inputs: Mapping[str, ValueType],
    held: Callable[[Tensor], Array | Constant] = as_array,
    given: Mapping[str, Any] = {},
) -> Lowered:
    """The graph of a model in evaluation.

    Args:
        recipe: the model's trace.
        model: whose modules and tensors it names.
        inputs: type of each placeholder, by the name of its instruction.
        held: makes constants of the model's tensors.
        given: what the other placeholders are: weights of the model, and numbers.

    Raises:
        NotLoweredError: something has no operator, or depends on what only PyTorch does.
    """
    builder = Builder(inputs, held)
    last: dict[str, int] = {}
    for number, step in enumerate(recipe):
        for name in references((step.args, step.kwargs)):
            last[name] = number
    known: dict[str, Any] = {**given, **{name: Value(name) for name in inputs}}
    for number, step in enumerate(recipe):
        builder.here = str(step.target) if step.kind == "call_module" else step.name
        if step.kind == "placeholder":
            if step.name not in known:
                raise NotLoweredError(f"the input {step.name} is no tensor")
        elif step.kind == "output":
            output = _resolved(step.args[0], known)
            _finish(builder, output)
            types = {n: builder.graph.types[v.name] for n, v in known.items() if isinstance(v, Value)}
            return Lowered(builder.graph, builder.sources, output, types)
        elif step.kind == "get_attr":
            known[step.name] = _attribute(model, str(step.target))
        else:
            args, kwargs = _resolved(step.args, known), _resolved(step.kwargs, known)
            handler, changed = _handler(step.kind, step.target, model, args, kwargs)
            try:
                result = handler(builder, *args, **kwargs)
            except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
                # Arguments that the handler does not know: what they ask for is PyTorch's to compute.
                raise NotLoweredError(f"{builder.here}: {error}") from error
            known[step.name] = result
            if changed:
                _replace(builder, known, step.args[0], result, last, number)
    raise NotLoweredError("the trace has no output")


def _handler(
    kind: str, target: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Handler, bool]:
    """What adds the nodes of a call, and whether the call changes its first argument."""
    from leanconv.torch import lowered_functions, lowered_modules

    if kind == "call_module":
        module = model.get_submodule(str(target))
        if hooked(module):
            raise NotLoweredError(f"{target}: it has hooks")
        made = lowered_modules.handler(module)
        if made is None:
            raise NotLoweredError(f"{target}: {type(module).__name__} has no operator")
        return made, bool(getattr(module, "inplace", False))
    found = lowered_functions.handler(kind, target)
    if found is None:
        name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
        raise NotLoweredError(f"{name} has no operator")
    handler, changes = found
    given = [each for value in (*args, *kwargs.values()) for each in _flat(value)]
    if kind == "call_function" and target is not getattr and not any(isinstance(v, Value | Tensor) for v in given):
        return (lambda builder, *a, **k: target(*a, **k)), False  # numbers, made of shapes
    try:
        named = inspect.signature(handler).bind(None, *args, **kwargs).arguments
    except TypeError as error:
        raise NotLoweredError(f"{target}: {error}") from error
    return handler, changes or named.get("inplace") is True


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _resolved(value: Any, known: Mapping[str, Any]) -> Any:
    """Arguments with what is known in place of references."""
    if isinstance(value, Ref):
        return known[value.name]
    if isinstance(value, dict):
        return {key: _resolved(each, known) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolved(each, known) for each in (value.start, value.stop, value.step)))
    if type(value) in (tuple, list):
        return type(value)(_resolved(each, known) for each in value)
    return value


def _attribute(model: nn.Module, target: str) -> Any:
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _replace(
    builder: Builder, known: dict[str, Any], changed: Any, result: Value, last: Mapping[str, int], number: int
) -> None:
    """Let those that read a tensor after a change in place read the result."""
    if not isinstance(changed, Ref) or not isinstance(known[changed.name], Value):
        raise NotLoweredError(f"{builder.here}: changes something that is no value of the network")
    old = known[changed.name]
    memory = builder.memory[old.name]
    if memory in builder.graph.inputs:
        raise NotLoweredError(f"{builder.here}: changes an input of the model")
    for name, value in known.items():
        for each in _flat(value):
            if not isinstance(each, Value) or each == result or builder.memory[each.name] != memory:
                continue
            if each == old and value is each:
                known[name] = result
            elif last.get(name, -1) > number:
                raise NotLoweredError(f"{builder.here}: changes what {name} looks at")
    builder.memory[result.name] = memory


def _finish(builder: Builder, output: Any) -> None:
    """Name the outputs; those that are the same value count once."""
    found: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, Value):
            if value.name not in found:
                found.append(value.name)
        elif isinstance(value, dict):
            for each in value.values():
                collect(each)
        elif type(value) in (tuple, list):
            for each in value:
                collect(each)
        elif value is not None and not isinstance(value, int | float | bool | str):
            raise NotLoweredError(f"the output holds a {type(value).__name__}")

    collect(output)
    if not found or any(name in builder.graph.inputs for name in found):
        raise NotLoweredError("the output is an input, or no tensor")
    if any(builder.graph.types[name].dtype not in ("float32", "float64") for name in found):
        raise NotLoweredError("an output of another element type")
    builder.graph.outputs = found


def number(value: Any) -> Array:
    """An int64 array, of what is given as one number or several."""
    return np.asarray(value, np.int64).reshape(-1)


def one(builder: Builder, op: str, input: Value, version: int, **attributes: Any) -> Value:
    """A node of one operand, and attributes."""
    result: Value = builder.add(op, (input,), attributes, version=version)
    return result


def batched(builder: Builder, input: Value, rank: int) -> Value:
    """An image with its batch axis."""
    if len(builder.shape(input)) != rank:
        raise NotLoweredError(f"{builder.here}: an image without a batch")
    return input
