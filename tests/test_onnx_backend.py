"""ONNX's own conformance tests: its node tests, the models converted from PyTorch, and the nine light models."""

from __future__ import annotations

import re
import unittest
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import onnx.backend.test as suite  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from onnx.backend.test.case.node import collect_testcases  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402

import leanconv.onnx  # noqa: E402
from leanconv.errors import ArgumentValueError, LeanconvError, UnsupportedModelError  # noqa: E402
from leanconv.network.graph import ValueType  # noqa: E402
from leanconv.network.operators import NodeError, evaluate_node, infer_node, operator  # noqa: E402
from leanconv.onnx import Backend  # noqa: E402
from leanconv.onnx.model import BODIES  # noqa: E402
from leanconv.onnx.source import read  # noqa: E402

# What is not supported, each with a reason; every test of every other operator must pass.
UNSUPPORTED = {
    "element types that NumPy has not got (bfloat16, float8, integers of 2 and 4 bits), and strings": (
        r"element type (8|14|15|16|17|18|19|20|21|22|23|24|25|26|27) |to=\d+ is an element type|output_dtype=|"
        r"value_strings? "
    ),
    "sequences, optional values and sparse tensors: no networks of convolutions have them": (
        r"(sequence|optional)_type|sparse|operator (Sequence\w+|Optional\w*|SplitToSequence|ConcatFromSequence) "
    ),
    "scans of batches of sequences, as before version 9": r"\(Scan\): batches of sequences ",
    "what is random": r"operator (Bernoulli|RandomUniformLike|RandomNormalLike|Multinomial) ",
    "training, and losses": r"operator (NegativeLogLikelihoodLoss|SoftmaxCrossEntropyLoss|ai\.onnx\.preview\.\S+) ",
    "other domains": r"operator ai\.onnx\.ml\.\S+ ",
    "text, and images in files": r"operator (String\w+|RegexFullMatch|TfIdfVectorizer|ImageDecoder) ",
    "recurrence and attention": (
        r"operator (RNN|LSTM|GRU|Attention|LinearAttention|RotaryEmbedding|TensorScatter|SwiGLU) "
    ),
    "signals": r"operator (DFT|STFT|MelWeightMatrix|\w+Window) ",
    "detection": (r"operator (NonMaxSuppression|RoiAlign|Col2Im|Unique|BitCast) "),
}

# Tests of operators that are supported, and why they cannot pass.
EXCLUDED = {
    r"^test_training_dropout(_default)?(_mask)?$": "what is dropped is random",
}

SHARDS = 8  # the cases are made by a slow import, so they are collected when they run, and run in parts

LIGHT = sorted((Path(suite.__file__).parent / "data" / "light").glob("*.onnx"))


@lru_cache(maxsize=1)
def node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # computing what is expected overflows here and there
        return list(collect_testcases(""))


@lru_cache(maxsize=1)
def model_cases() -> list[Any]:
    return [
        case for kind in ("pytorch-converted", "pytorch-operator", "simple") for case in load_model_tests(kind=kind)
    ]


def _excuse(reason: str) -> str | None:
    return next((why for why, pattern in UNSUPPORTED.items() if re.search(pattern, reason + " ")), None)


def run_cases(cases: Iterable[Any], data: Callable[[Any], tuple[Any, list[Any]]]) -> None:
    """Run cases; all failures together, and at least some that passed."""
    passed, failures = 0, []
    for case in cases:
        if any(re.search(pattern, case.name) for pattern in EXCLUDED):
            continue
        model, sets = data(case)
        try:
            prepared = Backend.prepare(model)
            for inputs, outputs in sets:
                _compare(prepared, inputs, outputs, case)
            passed += 1
        except UnsupportedModelError as error:
            failures += [f"{case.name}: {reason}" for reason in error.reasons if not _excuse(reason)]
        except (LeanconvError, AssertionError) as error:
            failures.append(f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    assert not failures, "\n".join(failures)
    assert passed > 0


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _compare(prepared: Any, inputs: list[Any], outputs: list[Any], case: Any) -> None:
    found = prepared.run([_array(value) for value in inputs])
    assert len(found) == len(outputs)
    for got, wanted in zip(found, map(_array, outputs), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_nodes(shard: int) -> None:
    run_cases(node_cases()[shard::SHARDS], lambda case: (case.model, case.data_sets))


def test_types_are_those_of_what_is_computed() -> None:
    """Places of values are made by `infer`; a result of another type would be cut or repeated to fit."""
    checked = 0
    for case in node_cases():
        graph = case.model.graph
        if len(graph.node) != 1 or "CPU" in case.name:
            continue
        try:
            found = read(case.model)
        except LeanconvError:
            continue
        if not found.nodes:
            continue  # a Constant
        (node,) = found.nodes
        if node.op in BODIES:
            continue  # written out before types are inferred
        kind = operator(node.op)
        assert kind is not None
        for inputs, _ in case.data_sets:
            values = dict(zip(found.inputs, map(_array, inputs), strict=True))
            arrays = [values.get(name) for name in node.inputs]
            types = [None if array is None else ValueType(array.shape, array.dtype.name) for array in arrays]
            try:
                computed = evaluate_node(kind, node, arrays)
            except NodeError:
                assert any(re.search(pattern, case.name) for pattern in EXCLUDED), case.name
                continue
            inferred = infer_node(kind, node, types, arrays)
            assert [ValueType(array.shape, array.dtype.name) for array in computed] == list(inferred), case.name
            checked += 1
    assert checked > 500


def _from_files(case: Any) -> tuple[Any, list[Any]]:
    folder = Path(case.model_dir)
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        pair = [sorted(data.glob(f"{kind}_*.pb"), key=_number) for kind in ("input", "output")]
        sets.append([[_load(path) for path in paths] for paths in pair])
    assert sets
    return onnx.load(folder / "model.onnx"), sets


def _load(path: Path) -> Any:
    try:
        return numpy_helper.to_array(onnx.load_tensor(path))
    except Exception:  # a sequence, of a model that is not supported
        return None


def _number(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[1])


def test_models() -> None:
    run_cases(model_cases(), _from_files)


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_model(path: Path) -> None:
    session = leanconv.onnx.load(path)
    (port,) = session.inputs
    info = next(info for info in onnx.load(path).graph.input if info.name == port.name)
    x = Runner.generate_dummy_data(info, seed=0, name=port.name, random=False)
    (found,) = session.run({port.name: x}).values()
    wanted = numpy_helper.to_array(onnx.load_tensor(path.with_name(path.stem + "_output_0.pb")))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_few_tests_are_skipped_for_operators_of_networks() -> None:
    """The exclusions must not swallow what networks of convolutions consist of."""
    wanted = "Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool GlobalAveragePool Gemm MatMul Add Mul Relu"
    wanted += (
        " Clip Sigmoid HardSwish Softmax BatchNormalization Concat Reshape Flatten Transpose Pad LRN Sum Unsqueeze"
    )
    wanted += " Resize Slice Split ReduceMean PRelu LeakyRelu Elu Softplus Erf InstanceNormalization LayerNormalization"
    wanted += " DepthToSpace CausalConvWithState Shape Dropout"
    refused = [
        case.name
        for case in node_cases()
        if {node.op_type for node in case.model.graph.node} <= set(wanted.split())
        and not Backend.is_compatible(case.model)
    ]
    assert refused == []


def test_one_node() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x = np.array([-1.0, 2.0], np.float32)
    (y,) = Backend.run_node(node, [x])
    np.testing.assert_array_equal(y, [0, 2])
    old = onnx.helper.make_node("Clip", ["x"], ["y"], min=0.0, max=1.0)
    (y,) = Backend.run_node(old, [x], opset_version=6)
    np.testing.assert_array_equal(y, [0, 1])


def test_devices() -> None:
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA:0")
    model = node_cases()[0].model
    with pytest.raises(ArgumentValueError, match="device"):
        Backend.prepare(model, "CUDA")


def test_the_official_runner_takes_the_backend() -> None:
    """`onnx.backend.test.BackendTest` is how others run these tests."""
    node_cases()  # with their warnings, which are ours to ignore
    tests = suite.BackendTest(Backend, __name__)
    tests.include(r"test_conv_with_strides_padding_cpu$")
    found = unittest.TestResult()
    tests.test_suite.run(found)
    assert found.testsRun >= 1 and found.wasSuccessful(), found.errors + found.failures
