"""Join element-wise operators into chains, each of which is one pass over memory: `leanconv.Pointwise`."""

from __future__ import annotations

from typing import Any

from leanconv.network.graph import Node
from leanconv.network.operators.pointwise import CHAINABLE
from leanconv.network.passes.base import Rewriter

_MOST_STEPS = 16  # longer ones make kernels that run short of registers


def join_chains(rewriter: Rewriter) -> None:
    """Join an operator with those before it whose results nobody else reads."""
    for node in rewriter.nodes():
        if not _joins(rewriter, node):
            continue
        whole = _as_chain(node)
        for value in dict.fromkeys(node.inputs):
            before = rewriter.producer(value)
            if before is None or not _joins(rewriter, before) or value in rewriter.graph.outputs:
                continue
            same = rewriter.type_of(value).shape == rewriter.type_of(node.outputs[0]).shape
            if len(rewriter.users(value)) != 1 or not same:
                continue
            joined = _joined(_as_chain(before), whole)
            if len(joined.attributes["steps"]) <= _MOST_STEPS:
                rewriter.replace(node, joined, before)
                node = whole = joined


def _joins(rewriter: Rewriter, node: Node) -> bool:
    if node.op != "leanconv.Pointwise" and (node.op not in CHAINABLE or len(node.outputs) != 1):
        return False
    if "axis" in node.attributes or not node.inputs:
        return False  # an operator of before version 7, with broadcasting of its own
    values = [rewriter.type_of(name) for name in (*node.inputs, *node.outputs) if name]
    return all(type_.dtype == values[-1].dtype for type_ in values) and values[-1].dtype in ("float32", "float64")


def _as_chain(node: Node) -> Node:
    if node.op == "leanconv.Pointwise":
        return node
    inputs = tuple(dict.fromkeys(name for name in node.inputs if name))
    operands = tuple(inputs.index(name) if name else -1 for name in node.inputs)
    steps = ((node.op, operands, dict(node.attributes), node.version),)
    return Node("leanconv.Pointwise", node.name, inputs, node.outputs, {"steps": steps}, 1)


def _joined(first: Node, second: Node) -> Node:
    """Two chains as one; the second reads the result of the first."""
    inputs = tuple(dict.fromkeys((*first.inputs, *(name for name in second.inputs if name != first.outputs[0]))))
    steps: list[tuple[str, tuple[int, ...], Any, int]] = []
    for chain in (first, second):
        own = len(chain.inputs)
        places: dict[int, int] = {-1: -1}
        for number, name in enumerate(chain.inputs):
            # The one input of the second that is none of the whole is the result of the first.
            places[number] = inputs.index(name) if name in inputs else len(inputs) + len(steps) - 1
        for number, (op, operands, attributes, version) in enumerate(chain.attributes["steps"]):
            places[own + number] = len(inputs) + len(steps)
            steps.append((op, tuple(places[place] for place in operands), attributes, version))
    return Node("leanconv.Pointwise", second.name, inputs, second.outputs, {"steps": tuple(steps)}, 1)
