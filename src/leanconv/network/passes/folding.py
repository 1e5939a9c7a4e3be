"""Constant folding: what depends on constants only is computed once."""

from __future__ import annotations

from leanconv.network.graph import ValueType
from leanconv.network.operators import evaluate_node, operator
from leanconv.network.operators.base import dense
from leanconv.network.passes.base import Rewriter

LARGEST = 64 << 20
"""Bytes of the outputs of a node that is folded."""


def fold_constants(rewriter: Rewriter) -> None:
    """Compute nodes all of whose inputs are constants."""
    graph = rewriter.graph
    for node in rewriter.nodes():
        if not all(rewriter.is_constant(name) for name in node.inputs if name):
            continue
        found = operator(node.op)
        if found is None or sum(graph.types[name].nbytes for name in node.outputs if name) > LARGEST:
            continue
        known = [rewriter.constant(name) for name in node.inputs]
        for name, array in zip(node.outputs, evaluate_node(found, node, known), strict=True):
            if name:
                graph.constants[name] = dense(array)
                graph.types[name] = ValueType(array.shape, array.dtype.name)
        rewriter.remove(node)
