"""Recognise normalisations that exporters write as several nodes, and let them apply the activation that follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.operators.base import axes_of, ints
from leanconv.network.passes.activations import activation_of
from leanconv.network.passes.base import Rewriter, input_of

_FUSED = ("InstanceNormalization", "GroupNormalization")


def join_norms(rewriter: Rewriter) -> None:
    """Group norms around an instance norm of reshaped channels; layer norms written as means and squares."""
    for node in rewriter.nodes():
        if node.op == "InstanceNormalization":
            _join_group(rewriter, node)
        elif node.op == "Div":
            _join_layer(rewriter, node)


def fuse_norm_activations(rewriter: Rewriter) -> None:
    """A norm applies the activation after it, before its one store of each element."""
    for norm in rewriter.nodes():
        if norm.op not in _FUSED or rewriter.type_of(norm.outputs[0]).dtype not in ("float32", "float64"):
            continue
        user = rewriter.only_user(norm.outputs[0])
        activation = None if user is None else activation_of(rewriter, user)
        if user is not None and activation is not None:
            attributes = {**norm.attributes, "activation": activation}
            fused = replace(norm, op=f"leanconv.{norm.op}", outputs=user.outputs[:1], attributes=attributes)
            rewriter.replace(norm, fused, user)


def _join_group(rewriter: Rewriter, norm: Node) -> None:
    """(N, C, ...) seen as (N, groups, rest), normalised and seen as before; then a factor and a summand of channels."""
    before, after = rewriter.producer(norm.inputs[0]), rewriter.only_user(norm.outputs[0])
    scale, bias = rewriter.constant(norm.inputs[1]), rewriter.constant(norm.inputs[2])
    if before is None or after is None or scale is None or bias is None or (before.op, after.op) != ("Reshape",) * 2:
        return
    x, middle = rewriter.type_of(before.inputs[0]), rewriter.type_of(norm.inputs[0])
    if len(x.shape) < 3 or rewriter.type_of(after.outputs[0]) != x or middle.shape[0] != x.shape[0]:
        return
    channels, groups = x.shape[1], middle.shape[1]
    if not channels or channels % groups or x.dtype not in ("float32", "float64"):
        return
    # Each group's numbers for all of its channels; then those of channels, as far as they follow.
    factor, summand = (np.repeat(values.astype(np.float64), channels // groups) for values in (scale, bias))
    removed, last = [after], after
    for op in ("Mul", "Add"):
        user = rewriter.only_user(last.outputs[0])
        numbers = (
            None if user is None else _other(rewriter, user, op, last.outputs[0], (channels, *(1,) * len(x.shape[2:])))
        )
        if user is not None and numbers is not None:
            factor, summand = (factor * numbers, summand * numbers) if op == "Mul" else (factor, summand + numbers)
            removed.append(user)
            last = user
    sources = [name for each in (norm, *removed) for name in each.inputs if rewriter.constant(name) is not None]
    names = [
        rewriter.derive(f"{norm.name}{sign}{last.name}", sources, lambda v=values: v.astype(x.dtype))  # type: ignore[misc]
        for sign, values in (("*", factor), ("+", summand))
    ]
    attributes = {"num_groups": groups, "epsilon": float(norm.attributes.get("epsilon", 1e-5))}
    inputs = (before.inputs[0], *names)
    whole = replace(
        norm, op="GroupNormalization", inputs=inputs, outputs=last.outputs, attributes=attributes, version=21
    )
    rewriter.replace(norm, whole, *removed)
    rewriter.prune([before.outputs[0]])


def _other(rewriter: Rewriter, node: Node, op: str, value: str, shape: Sequence[int]) -> Array | None:
    """Of a node of an operator and two operands, the constant, as numbers of channels, if it has a shape's elements."""
    if node.op != op or len(node.inputs) != 2 or node.version < 7:
        return None
    constant = rewriter.constant(node.inputs[1 if node.inputs[0] == value else 0])
    if constant is None or rewriter.type_of(node.outputs[0]) != rewriter.type_of(value):
        return None
    if constant.size == 1:
        return np.full(shape[0], constant.reshape(())[()], np.float64)
    trimmed = constant.shape[len(constant.shape) - len(shape) :]
    return constant.reshape(-1).astype(np.float64) if trimmed == tuple(shape) and constant.size == shape[0] else None


def _join_layer(rewriter: Rewriter, div: Node) -> None:
    """D / sqrt(mean(d * d) + epsilon) with d = x - mean(x), means over the last axes; then a scale and a bias."""
    root = rewriter.producer(div.inputs[1])
    apart = rewriter.producer(div.inputs[0])
    if root is None or apart is None or (root.op, apart.op) != ("Sqrt", "Sub") or apart.version < 7:
        return
    add = rewriter.producer(root.inputs[0])
    if add is None or add.op != "Add" or len(add.inputs) != 2:
        return
    epsilon = rewriter.number(add.inputs[1])
    spread = rewriter.producer(add.inputs[0])
    square = None if spread is None else rewriter.producer(spread.inputs[0])
    mean, x = rewriter.producer(apart.inputs[1]), apart.inputs[0]
    if epsilon is None or spread is None or square is None or mean is None or not _squares(rewriter, square, apart):
        return
    type_ = rewriter.type_of(x)
    if type_.dtype not in ("float32", "float64") or type_ != rewriter.type_of(div.outputs[0]) or mean.inputs[0] != x:
        return
    axes = {_mean_axes(rewriter, each) for each in (mean, spread)}
    # d is read by its square and by the quotient, everything between once.
    inner = [name for node in (mean, square, spread, add, root) for name in node.outputs]
    if len(axes) != 1 or any(rewriter.only_user(name) is None for name in inner if name != square.outputs[0]):
        return
    if {user.name for user in rewriter.users(apart.outputs[0])} - {square.name, div.name} or len(
        rewriter.users(square.outputs[0])
    ) != 1:
        return
    (found,) = axes
    rank = len(type_.shape)
    if found is None or apart.outputs[0] in rewriter.graph.outputs or square.outputs[0] in rewriter.graph.outputs:
        return
    if found == tuple(range(rank - len(found), rank)):
        _put_layer(rewriter, div, x, len(found), float(epsilon), None)
    elif found == (1,) and rank > 2:
        _put_layer(rewriter, div, x, 1, float(epsilon), rank)


def _squares(rewriter: Rewriter, square: Node, apart: Node) -> bool:
    value = apart.outputs[0]
    if square.op == "Mul":
        return tuple(square.inputs) == (value, value)
    return square.op == "Pow" and square.inputs[0] == value and rewriter.number(square.inputs[1]) == 2


def _mean_axes(rewriter: Rewriter, node: Node) -> tuple[int, ...] | None:
    """Axes of a mean that keeps them, in order."""
    if node.op != "ReduceMean" or not node.attributes.get("keepdims", 1):
        return None
    constant = rewriter.constant(input_of(node, 1))
    axes = ints(constant) if constant is not None else ints(node.attributes.get("axes", ()))
    rank = len(rewriter.type_of(node.inputs[0]).shape)
    return tuple(sorted(axes_of(axes, rank))) if axes else None


def _put_layer(rewriter: Rewriter, div: Node, x: str, axes: int, epsilon: float, turned: int | None) -> None:
    """The node in the place of the quotient; over channels between two transposes, which are views."""
    type_ = rewriter.type_of(x)
    shape = type_.shape[1:2] if turned else type_.shape[len(type_.shape) - axes :]
    removed, last = [], div
    wanted = (shape[0], *(1,) * (turned - 2)) if turned else shape
    factor, summand = np.ones(shape), np.zeros(shape)
    for op in ("Mul", "Add"):
        user = rewriter.only_user(last.outputs[0])
        if user is None or user.op != op or len(user.inputs) != 2 or user.version < 7:
            continue
        constant = rewriter.constant(user.inputs[1 if user.inputs[0] == last.outputs[0] else 0])
        if constant is None or rewriter.type_of(user.outputs[0]) != type_:
            continue
        while constant.ndim > len(wanted) and constant.shape[0] == 1:
            constant = constant[0]
        if constant.size != 1 and constant.shape != tuple(wanted):
            continue
        numbers = np.broadcast_to(constant, wanted).reshape(shape).astype(np.float64)
        factor, summand = (factor * numbers, summand) if op == "Mul" else (factor, summand + numbers)
        removed.append(user)
        last = user
        if op == "Add":
            break
    sources = [name for each in (div, *removed) for name in each.inputs if rewriter.constant(name) is not None]
    names = [
        rewriter.derive(f"{div.name}{sign}{last.name}", sources, lambda v=values: v.astype(type_.dtype))  # type: ignore[misc]
        for sign, values in (("*", factor), ("+", summand))
    ]
    attributes = {"axis": -axes, "epsilon": epsilon}
    layer = replace(
        div, op="LayerNormalization", inputs=(x, *names), outputs=last.outputs, attributes=attributes, version=17
    )
    if not turned:
        rewriter.replace(div, layer, *removed)
    else:
        there = (0, *range(2, turned), 1)
        back = (0, turned - 1, *range(1, turned - 1))
        inside = replace(type_, shape=tuple(type_.shape[axis] for axis in there))
        read, made = f"{last.outputs[0]}/turned", f"{last.outputs[0]}/normal"
        rewriter.graph.types[read] = rewriter.graph.types[made] = inside
        before = Node("Transpose", f"{div.name}/turned", (x,), (read,), {"perm": there}, 13)
        middle = replace(layer, name=f"{div.name}/normal", inputs=(read, *names), outputs=(made,))
        after = Node("Transpose", div.name, (made,), last.outputs, {"perm": back}, 13)
        rewriter.replace(div, after, *removed)
        rewriter.insert_before(after, before)
        rewriter.insert_before(after, middle)
    rewriter.prune(div.inputs)
