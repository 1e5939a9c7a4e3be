"""Quantised convolutions are exact in whole numbers, over the full range of the weights.

Runtimes whose sums of two products saturate at 16 bits are not, on CPUs without dot products of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import helper, numpy_helper

import leanconv.onnx

Array = np.ndarray[Any, Any]


def _sums(x: Array, w: Array, groups: int, stride: int) -> Array:
    """The definition, in 64-bit integers, with one pixel of zeros around."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = ((n - 3) // stride + 1 for n in x.shape[2:])
    total = np.zeros((x.shape[0], w.shape[0], rows, columns), np.int64)
    inputs, outputs = w.shape[1], w.shape[0] // groups
    for group in range(groups):
        here, there = slice(group * inputs, (group + 1) * inputs), slice(group * outputs, (group + 1) * outputs)
        for i, j in np.ndindex(3, 3):
            pixels = x[:, here, i : i + stride * rows : stride, j : j + stride * columns : stride][
                :, :, :rows, :columns
            ]
            total[:, there] += np.einsum("nchw,kc->nkhw", pixels, w[there, :, i, j])
    return total


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1)])
@pytest.mark.parametrize(("x_type", "w_type"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
def test_against_whole_numbers(x_type: str, w_type: str, groups: int, stride: int) -> None:
    rng = np.random.default_rng(groups + stride)
    info = [np.iinfo(x_type), np.iinfo(w_type)]
    x = rng.integers(info[0].min, info[0].max + 1, (2, 8, 9, 7)).astype(x_type)
    w = rng.integers(info[1].min, info[1].max + 1, (12, 8 // groups, 3, 3)).astype(w_type)
    scales = (0.001 + 0.01 * rng.random(12)).astype(np.float32)
    x_zero, y_zero = np.array(7, x_type), np.array(3, x_type)
    w_zero = np.zeros(12, w_type) if w_type == "int8" else np.full(12, 9, w_type)
    bias = rng.integers(-500, 500, 12).astype(np.int32)
    wanted = _sums(x.astype(np.int64) - 7, w.astype(np.int64) - int(w_zero[0]), groups, stride)
    numbers = np.rint(
        (wanted + bias.reshape(-1, 1, 1)) * (np.float64(np.float32(0.02)) * scales / np.float32(0.3))[:, None, None]
    )
    quantised = np.clip(numbers + 3, info[0].min, info[0].max)
    how: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [stride] * 2, "group": groups}
    constants = {"w": w, "xz": x_zero, "wz": w_zero, "yz": y_zero, "b": bias, "ws": scales}
    constants |= {"xs": np.float32(0.02), "ys": np.float32(0.3), "wz1": w_zero[0]}
    nodes = [
        helper.make_node("ConvInteger", ["x", "w", "xz", "wz1"], ["sums"], **how),
        helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], **how),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(x_type))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("sums", 6, None), helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = leanconv.onnx.load(proto).run({"x": x})
    np.testing.assert_array_equal(found["sums"], wanted)
    np.testing.assert_array_equal(found["y"], quantised.astype(x_type))
