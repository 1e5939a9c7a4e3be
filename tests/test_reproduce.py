"""`leanconv reproduce`: claims judged by measurements that are made up, the table, memory, and the command."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fake_engine import FakeEngine
from leanconv import cli, results_cli
from leanconv.bench.benchdnn import parse
from leanconv.bench.catalogue import NETWORKS
from leanconv.bench.load import parse as load_text
from leanconv.bench.peers import named
from leanconv.bench.report import Report, Row, Sample
from leanconv.errors import MemoryLimitError
from leanconv.reproduce import command, measure
from leanconv.reproduce.checks import (
    EXCEEDED,
    NOT,
    NOT_HERE,
    NOT_YET,
    REPRODUCED,
    Measured,
    Outcome,
    Peak,
    Range,
    Speed,
    Untestable,
)
from leanconv.reproduce.claims import PAPERS, Claim, Experiment, Paper
from leanconv.reproduce.measure import Effort, available_memory, fit, needed_bytes, reproduce
from leanconv.reproduce.memory import Saving, Smaller, Workspace

LAYERS = [parse("mb1ic4ih6oc6kh3ph1n" + name) for name in ("a", "b")]
PROBLEMS = {layer.name: layer.problem() for layer in LAYERS}


def measured(times, *, layout="NHWC", threads=1, percents=None, **fields):
    """Return measurements of algorithms: name -> seconds on each layer."""
    report = Report([], {"dtype": "float32"}, {"cpu": "x", "usable_cpus": 2})
    for name, seconds in times.items():
        for layer, value in zip(LAYERS, seconds, strict=True):
            row = Row(layer.name, name, layout, threads, flops=1000, **fields)
            row.samples = [Sample(turn, value, 1.0) for turn in range(3)]
            row.summarise()
            if percents:
                row.percent_of_peak = percents[name]
            report.rows.append(row)
    return Measured(report, PROBLEMS)


# -- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPERS)
def test_claims_are_judged_by_what_is_measured(name):
    paper = PAPERS[name]
    experiments = {experiment.name: experiment for experiment in paper.experiments}
    for experiment in paper.experiments:
        assert set(experiment.layers) <= set(NETWORKS)
        named(experiment.peers)
        # Until an algorithm exists its claims say so; these exist.
        assert set(experiment.algorithms) & measure.known_algorithms()
    for claim in paper.claims:
        assert claim.mark in ("[A]", "[R]", "[D]") and claim.text and claim.source
        if isinstance(claim.check, Untestable):
            assert claim.check.judge(Measured(Report([], {}), {})) == Outcome(NOT_HERE, why=claim.check.why)
            continue
        experiment = experiments[claim.check.experiment]
        over = getattr(claim.check, "over", ())
        wanted = {*claim.check.needs, *((over,) if isinstance(over, str) else over)}
        assert wanted <= {*experiment.algorithms, *experiment.peers}
        for field in ("layout", "over_layout"):
            assert getattr(claim.check, field, None) in (None, *experiment.layouts)
        assert getattr(claim.check, "threads", 1) in experiment.threads


def test_the_command_line_knows_the_papers():
    assert tuple(PAPERS) == results_cli.PAPERS
    assert all(f"  {name} " in results_cli._REPRODUCE for name in PAPERS)


def test_formulas():
    # A layer without padding: 12 x 12 pixels of 256 channels, 3 x 3 taps, 10 x 10 pixels out, 512 channels.
    problem = parse("mb1ic256ih12oc512oh10kh3ph0").problem()
    checks = {claim.check.ours: claim.check for paper in PAPERS.values() for claim in paper.claims
              if isinstance(claim.check, Workspace)}  # fmt: skip
    assert checks["mec"].formula(problem) == 4 * 10 * 12 * 3 * 256
    assert checks["im2win"].formula(problem) == 4 * 10 * 12 * 3 * 256
    assert checks["kn2row_as"].formula(problem) == 4 * 512 * 12 * 12
    assert checks["kn2row_aa"].formula(problem) == 4 * 2 * (12 + 1)
    assert checks["indirect"].formula(problem) == 8 * 9 * 104 + 4 * 256


# -- checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "verdict"), [((1.0, 4.0), EXCEEDED), ((2.0, 8.0), REPRODUCED), ((4.0, 8.0), NOT)])
def test_speed_is_the_geometric_mean(seconds, verdict):
    found = Speed(("a",), ("b",), 2.0).judge(measured({"a": seconds, "b": (4.0, 16.0)}))
    assert found.verdict == verdict
    assert "against b on 2 layers" in found.why


def test_a_speed_that_cannot_be_reached_says_so():
    data = measured({"a": (1.0, 1.0), "b": (1.5, 1.5)}, percents={"a": 90, "b": 60})
    found = Speed(("a",), ("b",), 3.6).judge(data)
    assert (found.verdict, found.found) == (NOT, "1.50 x")
    assert found.why.endswith("; 90 % of peak against 60 %, so at most 1.7 x is possible with all operations done")
    slow = measured({"a": (1.0, 1.0), "b": (1.5, 1.5)}, percents={"a": 15, "b": 10})
    assert Speed(("a",), ("b",), 3.6).judge(slow).why.endswith("; 15 % of peak against 10 %")


def test_the_first_baseline_that_was_measured_counts_unless_the_best_does():
    data = measured({"a": (1.0, 1.0), "slow": (4.0, 4.0), "quick": (2.0, 8.0)})
    assert "against slow" in Speed(("a",), ("missing", "slow", "quick"), 4.0).judge(data).why
    assert Speed(("a",), ("slow", "quick"), 8**0.5, best_of=True).judge(data).found == "2.83 x"
    assert Speed(("a",), ("quick",), 8.0, how="most", percent=True).judge(data).found == "+700%"


@pytest.mark.parametrize(("seconds", "verdict"), [((1.0, 3.0), REPRODUCED), ((3.0, 3.0), NOT)])
def test_share(seconds, verdict):
    found = Speed(("a",), ("b",), 0.5, how="share").judge(measured({"a": seconds, "b": (2.0, 2.0)}))
    assert found.verdict == verdict and found.found.endswith("of the layers")


def test_what_was_not_measured_is_not_judged():
    data = measured({"b": (1.0, 1.0)})
    data.report.rows.append(Row("a", "a", "NHWC", 1, "not applicable", "too odd"))
    assert Speed(("a",), ("b",), 2.0).judge(data) == Outcome(NOT_HERE, why="a not timed (a: too odd)")
    assert Speed(("b",), ("b",), 1.0, only=(lambda p: p.taps == 1, "of 1x1")).judge(data).verdict == NOT_HERE
    assert Speed(("b",), ("b",), 1.0, threads=4).judge(data).why == "needs 4 CPUs"
    assert Peak(("a",), 95).judge(data).verdict == Range(("a",), 1, 2, "NHWC", "NCHW").judge(data).verdict == NOT_HERE


@pytest.mark.parametrize(("seconds", "verdict"), [((2.0, 3.0), REPRODUCED), ((6.0, 6.0), EXCEEDED), ((0.9, 3.0), NOT)])
def test_ranges(seconds, verdict):
    first, last = measured({"a": seconds}, layout="NCHW"), measured({"a": (1.0, 1.0)})
    both = Measured(replace(last.report, rows=[*first.report.rows, *last.report.rows]), PROBLEMS)
    found = Range(("a",), 1.11, 4.55, "NHWC", "NCHW").judge(both)
    assert found.verdict == verdict
    assert ("less than claimed on a" in found.why) == (verdict == NOT)


@pytest.mark.parametrize(("percent", "verdict"), [(94.0, REPRODUCED), (98.0, EXCEEDED), (90.0, NOT)])
def test_peaks(percent, verdict):
    assert Peak(("a",), 95).judge(measured({"a": (1, 1)}, percents={"a": percent})).verdict == verdict


def test_a_peak_that_is_not_reached_says_what_its_samples_do():
    data = measured({"a": (1.1e-6, 2e-6)})  # 1000 operations, a peak of 1 GFLOP/s
    row = data.report.rows[0]
    row.samples = [replace(sample, seconds=sample.seconds + 1e-7 * sample.round) for sample in row.samples]
    found = Peak(("a",), 95).judge(data)
    assert found.verdict == NOT and found.why.endswith("; its samples reach 77 to 91 %")


def with_workspace(**sizes):
    data = measured({name: (1.0, 1.0) for name in sizes})
    for row in data.report.rows:
        row.workspace_bytes = sizes[row.algorithm]
    return data


def test_savings():
    problem = PROBLEMS["a"]
    arrays = problem.x_bytes + problem.out_bytes + problem.w_bytes / 2
    data = with_workspace(ours=0, over=int(arrays))
    found = Saving("ours", ("missing", "over"), 0.5, 2, "NHWC").judge(data)
    assert (found.verdict, found.found) == (REPRODUCED, "-50.0%") and "against over" in found.why
    assert Saving("ours", ("over",), 0.4, 2, "NHWC").judge(data).verdict == EXCEEDED
    for row in data.report.rows:
        row.extra_peak_bytes = 0 if row.algorithm == "ours" else problem.x_bytes + problem.out_bytes + problem.w_bytes
    told = Saving("ours", ("over",), 0.5, 2, "NHWC", beside="over").judge(data)
    assert told.why.endswith("; measured against over as run: -50.0% on 2 layers")
    assert Saving("ours", ("over",), 0.6, 2, "NHWC").judge(data).verdict == NOT
    assert Saving("ours", ("missing",), 0.6, 2, "NHWC").judge(data).verdict == NOT_HERE


def test_smaller():
    data = with_workspace(ours=100, over=326)
    assert Smaller("ours", "over", 3.26, "NHWC").judge(data).found == "3.26 x"
    assert Smaller("ours", "over", 4.0, "NHWC").judge(data).verdict == NOT
    assert Smaller("ours", "missing", 4.0, "NHWC").judge(data).verdict == NOT_HERE


@pytest.mark.parametrize(
    ("size", "verdict"), [(10_000, REPRODUCED), (10_228, REPRODUCED), (5000, EXCEEDED), (10_400, NOT)]
)
def test_workspaces(size, verdict):
    assert Workspace("ours", lambda _: 10_000).judge(with_workspace(ours=size)).verdict == verdict


# -- measuring ----------------------------------------------------------------------------------------------

TINY = Paper(
    "A paper",
    (Experiment("main", ("tiny",), ("direct", "im2col"), 8), Experiment("naive", ("tiny",), ("direct",), 1)),
    (
        Claim("direct is faster", "2 x", "abstract", "[A]", Speed(("direct",), ("im2col",), 2.0)),
        Claim("alone", "2 x", "abstract", "[A]", Speed(("direct",), ("direct",), 2.0, "naive")),
        Claim("of tomorrow", "9 x", "abstract", "[A]", Speed(("tomorrow",), ("direct",), 2.0)),
        Claim("on the moon", "9 x", "abstract", "[A]", Untestable("needs the moon")),
    ),
    "A note.",
)


@pytest.fixture
def tiny(monkeypatch):
    """Let the word "tiny" stand for a small layer, and measure with NumPy."""
    engine = FakeEngine({"direct": 0.001, "im2col": 0.004})
    monkeypatch.setattr(measure, "resolve", lambda words: [LAYERS[0]])
    monkeypatch.setattr(measure, "default_engine", lambda: engine)
    monkeypatch.setitem(PAPERS, "mec", TINY)
    return engine


QUICK = Effort(time=0.01, rounds=2)


def test_reproduce(tiny):
    found, claims = reproduce(TINY, QUICK, command=["leanconv", "reproduce"], available=1 << 30)
    assert {name: m.report.layers[0]["batch"] for name, m in found.items()} == {"main": 8, "naive": 1}
    assert found["main"].problems["a"].batch == 8
    assert found["main"].report.command == ["leanconv", "reproduce"]
    verdicts = [outcome.verdict for _, outcome in claims]
    assert verdicts == [EXCEEDED, NOT, NOT_YET, NOT_HERE]
    assert claims[2][1].why == "algorithm tomorrow is not there"
    assert claims[0][1].why == "against im2col on 1 layer (a)"


def test_an_interrupt_ends_it_and_the_rest_is_not_judged(tiny):
    def stop(**_):
        raise KeyboardInterrupt

    tiny.fma_peak = stop
    found, claims = reproduce(TINY, QUICK, available=1 << 30)
    assert list(found) == ["main"] and found["main"].report.interrupted
    assert claims[1][1] == Outcome(NOT_YET, why="the measurement was interrupted")


def test_batches_are_halved_until_they_fit():
    engine, experiment = FakeEngine(), Experiment("main", ("x",), ("direct", "im2col"), 128, ("NHWC", "NCHW"))
    needed = {batch: needed_bytes(replace(LAYERS[0], batch=batch), experiment, engine) for batch in (128, 32, 1)}
    assert needed[128] > needed[32] > needed[1] > 2 * (7 << 20)  # the workspace of im2col in this engine
    assert fit(LAYERS[0], 128, experiment, engine, needed[128]).batch == 128
    assert fit(LAYERS[0], 128, experiment, engine, needed[128] - 1).batch == 64
    assert fit(LAYERS[0], 128, experiment, engine, needed[32]).batch == 32
    with pytest.raises(MemoryLimitError, match="measuring layer 'a' needs"):
        fit(LAYERS[0], 128, experiment, engine, needed[1] - 1)


def test_other_libraries_need_memory_too():
    alone = Experiment("main", ("x",), ("direct",))
    beside = replace(alone, peers=("torch_im2col",))
    assert needed_bytes(LAYERS[0], beside, FakeEngine()) > needed_bytes(LAYERS[0], alone, FakeEngine())


def test_available_memory():
    assert 1 << 20 < available_memory() < 1 << 50


# -- command ------------------------------------------------------------------------------------------------


def test_command(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "QUICK", QUICK)
    assert cli.main(["reproduce", "mec", "--quick", "--batch", "2", "--save", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("direct is faster"))
    assert line.split()[3:] == ["abstract", "[A]", "2", "x", line.split()[-3], "x", "exceeded"]
    text = " ".join(out.split())
    assert "algorithm tomorrow is not there" in text and "needs the moon" in text and "A note." in text
    assert "1 exceeded, 1 not reproduced, 1 not testable here, 1 not yet." in text
    assert "Measured: 1 layers, batch 2; the paper's is 8." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mec-main.json", "mec-naive.json"]
    saved = (tmp_path / "mec-main.json").read_text()
    assert load_text(saved, "saved").layers[0]["batch"] == 2 and json.loads(saved)["command"][:2] == [
        "leanconv",
        "reproduce",
    ]


def test_command_tells_of_failures(tiny, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK", QUICK)
    tiny.plan = lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError("nobody thought of this"))
    monkeypatch.setattr(measure, "needed_bytes", lambda *_: 0)
    assert cli.main(["reproduce", "mec", "--quick"]) == 1
    assert "a direct NHWC: failed: ZeroDivisionError: nobody thought of this" in " ".join(
        capsys.readouterr().out.split()
    )


def test_command_refuses(tiny, capsys, monkeypatch):
    for words in ([], ["resnet"], ["mec", "--batch", "0"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["reproduce", *words])
        assert stop.value.code == 2
    assert "'0' must be a whole number of at least 1" in capsys.readouterr().err
    assert cli.main(["reproduce", "mec", "--save", "no/such"]) == 2
    assert "no/such: is no folder" in capsys.readouterr().err
    monkeypatch.setattr(measure, "available_memory", lambda: 1000)
    assert cli.main(["reproduce", "mec"]) == 2
    assert "memory limit" in capsys.readouterr().err
    assert tiny.calls == []


def test_notes_name_the_layers_with_a_smaller_batch():
    report = Report([], {"dtype": "float32"}, {})
    report.layers = [{"name": "a", "batch": 128}, {"name": "b", "batch": 32}]
    console = Console(file=io.StringIO(), width=200)
    paper = replace(TINY, experiments=(Experiment("main", (), (), 128),))
    command.show(paper, {"main": Measured(report, {})}, [], console)
    assert "Measured: 2 layers, batch 128 (for want of memory: b 32)." in console.file.getvalue()
