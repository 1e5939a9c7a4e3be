"""Small ONNX models for tests, made with onnx.helper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str | None] | None],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    dtype: int = TensorProto.FLOAT,
) -> Any:
    """A ModelProto; outputs have no shapes."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small_network(rng: np.random.Generator) -> Any:
    """Conv, batch norm, ReLU, a residual, pooling and a classifier; batch and image size are free."""

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.prod(shape[1:]) ** 0.5)

    node = helper.make_node
    constants = {
        "w1": weights(8, 3, 3, 3),
        "b1": weights(8),
        "scale": weights(8) + 1,
        "shift": weights(8),
        "mean": weights(8),
        "var": np.abs(weights(8)) + np.float32(0.5),
        "w2": weights(8, 8, 3, 3),
        "wf": weights(10, 8),
        "bf": weights(10),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
        node("Relu", ["n1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["a"]),
        node("Relu", ["a"], ["r2"]),
        node("MaxPool", ["r2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "wf", "bf"], ["l"], transB=1),
        node("Softmax", ["l"], ["y"], axis=1),
    ]
    return model(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], constants)
