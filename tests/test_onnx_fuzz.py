"""Mutated models with normalisations, reductions and graphs within graphs: typed errors, no crash, no endless work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper

import leanconv.onnx
from leanconv.errors import LeanconvError
from test_onnx_reader import CASES, _mutated

node, info = helper.make_node, helper.make_tensor_value_info


def _tensor(name: str, array: Any) -> Any:
    found = np.asarray(array)
    kind = TensorProto.INT64 if found.dtype.kind == "i" else TensorProto.BOOL if found.dtype == bool else 1
    return helper.make_tensor(name, kind, found.shape, found.reshape(-1).tolist())


def _values(*names: str) -> list[Any]:
    return [info(name, TensorProto.FLOAT, None) for name in names]


def _model() -> bytes:
    then = helper.make_graph([node("Squeeze", ["n", "axis"], ["r"])], "then", [], _values("r"))
    orelse = helper.make_graph([node("Relu", ["n"], ["r"])], "else", [], _values("r"))
    turn = helper.make_graph(
        [
            node("Identity", ["going"], ["again"]),
            node("Add", ["v", "n"], ["w"]),
            node("ReduceL2", ["w"], ["s"], axes=[1], keepdims=0),
        ],
        "turn",
        [info("i", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), *_values("v")],
        [info("again", TensorProto.BOOL, []), *_values("w", "s")],
    )
    scan = helper.make_graph([node("Add", ["a", "b"], ["c"])], "scan", _values("a", "b"), _values("c"))
    nodes = [
        node("Conv", ["x", "k"], ["h"], pads=[1, 1, 1, 1]),
        node("InstanceNormalization", ["h", "one", "zero"], ["n"]),
        node("Shape", ["n"], ["shape"]),
        node("Gather", ["shape", "axis"], ["last"]),
        node("Equal", ["last", "single"], ["flat"]),
        node("If", ["flat"], ["y"], then_branch=then, else_branch=orelse),
        node("Loop", ["turns", "", "n"], ["z", "sums"], body=turn),
        node("ReduceMean", ["z"], ["m"], axes=[1, 3]),
        node("Transpose", ["z"], ["t"], perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["t", "one", "zero"], ["u"], axis=-1),
        node("Scan", ["first", "u"], ["last_state"], body=scan, num_scan_inputs=1, scan_input_axes=[1]),
    ]
    constants = {
        "k": np.ones((4, 3, 3, 3)),
        "one": np.ones(4),
        "zero": np.zeros(4),
        "axis": np.array([3]),
        "single": np.array([1]),
        "turns": np.array(2),
        "first": np.zeros((1, 5, 4)),
    }
    graph = helper.make_graph(
        nodes,
        "all",
        [info("x", TensorProto.FLOAT, [1, 3, 6, 5])],
        _values("y", "sums", "m", "last_state"),
        [_tensor(name, array) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_mutated_models() -> None:
    data, rng = _model(), np.random.default_rng(1)
    leanconv.onnx.load(data).run({"x": np.zeros((1, 3, 6, 5), "f4")})
    seen = {"ran": 0, "refused": 0}
    for _ in range(CASES // 3):
        try:
            session = leanconv.onnx.load(_mutated(data, rng), memory_limit="64MiB", threads=1)
            inputs = {}
            for port in session.inputs:
                shape = [min(n, 64) if isinstance(n, int) else 8 for n in port.shape or ()]
                inputs[port.name] = np.zeros(shape, port.dtype)
            session.run(inputs)
            seen["ran"] += 1
        except LeanconvError as error:
            assert str(error)
            seen["refused"] += 1
    assert min(seen.values()) > CASES // 200, seen
