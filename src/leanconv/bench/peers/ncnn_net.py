"""ncnn: a net of one layer, its parameters written as text and its weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer

_MAGIC = 7767517
_LAYERS = {1: "Convolution1D", 2: "Convolution", 3: "Convolution3D"}
_GROUPED = {1: "ConvolutionDepthWise1D", 2: "ConvolutionDepthWise", 3: "ConvolutionDepthWise3D"}
# Numbers of the parameters for width, height, depth: kernel, dilation, stride, pad before, pad after.
_AXES = (("1", "2", "3", "4", "15"), ("11", "12", "13", "14", "16"), ("21", "22", "23", "24", "17"))


class Worker(Peer):
    """float32 everywhere; Winograd, packing and matrix products are chosen by ncnn. It knows no batch."""

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> tuple[str, str]:
        """Write the two files."""
        text, binary = folder / "layer.param", folder / "layer.bin"
        text.write_text(_parameters(layer, arrays))
        with binary.open("wb") as file:
            np.zeros(1, np.uint32).tofile(file)  # the weights that follow are float32
            arrays.w.tofile(file)
            arrays.bias.tofile(file)
        return str(text), str(binary)

    def load(self, layer: Layer, arrays: Arrays, model: tuple[str, str]) -> Loaded:
        """Load the net, which transforms the weights, and wrap each image."""
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        net.opt.use_vulkan_compute = False
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "int8_inference"):
            setattr(net.opt, f"use_{name}", False)
        for load, path in zip((net.load_param, net.load_model), model, strict=True):
            if load(path) != 0:
                raise RuntimeError(f"ncnn does not load {Path(path).suffix}")
        images = [ncnn.Mat(image) for image in arrays.x]

        def call() -> list[Any]:
            return [_extract(net, image) for image in images]

        return Loaded(call, lambda mats: np.stack([np.array(mat) for mat in mats]))


def _extract(net: Any, image: Any) -> Any:
    extractor = net.create_extractor()
    extractor.input("x", image)
    code, out = extractor.extract("y")
    if code != 0:
        raise RuntimeError(f"ncnn's extract returns {code}")
    return out


def _parameters(layer: Layer, arrays: Arrays) -> str:
    values = {"0": layer.out_channels, "5": 1, "6": arrays.w.size}
    numbers = zip(layer.kernel, layer.dilation, layer.stride, layer.padding, strict=True)
    for names, (k, d, s, (low, high)) in zip(_AXES, reversed(list(numbers)), strict=False):
        values |= dict(zip(names, (k, d, s, low, high), strict=True))
    kind = _LAYERS[layer.ndim]
    if layer.groups > 1:
        kind, values["7"] = _GROUPED[layer.ndim], layer.groups
    words = " ".join(f"{name}={value}" for name, value in values.items())
    return f"{_MAGIC}\n2 2\nInput x 0 1 x\n{kind} conv 1 1 x y {words}\n"
