"""PyTorch without oneDNN: its own path, im2col and one matrix product by BLAS."""

from __future__ import annotations

import torch

from leanconv.bench.peers.torch_common import TorchPeer


class Worker(TorchPeer):
    """The path that PyTorch takes on CPUs without oneDNN, and that papers compare with."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.backends.mkldnn.set_flags(False)
        torch.backends.nnpack.set_flags(False)
