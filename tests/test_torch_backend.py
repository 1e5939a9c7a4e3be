"""Which back end PyTorch would take: asked of PyTorch itself, and only where it is there."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import leanconv
from leanconv.planning.torch_backend import torch_backend

LAYER: dict[str, Any] = {"x_shape": (1, 16, 12, 12), "w_shape": (8, 16, 3, 3), "padding": 1}


def problem(**options: Any) -> leanconv.Problem:
    return leanconv.plan(**{**LAYER, **options}, algorithm="direct").problem


def test_not_asked_where_it_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert torch_backend(problem()) is None
    assert "PyTorch" not in str(leanconv.explain(**LAYER))


def test_its_answer() -> None:
    torch = pytest.importorskip("torch")
    known = set(torch._C._ConvBackend.__members__)
    cases: list[dict[str, Any]] = [
        {},
        {"x_shape": (1, 12, 12, 16), "layout": "NHWC"},
        {"x_shape": (2, 16, 40), "w_shape": (8, 16, 5), "padding": 2, "dilation": 2},
        {"x_shape": (1, 16, 6, 6, 6), "w_shape": (8, 16, 3, 3, 3), "stride": 2},
        {"w_shape": (16, 1, 3, 3), "groups": 16},
        {"dtype": "float64"},
    ]
    for case in cases:
        assert torch_backend(problem(**case)) in known
    assert str(torch_backend(problem(padding=((0, 1), (1, 1))))).endswith(" on a padded copy")
    assert torch_backend(problem(dtype="float64")) != torch_backend(problem(groups=16, w_shape=(16, 1, 3, 3)))
    found = leanconv.explain(**LAYER)
    assert found.torch_backend in known and str(found).splitlines()[-1].split() == [
        "PyTorch",
        "takes",
        found.torch_backend,
    ]
