"""An ONNX model of one Conv with constant weights."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper, numpy_helper

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays


def model(layer: Layer, arrays: Arrays) -> Any:
    """Return the layer as a model; the weights are initialisers, hence constant."""
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        strides=layer.stride,
        dilations=layer.dilation,
        group=layer.groups,
        pads=[low for low, _ in layer.padding] + [high for _, high in layer.padding],
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, arrays.x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, layer.problem("NCHW").out_shape)],
        [numpy_helper.from_array(arrays.w, "w"), numpy_helper.from_array(arrays.bias, "b")],
    )
    # Not the newest that the package writes: the installed runtime may be older.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
