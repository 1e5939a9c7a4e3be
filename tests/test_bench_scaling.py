"""`leanconv bench --scaling`: turns of numbers of threads, ratios, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fake_engine import FakeEngine
from leanconv import cli
from leanconv.bench import scaling
from leanconv.bench.benchdnn import parse
from leanconv.bench.turns import Schedule

SMALL = parse("mb1ic4ih6oc6kh3ph1nsmall")
QUICK = Schedule(0.05, 5, 0.0, 0.03)


def test_numbers_of_threads_take_turns() -> None:
    engine = FakeEngine(seconds={"direct": 0.001})
    (result,) = scaling.measure([SMALL], "direct", ["NHWC"], [2, 1], QUICK, engine)
    assert result.reason == "" and result.algorithm == "direct"
    assert list(result.seconds) == [1, 2]
    assert len(result.seconds[1]) == len(result.seconds[2]) > 0
    threads = [count for name, count in engine.calls if name == "direct"]
    changes = sum(a != b for a, b in itertools.pairwise(threads))
    assert changes >= len(result.seconds[1])  # one in each round: who was last is first in the next


def test_the_ratio_is_that_of_the_medians() -> None:
    result = scaling.Scaling("a", "direct", "NHWC", 60.0, [1, 2, 4], {1: [4.0] * 9, 2: [2.0] * 9, 4: [1.0] * 9})
    assert result.speedup(2) == (2.0, 2.0, 2.0)
    assert result.speedup(4)[1] == 4.0
    shown = io.StringIO()
    scaling.show([result], Console(file=shown, width=200))
    assert "above 50 MFLOP: 4.00 on 4 threads, lowest 4.00, 1 layers" in shown.getvalue()


def test_all_run_what_is_chosen_for_the_most_threads() -> None:
    class Engine(FakeEngine):
        def plan(self, x: Any, w: Any, *, algorithm: str, threads: int, **options: Any) -> Any:
            asked.append((algorithm, threads))
            return super().plan(x, w, algorithm=algorithm, threads=threads, **options)

    asked: list[tuple[str, int]] = []
    scaling.measure([SMALL], "auto", ["NHWC"], [1, 2], QUICK, Engine())
    assert asked == [("auto", 2), ("direct", 1)]


def test_a_refusal_is_a_row_that_says_so() -> None:
    engine = FakeEngine(refusals={"im2col": "too large"})
    (result,) = scaling.measure([SMALL], "im2col", ["NHWC"], [1, 2], QUICK, engine)
    assert result.seconds == {} and "too large" in result.reason
    shown = io.StringIO()
    scaling.show([result], Console(file=shown, width=200))
    assert "too large" in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "2"], "two numbers"),
        (["--threads", "1,2", "--algorithms", "direct,im2col"], "one algorithm"),
        (["--threads", "1,2", "--algorithms", "auto@1MiB"], "one algorithm"),
    ],
)
def test_what_cannot_be_compared_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "mb1ic4ih6oc6kh3ph1nsmall", "--scaling", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.json"
    words = ["mb1ic4ih6oc6kh3ph1nsmall", "--scaling", "--threads", "1,2", "--time", "0.01", "--rounds", "2"]
    assert cli.main(["bench", *words, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row["reason"] == "" and set(row["seconds"]) == {"1", "2"}
    assert "x 2" in capsys.readouterr().out
