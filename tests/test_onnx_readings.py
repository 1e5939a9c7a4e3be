"""Models read once are not parsed and checked again; what comes from a file is always what is in it now."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

import leanconv.onnx
from leanconv.cache import ObjectCache
from leanconv.errors import ModelError
from leanconv.onnx import readings
from onnx_models import model

node = helper.make_node


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    cache = ObjectCache(tmp_path / "cache", "rw", folder="models")
    monkeypatch.setattr(readings, "_cache", lambda: cache)
    return tmp_path


def _weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((16, 16, 3, 3)).astype(np.float32)


def _file(folder: Path, weights: np.ndarray) -> Path:
    """A convolution whose weights are left in the file, and a constant that is not."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.full(1, 2, np.float32))),
        node("Mul", ["c", "k"], ["m"]),
        node("Add", ["m", "b"], ["y"]),
    ]
    constants = {"w": weights, "b": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)}
    path = folder / "model.onnx"
    path.write_bytes(model(nodes, {"x": ["N", 16, "H", "W"]}, ["y"], constants).SerializeToString())
    return path


def _run(path: Path) -> np.ndarray:
    return leanconv.onnx.load(path, threads=1).run({"x": np.ones((1, 16, 5, 4), np.float32)})["y"]


def _refuse(*_: object) -> object:
    raise AssertionError("the file was parsed again")


def test_a_model_is_parsed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(folder, _weights(0))
    first = _run(path)
    monkeypatch.setattr("leanconv.onnx.reader.onnx_package", _refuse)
    session = leanconv.onnx.load(path, threads=1)
    assert str(session.inputs[0]) == "x float32 (N, 16, H, W)"
    assert [each.op for each in session.model.nodes] == ["Conv", "Mul", "Add"]
    assert not session.model.constants["b"].flags.writeable
    np.testing.assert_array_equal(_run(path), first)


def test_weights_are_those_in_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(_file(folder, _weights(0)))
    other = _file(folder, _weights(1))
    monkeypatch.setattr("leanconv.onnx.reader.onnx_package", _refuse)
    second = _run(other)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(_run(_file(folder, _weights(0))), first)


def test_another_model_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(folder, _weights(0))
    _run(path)
    data = path.read_bytes()
    monkeypatch.setattr("leanconv.onnx.reader.onnx_package", _refuse)
    for changed in (data.replace(b"Mul", b"Div"), data.replace(b"pads", b"pods")):
        assert changed != data
        path.write_bytes(changed)
        with pytest.raises(AssertionError, match="parsed again"):
            _run(path)
    path.write_bytes(data[:-3000])
    with pytest.raises(ModelError):
        leanconv.onnx.load(path)


@pytest.mark.parametrize("payload", [b"", b"no pickle", pickle.dumps(("too", "few"))])
def test_what_cannot_be_understood_is_read_anew(folder: Path, payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(folder, _weights(0))
    first = _run(path)
    monkeypatch.setattr(ObjectCache, "get", lambda *_: payload)
    np.testing.assert_array_equal(_run(path), first)


def test_external_data_is_read_anew(folder: Path) -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"], {"w": np.zeros(4, np.float32)})
    (tensor,) = proto.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    path = folder / "outside.onnx"
    path.write_bytes(proto.SerializeToString())
    for number in (1.0, 2.0):
        (folder / "weights.bin").write_bytes(np.full(4, number, np.float32).tobytes())
        found = leanconv.onnx.load(path).run({"x": np.zeros(4, np.float32)})["y"]
        np.testing.assert_array_equal(found, np.full(4, number, np.float32))


def test_a_process_with_all_in_the_cache_imports_neither_onnx_nor_algorithms(tmp_path: Path) -> None:
    path = _file(tmp_path, _weights(0))
    program = (
        "import sys, numpy, leanconv.onnx\n"
        f"y = leanconv.onnx.load({str(path)!r}, threads=1).run({{'x': numpy.ones((1, 16, 5, 4), 'f')}})['y']\n"
        "lazy = ('onnx', 'leanconv.algorithms.direct', 'leanconv.kernels.runtime')\n"
        "print(any(name in sys.modules for name in lazy), float(y.sum()))\n"
    )
    lines = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert lines[1] == ["False", lines[0][1]]
