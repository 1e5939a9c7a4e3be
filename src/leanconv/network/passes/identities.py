"""Take out nodes that change nothing."""

from __future__ import annotations

from leanconv.network.graph import Node
from leanconv.network.operators.slicing import pad_mode
from leanconv.network.passes.base import Rewriter, input_of

# Operators that give their input if types do not change.
_BY_TYPE = frozenset(("Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Resize"))


def remove_identities(rewriter: Rewriter) -> None:
    """Let those who read the output of such a node read its input."""
    for node in rewriter.nodes():
        if not node.outputs or not node.inputs or not node.inputs[0] or not _is_identity(rewriter, node):
            continue
        if any(rewriter.users(name) or name in rewriter.graph.outputs for name in node.outputs[1:] if name):
            continue
        source, value = node.inputs[0], node.outputs[0]
        if value not in rewriter.graph.outputs:
            rewriter.substitute(value, source)
            rewriter.remove(node)


def _is_identity(rewriter: Rewriter, node: Node) -> bool:
    same = rewriter.type_of(node.inputs[0]) == rewriter.type_of(node.outputs[0]) if node.outputs[0] else False
    if node.op in ("Identity", "Dropout"):
        return same
    if node.op in ("Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    if node.op == "Transpose":
        rank = len(rewriter.type_of(node.inputs[0]).shape)
        return tuple(node.attributes.get("perm", range(rank)[::-1])) == tuple(range(rank))
    if node.op in ("Pad", "Slice"):
        if node.op == "Slice" and any(step is not None and step < 0 for step in _steps(rewriter, node)):
            return False
        return same and (node.op == "Slice" or _no_negative(rewriter, node))
    if node.op in ("Mul", "Div"):
        return same and rewriter.number(input_of(node, 1)) == 1
    if node.op in ("Add", "Sub"):
        return same and rewriter.number(input_of(node, 1)) == 0
    if node.op == "Resize" and node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    return node.op in _BY_TYPE and same


def _steps(rewriter: Rewriter, node: Node) -> list[int | None]:
    steps = rewriter.constant(input_of(node, 4))
    return [None] if steps is None else [int(step) for step in steps.reshape(-1)]


def _no_negative(rewriter: Rewriter, node: Node) -> bool:
    pads = rewriter.constant(input_of(node, 1))
    found = node.attributes.get("pads", ()) if pads is None else pads.reshape(-1)
    return pad_mode(node) == "constant" and all(int(pad) == 0 for pad in found)
