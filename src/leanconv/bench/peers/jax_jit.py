"""JAX: one convolution compiled by XLA, channels last, weights as constants of the compiled function."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Loaded, Peer, channels_first, fastest

_AXES = "DHW"
# XLA's default, and without the library it hands convolutions to.
_OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "without YNNPACK": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


class Worker(Peer):
    """`jax.lax.conv_general_dilated` under `jax.jit`, at full float32 precision."""

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> str:
        """Return the faster of XLA's kernels: those of YNNPACK, on one thread for some layers, or of Eigen."""
        calls = {}
        for name in _OPTIONS:
            # An XLA that does not know the option has one kind of kernels only, its default.
            with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):
                calls[name] = self.load(layer, arrays, name).call
        return fastest(calls)

    def load(self, layer: Layer, arrays: Arrays, model: str) -> Loaded:
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
        compiled = jax.jit(layer_function).lower(x).compile(_OPTIONS[model])

        def result(y: Any) -> Any:
            return channels_first(np.asarray(y))

        copied = x.unsafe_buffer_pointer() != arrays.x.ctypes.data
        own = arrays.x.nbytes if copied else 0
        return Loaded(lambda: compiled(x).block_until_ready(), result, {"kernels": model}, own)
