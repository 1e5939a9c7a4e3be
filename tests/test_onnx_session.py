"""Sessions: sizes that are free, threads, limits, what callers may do wrong."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import leanconv.onnx
from leanconv.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    MemoryLimitError,
    ModelError,
    UnsupportedModelError,
)
from onnx_models import model, small_network

node = helper.make_node


@pytest.fixture(scope="module")
def network() -> object:
    return small_network(np.random.default_rng(7))


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_free_sizes(network: object) -> None:
    session, reference = leanconv.onnx.load(network), ReferenceEvaluator(network)
    assert str(session.inputs[0]) == "x float32 (N, 3, H, W)"
    for shape in ((1, 3, 8, 8), (2, 3, 9, 7), (1, 3, 8, 8), (3, 3, 5, 20)):
        x = _image(*shape)
        (wanted,) = reference.run(None, {"x": x})
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, atol=1e-5)


def test_sources(network: object, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(network.SerializeToString())
    x = _image(1, 3, 8, 8)
    sessions = [leanconv.onnx.load(source) for source in (network, path, str(path), path.read_bytes())]
    outputs = [session.run({"x": x})["y"] for session in sessions]
    for output in outputs[1:]:
        np.testing.assert_array_equal(outputs[0], output)


def test_strided_inputs_and_own_outputs(network: object) -> None:
    session, x = leanconv.onnx.load(network), _image(2, 3, 8, 8)
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(session.run({"x": turned})["y"], session.run({"x": x})["y"], atol=1e-6)
    through = leanconv.onnx.load(model([node("Identity", ["x"], ["y"])], {"x": [2]}, ["y"]))
    given = np.ones(2, np.float32)
    through.run({"x": given})["y"][0] = 5
    assert given[0] == 1


def test_outputs_that_are_constants_are_copies() -> None:
    constants = {"c": np.ones(3, np.float32)}
    session = leanconv.onnx.load(model([node("Add", ["x", "c"], ["y"])], {"x": [3]}, ["y", "c"], constants))
    found = session.run({"x": np.zeros(3, np.float32)})
    found["c"][:] = 7
    np.testing.assert_array_equal(session.run({"x": np.zeros(3, np.float32)})["c"], np.ones(3))


def test_several_threads(network: object) -> None:
    session = leanconv.onnx.load(network, threads=2, most_shapes=2)
    images = [_image(1, 3, 6 + i % 4, 8) for i in range(16)]
    alone = [leanconv.onnx.load(network).run({"x": x})["y"] for x in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run({"x": x})["y"], images))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_profile_names_what_ran(network: object) -> None:
    session, x = leanconv.onnx.load(network), _image(1, 3, 8, 8)
    profile = session.profile({"x": x})
    np.testing.assert_array_equal(profile.outputs["y"], session.run({"x": x})["y"])
    assert [step.op for step in profile.steps].count("leanconv.Conv") == 2
    assert len(profile.seconds) == len(profile.steps) and all(seconds >= 0 for seconds in profile.seconds)


def test_shapes_from_values_of_inputs() -> None:
    """The shape of a Reshape as an input: another value is another plan."""
    graph = helper.make_graph(
        [node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    session = leanconv.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = np.arange(6, dtype=np.float32)
    for shape in ((2, 3), (3, 2), (1, -1)):
        np.testing.assert_array_equal(session.run({"x": x, "shape": np.array(shape)})["y"], x.reshape(shape))


def test_shapes_from_large_data_are_refused() -> None:
    graph = helper.make_graph(
        [node("NonZero", ["x"], ["y"])],
        "n",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
    )
    session = leanconv.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    np.testing.assert_array_equal(session.run({"x": np.array([0, 1, 2], np.float32)})["y"], [[1, 2]])
    with pytest.raises(ModelError, match="must follow from the shapes"):
        session.run({"x": np.ones(5000, np.float32)})


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ([], ArgumentTypeError, "mapping"),
        ({}, ArgumentValueError, "lacks 'x'"),
        ({"x": [1.0]}, ArgumentTypeError, "NumPy array"),
        ({"x": np.zeros((1, 3, 8, 8))}, ArgumentTypeError, "float32"),
        ({"x": np.zeros((1, 3, 8, 8), ">f4")}, ArgumentTypeError, "float32"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, ArgumentValueError, "4 axes"),
        ({"x": np.zeros((1, 4, 8, 8), np.float32)}, ArgumentValueError, "extent 3 at axis 1"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32), "z": 1}, ArgumentValueError, "has 'z'"),
        ({"x": np.zeros((1, 3, 0, 8), np.float32)}, ModelError, "padded image"),
    ],
)
def test_wrong_inputs(network: object, inputs: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        leanconv.onnx.load(network).run(inputs)


def test_free_extents_of_one_name_are_equal() -> None:
    session = leanconv.onnx.load(model([node("Add", ["a", "b"], ["y"])], {"a": ["N"], "b": ["N"]}, ["y"]))
    with pytest.raises(ArgumentValueError, match="N is that in 'a'"):
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


def test_prepare(network: object) -> None:
    session = leanconv.onnx.load(network)
    ready = session.prepare({"x": (1, 3, 8, 8)})
    assert ready.activation_bytes >= 8 * 8 * 8 * 4 * 2  # two maps of eight channels
    assert ready.peak_bytes >= ready.activation_bytes
    assert session.prepare({"x": (1, 3, 8, 8)}) is ready
    for shapes in (None, {"x": (1, 3, 8)}, {"y": (1,)}, {"x": (1, 4, 8, 8)}):
        with pytest.raises(ArgumentValueError):
            session.prepare(shapes)


def test_few_shapes_are_kept(network: object) -> None:
    session = leanconv.onnx.load(network, most_shapes=2)
    first = session.prepare({"x": (1, 3, 8, 8)})
    for size in (9, 10):
        session.prepare({"x": (1, 3, size, 8)})
    assert session.prepare({"x": (1, 3, 8, 8)}) is not first


def test_memory_limit(network: object) -> None:
    x = _image(1, 3, 32, 32)
    free = leanconv.onnx.load(network, threads=1)
    wanted = free.run({"x": x})["y"]
    with pytest.raises(MemoryLimitError) as caught:
        leanconv.onnx.load(network, memory_limit=1024, threads=1).run({"x": x})
    least = caught.value.needed
    tight = leanconv.onnx.load(network, memory_limit=least, threads=1)
    np.testing.assert_allclose(tight.run({"x": x})["y"], wanted, atol=1e-5)
    ready = tight.prepare({"x": x.shape})
    assert ready.peak_bytes + ready.extra_bytes <= least


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, ArgumentValueError),
        ({"memory_limit": "lots"}, ArgumentValueError),
        ({"accuracy": "perfect"}, ArgumentValueError),
        ({"most_shapes": 0}, ArgumentValueError),
        ({"folder": 3}, ArgumentTypeError),
    ],
)
def test_wrong_options(network: object, options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        leanconv.onnx.load(network, **options)


def test_all_unsupported_operators_are_told_at_once() -> None:
    nodes = [
        node("GRU", ["x", "w", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Strange", ["b"], ["y"], domain="com.example", name="odd"),
    ]
    weights = {"w": np.zeros((1, 3, 4), np.float32)}
    with pytest.raises(UnsupportedModelError) as caught:
        leanconv.onnx.load(model(nodes, {"x": [1, 1, 4]}, ["y"], weights))
    assert len(caught.value.reasons) == 2
    assert "GRU" in str(caught.value) and "com.example.Strange" in str(caught.value)


def test_weights_that_are_inputs(network: object) -> None:
    """A convolution whose weights the caller gives, and one whose weights are computed."""
    nodes = [node("Mul", ["w", "two"], ["w2"]), node("Conv", ["x", "w2"], ["y"])]
    proto = model(nodes, {"x": [1, 2, 5, 5], "w": [4, 2, 3, 3]}, ["y"], {"two": np.array(2, np.float32)})
    inputs = {"x": _image(1, 2, 5, 5), "w": _image(4, 2, 3, 3)}
    (wanted,) = ReferenceEvaluator(proto).run(None, inputs)
    np.testing.assert_allclose(leanconv.onnx.load(proto).run(inputs)["y"], wanted, atol=1e-5)


def test_functions_are_expanded_and_sessions_not_copied() -> None:
    double = helper.make_function(
        "local", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [node("Double", ["x"], ["y"], domain="local")],
        "f",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=[double], ir_version=8)
    session = leanconv.onnx.load(proto)
    np.testing.assert_array_equal(session.run({"x": np.array([1, 2], np.float32)})["y"], [2, 4])
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="load the model where it is to run"):
            duplicate(session)


def test_external_data(tmp_path) -> None:
    weights = np.arange(8, dtype=np.float32)
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [8]}, ["y"], {"w": weights})
    (tensor,) = proto.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "16"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "weights.bin").write_bytes(bytes(16) + weights.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    x = np.ones(8, np.float32)
    np.testing.assert_array_equal(leanconv.onnx.load(path).run({"x": x})["y"], weights + 1)
    np.testing.assert_array_equal(leanconv.onnx.load(proto, folder=tmp_path).run({"x": x})["y"], weights + 1)
    with pytest.raises(ModelError, match="give the folder"):
        leanconv.onnx.load(proto)


def test_sizes_share_packed_weights_and_ways(network: object) -> None:
    session = leanconv.onnx.load(network, threads=1)
    first = session.prepare({"x": (1, 3, 32, 32)})
    before = dict(session.model.packed)
    assert len(before) >= 3  # two convolutions and the classifier
    second = session.prepare({"x": (1, 3, 32, 36)})
    assert [step.how for step in second.steps] == [step.how for step in first.steps]
    # What is in the same order is there once; only tiles of Winograd may ask for another.
    assert sum(block is session.model.packed.get(key) for key, block in before.items()) == len(before)
    del before, first
    alone = leanconv.onnx.load(network, threads=1)
    x = _image(1, 3, 32, 36)
    np.testing.assert_allclose(session.run({"x": x})["y"], alone.run({"x": x})["y"], atol=1e-5)


def test_packed_weights_go_with_the_networks(network: object) -> None:
    session = leanconv.onnx.load(network, threads=1)
    model = session.model
    session.prepare({"x": (1, 3, 8, 8)})
    assert model.packed
    del session
    gc.collect()
    assert not model.packed
