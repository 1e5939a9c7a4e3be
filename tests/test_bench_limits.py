"""`leanconv bench --algorithms auto@64KiB`: the same algorithm under memory limits; and layers of one name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanconv.cli import main

LAYER = "mb1ic16ih14oc16oh14kh3ph1"
QUICK = ["--time", "0.001", "--rounds", "1", "--max-time", "0.001"]


def test_a_limit_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = "im2row_strip,im2row_strip@16KiB,auto@0,im2row_strip@16KiB/thread"
    assert main(["bench", LAYER, "--algorithms", words, "--json", "-", *QUICK]) == 0
    rows = {row["algorithm"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == words.split(",")
    assert rows["im2row_strip"]["workspace_bytes"] > 16 << 10 >= rows["im2row_strip@16KiB"]["workspace_bytes"] > 0
    assert rows["im2row_strip@16KiB"]["ran"] == "im2row_strip"
    assert rows["auto@0"]["workspace_bytes"] == 0
    each = rows["im2row_strip@16KiB/thread"]
    assert 0 < each["workspace_bytes"] <= each["threads"] * (16 << 10)


def test_a_limit_that_is_too_small_is_a_row_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", LAYER, "--algorithms", "direct,im2row@1KiB", "--json", "-", *QUICK])
    rows = {row["algorithm"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["direct"]["status"] == "ok"
    assert rows["im2row@1KiB"]["status"] != "ok" and "1,024" in rows["im2row@1KiB"]["reason"].replace("1024", "1,024")


@pytest.mark.parametrize(
    "words, message",
    [
        ("direct@lots", "--algorithms"),
        ("direct@lots/thread", "--algorithms"),
        ("all@1MiB", "a memory limit is set on one algorithm or auto"),
        ("dirct@1MiB", "no algorithm is called 'dirct'"),
    ],
)
def test_limits_that_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", LAYER, "--algorithms", words]) == 2
    assert message in capsys.readouterr().err


def test_two_layers_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "layers.csv"
    table.write_text("name,C,H,K,R\na,3,8,4,3\nb,3,8,4,3\na,4,8,4,3\n", encoding="utf-8")
    assert main(["bench", str(table)]) == 2
    assert "two layers are called 'a'" in capsys.readouterr().err
