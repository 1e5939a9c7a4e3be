"""The pages of the algorithms say what their docstrings say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from leanconv.algorithms import REGISTRY

SCRIPT = Path(__file__).parent.parent / "scripts" / "algorithm_pages.py"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("algorithm_pages", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_those_that_the_script_writes(pages: ModuleType, tmp_path: Path) -> None:
    store = pages.FOLDER / pages.FIGURES
    pages.write(json.loads(store.read_text()) if store.exists() else {}, tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert written == {path.name: path.read_text() for path in pages.FOLDER.glob("*.md")}, (
        "run scripts/algorithm_pages.py"
    )
    assert {f"{algorithm.name}.md" for algorithm in REGISTRY} | {"README.md"} == set(written)


def test_every_page_says_what_it_is_and_who_published_it(pages: ModuleType) -> None:
    for algorithm in REGISTRY:
        text = pages.page(algorithm, {})
        assert text.startswith(f"# {algorithm.name}\n") and algorithm.paper in text and algorithm.paper
        assert all(f"`{name}`: " in text for name in algorithm.tunables)
        if algorithm.name.endswith("_blas"):
            continue
        for part in ("Idea", "Workspace", "Good for", "Bad for"):
            cell = re.search(rf"\*\*{part}\*\* \| (.+) \|", text)
            assert cell and len(cell[1]) > 3, (algorithm.name, part)


def test_figures_are_taken_from_results(pages: ModuleType) -> None:
    row = {"layer": "a", "algorithm": "direct", "layout": "NHWC", "seconds": 0.0012345, "percent_of_peak": 91.26}
    row |= {"workspace_bytes": 2048, "packed_weight_bytes": 64, "status": "ok"}
    report = {
        "command": ["/x/leanconv", "bench", "mec", "--json", "r.json"],
        "settings": {"threads": [1]},
        "machine": {},
    }
    figures = pages.trimmed({**report, "rows": [row, {**row, "status": "failed"}, {**row, "kind": "peer"}]})
    assert figures["command"] == "leanconv bench mec" and len(figures["rows"]) == 1
    direct = next(algorithm for algorithm in REGISTRY if algorithm.name == "direct")
    assert "| a | NHWC | 1.23 ms | 91 % | 2.0 KiB | 64 B |" in pages.page(direct, figures)
    assert "91 % of 1 layers" in pages.index(figures)
