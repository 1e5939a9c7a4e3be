"""oneDNN with weights packed beforehand, through PyTorch's operators for compiled models.

oneDNN may be handed the image channels last, channels first, or in a blocked format of its own choice; which
is fastest depends on the layer, so each is tried and the best is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, fastest, symmetric
from leanconv.bench.peers.torch_channels_last import FORMATS
from leanconv.bench.peers.torch_common import TorchPeer, conv_padding, to_numpy
from leanconv.errors import NotApplicableError


class Worker(TorchPeer):
    """`mkldnn::_convolution_pointwise` on packed weights, or PyTorch's convolution on tensors of oneDNN."""

    def refusal(self, layer: Layer) -> str | None:
        """The operators take one padding an axis."""
        return None if symmetric(layer) else "oneDNN through PyTorch pads both ends alike"

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> str:
        """Return the fastest format."""
        calls, reasons = {}, []
        for name in ("blocked", "channels last", "channels first"):
            try:
                call = self.load(layer, arrays, name).call
                call()
            except (RuntimeError, KeyError) as error:
                reasons.append(f"{name}: {error}".splitlines()[0])
            else:
                calls[name] = call
        if not calls:
            raise NotApplicableError("onednn", "; ".join(reasons))
        return fastest(calls)

    def load(self, layer: Layer, arrays: Arrays, model: str) -> Loaded:
        """Pack the weights for one format."""
        x = torch.from_numpy(arrays.x).movedim(-1, 1)
        w, bias = torch.from_numpy(arrays.w), torch.from_numpy(arrays.bias)
        stride, padding, dilation = list(layer.stride), list(conv_padding(layer)), list(layer.dilation)
        # Channels last already; said again for images of one pixel or channel, whose strides leave the format open.
        x = x.to(memory_format=FORMATS[layer.ndim]) if model == "channels last" else x.contiguous()
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        packed = reorder(w, padding, stride, dilation, layer.groups, list(x.shape))
        if model == "blocked":
            if layer.ndim != 2:
                raise RuntimeError("weights are packed for images only")
            image, own_bias, groups = x.to_mkldnn(), bias.to_mkldnn(), layer.groups
            call: Callable[[], Any] = lambda: functional.conv2d(  # noqa: E731
                image, packed, own_bias, stride, padding, dilation, groups
            )
        else:
            run = torch.ops.mkldnn._convolution_pointwise
            no_activation: tuple[Any, ...] = ("none", [], "")
            call = lambda: run(x, packed, bias, padding, stride, dilation, layer.groups, *no_activation)  # noqa: E731
        own = arrays.x.nbytes if model != "channels last" else 0
        return Loaded(call, to_numpy, {"format": model}, own)
