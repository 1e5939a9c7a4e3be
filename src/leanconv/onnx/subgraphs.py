"""Graphs within nodes: If, Loop and Scan as the nodes that they stand for, once shapes are known.

A branch whose condition is known takes the place of its If; if the condition is computed, both branches do, and one of
their results is chosen.  Loops whose number of turns is known are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import LeanconvError, ModelError
from leanconv.network.constants import Constant, Constants, as_constant
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators import NodeError, UnknownValueError
from leanconv.network.operators.base import axis_of, ints
from leanconv.onnx.model import BODIES, Model, NeedsValuesError

MOST_NODES = 10_000
"""That loops of one model may be written out to."""


@dataclass(frozen=True, slots=True)
class Body:
    """A graph within a node; its nodes may read values of the graphs around it.

    Attributes:
        nodes: in an order in which they can run.
        inputs: names.
        outputs: names.
        constants: initialisers.
    """

    nodes: list[Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Constants


def bodies(node: Node) -> list[Body]:
    """The graphs within a node."""
    return [value for key in BODIES.get(node.op, ()) if isinstance(value := node.attributes.get(key), Body)]


def check_node(node: Node) -> str | None:
    """A sentence why a node with graphs in it is not supported, or None.

    Raises:
        ModelError: it lacks a graph, or has another number of inputs or outputs than its graph.
    """
    found = bodies(node)
    if len(found) != len(BODIES[node.op]):
        raise ModelError(f"node {node.name!r} ({node.op}): its attributes {BODIES[node.op]} must be graphs")
    if node.op == "Scan" and node.version < 9:
        return "batches of sequences (before version 9) are not supported"
    if node.op == "If":
        fits = len(node.inputs) == 1 and all(len(b.outputs) == len(node.outputs) and not b.inputs for b in found)
    elif node.op == "Loop":
        carried = len(node.inputs) - 2
        body = found[0]
        fits = carried >= 0 and len(body.inputs) == carried + 2 and len(body.outputs) == len(node.outputs) + 1
        fits = fits and len(node.outputs) >= carried and all(node.inputs[2:])
    else:
        scanned = int(node.attributes.get("num_scan_inputs", 0))
        body = found[0]
        fits = 1 <= scanned <= len(node.inputs) == len(body.inputs) and len(body.outputs) == len(node.outputs)
        fits = fits and len(node.outputs) >= len(node.inputs) - scanned and all(node.inputs)
    if not fits:
        raise ModelError(f"node {node.name!r} ({node.op}): its inputs and outputs are not those of its graph")
    return None


class Expander:
    """Writes out nodes with graphs in them, into a graph under construction."""

    def __init__(
        self, model: Model, graph: Graph, sources: Mapping[str, frozenset[str]], add: Callable[[Node], None]
    ) -> None:
        """`sources`: inputs that a value depends on; `add` takes up one node more, with graphs in it or not."""
        self._graph, self._sources, self._add = graph, sources, add
        self._names = {*graph.types, *(name for node in model.nodes for name in (node.name, *node.outputs))}
        self._numbers: dict[str, int] = {}
        self._left = MOST_NODES

    def expand(self, node: Node) -> None:
        """Add what a node stands for.

        Raises:
            UnknownValueError: what decides about it is not known.
            ModelError: its graph breaks a rule, or it is written out to too many nodes.
        """
        try:
            {"If": self._if, "Loop": self._loop, "Scan": self._scan}[node.op](node)
        except LeanconvError:
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise NodeError(node.name, node.op, " ".join(str(error).split())[:200] or type(error).__name__) from error

    # -- If -------------------------------------------------------------------------------------------------

    def _if(self, node: Node) -> None:
        condition = self._graph.constants.get(node.inputs[0])
        branches = [(key.partition("_")[0], node.attributes[key]) for key in BODIES["If"]]
        if condition is not None:
            label, body = branches[0 if bool(np.all(condition)) else 1]
            self._finish(node.outputs, self._inline(node, label, body, ()))
            return
        saved = len(self._graph.nodes), dict(self._graph.types), self._graph.constants.with_more({})
        try:
            then, orelse = (self._inline(node, label, body, ()) for label, body in branches)
            types = self._graph.types
            if any(types[a] != types[b] for a, b in zip(then, orelse, strict=True)):
                raise NodeError(node.name, node.op, "its branches give values of different types")
        except ModelError as error:
            # One of them may not be meant for these shapes: which one runs must be known.
            del self._graph.nodes[saved[0] :]
            self._graph.types, self._graph.constants = saved[1], saved[2]
            raise UnknownValueError(node.name, node.op, 0) from error
        flag = self._single(node, node.inputs[0])
        for name, a, b in zip(node.outputs, then, orelse, strict=True):
            if name:
                self._put("Where", f"{node.name}/{name}", (flag, a, b), (name,), {}, 16)

    def _single(self, node: Node, value: str) -> str:
        """A condition as a number without axes, which fits values of any shape."""
        if not self._graph.types[value].shape:
            return value
        shape = self._constant(node, "no axes", np.zeros(0, np.int64))
        return self._put("Reshape", f"{node.name}/condition", (value, shape), (), {}, 13)

    # -- Loop and Scan --------------------------------------------------------------------------------------

    def _loop(self, node: Node) -> None:
        body, (most, condition) = node.attributes["body"], node.inputs[:2]
        turns = self._number(node, 0, most)
        going = self._number(node, 1, condition)
        carried = list(node.inputs[2:])
        scanned: list[list[str]] = [[] for _ in range(len(node.outputs) - len(carried))]
        number = 0
        while (turns is None or number < turns) and going != 0:
            given = (
                self._constant(node, "turn", np.array(number, np.int64)),
                self._constant(node, "going", np.array(True)),
                *carried,
            )
            again, *results = self._inline(node, str(number), body, given)
            carried, new = results[: len(carried)], results[len(carried) :]
            for values, value in zip(scanned, new, strict=True):
                values.append(value)
            number += 1
            found = self._graph.constants.get(again)
            if found is None:
                rule = "whether it goes on is computed in its turns"
                raise NeedsValuesError(self._sources.get(again, frozenset()), str(NodeError(node.name, node.op, rule)))
            going = int(np.all(found))
        joined = [self._joined(node, values, 0) for values in scanned]
        self._finish(node.outputs, [*carried, *joined])

    def _scan(self, node: Node) -> None:
        body, attributes = node.attributes["body"], node.attributes
        count = int(attributes["num_scan_inputs"])
        states, scans = list(node.inputs[:-count]), node.inputs[-count:]
        made = len(node.outputs) - len(states)
        lengths = set()
        axes = self._each(node, "scan_input_axes", count)
        for name, axis in zip(scans, axes, strict=True):
            shape = self._graph.types[name].shape
            lengths.add(shape[axis_of(axis, len(shape))])
        if len(lengths) != 1:
            raise NodeError(node.name, node.op, f"what it scans has different lengths: {sorted(lengths)}")
        (length,) = lengths
        backwards, turned = (
            self._each(node, "scan_input_directions", count),
            self._each(node, "scan_output_directions", made),
        )
        scanned: list[list[str]] = [[] for _ in range(made)]
        for number in range(length):
            slices = [
                self._slice(node, name, axis, length - 1 - number if back else number)
                for name, axis, back in zip(scans, axes, backwards, strict=True)
            ]
            results = self._inline(node, str(number), body, (*states, *slices))
            states = results[: len(states)]
            for values, value in zip(scanned, results[len(states) :], strict=True):
                values.append(value)
        outputs = self._each(node, "scan_output_axes", made)
        joined = [
            self._joined(node, values[::-1] if back else values, axis)
            for values, axis, back in zip(scanned, outputs, turned, strict=True)
        ]
        self._finish(node.outputs, [*states, *joined])

    def _each(self, node: Node, name: str, count: int) -> tuple[int, ...]:
        found = ints(node.attributes.get(name, (0,) * count))
        if len(found) != count:
            raise NodeError(node.name, node.op, f"{name}={found} must have {count} entries")
        return found

    def _number(self, node: Node, position: int, name: str) -> int | None:
        """The value of an input that may be absent."""
        if not name:
            return None
        found = self._graph.constants.get(name)
        if found is None:
            raise UnknownValueError(node.name, node.op, position)
        if found.size != 1:
            raise NodeError(node.name, node.op, f"input {position} has {found.size} elements")
        return int(found.reshape(())[()])

    def _slice(self, node: Node, value: str, axis: int, number: int) -> str:
        """One slice along an axis, without the axis: views both."""
        bounds = [self._constant(node, "bound", np.array([n], np.int64)) for n in (number, number + 1, axis)]
        cut = self._put("Slice", f"{node.name}/{value}", (value, *bounds), (), {}, 13)
        return self._put("Squeeze", f"{node.name}/{value}", (cut, bounds[2]), (), {}, 13)

    def _joined(self, node: Node, values: Sequence[str], axis: int) -> str:
        """Values of all turns side by side along a new axis."""
        if not values:
            raise NodeError(node.name, node.op, "it never runs, so the shapes of its outputs are not known")
        place = self._constant(node, "axis", np.array([axis], np.int64))
        wider = tuple(self._put("Unsqueeze", f"{node.name}/{v}", (v, place), (), {}, 13) for v in values)
        return self._put("Concat", f"{node.name}/turns", wider, (), {"axis": axis}, 13)

    # -- what they share ------------------------------------------------------------------------------------

    def _inline(self, node: Node, label: str, body: Body, given: Sequence[str]) -> list[str]:
        """Add the nodes of a body under names of their own; the names of its outputs."""
        self._left -= 1 + len(body.nodes)
        if self._left < 0:
            raise NodeError(node.name, node.op, f"loops are written out to more than {MOST_NODES} nodes")
        prefix = f"{node.name}/{label}/"
        names = {"": "", **dict(zip(body.inputs, given, strict=True))}
        for name, constant in body.constants.handles():
            names[name] = self._constant(node, f"{label}/{name}", constant)
        for inner in body.nodes:
            names |= {name: self._fresh(prefix + name) for name in inner.outputs if name}
            self._add(_renamed(inner, self._fresh(prefix + inner.name), names))
        return [names.get(name, name) for name in body.outputs]

    def _finish(self, outputs: Sequence[str], values: Sequence[str]) -> None:
        for name, value in zip(outputs, values, strict=True):
            if name:
                self._put("Identity", name, (value,), (name,), {}, 13)

    def _put(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
        version: int,
    ) -> str:
        """Add a node; the name of its output, a new one if none is given."""
        made = tuple(outputs) or (self._fresh(name),)
        self._add(Node(op, self._fresh(name), tuple(inputs), made, attributes, version))
        return made[0]

    def _constant(self, node: Node, label: str, value: Array | Constant) -> str:
        name, constant = self._fresh(f"{node.name}/{label}"), as_constant(value)
        self._graph.constants[name] = constant
        self._graph.types[name] = ValueType(constant.shape, constant.dtype.name)
        return name

    def _fresh(self, name: str) -> str:
        """The name itself, or with a number where there is one like it."""
        found = name
        while found in self._names:
            self._numbers[name] = self._numbers.get(name, 0) + 1
            found = f"{name}.{self._numbers[name]}"
        self._names.add(found)
        return found


def _renamed(node: Node, name: str, names: Mapping[str, str]) -> Node:
    """The node with other names of values, in its graphs too."""
    inner = {key: _renamed_body(v, names) if isinstance(v, Body) else v for key, v in node.attributes.items()}
    inputs, outputs = (tuple(names.get(value, value) for value in each) for each in (node.inputs, node.outputs))
    return replace(node, name=name, inputs=inputs, outputs=outputs, attributes=inner)


def _renamed_body(body: Body, names: Mapping[str, str]) -> Body:
    own = {*body.inputs, *body.constants, *(name for node in body.nodes for name in node.outputs if name)}
    outer = {old: new for old, new in names.items() if old not in own}
    nodes = [_renamed(node, node.name, outer) for node in body.nodes]
    return replace(body, nodes=nodes, outputs=tuple(outer.get(name, name) for name in body.outputs))
