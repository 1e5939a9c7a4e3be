"""A traced model as plain data: what is called, in order, on what; it can be pickled, and outlives the trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier instruction, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """One node of the trace.

    Attributes:
        name: unique.
        kind: as of `torch.fx.Node.op`.
        target: name of a module, a tensor, a method or an input; or a function.
        args: with a `Ref` in place of each node.
        kwargs: likewise.
    """

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Recipe = tuple[Instruction, ...]


def recipe_of(graph: fx.Graph) -> Recipe:
    """The nodes of a graph as instructions; `placeholder` first, one `output` last."""
    return tuple(
        Instruction(node.name, node.op, node.target, _plain(node.args), _plain(node.kwargs)) for node in graph.nodes
    )


def _plain(value: Any) -> Any:
    """Arguments with references for nodes, and plain containers for those of `torch.fx`."""
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if type(value) is tuple:
        return tuple(_plain(each) for each in value)
    return value


def references(value: Any) -> set[str]:
    """Names of the instructions that arguments refer to."""
    if isinstance(value, Ref):
        return {value.name}
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    elif not isinstance(value, tuple | list):
        return set()
    return set().union(*map(references, value))
