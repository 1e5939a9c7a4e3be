"""Algorithms from outside, by the page that shows one: found everywhere, right, exact in memory, taken away again."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import leanconv
from guard import GuardedAllocator
from leanconv import foreign
from leanconv.algorithms import PUBLISHED, REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.algorithms.dense import lies_well
from leanconv.algorithms.direct import Direct
from leanconv.cli import main
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.staging import refusal
from strategies import Case, cases
from test_algorithms import LARGE, MEMORY, lent, run_every_way

PAGE = Path(__file__).parent.parent / "docs" / "adding-an-algorithm.md"
FILE, PROGRAM = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
LAYER: dict[str, Any] = {"x_shape": (1, 8, 8, 10), "w_shape": (16, 8, 3, 3), "padding": 1}


@pytest.fixture
def turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Algorithm]:
    """The algorithm of the page, registered."""
    (tmp_path / "turned.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "turned", raising=False)
    algorithm: Algorithm = importlib.import_module("turned").Turned()
    leanconv.register_algorithm(algorithm)
    yield algorithm
    leanconv.unregister_algorithm("turned")
    assert REGISTRY.names == tuple(PUBLISHED)
    sys.modules.pop("turned", None)


def test_the_page_runs(turned: Algorithm, capsys: pytest.CaptureFixture[str]) -> None:
    leanconv.unregister_algorithm("turned")  # the program registers it itself
    exec(compile(PROGRAM, str(PAGE), "exec"), {})
    assert re.search(r"^turned ", capsys.readouterr().out, re.MULTILINE)


def test_it_is_found_by_the_functions(turned: Algorithm) -> None:
    info = leanconv.algorithms(**LAYER)[-1]
    assert (info.name, info.title, info.paper) == (turned.name, turned.title, turned.paper)
    assert info.applies and info.workspace_bytes == 8 * 8 * 10 * 4
    refused = leanconv.algorithms((1, 8, 10, 8), LAYER["w_shape"], padding=1, layout="NHWC")[-1]
    assert refused.reason == "the channels of the image are adjacent already"
    row = next(row for row in leanconv.explain(**LAYER).rows if row.name == "turned")
    assert row.reason == "taken by name only" and row.workspace_bytes == info.workspace_bytes
    plan = leanconv.plan(**LAYER, algorithm=["turned"], threads=2)
    assert plan.algorithm == "turned" and plan.steps[0] == "copy the image, channels last"
    with pytest.raises(leanconv.MemoryLimitError):
        leanconv.plan(**LAYER, algorithm="turned", memory_limit=100)


def test_it_is_found_by_the_commands(turned: Algorithm, capsys: pytest.CaptureFixture[str]) -> None:
    layer = "mb1ic8ih9oc16oh9kh3ph1"
    arguments = ["--layout", "NCHW", "--algorithms", "turned,direct", "--time", "0.001", "--rounds", "1"]
    assert main(["bench", layer, *arguments]) == 0
    assert "turned" in capsys.readouterr().out
    assert main(["explain", layer, "--layout", "NCHW"]) == 0
    assert "turned" in capsys.readouterr().out


def test_it_computes_what_all_others_do(turned: Algorithm) -> None:
    @settings(settings.get_profile("engine"), max_examples=15)
    @given(cases())
    def check(case: Case) -> None:
        if refusal(turned, case.problem) is None:
            with GuardedAllocator(case.flush):
                run_every_way("turned", case)

    check()
    for case in (LARGE[0], LARGE[3]):
        run_every_way("turned", case)


def test_its_bytes_are_exact(turned: Algorithm) -> None:
    for case in MEMORY:
        if refusal(turned, case.problem) is not None:
            continue
        plan = case.plan("turned", 2)
        inputs = case.guarded_inputs(viewed=False)
        bound = plan.bind(**{name: inputs.pop(name) for name in ("w", "bias") if name in inputs})
        with GuardedAllocator() as running:
            case.check(bound(**inputs), "turned")
        assert lent(running.sizes) == plan.workspace_bytes


def test_auto_weighs_what_is_automatic_at_once() -> None:
    class Best(Direct):
        """Direct, and it says that it takes no time."""

        name = "best"

        def cost(self, *arguments: Any) -> Any:
            from leanconv.kernels.cost import Cost

            return Cost({}, chunks=1)

    x, w = np.ones(LAYER["x_shape"], "float32"), np.ones(LAYER["w_shape"], "float32")
    first = leanconv.conv2d(x, w, padding=1)
    before = leanconv.plan(**LAYER).algorithm
    leanconv.register_algorithm(Best())
    try:
        assert leanconv.plan(**LAYER).algorithm == "best" != before
        plan = leanconv.plan(**LAYER)
        network = leanconv.plan_network([plan])
        assert network.steps[0].plan.algorithm == "best"
        np.testing.assert_allclose(leanconv.conv2d(x, w, padding=1), first, rtol=1e-6)
    finally:
        leanconv.unregister_algorithm("best")
    assert leanconv.plan(**LAYER).algorithm == before
    assert leanconv.plan_network([leanconv.plan(**LAYER)]).steps[0].plan.algorithm == before
    np.testing.assert_allclose(plan.bind(w)(x), first, rtol=1e-6)  # plans that were made go on working
    with pytest.raises(ArgumentValueError, match="best"):
        leanconv.conv2d(x, w, padding=1, algorithm="best")


class Fine(Direct):
    """An algorithm whose attributes the cases below spoil one by one."""

    name = "fine"


@pytest.mark.parametrize(
    ("attribute", "value", "error", "rule"),
    [
        ("name", "direct", ArgumentValueError, "no other algorithm has"),
        ("name", "auto", ArgumentValueError, "none of auto, all"),
        ("name", "Fine", ArgumentValueError, "lower-case"),
        ("name", "a,b", ArgumentValueError, "lower-case"),
        ("name", "", ArgumentTypeError, "name that is a text"),
        ("paper", None, ArgumentTypeError, "paper that is a text"),
        ("error_class", "exact", ArgumentValueError, "error classes"),
        ("tunables", {"a": 1}, ArgumentTypeError, "tunables"),
        ("sum_order", 3, ArgumentTypeError, "sum_order"),
    ],
)
def test_what_is_refused(attribute: str, value: Any, error: type[Exception], rule: str) -> None:
    with pytest.raises(error, match=rule):
        leanconv.register_algorithm(type("Spoiled", (Fine,), {attribute: value})())
    assert REGISTRY.names == tuple(PUBLISHED)


def test_places_name_their_algorithms() -> None:
    assert [algorithm.name for algorithm in REGISTRY] == list(PUBLISHED)
    assert all(REGISTRY[name] is algorithm for name, algorithm in zip(PUBLISHED, REGISTRY, strict=True))


@settings(max_examples=60)
@given(cases())
def test_auto_overlooks_nothing(case: Case) -> None:
    """What "auto" does not even look at is there by name, or refuses.

    An FFT is not worth finding for few taps, a copy not where the image is the matrix already.
    """
    copied = {"direct_band", "implicit_gemm"} if lies_well(case.problem) else set()
    for name, place in PUBLISHED.items():
        if not place.look(case.problem) and not name.startswith("fft") and name not in copied:
            assert not REGISTRY[name].automatic or refusal(REGISTRY[name], case.problem), name


def test_what_is_no_algorithm() -> None:
    with pytest.raises(ArgumentTypeError, match=r"such as Fine\(\)"):
        leanconv.register_algorithm(Fine)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="instance"):
        leanconv.register_algorithm("direct")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError):
        leanconv.unregister_algorithm(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="there are: none"):
        leanconv.unregister_algorithm("direct")


def test_what_is_kept_on_disk_depends_on_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Spec:
        part: Any

    assert foreign.sources(Direct(), (1, "a", None)) == ""
    file = tmp_path / "kernels_of_mine.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for text in ("class Part: pass\n", "class Part: pass  # changed\n"):
        file.write_text(text)
        sys.modules.pop("kernels_of_mine", None)
        importlib.invalidate_caches()
        part = importlib.import_module("kernels_of_mine").Part()
        digests.append((foreign.sources(part), foreign.sources(Spec((part,)))))
    sys.modules.pop("kernels_of_mine", None)
    assert len({digest for pair in digests for digest in pair}) == 4
    assert foreign.sources(part) == foreign.sources(part) != digests[1][0]  # its module is gone: of this process only
