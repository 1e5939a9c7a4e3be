"""The command line on models: run, warmup, explain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import helper

import leanconv.onnx
from leanconv import cli
from leanconv.errors import ArgumentValueError, ModelError
from leanconv.onnx.images import Preparation, image_input
from leanconv.onnx.model import Port
from onnx_models import model, small_network


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    found = tmp_path_factory.mktemp("models") / "small.onnx"
    found.write_bytes(small_network(np.random.default_rng(3)).SerializeToString())
    return str(found)


def _image(folder: Path, size: tuple[int, int] = (12, 10)) -> str:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    pillow.fromarray(pixels).save(folder / "photo.png")
    return str(folder / "photo.png")


def test_run_on_an_array(path: str, tmp_path, capsys) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "y.npy"
    assert cli.main(["run", path, str(tmp_path / "x.npy"), "--output", str(out), "--threads", "1"]) == 0
    np.testing.assert_array_equal(np.load(out), leanconv.onnx.load(path, threads=1).run({"x": x})["y"])
    shown = capsys.readouterr().out
    assert "y  float32 2x10" in shown and "largest" in shown and "peak" in shown


def test_run_on_an_image(path: str, tmp_path, capsys) -> None:
    image = _image(tmp_path)
    words = ["run", path, f"x={image}", "--size", "8x8", "--imagenet", "--bgr", "--json", "--memory-limit", "1MiB"]
    assert cli.main([*words, "--output", str(tmp_path / "y.npz")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"]["y"]["shape"] == [1, 10]
    assert abs(np.load(tmp_path / "y.npz")["y"].sum() - 1) < 1e-5


def test_run_on_random_numbers_with_a_profile(path: str, tmp_path, capsys) -> None:
    trace = tmp_path / "trace.json"
    words = ["run", path, "--shape", "2x3x8x8", "--profile", "--trace", str(trace), "--repeat", "2"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "random numbers" in shown.err and "total" in shown.out
    events = json.loads(trace.read_text())["traceEvents"]
    assert any(event["cat"] == "leanconv.Conv" for event in events if event["ph"] == "X")


def test_warmup(path: str, capsys) -> None:
    assert cli.main(["warmup", path, "--shape", "x=1x3x8x8"]) == 0
    assert "compiled" in capsys.readouterr().out


def test_explain(path: str, tmp_path, capsys) -> None:
    words = ["explain", path, "--shape", "1x3x32x32"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "Conv" in shown and "memory limit" in shown and "####" in shown
    assert cli.main([*words, "--json", "--memory-limit", "1MiB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] + found["extra_bytes"] <= 1 << 20
    sizes = [nbytes for nbytes, _ in found["frontier"]]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) >= 1
    pytest.importorskip("matplotlib")
    assert cli.main([*words, "--plot", str(tmp_path / "memory.png")]) == 0
    assert (tmp_path / "memory.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "MODEL"], "--shape"),
        (["run", "MODEL", "--shape", "x=axb"], "joined by x"),
        (["run", "MODEL", "--shape", "z=1x3x8x8"], "name of an input: x"),
        (["run", "MODEL", "gone.png"], "cannot be read"),
        (["run", "MODEL", "gone.npy"], "cannot be read"),
        (["run", "MODEL", "z=gone.npy"], "no input that is left"),
        (["run", "MODEL", "--shape", "1x3x8x8", "--memory-limit", "10"], "memory limit is 10 bytes"),
        (["run", "MODEL", "gone.png", "--size", "8"], "--size"),
        (["run", "MODEL", "gone.png", "--mean", "a"], "--mean"),
        (["run", "gone.onnx"], "cannot be read"),
        (["warmup", "gone.onnx"], "cannot be read"),
        (["explain", "gone.onnx"], "cannot be read"),
    ],
)
def test_complaints(words: list[str], complaint: str, path: str, capsys, tmp_path, monkeypatch) -> None:
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    assert cli.main([path if word == "MODEL" else word for word in words]) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_images_as_inputs(tmp_path) -> None:
    image = _image(tmp_path, (5, 7))
    whole = image_input(image, Port("x", (1, 3, None, None), "float32"), Preparation(scale=1.0))
    assert whole.shape == (1, 3, 5, 7) and whole.dtype == np.float32 and whole.max() > 1
    last = image_input(image, Port("x", (None, "h", "w", 3), "float32"), Preparation(scale=1.0))
    np.testing.assert_array_equal(last[0].transpose(2, 0, 1), whole[0])
    turned = image_input(image, Port("x", (1, 3, None, None), "float32"), Preparation(scale=1.0, bgr=True))
    np.testing.assert_array_equal(turned[:, ::-1], whole)
    normal = image_input(image, Port("x", (1, 3, None, None), "float32"), Preparation(1.0, (10.0,), (2.0,)))
    np.testing.assert_allclose(normal, (whole - 10) / 2)
    assert image_input(image, Port("x", (1, 1, 4, 4), "uint8"), Preparation(1.0)).shape == (1, 1, 4, 4)
    rounded = image_input(image, Port("x", (1, 3, None, None), "float32"), Preparation(multiple=4))
    assert rounded.shape == (1, 3, 4, 8)
    for shape in ((1, 10), (1, 4, 8, 8), (2, 3, 8, 8)):
        with pytest.raises(ArgumentValueError, match="must be for an input"):
            image_input(image, Port("x", shape, "float32"), Preparation())
    with pytest.raises(ArgumentValueError, match="mean"):
        image_input(image, Port("x", (1, 3, 8, 8), "float32"), Preparation(mean=(0.0, 0.0)))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ModelError, match="cannot be read"):
        image_input(tmp_path / "text.png", Port("x", (1, 3, 8, 8), "float32"), Preparation())


def test_a_model_without_inputs(tmp_path, capsys) -> None:
    found = tmp_path / "constant.onnx"
    nodes = [helper.make_node("Neg", ["c"], ["y"])]
    found.write_bytes(model(nodes, {}, ["y"], {"c": np.ones(3, np.float32)}).SerializeToString())
    assert cli.main(["run", str(found)]) == 0
    assert "y  float32 3" in capsys.readouterr().out
