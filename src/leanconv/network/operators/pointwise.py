"""`leanconv.Pointwise`: a chain of element-wise operators as one node.

Its attribute `steps` is a tuple of (op, operands, attributes, version): an ONNX operator, where its operands come from,
and its attributes.  Operands are counted: first the node's inputs, then the result of each step in turn; -1 stands for
an operand that is absent.  The node's one output is the result of the last step.
"""

from __future__ import annotations

from collections.abc import Iterator

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators import activations, creation, elementwise
from leanconv.network.operators.base import Arrays, Operator, Types

_PARTS = {part.name: part for part in (*elementwise.OPERATORS, *activations.OPERATORS, *creation.OPERATORS)}

# What a chain may consist of: each element of the result depends on the elements at its place only.
CHAINABLE = frozenset(
    {operator.name for operator in (*elementwise.OPERATORS, *activations.OPERATORS)}
    - {"Softmax", "LogSoftmax", "Hardmax"}
    | {"Cast"}
)


def chain(node: Node) -> Iterator[tuple[Operator, Node, tuple[int, ...]]]:
    """The steps of a chain: operator, a node that has its attributes, places of its operands."""
    for number, (op, operands, attributes, version) in enumerate(node.attributes["steps"]):
        name = f"{node.name}/{number}"
        inputs = tuple("" if place < 0 else str(place) for place in operands)
        yield _PARTS[op], Node(op, name, inputs, (name,), attributes, version), tuple(operands)


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    values, known = list(types), list(constants)
    for part, step, operands in chain(node):
        mine = [None if place < 0 else values[place] for place in operands]
        values.extend(part.infer(step, mine, [None if place < 0 else known[place] for place in operands])[:1])
        known.append(None)
    last = values[-1]
    if last is None:
        raise ValueError("the chain has no steps")
    return (last,)


def _evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    values = list(arrays)
    for part, step, operands in chain(node):
        values.append(part.evaluate(step, [None if place < 0 else values[place] for place in operands])[0])
    last = values[-1]
    if last is None:
        raise ValueError("the chain has no steps")
    return (last,)


OPERATORS = (Operator("leanconv.Pointwise", _infer, _evaluate),)
