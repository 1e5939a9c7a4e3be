"""CausalConvWithState: a depthwise convolution along time that looks back only, step by step with a state.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, use it before every scan.
"""

from __future__ import annotations

import numpy as np

from leanconv.api import conv1d
from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, maybe, present
from leanconv.network.operators.geometry import attribute_text

_ACTIVATIONS = {"": None, "none": None, "silu": "silu", "swish": "silu"}


def _infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, w = present(types, 0), present(types, 1)
    if len(x.shape) != 3 or w.shape[:2] != (x.shape[1], 1) or len(w.shape) != 3 or not w.shape[2]:
        raise ValueError(f"an input of shape {x.shape} with weights of shape {w.shape}: (N, C, L) and (C, 1, k)")
    state = (*x.shape[:2], w.shape[2] - 1)
    if len(types) > 3 and types[3] is not None and types[3].shape != state:
        raise ValueError(f"a past state of shape {types[3].shape}, not {state}")
    if len(types) > 2 and types[2] is not None and types[2].shape != (x.shape[1],):
        raise ValueError(f"a bias of shape {types[2].shape} for {x.shape[1]} channels")
    return x, ValueType(state, x.dtype)


def _evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, w, bias, past = given(arrays, 0), given(arrays, 1), maybe(arrays, 2), maybe(arrays, 3)
    back = w.shape[2] - 1
    if past is None:
        past = np.zeros((*x.shape[:2], back), x.dtype)
    seen = np.concatenate([past, x], axis=2)
    wide = x.dtype if x.dtype == np.float64 else np.dtype(np.float32)
    y = conv1d(
        seen.astype(wide, copy=False),
        w.astype(wide, copy=False),
        None if bias is None else bias.astype(wide, copy=False),
        groups=x.shape[1],
        activation=_ACTIVATIONS[attribute_text(node, "activation")],
    )
    return y.astype(x.dtype, copy=False), seen[:, :, seen.shape[2] - back :]


def _check(node: Node) -> str | None:
    found = attribute_text(node, "activation")
    return None if found in _ACTIVATIONS else f"activation={found!r} is unknown"


OPERATORS = (Operator("CausalConvWithState", _infer, _evaluate, since=(27,), check=_check),)
