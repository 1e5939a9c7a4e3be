"""What an operator is: the types of its outputs, and its meaning in NumPy.

Each module of this package has a tuple `OPERATORS`; `leanconv.network.operators.operator` finds one by name.  Meaning
comes in plain NumPy: it is what constant folding, tests and the rare operators without a kernel compute with.

`infer` and `evaluate` may fail in any way on a node that breaks its rules (a wrong number of axes, say): callers use
`infer_node` and `evaluate_node`, which turn every failure into a `NodeError` with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from leanconv.arrays import Array
from leanconv.checks import LARGEST_ARRAY
from leanconv.classes import dataclass
from leanconv.errors import AllocationError, LeanconvError, ModelError
from leanconv.network.graph import Node, ValueType

Types: TypeAlias = Sequence[ValueType | None]
Arrays: TypeAlias = Sequence[Array | None]
Infer: TypeAlias = Callable[[Node, Types, Arrays], tuple[ValueType, ...]]
Evaluate: TypeAlias = Callable[[Node, Arrays], tuple[Array, ...]]
Check: TypeAlias = Callable[[Node], str | None]

_FAILURES = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, AssertionError)
_MOST_AXES = 32  # NumPy of all supported versions has at least so many


class NodeError(ModelError):
    """A node breaks a rule of its operator.

    Attributes:
        node: the node's name.
        op: its operator.
        rule: what is wrong, in a sentence.
    """

    def __init__(self, node: str, op: str, rule: str) -> None:
        """Keep the three parts."""
        super().__init__(node, op, rule)
        self.node = node
        self.op = op
        self.rule = rule

    def __str__(self) -> str:
        """Return the message on one line."""
        return f"node {self.node!r} ({self.op}): {self.rule}"


class UnknownValueError(NodeError):
    """Types can be inferred only once the value of an input is known, such as the shape of a Reshape.

    Attributes:
        input: position of that input.
    """

    def __init__(self, node: str, op: str, input: int) -> None:
        """Keep the position."""
        super().__init__(node, op, f"the shape of its output depends on the value of input {input}")
        self.input = input


def supported(node: Node) -> str | None:
    """Refuse nothing: the `check` of an operator without limits."""
    return None


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of ONNX, or of this package (`leanconv.` before its name).

    Attributes:
        name: as in `Node.op`.
        infer: called with the node, the types of its inputs (None where absent) and their values (None where absent
            or unknown); returns the types of all outputs that the operator can have.  Raises `UnknownValueError`.
        evaluate: called with the node and all its inputs; returns all outputs.  Inputs are not written; outputs may
            be views of inputs.
        since: the versions of the operator set at which its meaning changed, as far as they are told apart.
        check: a sentence why this node is not supported, or None; looks at attributes and version only.
    """

    name: str
    infer: Infer
    evaluate: Evaluate
    since: tuple[int, ...] = (1,)
    check: Check = supported


def infer_node(operator: Operator, node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    """Types of a node's outputs, as many as it names.

    Raises:
        NodeError: the node breaks a rule of its operator, or an output would be too large to address.
        UnknownValueError: the value of an input is needed and unknown.
    """
    try:
        found = operator.infer(node, types, constants)
    except LeanconvError:
        raise
    except (*_FAILURES, MemoryError, RecursionError) as error:
        raise NodeError(node.name, node.op, _words(error)) from error
    if len(found) < len(node.outputs):
        rule = f"has {len(node.outputs)} outputs, more than the operator's {len(found)}"
        raise NodeError(node.name, node.op, rule)
    for type_ in found:
        if len(type_.shape) > _MOST_AXES or any(extent < 0 for extent in type_.shape) or type_.nbytes > LARGEST_ARRAY:
            raise NodeError(node.name, node.op, f"an output would have the shape {_short(type_.shape)}")
    return found[: len(node.outputs)]


def evaluate_node(operator: Operator, node: Node, arrays: Arrays) -> tuple[Array, ...]:
    """Values of a node's outputs.

    Raises:
        NodeError: the node breaks a rule of its operator.
        AllocationError: no memory for an output.
    """
    try:
        # As in ONNX, arithmetic follows IEEE 754 and never warns.
        with np.errstate(all="ignore"):
            return tuple(np.asarray(array) for array in operator.evaluate(node, arrays))[: len(node.outputs)]
    except LeanconvError:
        raise
    except MemoryError as error:
        raise AllocationError(f"node {node.name!r} ({node.op}): {_words(error)}") from error
    except (*_FAILURES, RecursionError) as error:
        raise NodeError(node.name, node.op, _words(error)) from error


# -- helpers for operators ----------------------------------------------------------------------------------


def present(types: Types, position: int) -> ValueType:
    """Type of an input that must be there."""
    found = types[position] if position < len(types) else None
    if found is None:
        raise ValueError(f"input {position} is missing")
    return found


def given(arrays: Arrays, position: int) -> Array:
    """Value of an input that must be there."""
    found = arrays[position] if position < len(arrays) else None
    if found is None:
        raise ValueError(f"input {position} is missing")
    return found


def maybe(arrays: Arrays, position: int) -> Array | None:
    """Value of an input that may be absent."""
    return arrays[position] if position < len(arrays) else None


def known(node: Node, types: Types, constants: Arrays, position: int) -> Array | None:
    """Value of an input that decides about a shape; None if the input is absent.

    Raises:
        UnknownValueError: it is there and its value is unknown.
    """
    if position >= len(types) or types[position] is None:
        return None
    value = constants[position]
    if value is None:
        raise UnknownValueError(node.name, node.op, position)
    return value


def known_ints(node: Node, types: Types, constants: Arrays, position: int) -> tuple[int, ...] | None:
    """As `known`, as a tuple of ints."""
    value = known(node, types, constants, position)
    return None if value is None else ints(value)


def ints(values: Any) -> tuple[int, ...]:
    """A tuple of ints from an array or a sequence; a single number gives a tuple of one."""
    if type(values) is tuple and all(type(value) is int for value in values):
        return values  # as most attributes are
    return tuple(int(value) for value in np.asarray(values).reshape(-1))


def axis_of(axis: int, rank: int, *, beyond: int = 0) -> int:
    """An axis counted from the front; ONNX counts from the end with negative numbers.

    `beyond`: how many axes after the last may be named too, by positive numbers.
    """
    if not -rank <= axis < rank + beyond:
        raise ValueError(f"axis {axis} is outside a shape of {rank} axes")
    return axis + rank if axis < 0 else axis


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Several axes counted from the front, each at most once."""
    found = tuple(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"axes {tuple(axes)} name one axis twice")
    return found


def broadcast(*types: ValueType | None) -> tuple[int, ...]:
    """Common shape of operands by NumPy's rule, which is ONNX's."""
    return np.broadcast_shapes(*(type_.shape for type_ in types if type_ is not None))


def same_type(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    """One output of the type of the first input."""
    return (present(types, 0),)


def dense(array: Array) -> Array:
    """The array in C order: itself, or a copy (NumPy's own function would give a single number an axis)."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def product(extents: Sequence[int]) -> int:
    """Product of ints, without overflow."""
    result = 1
    for extent in extents:
        result *= int(extent)
    return result


def _short(shape: Sequence[int]) -> str:
    """A shape in few words, however absurd its numbers."""
    text = "x".join(str(extent) if abs(extent) < 10**20 else "..." for extent in shape[:8])
    return text + ("x..." if len(shape) > 8 else "")


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) < 200 else text[:197] + "...") or type(error).__name__
