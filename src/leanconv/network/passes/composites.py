"""Recognise activations that are written as several nodes: SiLU, hard swish, hard sigmoid, GELU."""

from __future__ import annotations

import math

from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.passes.base import Rewriter, input_of

_CLOSE = 1e-5


def join_composites(rewriter: Rewriter) -> None:
    """Replace each by one node; the last one of its nodes, a Mul or Div, is where it is looked for."""
    for node in rewriter.nodes():
        for find in (_hard_sigmoid, _swish, _hard_swish, _gelu):
            found = find(rewriter, node)
            if found is not None:
                rewriter.replace(node, found)
                rewriter.prune(node.inputs)
                break


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _CLOSE * max(abs(wanted), 1)


def _inner(rewriter: Rewriter, value: str, op: str) -> Node | None:
    """The node of some operator that computes a value which is read once."""
    node = rewriter.producer(value)
    return node if node is not None and node.op == op and rewriter.only_user(value) is not None else None


def _operand(rewriter: Rewriter, node: Node, number: float) -> str | None:
    """Of two operands of which one is a certain number, the other."""
    if len(node.inputs) != 2:
        return None
    for this, other in ((0, 1), (1, 0)):
        if _near(rewriter.number(node.inputs[this]), number):
            return node.inputs[other]
    return None


def _alone(rewriter: Rewriter, node: Node, op: str, x: str, **attributes: object) -> Node | None:
    """The whole as one node, if its type is that of its operand."""
    if rewriter.type_of(x) != rewriter.type_of(node.outputs[0]):
        return None
    version = {"Swish": 24, "HardSwish": 14, "HardSigmoid": 6, "Gelu": 20}[op]
    return replace(node, op=op, inputs=(x,), attributes=dict(attributes), version=version)


def _clipped(rewriter: Rewriter, value: str) -> str | None:
    """x, if a value is clip(x + 3, 0, 6) and read once."""
    clip = _inner(rewriter, value, "Clip")
    if clip is None:
        return None
    low, high = clip.attributes.get("min"), clip.attributes.get("max")
    if clip.version >= 11:
        low, high = rewriter.number(input_of(clip, 1)), rewriter.number(input_of(clip, 2))
    add = _inner(rewriter, clip.inputs[0], "Add")
    if add is None or not _near(low, 0) or not _near(high, 6):
        return None
    return _operand(rewriter, add, 3)


def _hard_sigmoid(rewriter: Rewriter, node: Node) -> Node | None:
    """clip(x + 3, 0, 6) / 6."""
    if node.op == "Div" and _near(rewriter.number(node.inputs[1]), 6):
        x = _clipped(rewriter, node.inputs[0])
    elif node.op == "Mul" and (value := _operand(rewriter, node, 1 / 6)) is not None:
        x = _clipped(rewriter, value)
    else:
        return None
    return None if x is None else _alone(rewriter, node, "HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _swish(rewriter: Rewriter, node: Node) -> Node | None:
    """X * sigmoid(x), or x * hard_sigmoid(x) with its usual numbers."""
    if node.op != "Mul" or len(node.inputs) != 2:
        return None
    for this, other in ((0, 1), (1, 0)):
        x, value = node.inputs[this], node.inputs[other]
        sigmoid = _inner(rewriter, value, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] == x:
            return _alone(rewriter, node, "Swish", x)
        hard = _inner(rewriter, value, "HardSigmoid")
        if hard is not None and hard.inputs[0] == x and _usual(hard):
            return _alone(rewriter, node, "HardSwish", x)
    return None


def _usual(hard: Node) -> bool:
    alpha, beta = float(hard.attributes.get("alpha", 0.2)), float(hard.attributes.get("beta", 0.5))
    return _near(alpha, 1 / 6) and _near(beta, 0.5)


def _hard_swish(rewriter: Rewriter, node: Node) -> Node | None:
    """X * clip(x + 3, 0, 6) / 6."""
    if node.op == "Div" and _near(rewriter.number(node.inputs[1]), 6):
        product = _inner(rewriter, node.inputs[0], "Mul")
    elif node.op == "Mul" and (value := _operand(rewriter, node, 1 / 6)) is not None:
        product = _inner(rewriter, value, "Mul")
    else:
        return None
    if product is None or len(product.inputs) != 2:
        return None
    for this, other in ((0, 1), (1, 0)):
        if _clipped(rewriter, product.inputs[other]) == product.inputs[this]:
            return _alone(rewriter, node, "HardSwish", product.inputs[this])
    return None


def _gelu(rewriter: Rewriter, node: Node) -> Node | None:
    """0.5 * x * (1 + erf(x / sqrt(2))), the factors in any order."""
    if node.op != "Mul" or len(node.inputs) != 2:
        return None
    halved = _operand(rewriter, node, 0.5)
    if halved is not None:
        product = _inner(rewriter, halved, "Mul")
        if product is None or len(product.inputs) != 2:
            return None
        for this, other in ((0, 1), (1, 0)):
            if _erf_argument(rewriter, product.inputs[other]) == product.inputs[this]:
                return _alone(rewriter, node, "Gelu", product.inputs[this])
        return None
    for this, other in ((0, 1), (1, 0)):
        x, half = _erf_argument(rewriter, node.inputs[other]), _inner(rewriter, node.inputs[this], "Mul")
        if x is not None and half is not None and _operand(rewriter, half, 0.5) == x:
            return _alone(rewriter, node, "Gelu", x)
    return None


def _erf_argument(rewriter: Rewriter, value: str) -> str | None:
    """x, if a value is 1 + erf(x / sqrt(2)) and read once."""
    add = _inner(rewriter, value, "Add")
    one = None if add is None else _operand(rewriter, add, 1)
    erf = None if one is None else _inner(rewriter, one, "Erf")
    if erf is None:
        return None
    scaled = rewriter.producer(erf.inputs[0])
    if scaled is None or rewriter.only_user(erf.inputs[0]) is None:
        return None
    if scaled.op == "Div" and _near(rewriter.number(scaled.inputs[1]), math.sqrt(2)):
        return scaled.inputs[0]
    return _operand(rewriter, scaled, math.sqrt(0.5)) if scaled.op == "Mul" else None
