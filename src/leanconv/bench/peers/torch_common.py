"""What the peers through PyTorch share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer, symmetric

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class TorchPeer(Peer):
    """PyTorch's functions in inference mode."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)
        # For the life of the process: without it every call keeps what a backward pass would need.
        torch.inference_mode().__enter__()

    def image(self, layer: Layer, arrays: Arrays) -> Any:
        """Return the image as a tensor (N, C, *spatial)."""
        return torch.from_numpy(arrays.x)

    def weights(self, layer: Layer, arrays: Arrays) -> Any:
        """Return the weights as a tensor (K, C/g, *kernel)."""
        return torch.from_numpy(arrays.w)

    def load(self, layer: Layer, arrays: Arrays, model: Any) -> Loaded:
        """Make the tensors; they share the arrays' memory unless the layout differs."""
        x, w, bias = self.image(layer, arrays), self.weights(layer, arrays), torch.from_numpy(arrays.bias)
        convolution = _CONVOLUTIONS[layer.ndim]
        settings = (layer.stride, conv_padding(layer), layer.dilation, layer.groups)
        if symmetric(layer):
            return Loaded(lambda: convolution(x, w, bias, *settings), to_numpy)
        pads = end_padding(layer)
        return Loaded(lambda: convolution(functional.pad(x, pads), w, bias, *settings), to_numpy)


def conv_padding(layer: Layer) -> tuple[int, ...]:
    """Return the padding for PyTorch's convolutions, which know one number an axis; zeros if the ends differ."""
    return tuple(low for low, _ in layer.padding) if symmetric(layer) else (0,) * layer.ndim


def end_padding(layer: Layer) -> list[int]:
    """Return the padding for `torch.nn.functional.pad`: last axis first, two ends each."""
    return [end for ends in reversed(layer.padding) for end in ends]


def to_numpy(tensor: Any) -> Any:
    """Return a tensor (N, K, *spatial) as an array; one in oneDNN's own format is converted."""
    return (tensor.to_dense() if tensor.is_mkldnn else tensor).contiguous().numpy()
