"""How far choices are from the fastest; explanations of gradients; pictures; the processor's counters."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import leanconv
from leanconv.backward.choice import choose_gradient
from leanconv.backward.registry import WEIGHTS
from leanconv.bench.benchdnn import parse
from leanconv.bench.catalogue import in_order
from leanconv.cli import main
from leanconv.errors import CacheError
from leanconv.planning import choice_measured, counters, limits_measured, limits_process, tuning
from leanconv.planning import records as records_module
from leanconv.planning.error import compared, error_text, merged
from leanconv.planning.explain_plot import front
from leanconv.planning.layer_choices import filled_choice, leaner_choice
from leanconv.planning.layer_options import LayerOption
from leanconv.planning.lesson import Lesson, Rate
from leanconv.planning.limits_measured import SLACK, Case, Taken
from leanconv.planning.network import plan_layers
from leanconv.planning.records import Records

TINY = "mb1ic8ih12oc16kh3ph1"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    made = Records(tmp_path / "cache", "rw")
    monkeypatch.setattr(tuning, "records", lambda: made)
    monkeypatch.setattr(records_module, "records", lambda: made)
    return made


def report_of(times: dict[tuple[str, int], float], threads: int, **more: Any) -> dict[str, Any]:
    """A report of one layer with these times by algorithm and threads."""
    layer = choice_measured.asdict(parse(TINY))
    at = {"layer": layer["name"], "layout": "NHWC", "threads": threads, "limit": None}
    rows = [{**at, "algorithm": n, "ran": n, "used": used, "seconds": s} for (n, used), s in times.items()]
    return {"settings": {"dtype": "float32"}, "layers": [layer], "rows": rows, "measured": [], **more}


def test_choices_are_compared_with_the_fastest() -> None:
    times = {("direct", 1): 3e-3, ("winograd_f4", 1): 1e-3, ("direct_band", 1): 2e-3}
    report = merged([report_of(times, 1)])
    (found,) = compared(report)
    taken = leanconv.plan((1, 12, 12, 8), (16, 8, 3, 3), padding=1, layout="NHWC", bias=True, threads=1, memory_limit=0)
    assert found.fastest == "winograd_f4" and found.taken in {name for name, _ in times}
    assert found.ratio == times[found.taken, 1] / 1e-3 and found.flops == taken.problem.flops
    assert f"{found.ratio:.3f} times the best of 1 layers" in error_text([found])


def test_a_candidate_on_fewer_threads_takes_part() -> None:
    times = {("direct", 2): 4e-3, ("direct", 1): 1e-3, ("im2row", 2): 2e-3}
    measured = [{**report_of({}, 2), "layer": parse(TINY).name, "layout": "NHWC", "threads": 2, "limit": None}]
    measured[0] |= {"algorithm": "im2row", "ran": "im2row", "used": 2}
    report = merged([report_of(times, 2, measured=measured)])
    (noted,) = compared(report, measured=True)
    assert (noted.taken, noted.fastest, noted.ratio) == ("im2row", "direct on 1", 2.0)
    assert noted.predicted is None
    (found,) = compared(report)
    assert found.taken in ("direct", "direct on 1", "im2row")


def test_later_reports_stand_for_earlier_ones() -> None:
    old, new = report_of({("direct", 1): 1.0, ("mec", 1): 2.0}, 1), report_of({("mec", 1): 3.0}, 1)
    assert [row["algorithm"] for row in merged([old, new])["rows"]] == ["mec"]
    other = report_of({("direct", 2): 1.0}, 2)
    assert len(merged([old, other])["rows"]) == 3 and len(merged([old, other])["layers"]) == 1
    with pytest.raises(CacheError, match="float64"):
        merged([old, {**new, "settings": {"dtype": "float64"}}])


@pytest.mark.parametrize("text", ["no json", "[]", '{"layers": []}', '{"settings": {}, "layers": [1], "rows": [2]}'])
def test_what_is_no_report(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    assert main(["model-error", str(file)]) == 1
    assert "report.json is no report of leanconv bench" in capsys.readouterr().err


def test_a_report_of_unknown_algorithms() -> None:
    with pytest.raises(CacheError, match="does not know"):
        compared(merged([report_of({("quantum", 1): 1.0}, 1)]))


def test_the_command_measures_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: Records
) -> None:
    file = tmp_path / "choices.json"
    words = [TINY, "--threads", "1", "--memory-limit", "0,unlimited", "--time", "0.001", "--measure"]
    assert main(["model-error", *words, "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "limit 0 bytes" in text and text.count("times the best of 1 layers") == 4
    report = json.loads(file.read_text())
    assert {row["limit"] for row in report["rows"]} == {0, None} and len(report["measured"]) == 2
    assert all(row["seconds"] > 0 and row["predicted"] > 0 for row in report["rows"])
    assert all(row["needed_bytes"] == 0 for row in report["rows"] if row["limit"] == 0)
    # What the file holds is not measured again.
    monkeypatch.setattr(choice_measured, "_layer", lambda *_: pytest.fail("measured again"))
    assert main(["model-error", *words, "--json", str(file)]) == 0
    assert main(["model-error", str(file)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TINY, "--filter", "nothing"], "matches the name of no layer"),
        ([TINY, "--layout", "HWCN"], "HWCN"),
        ([TINY, "--threads", "two"], "must be numbers joined by commas"),
        ([TINY, "--time", "0"], "above 0"),
        ([TINY, "--memory-limit", "much"], "much"),
        (["no such layer"], "no such layer"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model-error", *words]) == 2
    assert message in capsys.readouterr().err


def test_networks_are_measured_at_their_least_memory(capsys: pytest.CaptureFixture[str]) -> None:
    words = [TINY, "mb1ic16ih12oc16kh3ph1*3", "--threads", "1", "--measure", "--layout", "NCHW"]
    assert main(["network", *words, "--memory-limit", "1MiB", "--json"]) == 0
    least, twice, limited, *lean, free = json.loads(capsys.readouterr().out)
    assert [least["name"], free["name"]] == ["least memory", "no limit"] and free["limit"] is None
    assert all(row["name"] == "leaner" and row["needed_bytes"] < free["needed_bytes"] for row in lean)
    assert twice["memory"] <= 2 * least["memory"] and limited["needed_bytes"] <= 1 << 20
    assert least["predicted"] >= twice["predicted"] >= free["predicted"]
    assert all(row["seconds"] > 0 for row in (least, twice, limited, free))
    assert main(["network", *words]) == 0
    assert "with tensors" in capsys.readouterr().out
    assert main(["network", *words, "--chain"]) == 2


def test_what_a_price_leaves_is_spent() -> None:
    def option(seconds: float, weights: int, layout: str = "NHWC") -> LayerOption:
        return LayerOption(cast(Any, None), layout, 0, weights, seconds)

    slow, fast, other = option(9.0, 0), option(4.0, 60), option(1.0, 0, "NCHW")
    rows = [[slow, fast, other], [option(5.0, 0), option(3.0, 50)], [option(2.0, 0), option(1.5, 30)]]
    chosen = filled_choice(rows, [row[0] for row in rows], 100)
    # The layer that gains most first; the second does not fit beside it, the third does; layouts stay.
    assert [entry.seconds for entry in chosen] == [4.0, 5.0, 1.5]
    assert filled_choice(rows, chosen, 90) == chosen and filled_choice(rows, [row[0] for row in rows], 0)[0] is slow


def test_the_least_of_a_network_is_enough() -> None:
    # Packed weights and workspace together: what the error names is what a plan then takes.
    layers = [(layer.name, layer.problem("NCHW", bias=True)) for layer in in_order(["mobilenet_v2"])[:12]]
    assert plan_layers(layers, 2, 0).needed_bytes == 0
    with pytest.raises(leanconv.MemoryLimitError) as caught:
        plan_layers(layers, 2, 0, algorithm="im2row")
    least = caught.value.needed
    assert plan_layers(layers, 2, least, algorithm="im2row").needed_bytes <= least
    with pytest.raises(leanconv.MemoryLimitError):
        plan_layers(layers, 2, least - 1, algorithm="im2row")


def test_bytes_that_are_not_worth_their_time_are_left() -> None:
    def option(seconds: float, weights: int, layout: str = "NHWC") -> LayerOption:
        return LayerOption(cast(Any, None), layout, 0, weights, seconds)

    mib = 1 << 20  # worth at most 0.105 ms, by the price of a byte
    rows = [
        [option(1e-3, 40 * mib), option(2e-3, 0), option(1e-3, 0, "NCHW")],
        [option(1e-3, 40 * mib), option(3e-3, 0)],
        [option(1e-3, 1 * mib), option(2e-3, 0)],
    ]
    fastest = [row[0] for row in rows]
    # Most bytes for a second first; the second swap no longer fits beside it; the third is never worth it.
    assert leaner_choice(rows, fastest, 2.5e-3) == [rows[0][1], fastest[1], fastest[2]]
    assert leaner_choice(rows, fastest, 3.5e-3) == [rows[0][1], rows[1][1], fastest[2]]
    assert leaner_choice(rows, fastest, 1.0) == [rows[0][1], rows[1][1], fastest[2]]
    assert leaner_choice(rows, fastest, 0.5e-3) == fastest


def test_a_network_without_a_limit_takes_no_bytes_for_next_to_nothing() -> None:
    layers = [layer.problem("NHWC", bias=True) for layer in in_order(["vgg16"])[4:]]
    fastest, lean, leaner = (leanconv.plan_network(layers, threads=1, leaner=share) for share in (0, 0.02, 1))
    # Whether it buys anything depends on the machine's figures; it never costs more than was said.
    assert fastest.needed_bytes >= lean.needed_bytes >= leaner.needed_bytes
    for share, found in ((0.02, lean), (1, leaner)):
        assert fastest.predicted_seconds <= found.predicted_seconds <= fastest.predicted_seconds * (1 + share)
    assert leanconv.plan_network(layers, threads=1).needed_bytes == fastest.needed_bytes
    for wrong in (-0.1, 1.5, "2 %", True):
        with pytest.raises(leanconv.LeanconvError, match="leaner"):
            leanconv.plan_network(layers, leaner=cast(Any, wrong))


def test_layers_of_networks_stand_in_order_as_often_as_they_occur() -> None:
    names = [layer.name for layer in in_order(["resnet50"])]
    assert len(names) == 53 and names.count("resnet50/layer1_1x1_c") == 3
    assert len(in_order([TINY, TINY])) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a process takes")
def test_what_layers_take_under_limits_is_what_they_declare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "limits.json"
    layer = "mb1ic64ih28oc64kh3ph1"
    assert main(["limits", layer, "--memory-limit", "0,448KiB,unlimited", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "3 of 3 keep to their limit and to what they declare; measured is at most" in text
    none, some, free = (Taken(**row) for row in json.loads(file.read_text())["rows"])
    assert (none.limit, none.counted, free.limit) == (0, 0, None) and free.declared > none.declared > 0
    # Weights that are not packed are kept as they are, and declared too.
    assert some.algorithm.endswith("on_the_fly") and some.declared == some.counted + 64 * 64 * 9 * 4
    for entry in (none, some, free):
        assert entry.measured is not None and 0.5 * entry.declared < entry.measured <= entry.declared + SLACK
    # What the file holds is not run again, and stays in it; a question of its own is.
    asked: list[Case] = []
    real = limits_measured.taken
    monkeypatch.setattr(limits_measured, "taken", lambda cases: real(asked.extend(cases) or asked))
    words = ["limits", layer, "mb1ic8ih9oc8kh3", "--json", str(file)]
    assert main([*words, "--memory-limit", "0,unlimited"]) == 0
    assert [(case.layer.name, case.limit) for case in asked] == [("mb1ic8ih9oc8kh3", 0), ("mb1ic8ih9oc8kh3", None)]
    assert "4 of 4 keep" in capsys.readouterr().out
    assert some in limits_measured.saved(file) and len(limits_measured.saved(file)) == 5
    # Another version's are not believed; what is no such file is an error, and stays as it is.
    monkeypatch.setattr(limits_measured, "_sources", lambda: "another version")
    assert limits_measured.saved(file) == [] == limits_measured.saved(tmp_path / "missing")
    file.write_text("{}")
    assert main([*words, "--memory-limit", "0"]) == 1 and file.read_text() == "{}"
    assert "leanconv limits 1" in capsys.readouterr().err


def test_more_than_declared_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = Taken(TINY, 4096, "direct", 1, 4096, 5000, 5000)
    cases = [good, replace(good, counted=4097), replace(good, measured=5001 + SLACK), replace(good, measured=None)]
    assert [entry.kept for entry in cases] == [True, False, False, True]
    monkeypatch.setattr(limits_measured, "taken", lambda *_: iter(cases))
    assert main(["limits", TINY, "--memory-limit", "4096,4096,4096,4096"]) == 1
    text = capsys.readouterr().out
    assert text.count("MORE THAN DECLARED") == 2 and "2 of 4 keep" in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /bin/false")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_case_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = limits_measured._asked
    monkeypatch.setattr(limits_measured, "_asked", lambda at, case: real(at, {**case, "options": {"padding": -1}}))
    assert main(["limits", TINY]) == 1
    assert "under a limit of 0 bytes failed: ArgumentValueError: w_shape" in capsys.readouterr().err
    for end, why in ((lambda: os._exit(3), "ended with 3"), (lambda: signal.raise_signal(9), "ended with -9")):
        monkeypatch.setattr(limits_process, "_answer", lambda _, end=end: end())
        assert why in json.loads(limits_process._in_child("{}"))["error"]
    monkeypatch.setattr(limits_process, "_answer", lambda _: time.sleep(60))
    monkeypatch.setattr(signal, "alarm", lambda _: signal.setitimer(signal.ITIMER_REAL, 0.01))
    assert "more than 600 seconds" in json.loads(limits_process._in_child("{}"))["error"]
    monkeypatch.undo()
    monkeypatch.setattr(limits_measured.sys, "executable", "/bin/false")
    assert main(["limits", TINY]) == 1
    assert "the process that runs the cases ended with 1" in capsys.readouterr().err
    assert main(["limits", TINY, "--threads", "0"]) == 2
    assert main(["limits", TINY, "--filter", "nothing"]) == 2


def test_short_calls_are_timed_on_one_thread_too(store: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = tuning._time
    monkeypatch.setattr(
        tuning,
        "_time",
        lambda p, contest, **o: seen.extend((e.name, e.threads) for e in contest) or real(p, contest, **o),
    )
    monkeypatch.setattr(tuning, "SHORT", 1.0)
    plan = leanconv.plan((1, 64, 32, 32), (64, 64, 3, 3), threads=2, choose="measure", budget=0.05)
    assert plan.threads in (1, 2) and {count for _, count in seen} == {1, 2}
    assert {name for name, count in seen if count == 2} <= {name for name, count in seen if count == 1}


# -- gradients ----------------------------------------------------------------------------------------------


def test_gradients_are_chosen_by_the_model() -> None:
    x, w = (2, 24, 20, 20), (24, 1, 3, 3)
    found = leanconv.explain(x, w, direction="backward_weights", padding=1, groups=24, threads=1, measure=True)
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {entry.name for entry in WEIGHTS}
    weighed = [row for row in found.rows if row.verdict in ("chosen", "slower")]
    assert {row.name for row in weighed} == {"depthwise", "direct"} and found.rows[0].verdict == "chosen"
    assert found.plan.algorithm == min(weighed, key=lambda row: row.predicted_seconds or 0.0).name == "depthwise"
    assert rows["im2col"].reason == "taken by name only" and all(row.measured_seconds for row in weighed)
    assert "conv2d_backward_weights" in str(found) and "steps of depthwise" in str(found)
    named = leanconv.explain(x, w, direction="backward_weights", padding=1, groups=24, algorithm="im2row")
    assert named.plan.algorithm == "im2row"
    assert next(row for row in named.rows if row.name == "direct").reason == "excluded"


def test_gradients_under_a_limit() -> None:
    x, w = (1, 32, 28, 28), (32, 32, 3, 3)
    free = leanconv.explain(x, w, direction="backward_weights", padding=1, threads=2)
    assert not free.offers
    limit = free.plan.workspace_bytes // 2
    found = leanconv.explain(x, w, direction="backward_weights", padding=1, threads=2, memory_limit=limit)
    assert found.plan.workspace_bytes <= limit
    assert all(offer.needed_bytes > limit and offer.speedup > 1 for offer in found.offers)
    assert next(row for row in found.rows if row.name == "im2col").verdict == "not allowed"
    with pytest.raises(leanconv.MemoryLimitError):
        choose_gradient(free.problem, "auto", 1, 0)


def test_explanations_of_every_direction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for direction, name in (("backward_weights", "conv2d_backward_weights"), ("backward_data", "conv_transpose2d")):
        assert main(["explain", TINY, "--direction", direction, "--threads", "1"]) == 0
        assert name in capsys.readouterr().out
    assert main(["explain", TINY, "--direction", "backward_weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["plan"]["algorithm"] == "direct"


# -- pictures and counters ----------------------------------------------------------------------------------


def test_a_picture_of_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "layer.svg"
    assert main(["explain", TINY, "--memory-limit", "64KiB", "--threads", "1", "--plot", str(file)]) == 0
    capsys.readouterr()
    text = file.read_text()
    assert "<svg" in text and len(text) > 5000
    assert main(["explain", TINY, "--plot", str(tmp_path / "layer.bmp")]) != 0
    assert ".bmp" in capsys.readouterr().err
    assert main(["explain", "resnet18", "--plot", str(file)]) == 2
    assert "--plot draws one layer" in capsys.readouterr().err
    (tmp_path / "taken.svg").mkdir()  # stands for a disk that is full
    assert main(["network", TINY, "--plot", str(tmp_path / "taken.svg")]) == 1
    assert "taken.svg cannot be written: Is a directory" in capsys.readouterr().err


def test_a_picture_of_the_lesson(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rates = (Rate("reference", 0, 1.0), Rate("im2col", 4096, 50.0, {"cycles": 3.0}))
    found = Lesson("a layer", 100, 9.0, 10, 90, 6, 0.25, 2.2, 100.0, rates, "L1d misses: not there")
    found.plot(tmp_path / "lesson.svg")
    assert "<svg" in (tmp_path / "lesson.svg").read_text()
    assert "cycles 3" in str(found) and "not counted here: L1d misses" in str(found)


def test_the_front_is_beaten_by_none() -> None:
    found = leanconv.explain((1, 16, 20, 20), (32, 16, 3, 3), padding=1, threads=1)
    rows = [row for row in found.rows if row.predicted_seconds is not None]
    best = front(rows)
    assert best
    able = [row for row in rows if row.verdict != "not allowed"]
    assert len(able) < len(rows) and all(row in able for row in best)
    for kept in best:
        for row in able:
            fewer = (row.needed_bytes or 0) <= (kept.needed_bytes or 0)
            assert not (fewer and (row.predicted_seconds or 0) < (kept.predicted_seconds or 0)), (row, kept)


def test_counters_count_or_say_why_not() -> None:
    # Events that the system counts itself, which every machine with perf_event_open has.
    software = {"task clock": (1, 1), "page faults": (1, 2)}
    calls: list[int] = []
    found, missing = counters.counted(lambda: calls.append(sum(range(20_000))), 5, software)
    if not missing:
        assert len(calls) == 5 and found["task clock"] > 1000 and found["page faults"] >= 0
    none, why = counters.counted(lambda: None, 1, {"nonsense": (77, 77)})
    assert not none and why
    text = counters.counters_text({"cycles": 100.0, "instructions": 250.0}, "L1d misses: not there")
    assert text == "cycles 100; instructions 250; 2.50 instructions a cycle; not counted here: L1d misses: not there"


def test_a_measured_explanation_speaks_of_counters(store: Records) -> None:
    found = leanconv.explain((1, 8, 12, 12), (16, 8, 3, 3), threads=1, measure=True)
    assert found.counters or found.counters_missing
    chosen = found.rows[0].measured_seconds or 0.0
    for row in found.rows[1:]:  # what is said to be slower is, or it says that it was not when measured
        faster = row.verdict == "slower" and row.measured_seconds is not None and row.measured_seconds < chosen
        assert faster == ("measured faster" in row.reason)
    assert "counters" in str(found)
    assert not leanconv.explain((1, 8, 12, 12), (16, 8, 3, 3), threads=1).counters
