"""ONNX Runtime: a model of one Conv, with input and output bound to memory that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from leanconv.bench.layers import Layer
from leanconv.bench.peers import onnx_model
from leanconv.bench.peers.base import Arrays, Loaded, Peer

_WARNINGS_OFF = 3


class Worker(Peer):
    """A session with all graph optimisations, which also choose its blocked layout."""

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Path:
        """Write the model file."""
        path = folder / "layer.onnx"
        onnx.save(onnx_model.model(layer, arrays), path)
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
