"""Measuring: turns, times, checks, reports, tables and plots, on an engine that is made of NumPy."""

import io
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fake_engine import FakeEngine
from leanconv import oracle
from leanconv.bench import check, plot, report, run, table, turns
from leanconv.bench.benchdnn import parse
from leanconv.bench.layers import Layer

SMALL = parse("mb1ic4ih6oc6kh3ph1nsmall")
OTHER = parse("mb2g2ic4ih7oc4kh3sh2nother*3")
QUICK = run.Settings(time=0.02, rounds=4)


def measure(engine, settings=QUICK, layers=(SMALL,), **options):
    return run.run(list(layers), settings, engine=engine, **options)


def by_algorithm(result):
    return {row.algorithm: row for row in result.rows}


# -- measuring ----------------------------------------------------------------------------------------------


def test_rows_hold_what_was_measured():
    result = measure(FakeEngine())
    rows = by_algorithm(result)
    assert list(rows) == ["direct", "im2col"]  # all that apply, without the reference
    direct = rows["direct"]
    assert direct.status == "ok" and direct.reason == ""
    assert 0.001 < direct.seconds < 0.02
    assert direct.flops == SMALL.problem().flops
    assert direct.gflops == pytest.approx(direct.flops / direct.seconds / 1e9)
    assert direct.peak_gflops == 100.0
    assert direct.error < 1e-6 and direct.compared == "all 216 outputs"
    assert rows["im2col"].workspace_bytes == 7 << 20
    assert direct.packed_weight_bytes == SMALL.problem().w_bytes
    assert rows["im2col"].seconds > direct.seconds


def test_algorithms_take_turns_with_the_peak():
    engine = FakeEngine()
    result = measure(engine, replace(QUICK, time=0.1))
    order = [name for i, (name, _) in enumerate(engine.calls) if i == 0 or engine.calls[i - 1][0] != name]
    turns = order[order.index("peak") :]
    # Another one first in each round.
    assert turns == ["peak", "direct", "im2col", "peak", "im2col", "direct"] * 2
    assert [[sample.round for sample in row.samples] for row in result.rows] == [[0, 1, 2, 3]] * 2


def test_percent_of_peak_is_paired_by_round(monkeypatch):
    engine = FakeEngine()
    peaks = iter([100.0, 50.0, 200.0, 100.0])
    monkeypatch.setattr(engine, "fma_peak", lambda threads, dtype, seconds: next(peaks))
    row = by_algorithm(measure(engine))["direct"]
    assert [sample.peak_gflops for sample in row.samples] == [100.0, 50.0, 200.0, 100.0]
    parts = [100 * row.flops / sample.seconds / 1e9 / sample.peak_gflops for sample in row.samples]
    assert row.percent_of_peak == pytest.approx(np.median(parts))


def test_samples_are_long_enough_and_slow_algorithms_are_timed_once():
    engine = FakeEngine({"fast": 0.0, "slow": 0.03})
    rows = by_algorithm(measure(engine, replace(QUICK, time=0.02)))
    fast, slow = rows["fast"], rows["slow"]
    assert fast.calls * fast.seconds > turns.SHORTEST_SAMPLE / 2
    assert slow.calls == 1 and len(slow.samples) == 1 and slow.spread is None
    assert len(fast.samples) == 4 and fast.spread is not None


def test_threads_and_layouts():
    settings = replace(QUICK, layouts=("NHWC", "NCHW"), threads=(1, 2), algorithms=("direct",))
    engine = FakeEngine()
    result = measure(engine, settings)
    assert [(row.threads, row.layout) for row in result.rows] == [
        (1, "NHWC"),
        (1, "NCHW"),
        (2, "NHWC"),
        (2, "NCHW"),
    ]
    assert all(row.status == "ok" for row in result.rows)
    assert {row.peak_gflops for row in result.rows if row.threads == 2} == {200.0}


def test_auto_says_what_ran():
    row = measure(FakeEngine(), replace(QUICK, algorithms=("auto",))).rows[0]
    assert row.algorithm == "auto" and row.ran == "direct" and row.label == "auto > direct"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_results_are_not_timed(dtype):
    settings = replace(QUICK, algorithms=("wrong", "lazy", "direct"), dtype=dtype)
    result = measure(FakeEngine(), settings, [SMALL])
    rows = by_algorithm(result)
    assert rows["wrong"].status == rows["lazy"].status == "wrong result"
    assert "largest error is" in rows["wrong"].reason
    assert rows["lazy"].reason == "36 of 216 outputs are NaN" and rows["lazy"].error == math.inf
    assert rows["wrong"].seconds is None and not rows["wrong"].samples
    assert rows["direct"].status == "ok"
    assert [row.algorithm for row in result.failures] == ["wrong", "lazy"]


def test_failures_and_refusals_become_rows():
    engine = FakeEngine(refusals={"pointwise": "the kernel is not 1x1"})
    result = measure(engine, replace(QUICK, algorithms=("crash", "pointwise", "direct")))
    rows = by_algorithm(result)
    assert rows["crash"].status == "failed"
    assert rows["crash"].reason == "ZeroDivisionError: nobody thought of this"
    assert rows["pointwise"].status == "not applicable" and rows["pointwise"].reason == "the kernel is not 1x1"
    assert rows["direct"].seconds
    assert [row.algorithm for row in result.failures] == ["crash"]


def test_a_kernel_that_breaks_while_it_is_timed():
    engine = FakeEngine()
    calls = iter(range(3))
    engine.seconds = type("Seconds", (dict,), {"get": lambda *_: next(calls) * 0})(direct=0)
    row = measure(engine, replace(QUICK, algorithms=("direct",))).rows[0]
    assert row.status == "failed" and "StopIteration" in row.reason and row.seconds is None


def test_a_layer_that_nothing_applies_to_is_a_row():
    engine = FakeEngine(refusals={"direct": "too odd", "im2col": "also too odd"})
    result = measure(engine)
    assert [(row.algorithm, row.status) for row in result.rows] == [("all", "not applicable")]
    assert "direct: too odd; im2col: also too odd" in result.rows[0].reason
    assert not result.failures


def test_interrupt_keeps_the_finished_layers(monkeypatch):
    engine = FakeEngine()
    steps = []

    def progress(name, done, total):
        steps.append((name, done, total))
        if name == "other":
            raise KeyboardInterrupt

    result = measure(engine, layers=[SMALL, OTHER], progress=progress)
    assert result.interrupted and {row.layer for row in result.rows} == {"small"}
    assert [layer["name"] for layer in result.layers] == ["small"]
    assert steps == [("small", 0, 2), ("other", 1, 2), ("", 2, 2)]


# -- checking -----------------------------------------------------------------------------------------------

LAYERS = [
    SMALL,
    OTHER,
    parse("mb2ic3iw17oc4kw5sw2pw3dw1"),
    parse("mb1ic2id5ih6iw4oc3kd3kh1kw2pd2ph0pw1"),
    replace(SMALL, padding=((4, 0), (0, 5))),
    Layer("same", 1, 3, (6, 7), 5, (2, 2), (1, 1), ((0, 1), (0, 1)), (3, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_sampled_positions_agree_with_the_whole(layer, monkeypatch):
    rng = np.random.default_rng(1)
    problem = layer.problem("NCHW", bias=True)
    x = rng.standard_normal(problem.x_shape, dtype=np.float32)
    w = rng.standard_normal(problem.w_shape, dtype=np.float32)
    bias = rng.standard_normal(problem.out_channels, dtype=np.float32)
    whole = check.expect(layer, x, w, bias, rng)
    monkeypatch.setattr(check, "WHOLE_FLOPS", 1)
    some = check.expect(layer, x, w, bias, rng)
    assert whole.compared.startswith("all") and not some.compared.startswith("all")
    right = oracle.reference(problem, x, w, bias)
    assert whole.error(right) == 0.0
    assert some.error(right) < 1e-14
    # The first and the last position of all are always among the sample.
    for corner in (0, -1):
        broken = right.copy()
        broken[(corner, slice(None), *(corner,) * layer.ndim)] += 1.0
        assert some.error(broken) > 0.01 and whole.error(broken) > 0.01


def test_unwritten_elements_are_noticed_outside_the_sample(monkeypatch):
    monkeypatch.setattr(check, "WHOLE_FLOPS", 1)
    monkeypatch.setattr(check, "_LARGEST_SAMPLE", 1)
    layer = parse("mb1ic1ih40oc1kh1")
    x = np.ones((1, 1, 40, 40), np.float32)
    some = check.expect(layer, x, np.ones((1, 1, 1, 1), np.float32), None, np.random.default_rng(0))
    out = np.ones((1, 1, 40, 40), np.float32)
    assert some.error(out) == 0.0
    out[0, 0, 20, 21] = np.nan
    assert some.error(out) == math.inf


# -- reports ------------------------------------------------------------------------------------------------


def test_spread_and_ratio():
    assert report.spread([1.0, 2.0]) is None
    assert report.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)

    def row(times):
        samples = [report.Sample(number, seconds, 1.0) for number, seconds in times.items()]
        result = report.Row("l", "a", "NHWC", 1, samples=samples, flops=1)
        result.summarise()
        return result

    # The machine slowed down in round 1; paired, the ratio does not.
    assert report.ratio(row({0: 2.0, 1: 20.0, 2: 2.0}), row({0: 1.0, 1: 10.0, 2: 1.0})) == 2.0
    assert report.ratio(row({1: 20.0}), row({0: 1.0, 1: 10.0, 2: 1.0})) == 2.0
    assert report.ratio(row({5: 3.0}), row({0: 1.0})) == 3.0


def test_json_holds_everything():
    settings = replace(QUICK, algorithms=("direct", "lazy"))
    result = measure(FakeEngine(), settings, [OTHER], command=["leanconv", "bench"])
    content = json.loads(result.json())
    assert content["schema"] == report.SCHEMA
    assert content["command"] == ["leanconv", "bench"]
    assert content["started"] <= content["finished"] and content["started"].endswith("+00:00")
    assert {"cpu", "target", "features", "caches", "default_threads"} <= set(content["machine"])
    assert {"leanconv", "python", "numpy", "llvmlite", "llvm"} <= set(content["versions"])
    assert content["settings"]["algorithms"] == ["direct", "lazy"]
    layer = content["layers"][0]
    assert layer["name"] == "other" and layer["repeats"] == 3 and layer["flops"] == OTHER.problem().flops
    direct, lazy = content["rows"]
    assert len(direct["samples"]) == 4 and direct["samples"][0]["peak_gflops"] == 100.0
    assert direct["parameters"] == {"tile": [4, 3]}
    assert lazy["error"] == "inf" and lazy["seconds"] is None


# -- tables -------------------------------------------------------------------------------------------------


def shown(result, width=110):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    table.show(result, console)
    return console.file.getvalue()


def test_table():
    engine = FakeEngine({"direct": 0.001, "im2col": 0.004, "wrong": 0.0}, {"pointwise": "the kernel is not 1x1"})
    settings = replace(QUICK, algorithms=("direct", "im2col", "wrong", "pointwise"))
    text = shown(measure(engine, settings, [SMALL, OTHER]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0].split() == [
        *(
            "layer",
            "algorithm",
            "time",
            "spread",
            "/",
            "best",
            "GFLOP/s",
            "%",
            "peak",
            "workspace",
            "packed",
            "w",
            "error",
        )
    ]
    first = next(line for line in lines if line.startswith("small"))
    assert "direct *" in first and " ms " in first
    assert any("1x4x6x6 > 6 k3x3 s1 p1" in line and "7.0 MiB" in line for line in lines)
    assert "wrong result: largest error is" in text
    assert "not applicable: the kernel is not 1x1" in text
    assert "2 of 2" in text and "FMA peak, float32: 100 GFLOP/s on 1 thread" in text
    assert "compared: every output" in text


def test_table_shows_layout_and_threads_only_if_they_differ():
    assert "NHWC" not in shown(measure(FakeEngine()))
    settings = replace(QUICK, layouts=("NHWC", "NCHW"), threads=(1, 2))
    lines = shown(measure(FakeEngine(), settings)).splitlines()
    assert lines[0].split()[2:4] == ["layout", "threads"]
    assert sum("*" in line for line in lines[:12]) == 2  # the fastest of each number of threads


def test_table_names_the_network_once():
    layers = [replace(SMALL, name="net/small"), replace(OTHER, name="net/other")]
    text = shown(measure(FakeEngine(), layers=layers))
    assert "net/" not in text and "other" in text
    mixed = [layers[0], OTHER]
    assert "net/small" in shown(measure(FakeEngine(), layers=mixed))


def test_long_reasons_are_wrapped_below_themselves():
    reason = "a sentence that is so long that it does not fit into the columns, " * 3
    lines = shown(measure(FakeEngine(refusals={"direct": reason, "im2col": reason}))).splitlines()
    rows = [line for line in lines if "sentence" in line]
    assert len(rows) > 2
    begins = {len(line) - len(line.lstrip()) for line in rows[1:]}
    assert begins == {rows[0].index("no algorithm applies")}


def test_noise_is_marked():
    result = measure(FakeEngine())
    result.rows[0].spread, result.rows[1].spread = 0.31, 0.012
    text = shown(result)
    assert "(! 31%)" in text and "1.2%" in text


def test_table_of_nothing():
    assert "Interrupted" in shown(report.Report([], {"dtype": "float32"}, interrupted=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1e-6, "1.000 us"),
        (812.34e-6, "812.3 us"),
        (0.99996e-3, "1.000 ms"),
        (0.01402, "14.02 ms"),
        (12.0, "12.00 s"),
    ],
)
def test_times_have_four_digits(seconds, text):
    assert table.format_seconds(seconds) == text


# -- plots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    plot.draw(measure(FakeEngine(), layers=[SMALL, OTHER]), path)
    assert path.read_bytes()[:4] == (b"\x89PNG" if suffix == ".png" else b"<?xm")


def test_plot_with_peers_of_known_and_unknown_memory(tmp_path):
    pytest.importorskip("matplotlib")
    result = measure(FakeEngine(), layers=[SMALL, OTHER])
    for row, extra in zip(result.rows[::2], (3 << 20, None), strict=True):
        row.kind, row.algorithm, row.extra_peak_bytes = "peer", "other", extra
    path = tmp_path / "plot.svg"
    plot.draw(result, path)
    assert "of peers the measured extra peak" in path.read_text()


def test_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plot.PlotError, match=r"pip install leanconv\[plot\]"):
        plot.check(tmp_path / "plot.png")


def test_plot_into_a_file_that_cannot_be(tmp_path):
    with pytest.raises(plot.PlotError, match=r"must end in \.png"):
        plot.check(tmp_path / "plot.txt")
    with pytest.raises(plot.PlotError, match="there is no folder"):
        plot.check(tmp_path / "none" / "plot.png")
