"""LiteRT (TensorFlow Lite) with XNNPACK, to which its interpreter hands float convolutions by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter

from leanconv.bench.layers import Layer
from leanconv.bench.peers import tflite
from leanconv.bench.peers.base import Arrays, Loaded, Peer, channels_first


class Worker(Peer):
    """An interpreter on a model file of one layer; input and output are the interpreter's own memory."""

    def refusal(self, layer: Layer) -> str | None:
        """XNNPACK computes images."""
        return "XNNPACK has no convolution of volumes" if layer.ndim > 2 else None

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Path:
        """Write the model file."""
        path = folder / "layer.tflite"
        path.write_bytes(tflite.model(layer, arrays))
        return path

    def load(self, layer: Layer, arrays: Arrays, model: Path) -> Loaded:
        """Create the interpreter, which packs the weights, and fill its input."""
        interpreter = Interpreter(model_path=str(model), num_threads=self.threads)
        interpreter.allocate_tensors()
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.set_tensor(source["index"], arrays.x.reshape(source["shape"]))
        shape = layer.problem("NHWC").out_shape

        def call() -> Any:
            interpreter.invoke()
            return None

        def result(_: Any) -> Any:
            return channels_first(interpreter.get_tensor(target["index"]).reshape(shape))

        return Loaded(call, result, input_bytes=arrays.x.nbytes)
