"""From a model with free shapes to a `Graph` for the shapes at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import ModelError
from leanconv.network.constants import Constant, Held, Values
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators import UnknownValueError, evaluate_node, infer_node, operator
from leanconv.network.operators.base import dense
from leanconv.onnx.model import BODIES, Model, NeedsValuesError

if TYPE_CHECKING:
    from leanconv.onnx.subgraphs import Expander

# Folding may make constants larger, by copying say; a file must not fill the memory by that.
_FOLDED_FACTOR = 4
_FOLDED_EXTRA = 64 << 20

# One element seen as many, or no elements at all: these take no memory.
_FREE = ("ConstantOfShape", "Shape", "Size")

# Small inputs that decide about shapes are taken as constants; more bytes than these are data.
LARGEST_SHAPE_INPUT = 4096


def specialise(model: Model, types: Mapping[str, ValueType], values: Mapping[str, Array]) -> Graph:
    """Make the graph of a model for inputs of given types; what depends on shapes and constants only is computed.

    Args:
        model: what was read.
        types: of each input.
        values: of inputs that are to be constants of the graph.

    Raises:
        NeedsValuesError: the shape of a value depends on values of inputs that are not given.
        ModelError: a node breaks a rule of its operator with these shapes.
    """
    free = {name: type_ for name, type_ in types.items() if name not in values}
    graph = Graph([], free, list(model.outputs), model.constants.with_more(values), dict(types))
    for name, constant in graph.constants.handles():
        graph.types[name] = ValueType(constant.shape, constant.element)
    budget = _FOLDED_EXTRA + _FOLDED_FACTOR * model.constants.nbytes
    sources: dict[str, frozenset[str]] = {name: frozenset((name,)) for name in types if name not in values}

    expander: Expander | None = None

    def add(node: Node) -> None:
        """Take up one node: what it stands for, what it computes already, or itself."""
        nonlocal budget, expander
        if node.op in BODIES:
            from leanconv.onnx.subgraphs import Expander  # only here: few models have graphs within nodes

            expander = expander or Expander(model, graph, sources, add)
            try:
                expander.expand(node)
            except UnknownValueError as error:
                raise NeedsValuesError(sources.get(node.inputs[error.input], frozenset()), str(error)) from error
            return
        found = operator(node.op)
        if found is None:
            raise ModelError(f"node {node.name!r}: the operator {node.op} is not supported")
        inputs = [graph.types[name] if name else None for name in node.inputs]
        known = [graph.constants.handle(name) for name in node.inputs]
        try:
            outputs = infer_node(found, node, inputs, Values(known))
        except UnknownValueError as error:
            name = node.inputs[error.input]
            raise NeedsValuesError(sources.get(name, frozenset()), str(error)) from error
        for name, type_ in zip(node.outputs, outputs, strict=True):
            if name:
                graph.types[name] = type_
        nbytes = 0 if node.op in _FREE else sum(type_.nbytes for type_ in outputs)
        if _foldable(node, known) and nbytes <= budget:
            budget -= nbytes
            _fold(model, graph, node, known)
            return
        graph.nodes.append(node)
        before = frozenset[str]().union(*(sources.get(name, frozenset()) for name in node.inputs))
        sources.update((name, before) for name in node.outputs)

    for node in model.nodes:
        add(node)
    return graph


def _foldable(node: Node, known: list[Constant | None]) -> bool:
    if node.op in ("Shape", "Size"):
        return True  # they look at the shape only
    return all(value is not None for value, name in zip(known, node.inputs, strict=True) if name)


def _fold(model: Model, graph: Graph, node: Node, handles: list[Constant | None]) -> None:
    found = operator(node.op)
    assert found is not None
    # What is made of the model's own constants is the same for every shape.
    own = bool(node.inputs) and all(name in model.constants or name in model.derived for name in node.inputs if name)
    made = {name: model.derived.get(name) for name in node.outputs if name} if own else {"": None}
    if all(made.values()):
        graph.constants.update({name: each for name, each in made.items() if each is not None})  # type: ignore[misc]
        return
    known = [None if each is None else each.array() for each in handles]
    if node.op in ("Shape", "Size") and known[0] is None:
        type_ = graph.types[node.inputs[0]]
        known = [np.broadcast_to(np.zeros((), type_.dtype), type_.shape)]
    for name, array in zip(node.outputs, evaluate_node(found, node, known), strict=True):
        if not name:
            continue
        array = array if node.op in _FREE else dense(array)
        held = graph.constants[name] = Held(array)
        graph.types[name] = ValueType(array.shape, array.dtype.name)
        if own:
            model.derived[name] = held
