"""SciPy: `scipy.signal.correlate`, one filter at a time, by whichever of its methods it expects to be faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer

# Above this much work a call takes a large part of a second: each filter is a correlation of its own over all channels.
_MOST_FLOPS = 20_000_000


class Worker(Peer):
    """Sums over the channels by correlating along them in mode "valid"; the method is chosen beforehand."""

    def refusal(self, layer: Layer) -> str | None:
        """Only what `correlate` computes: no stride, dilation or groups."""
        for name, values in (("stride", layer.stride), ("dilation", layer.dilation), ("groups", (layer.groups,))):
            if any(value != 1 for value in values):
                return f"correlate has no {name}"
        flops = layer.problem().flops
        if flops > _MOST_FLOPS:
            most = f"{_MOST_FLOPS / 1e6:g} MFLOP"
            return f"{flops / 1e6:.0f} MFLOP, one filter after the other, would take too long (measured up to {most})"
        return None

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> str:
        """Return the method that SciPy chooses."""
        return str(signal.choose_conv_method(_padded(layer, arrays.x[0]), arrays.w[0], mode="valid"))

    def load(self, layer: Layer, arrays: Arrays, model: str) -> Loaded:
        """Keep the arrays; there is nothing to prepare."""
        filters, bias = list(arrays.w), arrays.bias
        out = np.empty(layer.problem("NCHW").out_shape, np.float32)

        def call() -> Any:
            for image, target in zip(arrays.x, out, strict=True):
                padded = _padded(layer, image)
                for k, weights in enumerate(filters):
                    np.add(signal.correlate(padded, weights, mode="valid", method=model)[0], bias[k], out=target[k])
            return out

        return Loaded(call, lambda y: y, {"method": model})


def _padded(layer: Layer, image: Any) -> Any:
    return np.pad(image, [(0, 0), *layer.padding])
