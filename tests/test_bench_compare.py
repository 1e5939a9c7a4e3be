"""Two files of results: intervals that hold, verdicts, exit codes."""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

import results
from leanconv import cli
from leanconv.bench import compare as module
from leanconv.bench.compare import BROKEN, EQUAL, FASTER, LITTLE_SLOWER, UNDECIDED, WORSE, compare
from leanconv.bench.intervals import _distribution, _order, factor_interval, mean_interval

OLD = results.results(("mec",), most=3, seed=1)


def verdicts(comparison, algorithm):
    return {change.verdict for change in comparison.changes if change.old.algorithm == algorithm}


# -- intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (4, 4), (5, 2)])
def test_the_distribution_is_that_of_all_orders(m, n):
    counts = np.zeros(m * n + 1)
    for places in itertools.combinations(range(m + n), m):
        others = [place for place in range(m + n) if place not in places]
        counts[sum(a > b for a in places for b in others)] += 1
    assert _distribution(m, n) == pytest.approx(counts / counts.sum())


def test_the_order_is_that_of_the_published_tables():
    # Critical values of the rank-sum test at 5 %, two-sided, are one less.
    assert [_order(n, n, 0.05) for n in (3, 4, 5, 8, 10, 20)] == [0, 1, 3, 14, 24, 128]
    assert _order(51, 51, 0.05) == pytest.approx(_order(50, 50, 0.05), rel=0.06)


@pytest.mark.parametrize("count", [4, 10, 60])
def test_intervals_hold_what_they_promise(count):
    rng = np.random.default_rng(count)
    missed = 0
    for _ in range(300):
        old, new = rng.lognormal(0, 0.1, count), 1.2 * rng.lognormal(0, 0.1, count)
        found = factor_interval(new, old, 0.95)
        assert found.low <= found.ratio <= found.high
        missed += not found.low <= 1.2 <= found.high
    assert missed <= 27  # 15 are expected; more than 27 come once in a thousand times


def test_too_few_samples_have_no_interval():
    found = factor_interval([2.0], [1.0, 1.0], 0.95)
    assert found.ratio == 2.0 and not found.bounded
    assert not mean_interval([1.0, 2.0], 0.95).bounded
    assert mean_interval([2.0] * 6, 0.95).ratio == pytest.approx(2.0)


# -- verdicts -----------------------------------------------------------------------------------------------


def test_another_run_of_the_same_is_the_same():
    comparison = compare(OLD, OLD)
    assert {change.verdict for change in comparison.changes} == {EQUAL}
    assert comparison.exit_code == 0
    assert not comparison.only_old and not comparison.only_new


def test_slower_and_faster_rows_are_found():
    # The seed is that of the old run: times differ by the factor alone.
    new = results.results(("mec",), most=3, seed=1, factors={"direct": 1.3, "mec": 0.7, "im2row": 1.03})
    comparison = compare(OLD, new)
    assert verdicts(comparison, "direct") == {WORSE} and comparison.exit_code == 1
    assert verdicts(comparison, "mec") == {FASTER}
    assert verdicts(comparison, "im2row") == {LITTLE_SLOWER}
    assert compare(OLD, new, threshold=0.5).exit_code == 0


def test_a_slower_clock_is_not_slower_code():
    new = results.results(("mec",), most=3, seed=1, peak=results.PEAK / 2)
    comparison = compare(OLD, new)
    slowed = [change for change in comparison.changes if change.new.seconds > 1.5 * change.old.seconds]
    assert slowed and all(change.verdict == EQUAL for change in slowed)


def test_rows_that_cannot_be_decided():
    new = results.results(("mec",), most=3, seed=1, factors={"im2row": 2.0, "direct": 1.05})
    for row in new.rows:
        if row.algorithm == "im2row":
            row.samples = row.samples[:1]
    comparison = compare(OLD, new)
    assert verdicts(comparison, "im2row") == {UNDECIDED}  # once is no evidence, however slow
    assert verdicts(comparison, "direct") == {UNDECIDED}  # slower, but by more than allowed?
    assert verdicts(compare(OLD, new, threshold=0.1), "direct") == {LITTLE_SLOWER}
    assert comparison.exit_code == 0


def test_rows_that_are_not_right_any_more():
    new = results.results(("mec",), most=3, seed=1)
    row = next(row for row in new.rows if row.algorithm == "mec")
    row.status, row.reason = "wrong result", "3 of 4 outputs are NaN"
    comparison = compare(OLD, new)
    assert [change.verdict for change in comparison.changes].count(BROKEN) == 1
    assert comparison.exit_code == 1


def test_rows_and_layers_that_differ():
    new = results.results(("mec",), most=4, seed=1, peers=False)
    new.layers[0]["shape"] = "another"
    comparison = compare(OLD, new)
    assert comparison.reshaped == ["mec/cv1"]
    assert {row.layer for row in comparison.only_new} == {"mec/cv4"}
    assert {row.kind for row in comparison.only_old} == {"peer"}
    assert "mec/cv1" not in {change.old.layer for change in comparison.changes}


# -- command ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    def write(**reports):
        paths = [tmp_path / f"{name}.json" for name in reports]
        for path, report in zip(paths, reports.values(), strict=True):
            path.write_text(report.json(), encoding="utf-8")
        return [str(path) for path in paths]

    return write


def test_command(files, capsys):
    new = results.results(("mec",), most=3, seed=1, factors={"direct": 1.3}, threads=(1,))
    new.machine["cpu"] = "Another CPU"
    new.versions["numpy"] = "3.0"
    paths = files(old=OLD, new=new)
    assert cli.main(["bench", "compare", *paths]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.startswith("cv1") and " direct " in line and line.endswith("SLOWER") for line in lines)
    assert any(line.startswith("all ") for line in lines)
    text = " ".join(out.split())
    assert "Only in the old file, " in text and "CPU Example CPU in the old file and Another CPU in the new" in text
    assert "numpy 2.4.6 > 3.0" in text
    assert cli.main(["bench", "compare", *paths, "--threshold", "60", "--changed"]) == 0
    assert "im2row_strip" not in capsys.readouterr().out.split("all layers")[0]


def test_command_that_finds_no_change(files, capsys):
    assert cli.main(["bench", "compare", *files(old=OLD, new=OLD), "--changed"]) == 0
    assert "are the same within their intervals" in capsys.readouterr().out


def test_broken_rows_say_why(files, capsys):
    new = results.results(("mec",), most=3, seed=1)
    new.rows[0].status, new.rows[0].reason = "failed", "no memory"
    assert cli.main(["bench", "compare", *files(old=OLD, new=new)]) == 1
    assert "BROKEN: failed: no memory" in capsys.readouterr().out


def test_command_refuses(files, capsys):
    other = results.results(("resnet18",), most=1)
    double = results.results(("mec",), most=1)
    double.settings["dtype"] = "float64"
    old, other, double = files(old=OLD, other=other, double=double)
    for words, message in (
        ([old, "none.json"], "none.json: cannot be read"),
        ([old, other], "have no timed row in common"),
        ([old, double], "settings.dtype: is float64, and float32 in"),
    ):
        assert cli.main(["bench", "compare", *words]) == 2
        assert message in capsys.readouterr().err
    for words, message in (
        ([old], "NEW.json"),
        ([old, old, "--threshold", "-1"], "'-1' must be a number of percent from 0 to 1000"),
        ([old, old, "--confidence", "x"], "must be a number of percent from 50"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", "compare", *words])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_markup_in_names_is_text():
    report = results.results(("mec",), most=1, threads=(1,))
    content = json.loads(report.json())
    assert content["rows"]
    for row in report.rows:
        row.algorithm = f"[red]{row.algorithm}[/]"
    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    module.show(compare(report, report), console)
    assert "[red]direct[/]" in console.file.getvalue()
