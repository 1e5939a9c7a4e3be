"""Let a convolution add the tensor that is added to its output: the residual."""

from __future__ import annotations

from leanconv.classes import replace
from leanconv.network.graph import Node
from leanconv.network.passes.activations import FUSED
from leanconv.network.passes.base import Rewriter, input_of, with_inputs


def fuse_residuals(rewriter: Rewriter) -> None:
    """Fuse each Add of two tensors of one shape, one of which a convolution computes for it alone.

    Where both are convolutions the later one is taken: the other's output is there by then.
    """
    for add in rewriter.nodes():
        if add.op not in ("Add", "Sum") or len(add.inputs) != 2 or add.inputs[0] == add.inputs[1]:
            continue
        shape = rewriter.type_of(add.outputs[0])
        if any(rewriter.type_of(name) != shape for name in add.inputs) or shape.dtype not in ("float32", "float64"):
            continue
        candidates = [
            (rewriter.position(conv), conv, other)
            for name, other in (add.inputs, add.inputs[::-1])
            if (conv := rewriter.producer(name)) is not None and _takes(rewriter, conv)
        ]
        if not candidates:
            continue
        _, conv, other = max(candidates, key=lambda candidate: candidate[0])
        order = "after" if conv.attributes.get("activation") else "before"
        inputs = (conv.inputs[0], conv.inputs[1], input_of(conv, 2), other)
        fused = replace(with_inputs(conv, inputs, residual=order), op=FUSED[conv.op], outputs=add.outputs)
        # At the place of the Add, where both operands are there.
        rewriter.replace(add, fused, conv)


def _takes(rewriter: Rewriter, conv: Node) -> bool:
    return conv.op in FUSED and not input_of(conv, 3) and rewriter.only_user(conv.outputs[0]) is not None
