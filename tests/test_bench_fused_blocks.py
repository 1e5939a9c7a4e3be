"""`python -m leanconv.bench.fused_blocks`: the same results either way, bytes as planned, figures in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanconv.bench import fused_blocks
from leanconv.bench.fused_blocks import MOBILENET_V2, InvertedResidual, compare, main


def test_both_sides_compute_the_same() -> None:
    for block in (InvertedResidual(9, 8, 32, 8), InvertedResidual(10, 8, 48, 16, 2)):
        found = compare(block, 2, 1, 3)
        assert found.error < 1e-5
        assert len(found.apart) == len(found.fused) == 3 and min(found.apart + found.fused) > 0
        assert found.intermediate_bytes == 4 * 2 * block.middle * (block.size**2 + (block.size // block.stride) ** 2)
        assert 0 < found.workspace_bytes < found.intermediate_bytes / 4


def test_the_table_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_blocks, "MOBILENET_V2", MOBILENET_V2[-1:])
    monkeypatch.setenv("COLUMNS", "150")
    file = tmp_path / "blocks.json"
    main(["--rounds", "2", "--threads", "1", "--json", str(file)])
    shown = capsys.readouterr().out
    assert "7x7 160-960-320 s1" in shown and "times as fast" in shown
    (found,) = json.loads(file.read_text(encoding="utf-8"))["blocks"]
    assert found["name"] == "7x7 160-960-320 s1" and found["workspace_bytes"] * 4 < found["intermediate_bytes"]
