"""PyTorch with image and weights in the memory format channels_last."""

from __future__ import annotations

from typing import Any

import torch

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays
from leanconv.bench.peers.torch_common import TorchPeer

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


class Worker(TorchPeer):
    """The same functions; channels lie next to each other in memory."""

    def refusal(self, layer: Layer) -> str | None:
        """Signals have no such format."""
        return "PyTorch has no channels-last format for signals" if layer.ndim == 1 else None

    def image(self, layer: Layer, arrays: Arrays) -> Any:
        """Return a view (N, C, *spatial) of the array (N, *spatial, C)."""
        return torch.from_numpy(arrays.x).movedim(-1, 1)

    def weights(self, layer: Layer, arrays: Arrays) -> Any:
        """Return the weights, copied to the format."""
        return torch.from_numpy(arrays.w).to(memory_format=FORMATS[layer.ndim])
