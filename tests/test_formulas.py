"""The workspace that papers state is what ours take, byte for byte but for the rounding of a buffer."""

from __future__ import annotations

import json

import pytest

from leanconv.algorithms import PUBLISHED
from leanconv.cli import main
from leanconv.memory import ALIGNMENT
from leanconv.planning.formulas import FORMULAS, rows
from strategies import Case, Geometry

SAME = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
CASES = [
    Case((2, 7, 9, 11), (10, 7, 3, 3), SAME),
    Case((2, 7, 9, 11), (10, 7, 3, 3), SAME, layout="NHWC"),
    Case((1, 6, 10, 12), (8, 3, 5, 2), Geometry((5, 2), (1, 2), (1, 1), ((2, 1), (0, 1))), groups=2, layout="NHWC"),
    Case((3, 4, 8, 6), (9, 4, 2, 3), Geometry((2, 3), (2, 1), (2, 1), ((0, 3), (1, 0))), dtype="float64"),
    Case((2, 5, 40), (3, 5, 7), Geometry((7,), (2,), (1,), ((3, 3),)), layout="NHWC"),
    Case((1, 3, 5, 6, 7), (4, 3, 2, 3, 2), Geometry((2, 3, 2), (1, 1, 1), (1, 1, 1), ((0, 1), (1, 1), (1, 0)))),
    Case((2, 16, 6, 6), (24, 16, 1, 1), Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))), layout="NHWC"),
]


def test_formulas_are_those_of_algorithms_that_there_are() -> None:
    assert set(FORMULAS) <= set(PUBLISHED)
    assert all(formula.note or formula.exact for formula in FORMULAS.values())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.problem.describe().replace(" ", "_"))
def test_papers_plans_and_calls_agree(case: Case, threads: int) -> None:
    found = rows(case.problem, threads)
    assert len(found) >= 8
    for row in found:
        assert row.measured == row.declared, row.name
        if row.formula.exact:
            assert row.stated <= row.declared < row.stated + ALIGNMENT, row.name


def test_every_formula_is_compared() -> None:
    compared = {row.name for case in CASES for row in rows(case.problem)}
    assert compared == set(FORMULAS)


def test_what_differs_is_less_for_the_layers_of_the_papers() -> None:
    """Accumulating forms hold one map; the table of holes and 4-byte offsets are at most the guards and pointers."""
    layer = Case((1, 64, 28, 28), (64, 64, 3, 3), SAME)
    differing = [row for row in rows(layer.problem) if not row.formula.exact]
    assert {row.name for row in differing} == {"kn2row_as", "kn2row_aa", "indirect"}
    assert all(row.declared < row.stated + ALIGNMENT for row in differing)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    layer = "mb1ic16ih14oc24oh14kh3ph1"
    assert main(["formulas", layer, "--threads", "1"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("im2win"))
    assert line.split() == ["im2win", "P", "Wp", "R", "C", "43,008", "43,008", "43,008"]
    assert main(["formulas", layer, "--layout", "CHWN", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in entry["rows"]} >= {"mec", "indirect"}
    assert main(["formulas", "no/such"]) == 2
