"""Layers of low polyadic rank: four stages in one kernel, and the fit by tensorly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv import oracle
from leanconv.decomp import Cp, FilterPlan, cp
from leanconv.errors import ArgumentError, MemoryLimitError, NotApplicableError
from leanconv.memory import ALIGNMENT, Arena

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=25)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int]  # of the weights
    rank: int
    size: tuple[int, int]
    batch: int
    options: tuple[tuple[str, Any], ...]
    layout: str
    dtype: str
    seed: int

    def plan(self, layer: Cp, threads: int, method: str = "four_stages", **more: Any) -> FilterPlan:
        c = self.shape[1]
        x_shape = (self.batch, c, *self.size) if self.layout == "NCHW" else (self.batch, *self.size, c)
        options = {**dict(self.options), "layout": self.layout, "dtype": self.dtype, "method": method, **more}
        return layer.plan(x_shape, threads=threads, **options)

    def layer(self) -> Cp:
        rng = np.random.default_rng(self.seed)
        return Cp([rng.standard_normal((n, self.rank)).astype(self.dtype) for n in self.shape])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 3), (2, 4), (1, 3), (3, 1), (7, 7)]))
    stride = draw(st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 1, 2])))
    dilation = draw(st.sampled_from([1, 1, 2]))
    pads = tuple((draw(st.integers(0, n)), draw(st.integers(0, n))) for n in kernel)
    spans = [max(1, (n - 1) * dilation + 1 - sum(pad)) for n, pad in zip(kernel, pads, strict=True)]
    options = {
        "padding": pads,
        "stride": stride,
        "dilation": dilation,
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, "relu"])),
        "residual": draw(st.booleans()),
    }
    return Case(
        (draw(st.sampled_from([1, 5, 16, 40])), draw(st.sampled_from([1, 3, 16, 24])), *kernel),
        draw(st.sampled_from([1, 2, 7, 8, 19, 32])),
        (spans[0] + draw(st.integers(0, 20)), spans[1] + draw(st.integers(0, 20))),
        draw(st.sampled_from([1, 1, 2, 0])),
        tuple(options.items()),
        draw(st.sampled_from(["NCHW", "NHWC"])),
        draw(st.sampled_from(["float32", "float32", "float64"])),
        draw(st.integers(0, 2**32 - 1)),
    )


def run(case: Case, threads: int, **more: Any) -> Array:
    rng = np.random.default_rng(case.seed + 1)
    layer = case.layer()
    plan = case.plan(layer, threads, **more)
    p = plan.problem
    x = guarded_copy(rng.standard_normal(p.x_shape).astype(case.dtype))
    bias = rng.standard_normal(p.out_channels).astype(case.dtype) if p.has_bias else None
    extra = rng.standard_normal(p.out_shape).astype(case.dtype) if p.residual else None
    plan.inner.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(bias)
    assert sum(packing.sizes) == plan.packed_weight_bytes
    out = guarded(plan.out_shape, case.dtype)
    with GuardedAllocator() as running:
        assert bound(x, out=out, residual=extra) is out
    used = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in running.sizes)
    assert used == (plan.workspace_bytes if out.size else 0)
    check_canaries(out)
    want = oracle.reference(p, x, layer.product(), bias, extra)
    # Each stage rounds in units of its own sums, which may cancel in the next one.
    size = np.einsum(
        "kq,cq,rq,sq->kcrs", *(np.abs(f) for f in (layer.filters, layer.channels, layer.rows, layer.columns))
    )
    bound_size = np.abs(oracle.reference(p, np.abs(x), size, None if bias is None else np.abs(bias), extra))
    unit = 1e-6 if case.dtype == "float32" else 1e-14
    assert np.abs(out - want).max(initial=0.0) <= unit * max(1.0, bound_size.max(initial=0.0))
    return out


def test_random_layers() -> None:
    @ENGINE
    @given(cases(), st.sampled_from([1, 2, 3]), st.sampled_from([None, 0.0, 0.4]))
    def check(case: Case, threads: int, tight: float | None) -> None:
        first = run(case, 1)
        assert run(case, threads).tobytes() == first.tobytes()
        if tight is not None and case.batch:
            layer = case.layer()
            roomy = case.plan(layer, threads).extra_bytes
            with pytest.raises(MemoryLimitError) as caught:
                case.plan(layer, threads, memory_limit=0)
            limit = caught.value.needed + int(tight * (roomy - caught.value.needed))
            assert case.plan(layer, threads, memory_limit=limit).extra_bytes <= limit
            assert run(case, threads, memory_limit=limit).tobytes() == first.tobytes()

    check()


def test_a_layer_of_a_network() -> None:
    rng = np.random.default_rng(0)
    layer = Cp([rng.standard_normal((n, 24)).astype("f4") for n in (64, 64, 3, 3)])
    plan = layer.plan((1, 56, 56, 64), padding=1, layout="NHWC", threads=2)
    assert plan.method == "four_stages" and plan.workspace_bytes < plan.intermediate_bytes / 4
    assert 10 * plan.flops < plan.whole_flops
    assert layer.multiplications == (24 * (64 + 64 + 6), 64 * 64 * 9) and layer.error == 0.0
    case = Case((64, 64, 3, 3), 24, (56, 56), 1, (("padding", 1),), "NHWC", "float32", 5)
    assert run(case, 2).tobytes() == run(case, 1).tobytes()


def test_the_four_layers_are_the_whole_one() -> None:
    """The definition: a 1x1 layer, a column and a row on each of its channels, a 1x1 layer."""
    rng = np.random.default_rng(1)
    layer = Cp([rng.standard_normal((n, 5)) for n in (6, 4, 3, 5)])
    x = rng.standard_normal((1, 4, 9, 12))
    inner = np.einsum("cq,ncyx->nqyx", layer.channels, x)
    down = sum(layer.rows[r][:, None, None] * inner[:, :, r : r + 7] for r in range(3))
    along = sum(layer.columns[s][:, None, None] * down[..., s : s + 8] for s in range(5))
    want = np.einsum("kq,nqyx->nkyx", layer.filters, along)
    assert np.allclose(layer.conv2d(x, method="four_stages"), want, atol=1e-11)
    assert np.allclose(layer.conv2d(x, method="whole"), want, atol=1e-11)
    assert np.allclose(layer.conv2d(x[0]), want[0], atol=1e-11)


def test_fit_by_tensorly() -> None:
    pytest.importorskip("tensorly")
    rng = np.random.default_rng(2)
    exact = Cp([rng.standard_normal((n, 2)) for n in (8, 6, 3, 3)])
    found = cp(exact.w, 2)
    assert found.error < 1e-3 and found.rank == 2 and np.allclose(found.product(), exact.w, atol=0.05)
    assert cp(exact.w, 2).product().tobytes() == found.product().tobytes()
    assert leanconv.cp(rng.standard_normal((4, 5, 3, 3)).astype("f4"), 4).error < 1.0
    assert cp(rng.standard_normal((4, 5, 3, 3)), 8).error < cp(rng.standard_normal((4, 5, 3, 3)), 1).error


def test_without_tensorly() -> None:
    script = (
        "import sys; sys.modules['tensorly'] = None; sys.modules['tensorly.decomposition'] = None\n"
        "import numpy as np, leanconv\n"
        "try: leanconv.cp(np.ones((2, 2, 3, 3)), 1)\n"
        "except leanconv.MissingPackageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "tensorly" in done.stdout and "leanconv[decompose]" in done.stdout


GOOD = [np.ones((n, 2)) for n in (4, 3, 3, 3)]


@pytest.mark.parametrize(
    ("argument", "factors", "w"),
    [
        ("factors", GOOD[:3], None),
        ("factors", None, None),
        ("factors[1]", [GOOD[0], np.ones((3, 3)), *GOOD[2:]], None),
        ("factors[2]", [*GOOD[:2], np.ones(3), GOOD[3]], None),
        ("factors[3]", [*GOOD[:3], np.full((3, 2), np.nan)], None),
        ("w", GOOD, np.ones((4, 3, 3, 2))),
    ],
)
def test_errors_of_factors(argument: str, factors: Any, w: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Cp(factors, w)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "w", "rank", "options"),
    [
        ("w", np.ones((3, 3)), 1, {}),
        ("w", np.full((1, 1, 3, 3), np.nan), 1, {}),
        ("rank", np.ones((2, 2, 3, 3)), 0, {}),
        ("rank", np.ones((2, 2, 3, 3)), 1.5, {}),
        ("iterations", np.ones((2, 2, 3, 3)), 1, {"iterations": 0}),
        ("seed", np.ones((2, 2, 3, 3)), 1, {"seed": -1}),
        ("tol", np.ones((2, 2, 3, 3)), 1, {"tol": 2.0}),
        ("tol", np.ones((2, 2, 3, 3)), 1, {"tol": None}),
    ],
)
def test_errors_of_fits(argument: str, w: Any, rank: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        cp(w, rank, **options)
    assert caught.value.argument == argument


def test_what_is_refused() -> None:
    layer = Cp(GOOD)
    x = np.ones((1, 3, 6, 7))
    with pytest.raises(NotApplicableError, match="reflect"):
        layer.conv2d(x, padding=1, pad_mode="reflect", method="four_stages")
    assert layer.plan(x.shape, dtype="float64", padding=1, pad_mode="reflect").method == "whole"
    with pytest.raises(ArgumentError):
        layer.conv2d(np.ones((1, 4, 6, 7)))
