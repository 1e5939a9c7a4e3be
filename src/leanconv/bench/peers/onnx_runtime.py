"""ONNX Runtime: a model of one Conv, with input and output bound to memory that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer

_WARNINGS_OFF = 3


class Worker(Peer):
    """A session with all graph optimisations, which also choose its blocked layout."""

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Path:
        """Write the model file."""
        path = folder / "layer.onnx"
        onnx.save(_model(layer, arrays), path)
        return path

    def load(self, layer: Layer, arrays: Arrays, model: Path) -> Loaded:
        """Create the session and bind input and output."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _WARNINGS_OFF
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        out = np.empty(layer.problem("NCHW").out_shape, np.float32)
        # Bound by address: the arrays are kept by this function's closure.
        binding = session.io_binding()
        for bind, name, array in ((binding.bind_input, "x", arrays.x), (binding.bind_output, "y", out)):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def call(_keep: Any = arrays.x) -> Any:
            session.run_with_iobinding(binding)
            return out

        return Loaded(call, lambda y: y)


def _model(layer: Layer, arrays: Arrays) -> Any:
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
