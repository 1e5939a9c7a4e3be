"""JAX: one convolution compiled by XLA, channels last, weights as constants of the compiled function."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer, channels_first

_AXES = "DHW"


class Worker(Peer):
    """`jax.lax.conv_general_dilated` under `jax.jit`, at full float32 precision."""

    def load(self, layer: Layer, arrays: Arrays, model: Any) -> Loaded:
        """Compile the function and put the arrays where XLA wants them."""
        axes = _AXES[-layer.ndim :]
        # (K, C/g, *kernel) to (*kernel, C/g, K)
        w = jax.device_put(np.ascontiguousarray(np.moveaxis(arrays.w, (0, 1), (-1, -2))))
        bias = jax.device_put(arrays.bias)

        def layer_function(x: Any) -> Any:
            y = jax.lax.conv_general_dilated(
                x,
                w,
                layer.stride,
                layer.padding,
                rhs_dilation=layer.dilation,
                dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
                feature_group_count=layer.groups,
                precision=jax.lax.Precision.HIGHEST,
            )
            return y + bias

        x = jax.device_put(arrays.x)
        compiled = jax.jit(layer_function).lower(x).compile()
        return Loaded(lambda: compiled(x).block_until_ready(), lambda y: channels_first(np.asarray(y)))
