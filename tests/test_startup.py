"""`leanconv startup` measures what it says, and warm processes load no compiler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanconv import cli
from leanconv.codegen import loader


def told(arguments: list[str], capsys: Any) -> dict[str, dict[str, list[float]]]:
    assert cli.main(["startup", "--runs", "1", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_layers(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(mine))
    found = told([], capsys)
    for kind in ("cold", "warm"):
        for name in (
            "import numpy",
            "import leanconv",
            "first layer",
            "import leanconv and first layer",
            "another layer",
            "first layer again",
        ):
            assert len(found[kind][name]) == 1
            assert found[kind][name][0] > 0
    assert found["cold"]["llvm is loaded"] == [True]
    assert found["warm"]["llvm is loaded"] == [loader.host_machine() is None]
    assert {name for name in found["warm"] if name not in found["cold"]} == {
        "call of a bound plan, 64 products",
        "call of conv2d, 64 products",
    }
    assert not mine.exists(), "the user's own kernels are left alone"


def test_models(capsys: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx_models import small_network

    onnx.save(small_network(np.random.default_rng(0)), tmp_path / "small.onnx")
    found = told([str(tmp_path / "small.onnx")], capsys)
    assert found["warm"]["load and first result"][0] > found["warm"]["second result"][0] > 0
    assert found["warm"]["llvm is loaded"] == [loader.host_machine() is None]


def test_what_is_printed(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.bench import startup

    values = {"first layer": [0.25, 0.5, 1.0], "llvm is loaded": [True] * 3, "peak memory": [3 << 20] * 3}
    monkeypatch.setattr(startup, "measure", lambda *_: {"cold": values, "warm": {**values, "llvm is loaded": [False]}})
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["startup"]) == 0
    shown = capsys.readouterr().out
    assert "500.0 ms" in shown
    assert "3.0 MiB" in shown
    assert "yes" in shown
    assert "no" in shown


def test_wrong_use(capsys: Any) -> None:
    assert cli.main(["startup", "--runs", "0"]) == 2
    assert cli.main(["startup", "--runs", "1", "no such file.onnx"]) == 1
    assert "no such file.onnx" in capsys.readouterr().err
