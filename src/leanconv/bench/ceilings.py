"""The least memory that a network runs in, and what no runtime could go below: weights and a layer's two tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leanconv.arrays import Array
from leanconv.errors import MemoryLimitError
from leanconv.host import this_host
from leanconv.network.choose import plan_network
from leanconv.network.graph import Graph, ValueType
from leanconv.network.steps.base import Setting

LEAST = "least"
"""What stands for the least limit that does, in the place of one."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A network at the least limit that does.

    Attributes:
        limit: bytes; the `memory_limit` of `leanconv.onnx.load`.
        weight_bytes: of the plain weights.
        pair_bytes: of the values that one layer reads and writes, of the layer where they are largest.
    """

    limit: int
    weight_bytes: int
    pair_bytes: int

    @property
    def floor_bytes(self) -> int:
        """Weights, and the largest pair of activations."""
        return self.weight_bytes + self.pair_bytes

    def __str__(self) -> str:
        """One line."""
        from leanconv.sizes import format_bytes

        part = (self.weight_bytes + self.limit) / max(1, self.floor_bytes)
        return (
            f"least limit {format_bytes(self.limit)} beside weights of {format_bytes(self.weight_bytes)}: "
            f"{part:.0%} of weights and the largest pair of activations ({format_bytes(self.floor_bytes)})"
        )


def least_ceiling(path: str, inputs: Mapping[str, Array], threads: int) -> Ceiling:
    """Plan a model within ever less, without compiling or running it.

    Args:
        path: of an ONNX file.
        inputs: an array for each input; their shapes count.
        threads: of a run.

    Raises:
        ModelError: the model cannot be read, or breaks a rule of an operator.
    """
    from leanconv.onnx import load

    session = load(path, threads=threads)
    graph = session.graph({name: ValueType(array.shape, array.dtype.name) for name, array in inputs.items()})
    setting = Setting(this_host(), threads, limited=True)
    limit = 0
    try:
        choice = plan_network(graph, setting, limit)[1]
    except MemoryLimitError as error:
        limit = error.needed
        choice = plan_network(graph, setting, limit)[1]
    weights = sum(option.kept_bytes - option.extra_bytes for option in choice.options if option is not None)
    return Ceiling(limit, weights, _largest_pair(graph))


def _largest_pair(graph: Graph) -> int:
    most = 0
    for node in graph.nodes:
        names = {name for name in (*node.inputs, *node.outputs) if name and name not in graph.constants}
        most = max(most, sum(graph.types[name].nbytes for name in names))
    return most
