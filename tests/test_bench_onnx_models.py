"""`leanconv bench model.onnx`: runtimes in processes of their own; what is missing or fails is a row that says so."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leanconv.bench import conversions, onnx_models, onnx_runtimes
from leanconv.cli import main

onnx = pytest.importorskip("onnx")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """One convolution with a free batch."""
    from onnx import TensorProto, helper, numpy_helper

    w = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])
    graph = helper.make_graph([node], "one layer", [x], [y], [w])
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def test_a_row_for_each_runtime(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    there = onnx_runtimes.RUNTIMES["openvino"]
    monkeypatch.setitem(onnx_runtimes.RUNTIMES, "openvino", replace(there, module="a_package_that_is_not_there"))
    words = [
        "bench",
        model,
        "--peers",
        "onnxruntime,openvino",
        "--rounds",
        "3",
        "--json",
        "-",
        "--shape",
        "x=2x3x8x8",
    ]
    assert main(words) == 0
    (report,) = json.loads(capsys.readouterr().out)
    rows = {row["runtime"]: row for row in report["runtimes"]}
    assert list(rows) == ["leanconv", "onnxruntime", "openvino"]
    assert len(rows["leanconv"]["seconds"]) == 3 and rows["leanconv"]["difference"] == 0
    assert rows["openvino"]["reason"] == "not installed" and not rows["openvino"]["seconds"]
    if not rows["onnxruntime"]["reason"]:
        assert rows["onnxruntime"]["difference"] < 1e-5


def test_the_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, "--rounds", "2", "--shape", "x=1x3x8x8", "--memory-limit", "least"]) == 0
    shown = capsys.readouterr().out
    assert "one.onnx, threads: 1" in shown and "leanconv" in shown
    # One layer reads and writes the caller's arrays: there is nothing between layers.
    assert "beside weights of 432 B" in shown and "largest pair of activations (2.2 KiB)" in shown


def test_what_is_measured_is_kept_and_files_are_converted_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    file, asked = tmp_path / "report.json", []

    def compared(path: str, wanted: Any, inputs: Any, threads: int, rounds: int, limit: Any, made: Any) -> Any:
        kept = json.loads(file.read_text()) if file.exists() else []
        asked.append((threads, len(kept), made))
        if threads == 4:
            raise KeyboardInterrupt
        ours, fast, slow, none = (onnx_models.Contestant(name, 1.0, 1, 0.0) for name in ("leanconv", "a", "b", "c"))
        ours.seconds, fast.seconds, slow.seconds, none.reason = [1.0, 2.0, 3.0], [4.0], [8.0], "not installed"
        return [ours, fast, slow, none]

    monkeypatch.setattr(onnx_models, "compare", compared)
    words = ["bench", model, "--threads", "1,2,4", "--json", str(file), "--shape", "x=1x3x8x8"]
    with contextlib.suppress(KeyboardInterrupt):
        main(words)
    assert [(threads, before) for threads, before, _ in asked] == [(1, 0), (2, 1), (4, 2)]
    assert len({id(made) for _, _, made in asked}) == 1
    report = json.loads(file.read_text())
    assert [row["threads"] for row in report] == [1, 2]
    lines = onnx_models.summary(report)
    assert len(lines) == 2 and lines[0].endswith("geometric mean 0.50, highest 0.50 (one)")


def test_what_converters_make_is_kept(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[str] = []

    def convert(request: onnx_runtimes.Request, folder: Path) -> str:
        calls.append(request.path)
        if len(calls) == 1:
            raise ValueError("no such operator")
        target = folder / "made.bin"
        target.write_bytes(b"model")
        return str(target)

    @contextlib.contextmanager
    def here(life: Any, runtime: str, request: Any, folder: Path) -> Any:
        # The converter in this process, its answer as that of the pipe.
        answers: list[Any] = []
        life(SimpleNamespace(send=answers.append), runtime, request, folder)
        yield SimpleNamespace(recv=answers.pop)

    fake = onnx_runtimes.Runtime("numpy", onnx_runtimes.RUNTIMES["leanconv"].start, convert)
    monkeypatch.setitem(onnx_runtimes.RUNTIMES, "fake", fake)
    monkeypatch.setattr(conversions, "process", here)
    monkeypatch.setattr(conversions, "silenced", lambda: None)
    keep = tmp_path / "kept"
    request = onnx_runtimes.Request(model, {"x": np.zeros((1, 3, 8, 8), np.float32)}, ("y",), 1)

    def prepared(request: Any, keep: Path | None = keep) -> tuple[Any, str]:
        with contextlib.ExitStack() as stack:
            entry = onnx_models.Contestant("fake")
            found = conversions.Conversions(stack, keep).prepared(entry, request)
            return found and Path(found.path).read_bytes(), entry.reason

    assert prepared(request) == (None, "ValueError: no such operator") and not list(keep.iterdir())
    assert prepared(request) == (b"model", "") and prepared(request) == (b"model", "") and len(calls) == 2
    # Another model under the same name, and other shapes, are other conversions; no folder keeps nothing.
    assert prepared(replace(request, inputs={"x": np.zeros((2, 3, 8, 8), np.float32)}))[0] and len(calls) == 3
    Path(model).write_bytes(Path(model).read_bytes() + b" ")
    assert prepared(request)[0] and len(calls) == 4 and len(list(keep.iterdir())) == 3
    assert prepared(request, None)[0] and len(calls) == 5 and len(list(keep.iterdir())) == 3


def test_a_runtime_that_fails_is_a_row(model: str) -> None:
    inputs = {"x": np.zeros((1, 3, 8, 9), np.float32)}  # not the model's shape
    (found,) = onnx_models.compare(model, [], inputs, 1, 1, None)
    assert "ArgumentValueError" in found.reason and not found.seconds


@pytest.mark.parametrize(
    "words, message",
    [
        (["layers.csv"], "must all be .onnx files if one is"),
        (
            ["--peers", "none"],
            "must be one of onnxruntime, openvino, mnn, ncnn, litert, torch_compile for ONNX files, or all",
        ),
        (["--shape", "x=1xtwo"], "must be extents joined by x"),
    ],
)
def test_what_is_refused(model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, *words]) == 2
    assert message in capsys.readouterr().err


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx" in capsys.readouterr().err
