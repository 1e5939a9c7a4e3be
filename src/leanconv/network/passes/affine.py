"""Batch norms that no convolution takes become a factor and a summand of each channel, those in a row one."""

from __future__ import annotations

from functools import partial

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.passes.base import Rewriter
from leanconv.network.passes.scales import affine_of


def split_norms(rewriter: Rewriter) -> None:
    """Replace each batch norm, and what follows of the same kind, by a Mul and an Add."""
    for node in rewriter.nodes():
        if node.op != "BatchNormalization" or any(node.outputs[1:]):
            continue
        value, type_ = node.inputs[0], rewriter.type_of(node.inputs[0])
        found = affine_of(rewriter, value, node) if type_.dtype in ("float32", "float64") else None
        if found is None or len(type_.shape) < 2:
            continue
        factor, summand = _both(*found)
        joined, last = [node], node
        while (after := rewriter.only_user(last.outputs[0])) is not None:
            more = affine_of(rewriter, last.outputs[0], after)
            if more is None:
                break
            scale, shift = _both(*more)
            factor, summand = factor * scale, summand * scale + shift
            joined.append(after)
            last = after
        sources = [name for each in joined for name in each.inputs if rewriter.is_constant(name)]
        shape = (type_.shape[1], *(1,) * (len(type_.shape) - 2))
        names = [
            rewriter.derive(f"{value}{sign}{last.name}", sources, partial(_spread, numbers, shape, type_.dtype))
            for sign, numbers in (("*", factor), ("+", summand))
        ]
        middle = f"{last.outputs[0]}*"
        rewriter.graph.types[middle] = type_
        mul = Node("Mul", f"{node.name}*", (value, names[0]), (middle,), {}, 14)
        add = replace(node, op="Add", inputs=(middle, names[1]), outputs=last.outputs[:1], attributes={}, version=14)
        rewriter.replace(node, add, *joined[1:])
        rewriter.insert_before(add, mul)


def _both(factor: Array | None, summand: Array | None) -> tuple[Array, Array]:
    return np.ones(1) if factor is None else factor, np.zeros(1) if summand is None else summand


def _spread(numbers: Array, shape: tuple[int, ...], dtype: str) -> Array:
    column = numbers.reshape(-1, *(1,) * (len(shape) - 1))
    return np.asarray(np.broadcast_to(column, shape).astype(dtype))
