"""Passes over all layers: prepared anew, paired by round, intervals from how far they lie apart; and agreement."""

import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import results
from fake_engine import FakeEngine
from leanconv import cli
from leanconv.bench import agreement, check, report, run
from leanconv.bench.benchdnn import parse
from leanconv.bench.intervals import passes_interval, student
from leanconv.bench.load import ResultsError
from leanconv.bench.load import parse as parse_results
from leanconv.bench.peers import PeerInfo, named
from leanconv.bench.peers.client import Client
from leanconv.bench.report import Row, Sample

SMALL = parse("mb1ic4ih6oc6kh3ph1nsmall")
OTHER = parse("mb2g2ic4ih7oc4kh3sh2nother")
QUICK = run.Settings(time=0.03, rounds=2, passes=3)
FAKE = PeerInfo("fake", "a fake", "numpy", ("numpy",), "NHWC", "fake_peer")


def rows_of(ratios, seconds=1e-3):
    """Return two rows that were measured in passes; `ratios` holds a list of ratios for each."""
    slow, fast = Row("l", "slow", "NHWC", 1, flops=1), Row("l", "fast", "NHWC", 1, flops=1)
    for visit, values in enumerate(ratios):
        for value in values:
            turn = len(fast.samples)
            fast.samples.append(Sample(turn, seconds, 1.0, visit))
            slow.samples.append(Sample(turn, seconds * value, 1.0, visit))
    return slow, fast


# -- passes -------------------------------------------------------------------------------------------------


def test_each_pass_goes_through_all_layers_and_prepares_anew(monkeypatch):
    engine, order = FakeEngine(), []
    plan = engine.plan
    monkeypatch.setattr(engine, "plan", lambda *shapes, **options: order.append(shapes[0]) or plan(*shapes, **options))
    steps = []
    result = run.run([SMALL, OTHER], QUICK, engine=engine, progress=lambda *step: steps.append(step))
    first, second = SMALL.shapes("NHWC")[0], OTHER.shapes("NHWC")[0]
    # Two algorithms; the first pass plans each a second time, for its memory.
    assert order == [first] * 4 + [second] * 4 + ([first] * 2 + [second] * 2) * 2
    assert steps[0] == ("small, pass 1", 0, 6) and steps[-1] == ("", 6, 6)
    for row in result.rows:
        assert [sample.visit for sample in row.samples] == [0, 0, 1, 1, 2, 2]
        assert [sample.round for sample in row.samples] == list(range(6))
        assert row.seconds == pytest.approx(np.median([sample.seconds for sample in row.samples]))


def test_peers_load_anew_in_each_pass_and_keep_their_processes(monkeypatch):
    monkeypatch.setattr(run, "named", lambda words: named(words, (FAKE,)))
    made, loaded = [], []
    start, load = Client.__init__, Client.load
    monkeypatch.setattr(Client, "__init__", lambda *args: made.append(1) or start(*args))
    monkeypatch.setattr(Client, "load", lambda self, layer, trial: loaded.append(layer) or load(self, layer, trial))
    settings = replace(QUICK, passes=2, peers=("fake",), algorithms=("direct",))
    result = run.run([SMALL, OTHER], settings, engine=FakeEngine())
    peer = next(row for row in result.rows if row.kind == "peer")
    assert len(made) == 1 and loaded == [SMALL, OTHER] * 2
    assert [sample.visit for sample in peer.samples] == [0, 0, 1, 1]
    assert peer.error < 1e-6 and peer.extra_peak_bytes is not None


def test_uncertain_rows_take_part_in_further_passes():
    engine = FakeEngine({"direct": 0.001, "im2col": 0.0015})
    settings = replace(QUICK, longest=0.15, precision=1e-9)
    result = run.run([SMALL], settings, engine=engine)
    for row in result.rows:
        visits = {sample.visit for sample in row.samples}
        assert visits == set(range(len(visits))) and len(visits) > 3
        assert sum(sample.seconds for sample in row.samples) * row.calls < 0.15 * 1.5
    assert [row.undecided for row in result.rows] == [False, True]
    far = FakeEngine({"direct": 0.001, "im2col": 0.003})
    lost = run.run([SMALL], settings, engine=far)
    assert {sample.visit for row in lost.rows for sample in row.samples} == {0, 1, 2}
    assert [row.undecided for row in lost.rows] == [False, True]
    certain = run.run([SMALL], replace(settings, precision=10.0), engine=engine)
    assert {sample.visit for row in certain.rows for sample in row.samples} == {0, 1, 2}
    assert not any(row.undecided for row in certain.rows)


def test_passes_begin_so_far_apart_as_asked(monkeypatch):
    now, said = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(run, "time", clock)

    def progress(name, done, total):
        said.append((now[0], name))
        now[0] += 30 * (name == "small, pass 2")  # it lasts longer than the others

    run.run([SMALL], replace(QUICK, every=20.5), engine=FakeEngine(), progress=progress)
    assert [(at, name) for at, name in said if name.startswith("small")] == [
        *[(0.0, "small, pass 1"), (20.5, "small, pass 2"), (50.5, "small, pass 3")],
    ]
    assert said[1] == (0.0, "pass 2 in 20 s") and len(said) == 3 + 21 + 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--passes", "1"], "--every=5.0: spreads several passes, and there is one pass"),
        (["--scaling", "--algorithms", "direct"], "--every=5.0: spreads several passes, and --scaling has one pass"),
    ],
)
def test_one_pass_cannot_be_spread(words, why, capsys):
    assert cli.main(["bench", "mb1ic4ih6oc6kh3ph1", "--every", "5", *words]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_what_is_wrong_in_a_later_pass_has_no_time(monkeypatch):
    engine = FakeEngine()
    plans, plan = [], engine.plan

    def breaks(*shapes, **options):
        plans.append(options["algorithm"])
        if options["algorithm"] == "im2col" and plans.count("im2col") == 3:
            options["algorithm"] = "wrong"
        return plan(*shapes, **options)

    monkeypatch.setattr(engine, "plan", breaks)
    result = run.run([SMALL], QUICK, engine=engine)
    direct, broken = result.rows
    assert broken.status == "wrong result" and broken.seconds is None and broken.percent_of_peak is None
    assert direct.status == "ok" and len(direct.samples) == 6


def test_an_interrupt_in_a_later_pass_keeps_what_there_is():
    def progress(name, done, total):
        if name == "other, pass 2":
            raise KeyboardInterrupt

    result = run.run([SMALL, OTHER], QUICK, engine=FakeEngine(), progress=progress)
    assert result.interrupted and len(result.layers) == 2 and len(result.rows) == 4
    assert [len(row.samples) for row in result.rows] == [4, 4, 2, 2]
    assert all(row.status == "ok" and row.seconds for row in result.rows)


def test_what_an_interrupt_left_out_is_measured_first():
    def progress(name, done, total):
        if name.startswith("other") and done == 3:
            raise KeyboardInterrupt

    settings, engine = replace(QUICK, passes=2, threads=(1, 2)), FakeEngine()
    begun = run.run([SMALL, OTHER], settings, engine=engine, progress=progress)
    assert begun.interrupted and len(begun.rows) == 6 and len(begun.layers) == 2
    steps = []
    result = run.run([SMALL, OTHER], settings, engine=engine, progress=lambda *step: steps.append(step), earlier=begun)
    assert steps[0] == ("other, pass 1", 0, 9) and steps[-1] == ("", 9, 9) and not result.interrupted
    assert [layer["name"] for layer in result.layers] == ["small", "other"] and len(result.rows) == 8
    assert all([sample.visit for sample in row.samples] == [0, 0, 1, 1, 2, 2] for row in result.rows)
    with pytest.raises(ResultsError, match="layers: is"):
        run.run([OTHER, SMALL], settings, engine=engine, earlier=begun)


def test_results_are_kept_while_it_runs():
    kept = []
    run.run([SMALL, OTHER], QUICK, engine=FakeEngine(), save=lambda found: kept.append(found.json()))
    assert len(kept) == 6
    found = parse_results(kept[2], "kept")  # in the second pass
    assert found.finished == "" and [len(row.samples) for row in found.rows] == [4, 4, 2, 2]


def test_passes_are_added_to_earlier_results(tmp_path, capsys, monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr("leanconv.bench.run.default_engine", lambda: engine)
    path = tmp_path / "results.json"
    words = ["bench", "mb1ic4ih6oc6kh3ph1nsmall", "--rounds", "2", "--json", str(path), "--append"]
    for passes, time in (("1", "0.02"), ("2", "0.04")):
        assert cli.main([*words, "--passes", passes, "--time", time, "--max-time", "0.01"]) == 0
    found = parse_results(path.read_text(), "r")
    assert [[sample.visit for sample in row.samples] for row in found.rows] == [[0, 0, 1, 1, 2, 2]] * 2
    assert [[sample.round for sample in row.samples] for row in found.rows] == [list(range(6))] * 2
    assert len(found.layers) == 1 and len(found.bandwidth) == 1
    capsys.readouterr()
    assert cli.main([*words, "--algorithms", "direct"]) == 2  # another comparison
    assert "settings.algorithms: is ['all'], and now ('direct',)" in capsys.readouterr().err
    assert parse_results(path.read_text(), "r") == found
    for refused in (["mec"], ["mec", "--scaling", "--threads", "1,2"], ["model.onnx"]):
        assert cli.main(["bench", *refused, "--append"]) == 2
        assert "--append" in capsys.readouterr().err


def test_a_few_positions_are_compared_in_later_passes():
    trial = check.make_trial(parse("mb2ic3ih40oc4kh3ph1nlarge"), "float32", 0)
    few = trial.expected.thinned(0)
    assert few.thinned(0) is few and few.values.size < trial.expected.values.size / 10
    right = trial.expected.values
    assert few.error(right) == 0.0 and few.compared.endswith(f"of {right.size:,} outputs")
    broken = right.copy()
    broken[-1, :, -1, -1] += 1.0
    assert few.error(broken) > 0.01
    broken[0, 0, 20, 20] = np.nan
    assert few.error(broken) == math.inf
    again = check.make_trial(parse("mb2ic3ih40oc4kh3ph1nlarge"), "float32", 0, few)
    assert np.array_equal(again.x, trial.x) and np.array_equal(again.w, trial.w) and again.expected is few


# -- intervals ----------------------------------------------------------------------------------------------


def test_the_interval_of_several_passes_is_students():
    slow, fast = rows_of([[2.0, 2.0, 9.0], [2.2, 2.2, 2.2], [1.8, 0.1, 1.8], [2.0, 2.0, 2.0]])
    low, middle, high = report.ratio_interval(slow, fast)
    assert middle == report.ratio(slow, fast) == 2.0
    deviation = np.std(np.log([2.0, 2.2, 1.8, 2.0]), ddof=1)
    assert high == pytest.approx(2.0 * math.exp(3.182 * deviation / 2), rel=1e-4) and low == pytest.approx(4.0 / high)


@pytest.mark.parametrize(
    ("freedom", "confidence", "wanted"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (8, 0.95, 2.306), (8, 0.99, 3.355), (60, 0.9, 1.671)],
)
def test_students_quantiles_are_those_of_the_tables(freedom, confidence, wanted):
    assert student(freedom, confidence) == pytest.approx(wanted, abs=6e-4)


def test_two_runs_of_passes_are_compared_by_their_passes():
    old, new = [[1.0, 1.0, 5.0], [1.1], [0.9] * 4], [[1.2], [1.3], [1.25]]
    found = passes_interval(new, old, 0.95)
    logs = [np.log([1.0, 1.1, 0.9]), np.log([1.2, 1.3, 1.25])]
    error = math.sqrt((logs[0].var(ddof=1) + logs[1].var(ddof=1)) / 2 * (2 / 3))
    assert found.ratio == pytest.approx(math.exp(logs[1].mean() - logs[0].mean()))
    assert found.high == pytest.approx(found.ratio * math.exp(2.776 * error), rel=1e-4)
    assert found.low == pytest.approx(found.ratio**2 / found.high)


def test_steady_passes_do_not_hide_that_they_differ():
    # A hundred rounds of each pass agree within themselves, and the passes do not.
    slow, fast = rows_of([[2.0] * 100, [2.3] * 100, [1.9] * 100])
    low, _, high = report.ratio_interval(slow, fast)
    assert low < 1.9 and high > 2.3


@pytest.mark.parametrize("passes", [3, 6])
def test_intervals_of_passes_hold_what_they_promise(passes):
    rng = np.random.default_rng(passes)
    missed = 0
    for _ in range(300):
        shared = rng.lognormal(0, 0.05, passes)  # of a pass: where memory lies, who the neighbours are
        low, _, high = report.ratio_interval(
            *rows_of([[2.0 * s * rng.lognormal(0, 0.1) for _ in range(9)] for s in shared])
        )
        missed += not low <= 2.0 <= high
    assert missed <= 27  # 15 are expected; more than 27 come once in a thousand times


# -- agreement ----------------------------------------------------------------------------------------------

OLD = results.results(("mec",), seed=1, rounds=12, passes=4)


def test_a_run_agrees_with_itself():
    same = agreement.pairs(OLD, OLD, "direct")
    assert agreement.share(same) == 1.0 and all(pair.old == pair.new for pair in same)
    assert len({pair.key for pair in same}) == len(same) and not any(pair.key[1] == "direct" for pair in same)
    assert any(pair.certain for pair in same) and agreement.share([]) is None


def test_what_moved_is_seen_in_the_ratios():
    new = results.results(("mec",), seed=1, rounds=12, passes=4, factors={"mec": 1.2, "im2row": 1.05})
    found = agreement.pairs(OLD, new, "direct")
    by_name = {name: [pair for pair in found if pair.key[1] == name] for name in ("mec", "im2row", "im2col")}
    assert agreement.share(by_name["mec"]) == 0.0
    assert agreement.share(by_name["im2row"]) == agreement.share(by_name["im2col"]) == 1.0
    old_mean, new_mean = agreement.means(by_name["mec"])
    assert new_mean / old_mean == pytest.approx(1.2, abs=0.01)


def test_scattered_ratios_are_not_certain():
    old = results.results(("mec",), most=1, threads=(1,), rounds=12, passes=4)
    row = next(row for row in old.rows if row.algorithm == "mec")
    row.samples = [replace(sample, seconds=sample.seconds * (1 + 0.2 * sample.visit)) for sample in row.samples]
    found = {pair.key[1]: pair.certain for pair in agreement.pairs(old, old, "direct")}
    assert not found["mec"] and found["im2row"]


@pytest.fixture
def files(tmp_path):
    def write(*reports):
        paths = [tmp_path / f"{number}.json" for number in range(len(reports))]
        for path, content in zip(paths, reports, strict=True):
            path.write_text(content.json(), encoding="utf-8")
        return [str(path) for path in paths]

    return write


def test_compare_prints_agreement(files, capsys):
    new = results.results(("mec",), seed=2, rounds=12, passes=4)
    cli.main(["bench", "compare", *files(OLD, new)])
    out = " ".join(capsys.readouterr().out.split())
    assert "time over direct" in out and "mec, 2 threads" in out
    assert "Agreement: the geometric mean of all times over direct differs by" in out and "ratios are within 8%" in out
    cli.main(["bench", "compare", *files(OLD, new), "--reference", "litert"])
    assert "all times over litert" in " ".join(capsys.readouterr().out.split())


def test_compare_refuses_a_reference_that_was_not_timed(files, capsys):
    assert cli.main(["bench", "compare", *files(OLD, OLD), "--reference", "cudnn"]) == 2
    assert "--reference" in capsys.readouterr().err


def test_one_contestant_has_no_ratios(files, capsys):
    alone = results.results(("mec",), most=2)
    alone.rows = [row for row in alone.rows if row.algorithm == "direct"]
    assert cli.main(["bench", "compare", *files(alone, alone)]) == 0
    assert "Agreement" not in capsys.readouterr().out


def test_layers_of_another_shape_are_left_out():
    other = parse_results(OLD.json(), "other")
    assert other.layers[0]["name"] == "mec/cv1"
    found = agreement.pairs(OLD, other, "direct", ["mec/cv1"])
    assert found and not any(pair.key[0] == "mec/cv1" for pair in found)
    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    agreement.show(found, "direct", console)
    assert json.dumps(console.file.getvalue()).count("100%") > 10
