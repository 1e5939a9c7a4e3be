"""Measured choices: what is remembered, that it goes stale soundly, and that nothing that happens to it is an error."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanconv
from leanconv.cli import main
from leanconv.errors import CacheError
from leanconv.planning import records as records_module
from leanconv.planning import tuning
from leanconv.planning.candidates import Terms, candidates
from leanconv.planning.records import Records, machine_key

LAYER: dict[str, Any] = {"x_shape": (1, 8, 12, 12), "w_shape": (16, 8, 3, 3), "threads": 1}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    made = Records(tmp_path / "cache", "rw")
    monkeypatch.setattr(tuning, "records", lambda: made)
    monkeypatch.setattr(records_module, "records", lambda: made)
    return made


def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many plans each measurement that is really made times."""
    counts: list[int] = []
    real = tuning._time

    def count(problem: Any, contest: Any, **options: Any) -> dict[str, float]:
        counts.append(len(contest))
        return real(problem, contest, **options)

    monkeypatch.setattr(tuning, "_time", count)
    return counts


def files(store: Records) -> list[Path]:
    return sorted(Path(store.info().directory, "records").glob("*/*.lco"))


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, store: Records) -> None:
    counts = timed(monkeypatch)
    plan = leanconv.plan(**LAYER, choose="measure", budget=60.0)
    assert len(counts) == 1 and 2 <= counts[0] <= tuning.FEW
    times = tuning.remembered(plan.problem, bound=True)
    assert min(times, key=times.__getitem__) == tuning.signature(plan)
    again = leanconv.plan(**LAYER, choose="measure", budget=60.0)
    assert len(counts) == 1 and again.algorithm == plan.algorithm
    # A call that packs its weights is another question; so is another thread count.
    x, w = np.ones(LAYER["x_shape"], np.float32), np.ones(LAYER["w_shape"], np.float32)
    assert np.allclose(leanconv.conv2d(x, w, threads=1, choose="measure"), 72, rtol=1e-5)
    assert len(counts) == 2
    assert next(r for r in leanconv.explain(**LAYER).rows if r.name == plan.algorithm).measured_seconds
    # What is missing from a record is measured, what is in it stays.
    everything = leanconv.plan(**LAYER, choose="exhaustive")
    after = tuning.remembered(plan.problem, bound=True)
    assert len(counts) == 3 and times.items() <= after.items() and len(after) > len(times)
    assert any(json.loads(name)[0] == everything.algorithm for name in after)
    assert len(after) == counts[0] + counts[2]


def test_limits_hold_for_measured_choices() -> None:
    for how in ("measure", "exhaustive"):
        plan = leanconv.plan(**LAYER, choose=how, memory_limit=2048)
        assert plan.extra_bytes <= 2048
    assert leanconv.plan(**LAYER, choose="measure", deterministic=True).chosen.sum_order


@pytest.mark.parametrize("shape", [(0, 8, 12, 12), (2, 8, 3, 3)])
@pytest.mark.parametrize("more", [{"residual": True, "bias": True}, {"layout": "NHWC"}])
def test_every_kind_of_problem_can_be_measured(shape: tuple[int, ...], more: dict[str, Any]) -> None:
    if more.get("layout"):
        shape = (shape[0], *shape[2:], shape[1])
    plan = leanconv.plan(shape, (16, 8, 3, 3), choose="measure", threads=2, **more)
    assert plan.algorithm


def test_views_are_measured_as_they_lie() -> None:
    x = np.ones((1, 8, 12, 24), np.float32)[:, ::-1, :, ::2]
    out = np.empty((1, 16, 10, 20), np.float32)[..., ::2]
    leanconv.conv2d(x, np.ones(LAYER["w_shape"], np.float32), out=out, choose="measure", threads=1)
    assert np.allclose(out, 72, rtol=1e-5)


def test_a_budget_ends_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = leanconv.plan(**LAYER, choose="measure", budget=1e-9)
    assert len(tuning.remembered(plan.problem, bound=True)) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "json", "folder"])
def test_damaged_records_cost_their_measurement_only(
    damage: str, monkeypatch: pytest.MonkeyPatch, store: Records
) -> None:
    counts = timed(monkeypatch)
    plan = leanconv.plan(**LAYER, choose="measure", budget=60.0)
    other = leanconv.plan(**{**LAYER, "x_shape": (1, 8, 13, 13)}, choose="measure")
    key = tuning._key(plan.problem, bound=True)
    first = next(f for f in files(store) if records_module.make_key(key) in f.name)
    data = first.read_bytes()
    if damage == "cut":
        first.write_bytes(data[:-7])
    elif damage == "flip":
        first.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "empty":
        first.write_bytes(b"")
    elif damage == "json":
        store._cache.put(records_module.make_key(key), b'{"parts": 3}', {})
    else:
        first.unlink()
        first.mkdir()
    assert tuning.remembered(plan.problem, bound=True) == {}
    assert tuning.remembered(other.problem, bound=True)
    assert leanconv.plan(**LAYER, choose="measure").algorithm
    assert len(counts) == 3


def test_other_sources_or_machines_have_other_records(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = leanconv.plan(**LAYER, choose="measure")
    assert tuning.remembered(plan.problem, bound=True)
    monkeypatch.setattr(tuning, "sources_digest", lambda: "other")
    assert tuning.remembered(plan.problem, bound=True) == {}
    monkeypatch.undo()
    key = machine_key("times")
    monkeypatch.setattr(records_module, "_machine", lambda: "other CPU")
    assert machine_key("times") != key


def test_export_merge_and_read_only(tmp_path: Path, store: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = leanconv.plan(**LAYER, choose="measure", budget=60.0)
    path = tmp_path / "records.json"
    assert store.export(path) == len(list(store)) == 1
    other = Records(tmp_path / "other", "rw")
    assert other.merge(path) == 1 and other.merge(path) == 0
    key = tuning._key(plan.problem, bound=True)
    assert other.get(key) == store.get(key) is not None
    counts = timed(monkeypatch)
    read_only = Records(tmp_path / "other", "ro")
    monkeypatch.setattr(tuning, "records", lambda: read_only)
    assert leanconv.plan(**LAYER, choose="measure", budget=60.0).algorithm == plan.algorithm and not counts
    leanconv.plan(**{**LAYER, "x_shape": (1, 8, 15, 15)}, choose="measure")
    assert len(counts) == 1 and len(list(read_only)) == 1
    for act in (lambda: read_only.merge(path), read_only.clear):
        with pytest.raises(CacheError):
            act()
    for bad in ("", "{}", '{"format": "leanconv records 1", "records": [3]}'):
        path.write_text(bad)
        with pytest.raises(CacheError):
            other.merge(path)
    with pytest.raises(CacheError):
        other.merge(tmp_path / "missing")
    with pytest.raises(CacheError):
        other.export(tmp_path / "no" / "folder.json")
    assert other.clear() == 1 and list(other) == []


def test_a_record_cut_anywhere_or_of_random_bytes_is_no_record(store: Records) -> None:
    """Cut at each length, or with any byte another: nothing is found, nothing is raised, and it is written anew."""
    problem = leanconv.plan(**LAYER, choose="measure", budget=0.02).problem
    key = records_module.make_key(tuning._key(problem, bound=True))
    file = next(f for f in files(store) if key in f.name)
    data, known = file.read_bytes(), tuning.remembered(problem, bound=True)
    assert known
    rng = np.random.default_rng(0)
    bad = [data[:length] for length in range(len(data))]
    for at in range(len(data)):
        bad.append(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
    bad += [rng.bytes(int(rng.integers(0, 2 * len(data)))) for _ in range(50)] + [data + b"\0", data + data]
    for number, found in enumerate(bad):
        file.write_bytes(found)
        # What people read (the note) is not part of the record: a change there may leave it whole.
        assert tuning.remembered(problem, bound=True) in ({}, known)
        if number % 20 == 0:
            times = [record for _, record in store if record.get("kind") == "times"]
            assert times in ([], [{"kind": "times", "seconds": known}])
    file.write_bytes(bad[-1])
    leanconv.plan(**LAYER, choose="measure", budget=0.02)
    assert tuning.remembered(problem, bound=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_killed_at_random_moments(store: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that do little but write records, two at a time: all that is there is whole, and is what was written."""
    monkeypatch.setattr(tuning, "_time", lambda _, contest, **__: {tuning.signature(e.plan): 0.25 for e in contest})
    leanconv.plan(**LAYER, choose="measure")
    before, rng = len(list(store)), np.random.default_rng(1)

    def child(number: int) -> int:
        pid = os.fork()
        if not pid:
            try:
                for size in itertools.count(6 + number):
                    leanconv.plan((1, 4, size, 9), (8, 4, 3, 3), threads=1, choose="measure")
            finally:
                os._exit(1)
        return pid

    for turn in range(20):
        running = [child(turn), child(turn)]
        time.sleep(float(rng.uniform(0.002, 0.06)))
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    records = [record for _, record in store]
    assert len(records) > before and store.info().rejected == 0
    assert all(set(record["seconds"].values()) == {0.25} for record in records)


SCRIPT = """
import leanconv
print("ready", flush=True)
for size in range(6, 400):
    leanconv.plan((1, 4, size, 9), (8, 4, 3, 3), threads=1, choose="measure", budget=0.01)
"""


def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tune at the same time, killed: every record that is there is whole."""
    folder = tmp_path / "killed"
    environment = {**os.environ, "LEANCONV_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    for turn in range(2):
        running = [
            subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE) for _ in range(2)
        ]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        before, end = len(list(folder.glob("records/*/*.lco"))), time.monotonic() + 60
        while len(list(folder.glob("records/*/*.lco"))) < before + 2 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.031 * turn)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    found = Records(folder, "rw")
    times = [record for _, record in found if record.get("kind") == "times"]
    assert len(times) >= 2
    assert all(value > 0 for record in times for value in record["seconds"].values())
    assert found.info().rejected == 0
    monkeypatch.setattr(tuning, "records", lambda: found)
    plan = leanconv.plan((1, 4, 6, 9), (8, 4, 3, 3), threads=1, choose="measure")
    assert plan.bind(np.ones((8, 4, 3, 3), np.float32))(np.ones((1, 4, 6, 9), np.float32)).shape == (1, 8, 4, 7)


# -- the command line --------------------------------------------------------------------------------------------

TINY = "mb1ic8ih12oc16kh3"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Records) -> None:
    lock = tmp_path / "model.lock"
    assert main(["tune", TINY, "--threads", "1", "--budget", "0.2", "--lock", str(lock)]) == 0
    assert " on 1" in capsys.readouterr().out
    assert len(json.loads(lock.read_text())["plans"]) == 1
    assert main(["explain", TINY, "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["flops"] == 2 * 16 * 100 * 8 * 9 and found["rows"][0]["verdict"] == "chosen"
    assert any(row["measured_seconds"] for row in found["rows"])
    assert main(["explain", TINY, "--memory-limit", "1KiB", "--measure"]) == 0
    assert "over the limit" in capsys.readouterr().out
    assert main(["network", TINY, "mb1ic16ih10oc16kh1", "--chain", "--threads", "1"]) == 0
    assert "shared by all layers" in capsys.readouterr().out
    assert main(["network", TINY, "--frontier", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert points and all(len(point) == 2 for point in points)
    picture = tmp_path / "frontier.svg"
    assert main(["network", TINY, "mb1ic16ih10oc16kh3", "--plot", str(picture)]) == 0
    assert "predicted" in capsys.readouterr().out and "time of a pass" in picture.read_text()
    assert main(["network", TINY, "--plot", str(tmp_path / "frontier.txt")]) == 1
    assert "frontier.txt" in capsys.readouterr().err
    assert main(["records", "info"]) == 0 and "records" in capsys.readouterr().out
    path = tmp_path / "out.json"
    assert main(["records", "export", str(path)]) == 0 and path.exists()
    assert main(["records", "clear"]) == 0
    assert main(["records", "merge", str(path)]) == 0
    assert len(list(store)) == len(json.loads(path.read_text())["records"]) > 0


def test_tuning_says_what_is_not_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for store, said in (
        (Records(tmp_path, "ro"), "no time is remembered (LEANCONV_CACHE=ro)"),
        (Records(tmp_path / "file", "rw"), f"not all times are remembered: {tmp_path / 'file'} cannot be written"),
    ):
        monkeypatch.setattr(tuning, "records", lambda made=store: made)
        monkeypatch.setattr(records_module, "records", lambda made=store: made)
        assert main(["tune", TINY, "--threads", "1", "--budget", "0.05"]) == 0
        assert capsys.readouterr().err == f"leanconv: {said}\n"


def test_commands_that_cannot_be_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (
        ["explain"],
        ["explain", "no such layer"],
        ["explain", TINY, "--algorithm", "nonsense"],
        ["explain", TINY, "--memory-limit", "much"],
        ["explain", TINY, "--threads", "0"],
        ["network", TINY, "--algorithm", "pointwise"],
        ["records", "export"],
        ["tune", TINY, "--budget", "-1"],
    ):
        assert main(words) == 2, words
        assert capsys.readouterr().err.startswith("leanconv: "), words
    assert main(["records", "merge", str(tmp_path / "missing")]) == 1
    assert main(["explain", TINY, "--algorithm", "im2col", "--memory-limit", "16"]) == 1


def test_the_best_few_are_near_the_best() -> None:
    problem = leanconv.plan(**LAYER, algorithm="direct").problem
    found = candidates(problem, ["direct", "reference"], Terms(1))
    assert [entry.name for entry in found] == ["direct", "reference"]
    assert found[1].predicted_seconds > tuning.NEAR * found[0].predicted_seconds
