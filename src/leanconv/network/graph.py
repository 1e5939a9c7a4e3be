"""A network as data: values by name, nodes in the order they run, constants.

The vocabulary is that of ONNX: operator names, attribute names, NCHW shapes, and `""` for an optional input that is
absent.  A graph has static shapes: a model with free sizes becomes one graph for each set of sizes it is run with.
How a value lies in memory (channels last, say) is no part of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

import numpy as np

from leanconv.classes import dataclass
from leanconv.network.constants import Constants


@functools.cache
def itemsize(dtype: str) -> int:
    """Bytes of an element; NumPy takes a microsecond to find its type by name, and planning asks thousands of times."""
    return np.dtype(dtype).itemsize


@dataclass(frozen=True, slots=True)
class ValueType:
    """Shape and element type of a value; `dtype` is NumPy's name of it, such as `"float32"`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the value, dense."""
        return self.size * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to values.

    Attributes:
        op: ONNX's name of the operator; operators of this package that fuse several begin with `leanconv.`.
        name: for messages and profiles; unique in its graph.
        inputs: names of values, `""` for an optional one that is absent.
        outputs: names of values, `""` for one that nobody wants.
        attributes: as ONNX names them, with Python values (ints, floats, strings, tuples, arrays, graphs).
        version: of the operator's set, which decides what attributes and inputs mean.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0


@dataclass(slots=True)
class Graph:
    """Nodes in an order in which they can run, over named values; passes change it in place.

    Attributes:
        nodes: each reads only inputs, constants and outputs of earlier nodes.
        inputs: names and types of what the caller gives.
        outputs: names of what the caller gets; may be inputs or constants too.
        constants: values known beforehand, weights among them; not to be written. Given as any mapping of arrays.
        types: of every value, constants and inputs included.
    """

    nodes: list[Node]
    inputs: dict[str, ValueType]
    outputs: list[str]
    constants: Constants
    types: dict[str, ValueType]

    def __post_init__(self) -> None:
        """Take constants as a plain dictionary too."""
        if not isinstance(self.constants, Constants):
            self.constants = Constants(self.constants)

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs and constants."""
        return next((node for node in self.nodes if value in node.outputs), None)

    def users(self, value: str) -> Iterator[Node]:
        """The nodes that read a value, in order."""
        return (node for node in self.nodes if value in node.inputs)

    def used_once(self, value: str) -> bool:
        """Whether exactly one input of one node reads a value and it is no output of the graph."""
        return value not in self.outputs and sum(node.inputs.count(value) for node in self.nodes) == 1
