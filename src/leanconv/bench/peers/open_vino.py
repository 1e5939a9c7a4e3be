"""OpenVINO: a model of one convolution, compiled for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer


class Worker(Peer):
    """Latency first, one stream, float32; input and output stay where they are."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._core = openvino.Core()

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Path:
        """Write the model's two files."""
        path = folder / "layer.xml"
        openvino.save_model(_model(layer, arrays), path, compress_to_fp16=False)
        return path

    def load(self, layer: Layer, arrays: Arrays, model: Path) -> Loaded:
        """Compile the model and bind its input and output."""
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = self._core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(arrays.x, shared_memory=True))
        out = np.empty(layer.problem("NCHW").out_shape, np.float32)
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))

        def call() -> Any:
            request.start_async()
            request.wait()
            return out

        return Loaded(call, lambda y: y)


def _model(layer: Layer, arrays: Arrays) -> Any:
    x = ops.parameter(arrays.x.shape, np.float32)
    low, high = ([pad[end] for pad in layer.padding] for end in (0, 1))
    stride, dilation, groups = list(layer.stride), list(layer.dilation), layer.groups
    if groups == 1:
        y = ops.convolution(x, ops.constant(arrays.w), stride, low, high, dilation)
    else:
        # OpenVINO has an axis of its own for the groups: (g, K/g, C/g, *kernel).
        w = arrays.w.reshape(groups, layer.out_channels // groups, *arrays.w.shape[1:])
        y = ops.group_convolution(x, ops.constant(w), stride, low, high, dilation)
    bias = arrays.bias.reshape(1, -1, *(1,) * layer.ndim)
    return openvino.Model([ops.add(y, ops.constant(bias))], [x], "layer")
