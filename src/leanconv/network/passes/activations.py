"""Let a convolution apply the activation that follows it, before its one store of each output."""

from __future__ import annotations

import math
from typing import Any

from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.passes.base import Rewriter, input_of

FUSED = {
    "Conv": "leanconv.Conv",
    "ConvTranspose": "leanconv.ConvTranspose",
    "leanconv.Conv": "leanconv.Conv",
    "leanconv.ConvTranspose": "leanconv.ConvTranspose",
}

_BY_NAME = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hardswish"}


def fuse_activations(rewriter: Rewriter) -> None:
    """Fuse what follows each convolution, unless something else reads the convolution's output."""
    for conv in rewriter.nodes():
        if conv.op not in FUSED or conv.attributes.get("activation") or conv.attributes.get("residual") == "after":
            continue
        if rewriter.type_of(conv.outputs[0]).dtype not in ("float32", "float64"):
            continue
        node = rewriter.only_user(conv.outputs[0])
        activation = None if node is None else activation_of(rewriter, node)
        if node is None or activation is None:
            continue
        attributes = {**conv.attributes, "activation": activation}
        fused = replace(conv, op=FUSED[conv.op], outputs=node.outputs[:1], attributes=attributes)
        rewriter.replace(conv, fused, node)


def activation_of(rewriter: Rewriter, node: Node) -> tuple[Any, ...] | None:
    """What a node is among leanconv's activations: a name and numbers; None if it is none of them."""
    number = node.attributes.get
    if node.op in _BY_NAME:
        return (_BY_NAME[node.op],)
    if node.op == "LeakyRelu":
        return ("leaky_relu", float(number("alpha", 0.01)))
    if node.op == "Swish":
        return ("silu",) if float(number("alpha", 1.0)) == 1 else None
    if node.op == "Gelu":
        return ("gelu",) if number("approximate", "none") in ("none", b"none") else None
    if node.op == "HardSigmoid":
        usual = abs(float(number("alpha", 0.2)) - 1 / 6) < 1e-6 and float(number("beta", 0.5)) == 0.5
        return ("hardsigmoid",) if usual else None
    if node.op != "Clip":
        return None
    bounds = [number("min"), number("max")]
    if node.version >= 11:
        names = [input_of(node, 1), input_of(node, 2)]
        bounds = [rewriter.number(name) for name in names]
        if any(name and bound is None for name, bound in zip(names, bounds, strict=True)):
            return None
    low = -math.inf if bounds[0] is None else float(bounds[0])
    high = math.inf if bounds[1] is None else float(bounds[1])
    if (low, high) == (0, 6):
        return ("relu6",)
    return ("clip", low, high) if low <= high else None
