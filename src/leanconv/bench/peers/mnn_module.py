"""MNN: a model converted from ONNX, run as a Module.

Its Session interface writes over its input; a Module does not. The converter is called through the extension
module itself: the package `MNN.tools` around it installs a logging client with pip when it is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _tools
import MNN.expr
import MNN.nn
import numpy as np
import onnx

from leanconv.bench.layers import Layer
from leanconv.bench.peers import onnx_model
from leanconv.bench.peers.base import Arrays, Loaded, Peer


class Worker(Peer):
    """High precision, which is float32 throughout; MNN chooses Winograd or another algorithm."""

    def refusal(self, layer: Layer) -> str | None:
        """Volumes are converted, but the module has no result."""
        return "MNN's CPU backend gives no result for volumes" if layer.ndim > 2 else None

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Path:
        """Write the ONNX model and convert it."""
        source, path = folder / "layer.onnx", folder / "layer.mnn"
        onnx.save(onnx_model.model(layer, arrays), source)
        _tools.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(path), "--bizCode", "leanconv"]
        )
        if not path.is_file():
            raise RuntimeError("MNN's converter does not convert the layer")
        return path

    def load(self, layer: Layer, arrays: Arrays, model: Path) -> Loaded:
        """Load the module, which packs the weights at its first call."""
        settings = {
            "backend": "CPU",
            "precision": "high",
            "memory": "high",
            "power": "high",
            "numThread": self.threads,
        }
        manager = MNN.nn.create_runtime_manager((settings,))
        module = MNN.nn.load_module_from_file(
            str(model), ["x"], ["y"], runtime_manager=manager, shape_mutable=True, rearrange=True
        )
        image = MNN.expr.const(arrays.x, list(arrays.x.shape), MNN.expr.NCHW)
        shape = layer.problem("NCHW").out_shape

        def call(_keep: Any = manager) -> Any:
            return module.forward([image])

        def result(y: Any) -> Any:
            return np.array(MNN.expr.convert(y[0], MNN.expr.NCHW).read()).reshape(shape)

        return Loaded(call, result, input_bytes=arrays.x.nbytes)
