"""Concat without copies: parts of its output that the values it joins are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leanconv.classes import replace
from leanconv.network.arrangement import ARENA, Arrangement
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.places import Place, dense, order_of, sliced
from leanconv.network.steps import placer
from leanconv.network.steps.shaping import Concat, concat_axis


def concat_slots(graph: Graph, plain: Arrangement) -> dict[str, Place]:
    """Parts of Concat outputs that the values they consist of can be written to; the last Concat first.

    Values of an earlier Concat that a later one joins too, in the same sequence, have a place already: the earlier
    output is then a part of the later one.
    """
    produced = {name: node for node in graph.nodes for name in node.outputs if name}
    steps = {step.call.node.name for step in plain.steps}
    slots: dict[str, Place] = {}
    for node in reversed([node for node in graph.nodes if node.op == "Concat"]):
        name = node.outputs[0]
        type_, rank = graph.types[name], len(graph.types[name].shape)
        if not isinstance(placer("Concat"), Concat) or name not in plain.places or not type_.size:
            continue
        axis = concat_axis(node, rank)
        starts = [0]
        for part in node.inputs:
            starts.append(starts[-1] + graph.types[part].shape[axis])
        whole = slots.get(name) or _around(node, starts, axis, type_, slots)
        if whole is None:
            natural = plain.places[name]
            if not natural.storage.startswith(ARENA):
                continue
            whole = replace(natural, storage=ARENA + name, offset=0)
            whole = dense(ARENA + name, type_, order_of(natural))
        else:
            slots[name] = whole
        for first, part in zip(starts, node.inputs, strict=False):
            maker = produced.get(part)
            fixed = maker is None or part in graph.outputs or part in slots or node.inputs.count(part) > 1
            if fixed or (maker is not None and maker.op != "Concat" and maker.name not in steps):
                continue
            at = [first if a == axis else 0 for a in range(rank)]
            slots[part] = sliced(whole, at, (1,) * rank, graph.types[part].shape)
    return slots


def _around(node: Node, starts: Sequence[int], axis: int, type_: ValueType, slots: Mapping[str, Place]) -> Place | None:
    """The part of a storage that a Concat's inputs fill already, in their sequence."""
    if not all(part in slots for part in node.inputs):
        return None
    head = slots[node.inputs[0]]
    whole = Place(head.storage, head.offset, type_.shape, head.strides, head.dtype)
    for first, part in zip(starts, node.inputs, strict=False):
        at = [first if a == axis else 0 for a in range(len(type_.shape))]
        if not sliced(whole, at, (1,) * len(at), slots[part].shape).same_elements(slots[part]):
            return None
    return whole
