"""A model as it was read: nodes, constants, and what may be free in the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import field
from weakref import WeakValueDictionary

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError, ModelError
from leanconv.memory import Block
from leanconv.network.arrangement import CONSTANT
from leanconv.network.ceiling import physical_memory
from leanconv.network.constants import Constant, Constants
from leanconv.network.graph import Graph, Node
from leanconv.network.shared import SharedWeights

BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
"""Operators with graphs in them, and the attributes that hold these."""


class NeedsValuesError(ModelError):
    """Shapes depend on the values of inputs.

    Attributes:
        inputs: their names.
    """

    def __init__(self, inputs: frozenset[str], why: str) -> None:
        """Keep the names; `why` names the node that asks."""
        super().__init__(inputs, why)
        self.inputs = inputs
        self.why = why

    def __str__(self) -> str:
        """Return the message on one line."""
        return f"{self.why}, and so on the values of {', '.join(sorted(self.inputs)) or 'what is computed'}"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of a model.

    Attributes:
        name: as in the file.
        shape: an int for each axis, a text for one that is free but equal wherever the text is the same, None for one
            that is free; None if even the number of axes is.
        dtype: NumPy's name of the element type; None if the file does not say (outputs only).
    """

    name: str
    shape: tuple[int | str | None, ...] | None
    dtype: str | None

    @property
    def fixed(self) -> bool:
        """Whether no extent is free."""
        return self.shape is not None and all(isinstance(extent, int) for extent in self.shape)

    def __str__(self) -> str:
        """Return name, element type and shape, such as `x float32 (N, 3, 224, 224)`."""
        if self.shape is None:
            shape = "any shape"
        else:
            shape = "(" + ", ".join("?" if extent is None else str(extent) for extent in self.shape) + ")"
        return f"{self.name} {self.dtype or 'any type'} {shape}"


@dataclass(slots=True)
class Model:
    """A model whose shapes may be free.

    Attributes:
        name: of its graph.
        version: of ONNX's operator set.
        nodes: in an order in which they can run.
        inputs: by name; without those that are constants.
        outputs: by name.
        constants: initialisers; read-only.
        derived: constants that passes made of others, by a name that says how; shared by all graphs of the model that
            are alive.
        packed: weights as kernels read them, by what decides about them; shared by all networks of the model.
    """

    name: str
    version: int
    nodes: list[Node]
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    constants: Constants
    derived: MutableMapping[str, Constant] = field(default_factory=WeakValueDictionary)
    packed: MutableMapping[Hashable, Block] = field(default_factory=WeakValueDictionary)

    def shared(self, graph: Graph) -> SharedWeights:
        """What a graph of this model shares with others: weights packed from constants that they all have."""
        same = [
            CONSTANT + name
            for name, handle in graph.constants.handles()
            if handle is self.constants.handle(name) or handle is self.derived.get(name)
        ]
        return SharedWeights(same, self.packed)

    def check_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check names, element types and shapes of what a caller gives.

        Raises:
            ArgumentTypeError: not a mapping of arrays, or another element type.
            ArgumentValueError: an input is missing or unknown, or its shape does not fit.
        """
        if not isinstance(inputs, Mapping):
            raise ArgumentTypeError("inputs", inputs, "must be a mapping from names to arrays")
        names = ", ".join(map(repr, self.inputs)) or "none"
        for name in inputs:
            if name not in self.inputs:
                raise ArgumentValueError("inputs", list(inputs), f"has {name!r}, but the model's inputs are {names}")
        sizes: dict[str, tuple[int, str]] = {}
        for name, port in self.inputs.items():
            if name not in inputs:
                raise ArgumentValueError("inputs", list(inputs), f"lacks {name!r}; the model's inputs are {names}")
            array = inputs[name]
            if not isinstance(array, np.ndarray):
                raise ArgumentTypeError(f"inputs[{name!r}]", array, "must be a NumPy array")
            if array.dtype.name != port.dtype or not array.dtype.isnative:
                raise ArgumentTypeError(f"inputs[{name!r}]", array, f"must have element type {port.dtype}")
            check_shape(port, array.shape, sizes)


def check_shape(port: Port, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    """Check a shape against what a model says of an input.

    Args:
        port: the input.
        shape: what is given.
        sizes: free extents by their text, each with the input that decided it; added to.

    Raises:
        ArgumentValueError: it does not fit.
    """
    if port.shape is None:
        return
    argument = f"inputs[{port.name!r}]"
    if len(shape) != len(port.shape):
        raise ArgumentValueError(argument, shape, f"must have {len(port.shape)} axes: {port}")
    for axis, (given, wanted) in enumerate(zip(shape, port.shape, strict=True)):
        if isinstance(wanted, int) and given != wanted:
            raise ArgumentValueError(argument, shape, f"must have the extent {wanted} at axis {axis}: {port}")
        if isinstance(wanted, str):
            first, by = sizes.setdefault(wanted, (given, port.name))
            if first != given:
                rule = f"must have the extent {first} at axis {axis}, for {wanted} is that in {by!r}"
                raise ArgumentValueError(argument, shape, rule)


def check_memory(constants: Constants) -> None:
    """Check that weights fit the machine's memory.

    Raises:
        MemoryLimitError: they do not.
    """
    machine = physical_memory()
    if constants.nbytes > machine:
        raise MemoryLimitError(machine, constants.nbytes, "the model's weights, on a machine of so much memory,")
