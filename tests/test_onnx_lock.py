"""Lock files of models, progress while they are made, and models in processes that fork."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import helper

import leanconv.onnx
from leanconv import cli
from leanconv.errors import ArgumentTypeError, CacheError
from leanconv.network.compile import compile_graph
from leanconv.network.graph import ValueType
from leanconv.onnx.waiting import waiting
from onnx_models import model, small_network
from test_fork import child_status

PROTO = small_network(np.random.default_rng(3))
X = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype("f4")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    session = leanconv.onnx.load(PROTO, threads=2)
    session.prepare({"x": X.shape})
    session.prepare({"x": (1, 3, 16, 16)})
    assert session.save_lock(tmp_path / "plans.lock") == 2
    return tmp_path / "plans.lock"


def test_a_model_runs_as_it_was_written_down(lock: Path) -> None:
    free, held = leanconv.onnx.load(PROTO, threads=2), leanconv.onnx.load(PROTO, threads=2, lock=lock)
    np.testing.assert_array_equal(free.run({"x": X})["y"], held.run({"x": X})["y"])
    assert held.prepare({"x": X.shape}).decisions == free.prepare({"x": X.shape}).decisions
    with pytest.raises(CacheError, match="pins nothing for x=1x3x9x9"):
        held.run({"x": X[:1, :, :, [0, 0, 1, 2, 3, 4, 5, 6, 7]]})


def test_what_is_pinned_is_what_runs(lock: Path) -> None:
    """Another algorithm than the fastest, because the file says so."""
    found = json.loads(lock.read_text())
    question = next(key for key in found["networks"] if key.startswith("x=2x3x9x8"))
    steps = found["networks"][question]["steps"]
    name = next(name for name, step in steps.items() if step["algorithm"] not in ("pointwise", "im2row"))
    steps[name] = {"algorithm": "im2row", "settings": {}, "threads": 1, "workspace_bytes": 0}
    lock.write_text(json.dumps(found))
    held = leanconv.onnx.load(PROTO, threads=2, lock=lock)
    with pytest.raises(CacheError, match="not possible here"):  # the bytes are not those of im2row
        held.run({"x": X})
    network = leanconv.onnx.load(PROTO, threads=2).prepare({"x": X.shape})
    session = leanconv.onnx.load(PROTO, threads=2)
    graph = session.graph({"x": ValueType(X.shape, "float32")})
    other = compile_graph(graph, threads=2, algorithm="im2row")
    pinned = {**other.decisions, "blocks": network.decisions["blocks"]}
    again = compile_graph(graph, threads=2, pinned=pinned)
    assert again.decisions["steps"] == other.decisions["steps"]
    np.testing.assert_array_equal(again.run({"x": X})["y"], other.run({"x": X})["y"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ('{"format": "other"}', "does not hold"),
        ('{"format": "leanconv network lock 1", "networks": []}', "no plan"),
        ('{"format": "leanconv network lock 1", "networks": {"a": {"blocks": [], "steps": {"s": 1}}}}', "no plan"),
    ],
)
def test_files_that_are_no_lock(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.lock").write_text(text)
    with pytest.raises(CacheError, match=complaint):
        leanconv.onnx.load(PROTO, lock=tmp_path / "bad.lock")
    with pytest.raises(CacheError, match="cannot be read"):
        leanconv.onnx.load(PROTO, lock=tmp_path / "gone.lock")
    with pytest.raises(ArgumentTypeError, match="lock"):
        leanconv.onnx.load(PROTO, lock=3)  # type: ignore[arg-type]


def test_a_lock_of_another_model(lock: Path) -> None:
    weights = np.ones((4, 3, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="alone", pads=[1, 1, 1, 1])
    other = model([node], {"x": [None, 3, None, None]}, ["y"], {"w": weights})
    with pytest.raises(CacheError, match=r"no plan for the step|a block"):
        leanconv.onnx.load(other, threads=2, lock=lock).run({"x": X})


def test_the_command_line_writes_and_obeys_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lock = tmp_path / "m.onnx", str(tmp_path / "m.lock")
    path.write_bytes(PROTO.SerializeToString())
    assert cli.main(["warmup", str(path), "--shape", "1x3x8x8", "--threads", "1", "--lock", lock]) == 0
    assert "written down" in capsys.readouterr().out
    assert cli.main(["run", str(path), "--shape", "1x3x8x8", "--threads", "1", "--lock", lock]) == 0
    assert cli.main(["run", str(path), "--shape", "1x3x9x8", "--threads", "1", "--lock", lock]) in (1, 2)
    assert "pins nothing" in capsys.readouterr().err


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    session = leanconv.onnx.load(PROTO, threads=1, progress=lambda *words: told.append(words))
    session.run({"x": X})
    assert [what for what in dict.fromkeys(what for what, _, _ in told)] == ["plan", "pack", "compile"]
    assert all(done <= total or not total for _, done, total in told)
    count = len(told)
    session.run({"x": X})
    assert len(told) == count
    with pytest.raises(ArgumentTypeError, match="progress"):
        leanconv.onnx.load(PROTO, progress=1)  # type: ignore[arg-type]


def test_a_bar_on_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting(quiet=False) as tell:
        assert tell is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with waiting(quiet=True) as tell:
        assert tell is None
    with waiting(quiet=False) as tell:
        assert tell is not None
        for words in (("plan", 0, 1), ("pack", 3, 0), ("compile", 0, 2), ("compile", 1, 2)):
            tell(*words)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_session_in_a_forked_child() -> None:
    """A child has none of the parent's threads, and none of its callers in the middle of a run."""
    free = leanconv.onnx.load(PROTO, threads=2).prepare({"x": X.shape})
    # Room for one run at a time: a child must not wait for those that its parent was in.
    session = leanconv.onnx.load(PROTO, threads=2, memory_limit=free.peak_bytes + free.extra_bytes)
    wanted, other = session.run({"x": X})["y"], X[:1, :, :7]
    alone = session.run({"x": other})["y"]

    def compute() -> bool:
        fresh = session.run({"x": X[:, :, :8, :7]})["y"]  # shapes that the parent has not met
        same = all(np.array_equal(session.run({"x": x})["y"], y) for x, y in ((X, wanted), (other, alone)))
        return same and bool(np.isfinite(fresh).all())

    for _ in range(3):
        assert child_status(compute) == 0
    stop, failures = threading.Event(), []

    def busy() -> None:
        while not stop.is_set():
            if not np.array_equal(session.run({"x": X})["y"], wanted):
                failures.append(1)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            assert child_status(compute, 20) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not failures
