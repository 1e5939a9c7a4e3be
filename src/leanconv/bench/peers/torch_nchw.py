"""PyTorch as most programs run it: dense tensors, channels first."""

from __future__ import annotations

from leanconv.bench.peers.torch_common import TorchPeer


class Worker(TorchPeer):
    """`torch.nn.functional.conv2d` on dense tensors."""
