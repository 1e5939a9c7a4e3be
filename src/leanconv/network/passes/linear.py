"""Products of matrices as Gemm, and means over all pixels as GlobalAveragePool, which have kernels."""

from __future__ import annotations

from leanconv.classes import replace
from leanconv.network.operators.base import axes_of, ints
from leanconv.network.passes.base import Rewriter, input_of


def use_gemm(rewriter: Rewriter) -> None:
    """MatMul of two matrices, and the Add of a constant row after it, become one Gemm."""
    for node in rewriter.nodes():
        if node.op != "MatMul" or any(len(rewriter.type_of(name).shape) != 2 for name in node.inputs):
            continue
        gemm = replace(node, op="Gemm", attributes={}, version=13)
        add = rewriter.only_user(node.outputs[0])
        if add is not None and add.op == "Add" and add.version >= 7:
            other = add.inputs[1 if add.inputs[0] == node.outputs[0] else 0]
            fits = rewriter.type_of(add.outputs[0]) == rewriter.type_of(node.outputs[0])
            if fits and rewriter.is_constant(other):
                rewriter.replace(node, replace(gemm, inputs=(*node.inputs, other), outputs=add.outputs), add)
                continue
        rewriter.replace(node, gemm)


def use_global_pool(rewriter: Rewriter) -> None:
    """ReduceMean over exactly the spatial axes, which are kept, becomes GlobalAveragePool."""
    for node in rewriter.nodes():
        x = rewriter.type_of(node.inputs[0]) if node.op == "ReduceMean" else None
        if x is None or len(x.shape) < 3 or not node.attributes.get("keepdims", 1) or x.dtype[:5] != "float":
            continue
        axes = rewriter.constant(input_of(node, 1))
        wanted = ints(axes) if axes is not None else ints(node.attributes.get("axes", ()))
        if wanted and set(axes_of(wanted, len(x.shape))) == set(range(2, len(x.shape))):
            rewriter.replace(
                node, replace(node, op="GlobalAveragePool", inputs=node.inputs[:1], attributes={}, version=1)
            )
