"""Fold factors and summands of channels into the weights of the convolution before them.

BatchNormalization, and Mul, Div, Add or Sub of a constant for each channel, after a convolution whose output nobody
else reads, are another set of weights and bias.
"""

from __future__ import annotations

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.passes.base import Rewriter, input_of, with_inputs

_CONVOLUTIONS = ("Conv", "ConvTranspose", "leanconv.Conv", "leanconv.ConvTranspose")


def fold_scales(rewriter: Rewriter) -> None:
    """Fold as long as something follows."""
    for conv in rewriter.nodes():
        current: Node | None = conv if conv.op in _CONVOLUTIONS and _plain(rewriter, conv) else None
        while current is not None:
            current = _fold_next(rewriter, current)


def _plain(rewriter: Rewriter, conv: Node) -> bool:
    return (
        rewriter.is_constant(conv.inputs[1])
        and np.dtype(rewriter.type_of(conv.inputs[1]).dtype).kind == "f"
        and (not input_of(conv, 2) or rewriter.is_constant(conv.inputs[2]))
        and not input_of(conv, 3)
        and not conv.attributes.get("activation")
    )


def _fold_next(rewriter: Rewriter, conv: Node) -> Node | None:
    """Fold the one node that reads the convolution; the new convolution, or None if nothing could be folded."""
    node = rewriter.only_user(conv.outputs[0])
    affine = None if node is None else affine_of(rewriter, conv.outputs[0], node)
    if node is None or affine is None:
        return None
    factor, summand = affine
    weights, name = rewriter.graph.constants.handle(conv.inputs[1]), node.name
    assert weights is not None
    dtype, sources = weights.dtype, (*conv.inputs[1:], *(each for each in node.inputs if each != conv.outputs[0]))
    inputs = list(conv.inputs)
    if factor is not None:
        scale, w, type_ = factor, weights, rewriter.type_of(conv.inputs[1])
        inputs[1] = rewriter.derive(f"{conv.inputs[1]}*{name}", sources, lambda: _scaled(conv, w.fresh(), scale), type_)
    bias = rewriter.constant(input_of(conv, 2))
    if bias is not None or summand is not None:
        old = np.zeros(1) if bias is None else bias.astype(np.float64)
        channels = rewriter.type_of(conv.outputs[0]).shape[1]
        new = old * (1 if factor is None else factor) + (0 if summand is None else summand)
        inputs[2:] = [
            rewriter.derive(
                f"{input_of(conv, 2)}+{name}", sources, lambda: np.broadcast_to(new, (channels,)).astype(dtype)
            )
        ]
    fused = with_inputs(replace(conv, outputs=node.outputs[:1]), inputs)
    rewriter.replace(conv, fused, node)
    return fused


def _scaled(conv: Node, weights: Array, factor: Array) -> Array:
    """Multiply weights by a factor for each output channel, in place, in float64, rounded once."""
    if conv.op.endswith("ConvTranspose"):
        # (C, K/groups, ...): output channel k of group g is at [any channel of g, k].
        groups = int(conv.attributes.get("group", 1))
        shape: tuple[int, ...] = (groups, weights.shape[0] // groups, *weights.shape[1:])
        factors = np.broadcast_to(factor.reshape(-1), (groups * weights.shape[1],))
        factors = factors.reshape(groups, 1, -1, *(1,) * (weights.ndim - 2))
    else:
        shape, factors = weights.shape, factor.reshape(-1, *(1,) * (weights.ndim - 1))
    grouped = weights.reshape(shape)
    with np.errstate(all="ignore"):  # as in all passes; recipes are followed after them
        np.multiply(grouped, factors, out=grouped, dtype=np.float64, casting="same_kind")
    return weights


def affine_of(rewriter: Rewriter, value: str, node: Node) -> tuple[Array | None, Array | None] | None:
    """Factor and summand of each channel, in float64, that a node applies to a value (N, C, ...); None if not so."""
    rank = len(rewriter.type_of(value).shape)
    if node.op == "BatchNormalization":
        if node.inputs[0] != value or node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
            return None
        found = [rewriter.constant(name) for name in node.inputs[1:5]]
        if any(array is None for array in found):
            return None
        scale, bias, mean, variance = (array.astype(np.float64) for array in found if array is not None)
        factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
        return factor, bias - mean * factor
    if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] == value
    name = node.inputs[1 if first else 0]
    if not rewriter.is_constant(name) or rewriter.type_of(node.outputs[0]) != rewriter.type_of(value):
        return None
    if node.version < 7 and "axis" in node.attributes:
        return None
    numbers = _of_channels(rewriter.graph.constants[name], rank, rewriter.type_of(value).shape[1])
    if numbers is None or (node.op == "Div" and not first):
        return None
    if node.op == "Mul":
        return numbers, None
    if node.op == "Div":
        return (1 / numbers, None) if np.all(numbers != 0) else None
    if node.op == "Add":
        return None, numbers
    return (None, -numbers) if first else (np.full(1, -1.0), numbers)


def _of_channels(constant: Array, rank: int, channels: int) -> Array | None:
    """A constant as one number, or one for each channel, in float64; None if it is neither."""
    if constant.dtype.kind != "f":
        return None
    if constant.size == 1:
        return constant.reshape(1).astype(np.float64)
    shape = (1,) * (rank - constant.ndim) + constant.shape
    return constant.reshape(-1).astype(np.float64) if shape == (1, channels, *(1,) * (rank - 2)) else None
