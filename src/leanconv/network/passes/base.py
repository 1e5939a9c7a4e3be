"""What passes share: a graph whose nodes can be found by the values they compute and read, and replaced in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import replace
from leanconv.network.constants import Constant, Derived, Held
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators.base import dense


class Rewriter:
    """A graph under change.  `graph.nodes` is brought up to date by `sweep`, between passes."""

    def __init__(self, graph: Graph, derived: MutableMapping[str, Constant], shared: Collection[str]) -> None:
        """`derived`: constants made of `shared` ones; both are the same in all graphs of one model."""
        self.graph = graph
        self.derived, self.shared = derived, shared
        # Places in the order; fractions, so that there is always one between two.
        self._slots: dict[float, Node] = dict(enumerate(graph.nodes))
        self._slot_of = {node.name: slot for slot, node in self._slots.items()}
        self._producer: dict[str, Node] = {}
        self._users: dict[str, dict[str, Node]] = {}
        self._changed = True
        for node in graph.nodes:
            self._add(node)

    def nodes(self) -> Iterator[Node]:
        """Nodes in order, as they were when asked for; those replaced or removed meanwhile are left out."""
        for slot in list(self._slots):
            if slot in self._slots:
                yield self._slots[slot]

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs and constants."""
        return self._producer.get(value)

    def users(self, value: str) -> list[Node]:
        """The nodes that read a value, each once."""
        return list(self._users.get(value, {}).values())

    def only_user(self, value: str) -> Node | None:
        """The one node that reads a value, at one input; None if there are more, or if the value is an output."""
        users = self._users.get(value, {})
        if len(users) != 1 or value in self.graph.outputs:
            return None
        (user,) = users.values()
        return user if user.inputs.count(value) == 1 else None

    def constant(self, value: str) -> Array | None:
        """The array of a constant; None for other values and for `""`."""
        return self.graph.constants.get(value)

    def is_constant(self, value: str) -> bool:
        """Whether a value is a constant; unlike `constant` this does not bring weights into memory."""
        return value in self.graph.constants

    def number(self, value: str) -> float | None:
        """A constant that is a single number."""
        if not self.is_constant(value) or self.graph.types[value].size != 1:
            return None
        array = self.graph.constants[value]
        return float(array.reshape(())) if array.dtype.kind in "fiu" else None

    def type_of(self, value: str) -> ValueType:
        """Type of a value."""
        return self.graph.types[value]

    def position(self, node: Node) -> float:
        """Grows along the order in which nodes run."""
        return self._slot_of[node.name]

    def derive(
        self, name: str, sources: Sequence[str], make: Callable[[], Array], type_: ValueType | None = None
    ) -> str:
        """Add a constant that is made of others, and return its name.

        Args:
            name: says of which constants and how, and so stands for the value.
            sources: names of those constants, `""` for none.
            make: computes it, as an array that nobody else writes to; not called if another graph of the model has it.
            type_: of what it computes, if that is to be done only when somebody looks, each time: for weights.
        """
        found = self.derived.get(name)
        if found is None:
            if type_ is not None:
                found = Derived(type_.shape, np.dtype(type_.dtype), lambda: dense(make()))
            else:
                array = np.array(make(), order="C")
                array.flags.writeable = False
                found = Held(array)
            # What depends on the shapes of one graph is not shared with others.
            if all(source in self.shared or source in self.derived for source in sources if source):
                self.derived[name] = found
        self._changed = True
        self.graph.constants[name] = found
        self.graph.types[name] = ValueType(found.shape, found.element)
        return name

    def insert_before(self, node: Node, new: Node) -> None:
        """Put a new node right before another."""
        slot = self._slot_of[node.name]
        before = max((other for other in self._slots if other < slot), default=slot - 2)
        self._slots[(before + slot) / 2] = new
        self._slot_of[new.name] = (before + slot) / 2
        self._slots = dict(sorted(self._slots.items()))
        self._add(new)

    def replace(self, old: Node, new: Node, *removed: Node) -> None:
        """Put a node in the place of another, and take out others that it stands for as well."""
        for node in removed:
            self.remove(node)
        self._take(old)
        slot = self._slot_of.pop(old.name)
        # The order of slots is that of the dictionary: written over, for a new entry would come last.
        self._slots[slot] = new
        self._slot_of[new.name] = slot
        self._add(new)

    def remove(self, node: Node) -> None:
        """Take out a node whose outputs nobody reads."""
        self._take(node)
        del self._slots[self._slot_of.pop(node.name)]

    def prune(self, values: Iterable[str]) -> None:
        """Take out the nodes that compute these values, and those before them, as far as nobody reads what they do."""
        pending = list(values)
        while pending:
            node = self.producer(pending.pop())
            if node is not None and not any(self.users(v) or v in self.graph.outputs for v in node.outputs if v):
                self.remove(node)
                pending.extend(node.inputs)

    def substitute(self, value: str, other: str) -> None:
        """Let everyone who reads a value read another; the value must not be an output of the graph."""
        for user in self.users(value):
            inputs = tuple(other if name == value else name for name in user.inputs)
            slot = self._slot_of[user.name]
            self._take(user)
            self._slots[slot] = replace(user, inputs=inputs)
            self._add(self._slots[slot])

    def sweep(self) -> None:
        """Drop nodes and constants that nobody needs, and write the nodes back to the graph."""
        if not self._changed:
            return
        wanted = set(self.graph.outputs)
        for node in reversed(list(self._slots.values())):
            if any(name in wanted for name in node.outputs if name):
                wanted.update(node.inputs)
            else:
                self.remove(node)
        graph = self.graph
        graph.nodes = list(self._slots.values())
        for name in [name for name in graph.constants if name not in wanted]:
            del graph.constants[name]
        computed = {name for node in graph.nodes for name in node.outputs}
        alive = {*wanted, *computed, *graph.inputs}
        for name in [name for name in graph.types if name not in alive]:
            del graph.types[name]
        self._changed = False

    def _add(self, node: Node) -> None:
        self._changed = True
        for name in node.outputs:
            if name:
                self._producer[name] = node
        for name in node.inputs:
            if name:
                self._users.setdefault(name, {})[node.name] = node

    def _take(self, node: Node) -> None:
        self._changed = True
        for name in node.outputs:
            if self._producer.get(name) is node:
                del self._producer[name]
        for name in node.inputs:
            self._users.get(name, {}).pop(node.name, None)


Pass: TypeAlias = Callable[[Rewriter], None]


def with_inputs(node: Node, inputs: Sequence[str], **attributes: Any) -> Node:
    """The node with other inputs, `""` at the end left out, and attributes added."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return replace(node, inputs=tuple(names), attributes={**node.attributes, **attributes})


def input_of(node: Node, position: int) -> str:
    """Name of an input, `""` if it is absent."""
    return node.inputs[position] if position < len(node.inputs) else ""


def without(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Attributes but some."""
    return {name: value for name, value in attributes.items() if name not in names}
