"""Files that are malformed, damaged or hostile: typed errors, no crash, no memory asked for."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper

import leanconv.onnx
from leanconv.errors import ArgumentTypeError, LeanconvError, ModelError
from leanconv.onnx import wire
from onnx_models import model, small_network

node = helper.make_node
CASES = int(os.environ.get("LEANCONV_FUZZ_CASES", "300"))
FREE_MEMORY = 64 << 20  # folding of constants may take as much for any file


def _add() -> Any:
    return model([node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"], {"w": np.ones(4, np.float32)})


def _changed(change: Callable[[Any], object]) -> Any:
    proto = _add()
    change(proto)
    return proto


def _external(location: str, **more: str) -> Callable[[Any], None]:
    def change(proto: Any) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(proto: Any) -> None:
        target = proto
        *parts, last = path.split(".")
        for part in parts:
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return change


MALFORMED = {
    "a cycle": lambda p: p.graph.node.insert(0, node("Add", ["y", "x"], ["z"])),
    "a value that does not exist": _set("graph.node.0.input.0", "nobody"),
    "a value computed twice": lambda p: p.graph.node.append(node("Relu", ["x"], ["y"])),
    "an input computed": lambda p: p.graph.node.append(node("Relu", ["w"], ["x"])),
    "an output nobody computes": _set("graph.output.0.name", "nobody"),
    "a missing attribute": lambda p: p.graph.node.append(node("MaxPool", ["x"], ["z"])),
    "an unknown attribute": lambda p: p.graph.node[0].attribute.add(name="odd", type=2, i=1),
    "too few inputs": lambda p: p.graph.node[0].input.pop(),
    "two initialisers of one name": lambda p: p.graph.initializer.append(p.graph.initializer[0]),
    "a tensor with too few bytes": _set("graph.initializer.0.raw_data", b"1234"),
    "a tensor with many elements and no data": lambda p: p.graph.initializer[0].dims.append(2**60),
    "a negative extent": _set("graph.initializer.0.dims.0", -4),
    "no operator set": lambda p: p.ClearField("opset_import"),
    "operator set 0": _set("opset_import.0.version", 0),
    "operator set of the far future": _set("opset_import.0.version", 10**6),
    "no element type": _set("graph.input.0.type.tensor_type.elem_type", 0),
    "no such file": _external("gone.bin"),
    "a file outside": _external("../secret.bin"),
    "an absolute path": _external("/etc/hostname"),
    "the folder": _external("."),
    "no location": _external(""),
    "a strange location": _external("a\0b"),
    "an offset that is no number": _external("model.bin", offset="one"),
    "an offset beyond the end": _external("model.bin", offset=str(2**62)),
    "a negative offset": _external("model.bin", offset="-4"),
    "a length that is not the tensor's": _external("model.bin", length="3"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed(what: str, tmp_path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models" / "model.bin").write_bytes(bytes(16))
    with pytest.raises(ModelError) as caught:
        leanconv.onnx.load(_changed(MALFORMED[what]), folder=tmp_path / "models")
    assert str(caught.value)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_links_out_of_the_folder_are_refused(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    os.symlink(tmp_path / "secret.bin", tmp_path / "models" / "model.bin")
    with pytest.raises(ModelError, match="outside"):
        leanconv.onnx.load(_changed(_external("model.bin")), folder=tmp_path / "models")


@pytest.mark.parametrize("data", [b"", b"\0", b"not a model", bytes(1000), b"\xff" * 1000])
def test_no_model_at_all(data: bytes) -> None:
    with pytest.raises(ModelError):
        leanconv.onnx.load(data)


def test_no_file(tmp_path) -> None:
    for path in (tmp_path / "gone.onnx", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            leanconv.onnx.load(path)
    with pytest.raises(ArgumentTypeError, match="source"):
        leanconv.onnx.load(17)


# Each asks for far more memory than there is, by few bytes of file.
ABSURD = {
    "a fill of 2**60": (
        [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
        {"s": np.array([2**15] * 4)},
    ),
    "more than can be addressed": (
        [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
        {"s": np.array([2**31] * 4)},
    ),
    "an expansion": ([node("Expand", ["x", "s"], ["y"])], {"s": np.array([2**20, 2**20, 4])}),
    "padding": ([node("Pad", ["x", "s"], ["y"])], {"s": np.array([2**40, 2**40])}),
    "tiles": ([node("Tile", ["x", "s"], ["y"])], {"s": np.array([2**50])}),
    "doubling": (
        [node("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=0) for i in range(50)]
        + [node("Add", ["w50", "one"], ["y"])],
        {"w0": np.ones(4, np.float32), "one": np.ones(1, np.float32)},
    ),
    "a range": (
        [node("Range", ["a", "b", "c"], ["r"]), node("Cast", ["r"], ["f"], to=1), node("Add", ["f", "f"], ["y"])],
        {"a": np.array(0), "b": np.array(2**50), "c": np.array(1)},
    ),
    "a fraction of a step": (
        [node("Range", ["a", "b", "c"], ["r"]), node("Add", ["r", "r"], ["y"])],
        {"a": np.float32(0), "b": np.float32(1), "c": np.float32(0)},
    ),
    "an enlarged image": (
        [node("Reshape", ["x", "four"], ["i"]), node("Resize", ["i", "", "s"], ["y"])],
        {"four": np.array([1, 1, 2, 2]), "s": np.array([1, 1, 2**29, 2**29], np.float32)},
    ),
    "many axes": ([node("Unsqueeze", ["x", "a"], ["y"])], {"a": np.arange(100)}),
    "a shape of many axes": ([node("Expand", ["x", "s"], ["y"])], {"s": np.ones(100, np.int64)}),
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_sizes(what: str) -> None:
    nodes, constants = ABSURD[what]
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    tracemalloc.start()
    try:
        with pytest.raises(LeanconvError) as caught:
            leanconv.onnx.load(model(nodes, {"x": [4]}, ["y"], arrays)).run({"x": np.zeros(4, np.float32)})
        assert tracemalloc.get_traced_memory()[1] < 3 * FREE_MEMORY
    finally:
        tracemalloc.stop()
    assert str(caught.value)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds another message or a text."""
    length, size = len(content), bytearray()
    while length >= 128:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


@pytest.mark.parametrize("depth", [20, 30, 2000])
def test_deep_nesting(depth: int) -> None:
    """Graphs within graphs within graphs."""
    graph = b""
    for _ in range(depth):
        node_of = _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, graph) + bytes([160, 1, 5]))
        graph = _field(1, node_of)
    with pytest.raises(ModelError):
        leanconv.onnx.load(_field(7, graph) + _field(8, bytes([2 << 3, 17])))


def _large() -> Any:
    weights = np.random.default_rng(0).standard_normal((64, 64, 32, 32)).astype(np.float32)  # 16 MiB
    return model([node("Conv", ["x", "w"], ["y"])], {"x": [1, 64, 32, "W"]}, ["y"], {"w": weights})


def test_weights_stay_in_the_file(tmp_path) -> None:
    proto = _large()
    path = tmp_path / "large.onnx"
    path.write_bytes(proto.SerializeToString())
    tracemalloc.start()
    try:
        session = leanconv.onnx.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    x = np.random.default_rng(1).standard_normal((1, 64, 32, 33)).astype(np.float32)
    wanted = leanconv.onnx.load(proto).run({"x": x})["y"]
    np.testing.assert_array_equal(session.run({"x": x})["y"], wanted)


def test_files_that_change_after_loading(tmp_path) -> None:
    path = tmp_path / "large.onnx"
    for change in (lambda: path.write_bytes(b""), lambda: os.truncate(path, 1000), path.unlink):
        path.write_bytes(_large().SerializeToString())
        session = leanconv.onnx.load(path)
        change()
        with pytest.raises(ModelError, match=r"changed|read"):
            session.run({"x": np.zeros((1, 64, 32, 33), np.float32)})


def test_a_file_of_tiny_fields(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wire, "MOST_FIELDS", 1000)
    path = tmp_path / "tiny.onnx"
    path.write_bytes(bytes([8, 1]) * (wire.MOST_FIELDS + 1))
    with pytest.raises(ModelError, match="fields"):
        leanconv.onnx.load(path)


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled, or the end lost."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        place = int(rng.integers(len(found)))
        kind = rng.integers(5)
        if kind == 0:
            found[place] = int(rng.integers(256))
        elif kind == 1:
            found[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del found[place : place + int(rng.integers(1, 16))]
        elif kind == 3:
            found[place:place] = found[place : place + int(rng.integers(1, 16))]
        elif rng.random() < 0.1:
            del found[place:]
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize("by", ["bytes", "file"])
def test_mutated_files(by: str, tmp_path, monkeypatch) -> None:
    """Whatever happens to a file: it runs, or a typed error says why not.  LEANCONV_FUZZ_CASES sets how many."""
    monkeypatch.setattr(wire, "LEAST_LIFTED", 16)
    rng = np.random.default_rng(2024)
    data = small_network(rng).SerializeToString()
    seen = {"ran": 0, "refused": 0}
    for _ in range(CASES):
        source: Any = _mutated(data, rng)
        if by == "file":
            (tmp_path / "model.onnx").write_bytes(source)
            source = tmp_path / "model.onnx"
        try:
            session = leanconv.onnx.load(source, memory_limit="64MiB", threads=1)
            inputs = {}
            for port in session.inputs:
                shape = [min(n, 64) if isinstance(n, int) else 8 for n in port.shape or ()]
                inputs[port.name] = np.zeros(shape, port.dtype)
            session.run(inputs)
            seen["ran"] += 1
        except LeanconvError as error:
            assert str(error)
            seen["refused"] += 1
    assert min(seen.values()) > CASES // 50
