"""Filters of low rank: ranks, factors, and both passes fused: right, the same bits on any threads, in exact memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv import oracle
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS
from leanconv.decomp import FilterPlan, Separable, separable
from leanconv.decomp.passes import Passes
from leanconv.errors import ArgumentError, MemoryLimitError, NotApplicableError
from leanconv.host import Host
from leanconv.memory import ALIGNMENT, Arena
from leanconv.options import make_problem

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=25)


def low_rank(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> Array:
    """Filters of at most a rank: (..., R, S)."""
    down, along = (rng.standard_normal((*shape[:-2], n, rank)) for n in shape[-2:])
    return down @ np.swapaxes(along, -1, -2)


def defined(filters: Separable, x: Array, stride: int, padding: int) -> Array:
    """Two passes in NumPy, channels first: column by column, row by row, rank by rank."""
    w = filters.product()
    channels = x.shape[1]
    padded = np.pad(x.astype(float), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    down, along = filters.vertical[..., 0], filters.horizontal[:, :, 0]
    rows = (padded.shape[2] - w.shape[-2]) // stride + 1
    columns = (padded.shape[3] - w.shape[-1]) // stride + 1
    out = np.zeros((len(x), len(along), rows, columns))
    for k in range(len(along)):
        for q in range(filters.rank):
            if filters.shared:
                middle = sum(
                    down[q, c, r] * padded[:, c, r : r + rows * stride : stride][:, :rows]
                    for c in range(channels)
                    for r in range(w.shape[-2])
                )
            else:
                c = k // (len(along) // channels)
                taps = down[k * filters.rank + q, 0]
                middle = sum(taps[r] * padded[:, c, r : r + rows * stride : stride][:, :rows] for r in range(len(taps)))
            assert isinstance(middle, np.ndarray)
            for s in range(w.shape[-1]):
                out[:, k] += along[k, q, s] * middle[:, :, s : s + columns * stride : stride][:, :, :columns]
    return out


@dataclass(frozen=True)
class Case:
    """Filters and an image; `kind` is "one" (a filter for every channel), "own" or "shared"."""

    kind: str
    channels: int
    filters: int  # of a channel ("own"), or in all ("shared")
    kernel: tuple[int, int]
    rank: int
    size: tuple[int, int]
    batch: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    pad_mode: str
    layout: str
    dtype: str
    epilogue: tuple[bool, str | None, bool]  # bias, activation, residual
    seed: int

    @property
    def filter_shape(self) -> tuple[int, ...]:
        if self.kind == "one":
            return self.kernel
        count = self.filters * self.channels if self.kind == "own" else self.filters
        return (count, 1 if self.kind == "own" else self.channels, *self.kernel)

    @property
    def x_shape(self) -> tuple[int, ...]:
        shape = (self.batch, self.channels, *self.size)
        return shape if self.layout == "NCHW" else (self.batch, *self.size, self.channels)

    def plan(self, filters: Separable, threads: int, method: str = "two_passes", **more: Any) -> FilterPlan:
        bias, activation, residual = self.epilogue
        return filters.plan(
            self.x_shape,
            dtype=self.dtype,
            bias=bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            layout=self.layout,
            pad_mode=self.pad_mode,
            activation=activation,
            residual=residual,
            method=method,
            threads=threads,
            **more,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["one", "one", "own", "own", "shared"]))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)) | st.sampled_from([(15, 2), (3, 17), (21, 21)]))
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    dilation = draw(st.tuples(st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 3])))
    size, padding = [], []
    for taps, gap in zip(kernel, dilation, strict=True):
        span = (taps - 1) * gap + 1
        low, high = draw(st.integers(0, span)), draw(st.integers(0, span))
        most = max(low, high) + (mode == "reflect") if mode in ("reflect", "circular") else 1
        size.append(draw(st.integers(0, 24)) + max(1, span - low - high, most))
        padding.append((low, high))
    return Case(
        kind,
        draw(st.sampled_from([1, 2, 3, 5, 8, 17])) + (kind == "shared"),
        draw(st.sampled_from([1, 1, 2, 3] if kind == "own" else [1, 4, 9, 16, 21])),
        kernel,
        draw(st.integers(1, 3)),
        (size[0], size[1]),
        draw(st.sampled_from([1, 1, 2, 0])),
        draw(st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 1, 2, 3]))),
        dilation,
        (padding[0], padding[1]),
        mode,
        draw(st.sampled_from(["NCHW", "NHWC"])),
        draw(st.sampled_from(["float32", "float32", "float64"])),
        draw(st.tuples(st.booleans(), st.sampled_from([None, "relu"]), st.booleans())),
        draw(st.integers(0, 2**32 - 1)),
    )


def run(case: Case, threads: int, **more: Any) -> Array:
    rng = np.random.default_rng(case.seed)
    w = low_rank(rng, case.filter_shape, min(case.rank, *case.kernel))
    filters = separable(w.astype(case.dtype), rank=min(case.rank, *case.kernel) if case.kind != "shared" else None)
    plan = case.plan(filters, threads, **more)
    problem = plan.problem
    x = guarded_copy(rng.standard_normal(case.x_shape).astype(case.dtype))
    bias = rng.standard_normal(problem.out_channels).astype(case.dtype) if case.epilogue[0] else None
    extra = rng.standard_normal(plan.out_shape).astype(case.dtype) if case.epilogue[2] else None
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
    product = filters.product().reshape(-1, *problem.w_shape[1:])
    whole = np.broadcast_to(product, problem.w_shape) if case.kind == "one" else product
    want = oracle.reference(problem, x, whole, bias, extra)
    # Rounding in the middle counts in units of the two passes' own sums, which may cancel.
    size = oracle.reference(problem, np.abs(x), np.abs(whole), None if bias is None else np.abs(bias), extra)
    unit = 1e-6 if case.dtype == "float32" else 1e-14
    assert not np.isnan(out).any()
    assert np.abs(out - want).max(initial=0.0) <= 4 * unit * max(1.0, np.abs(size).max(initial=0.0))
    return out


def test_random_filters() -> None:
    @ENGINE
    @given(cases(), st.sampled_from([1, 2, 3]), st.sampled_from([None, None, 0.4]))
    def check(case: Case, threads: int, tight: float | None) -> None:
        first = run(case, 1)
        assert run(case, threads).tobytes() == first.tobytes()
        if tight is not None:
            w = low_rank(np.random.default_rng(case.seed), case.filter_shape, min(case.rank, *case.kernel))
            rank = min(case.rank, *case.kernel) if case.kind != "shared" else None
            filters = separable(w.astype(case.dtype), rank=rank)
            roomy = case.plan(filters, threads).extra_bytes
            try:
                case.plan(filters, threads, memory_limit=0)
            except MemoryLimitError as error:
                limit = error.needed + int(tight * max(0, roomy - error.needed))
                assert case.plan(filters, threads, memory_limit=limit).extra_bytes <= limit
                assert run(case, threads, memory_limit=limit).tobytes() == first.tobytes()

    check()


ONE = (1, 1)
PLAIN = (False, None, False)
LARGE = [
    Case("one", 1, 1, (5, 5), 1, (150, 333), 1, ONE, ONE, ((2, 2), (2, 2)), "zeros", "NCHW", "float32", PLAIN, 1),
    Case("one", 3, 1, (31, 9), 1, (95, 120), 1, ONE, ONE, ((15, 15), (4, 4)), "zeros", "NHWC", "float32", PLAIN, 2),
    Case("shared", 32, 48, (3, 3), 3, (40, 37), 1, ONE, ONE, ((1, 1), (1, 1)), "zeros", "NCHW", "float32", PLAIN, 3),
    Case("shared", 32, 48, (3, 3), 3, (40, 37), 1, ONE, ONE, ((1, 1), (1, 1)), "zeros", "NHWC", "float32", PLAIN, 3),
]


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_large_filters(case: Case) -> None:
    assert run(case, 2).tobytes() == run(case, 1).tobytes()


@pytest.mark.parametrize(("shape", "rank"), [((5, 3), 2), ((4, 1, 3, 5), 3), ((6, 4, 3, 3), 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_definition_in_two_passes(shape: tuple[int, ...], rank: int, stride: int) -> None:
    rng = np.random.default_rng(5)
    filters = separable(rng.standard_normal(shape), rank=rank)
    channels = shape[1] if len(shape) == 4 else 1
    x = rng.standard_normal((2, channels, 9, 11))
    want = filters.conv2d(x, stride=stride, padding=1, method="two_passes")
    assert np.allclose(defined(filters, x, stride, 1), want, rtol=0, atol=1e-12)


def test_ranks() -> None:
    sobel = np.outer([1, 2, 1], [1, 0, -1]).astype("f4")
    line = np.linspace(-2, 2, 7)
    gauss = np.exp(-(line[:, None] ** 2 + line**2))
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0.0]])
    assert [separable(w).ranks for w in (sobel, gauss, laplace, np.ones((4, 9)))] == [(1,), (1,), (2,), (1,)]
    bank = separable(np.stack([gauss[1:4, :3], laplace])[:, None])
    assert bank.ranks == (1, 2) and bank.rank == 2 and bank.error < 1e-15
    assert np.allclose(bank.product()[1, 0], laplace)
    assert separable(np.full((3, 1, 5, 4), 0.25)).constants == (0.25,) * 3
    assert bank.constants is None and separable(np.ones((2, 3, 3, 3))).constants is None
    rng = np.random.default_rng(0)
    dense = np.einsum("qcr,kqs->kcrs", rng.standard_normal((4, 8, 3)), rng.standard_normal((6, 4, 3)))
    found = separable(dense)
    assert found.shared and found.ranks == (4,) and found.vertical.shape == (4, 8, 3, 1)
    assert np.allclose(found.product(), dense, atol=1e-12)
    assert found.multiplications == (4 * 8 * 3 + 6 * 4 * 3, 6 * 8 * 9)
    assert found.weight_bytes == ((4 * 8 * 3 + 6 * 4 * 3) * 8, dense.nbytes)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 7, 5), (4, 6, 6)]), st.sampled_from([0.05, 0.3, 0.7]))
@settings(settings.get_profile("engine"), max_examples=20)
def test_the_tolerance_is_kept(seed: int, shape: tuple[int, int, int], tol: float) -> None:
    w = np.random.default_rng(seed).standard_normal((shape[0], 1, *shape[1:]))
    found = separable(w, tol)
    norms = np.linalg.norm((found.product() - w)[:, 0], axis=(1, 2)), np.linalg.norm(w[:, 0], axis=(1, 2))
    assert (norms[0] <= tol * norms[1] + 1e-12).all()
    assert found.error == pytest.approx(np.linalg.norm(found.product() - w) / np.linalg.norm(w))
    if found.rank > 1:
        less = separable(w, rank=found.rank - 1)
        over = np.linalg.norm((less.product() - w)[:, 0], axis=(1, 2)) > tol * norms[1]
        assert over.any()


def test_auto_takes_two_passes_where_they_save() -> None:
    line = np.linspace(-2, 2, 9)
    gauss = separable(np.exp(-(line[:, None] ** 2 + line**2)).astype("f4"))
    x = np.random.default_rng(1).standard_normal((1, 2, 60, 64)).astype("f4")
    assert gauss.plan(x.shape, padding=4).method == "two_passes"
    noise = separable(np.random.default_rng(2).standard_normal((16, 16, 3, 3)).astype("f4"))
    plan = noise.plan((1, 16, 30, 30))
    assert plan.method == "whole" and plan.flops == plan.whole_flops and plan.intermediate_bytes == 0
    y = gauss.conv2d(x, padding=4)
    assert y.tobytes() == gauss.conv2d(x, padding=4).tobytes()
    assert np.allclose(y, gauss.conv2d(x, padding=4, method="whole"), atol=1e-5)
    assert gauss.conv2d(x[0], padding=4).tobytes() == y[0].tobytes()
    out = np.empty_like(y)
    assert gauss.conv2d(x, padding=4, out=out) is out and out.tobytes() == y.tobytes()
    view = np.ascontiguousarray(np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 4))))[:, :, 1:-2, 3:-4]
    assert gauss.conv2d(view, padding=4).tobytes() == y.tobytes()
    bias = np.array([1, 2], "f4")
    assert np.allclose(gauss.conv2d(x, bias, padding=4), y + bias[:, None, None], atol=1e-5)
    bias += 1
    assert np.allclose(gauss.conv2d(x, bias, padding=4), y + bias[:, None, None], atol=1e-5)


def test_limits_of_a_with_block_hold() -> None:
    filters, x = separable(W), np.ones((1, 2, 9, 9), "f4")
    y = filters.conv2d(x, method="two_passes")
    with leanconv.memory_limit(1), pytest.raises(MemoryLimitError):
        filters.conv2d(x, method="two_passes")
    assert filters.conv2d(x, method="two_passes").tobytes() == y.tobytes()


def test_what_lies_between_is_never_whole() -> None:
    line = np.linspace(-2, 2, 7)
    gauss = separable(np.exp(-(line[:, None] ** 2 + line**2)).astype("f4"))
    for layout, shape in (("NCHW", (1, 1, 1080, 1920)), ("NHWC", (1, 480, 640, 3))):
        plan = gauss.plan(shape, padding=3, layout=layout, method="two_passes", threads=2)
        assert plan.workspace_bytes < plan.intermediate_bytes / 8
        assert 3 * plan.flops < plan.whole_flops
        assert "two_passes" in repr(plan) and len(plan.steps) >= 2


W = np.outer([1.0, 2, 1], [1, 0, -1]).astype("f4")


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("w", (np.ones((2, 3, 4), "f4"),), {}),
        ("w", (np.ones((0, 1, 3, 3), "f4"),), {}),
        ("w", (np.full((3, 3), np.inf, "f4"),), {}),
        ("w", ([[1.0]],), {}),
        ("w", (np.ones((3, 3), "i4"),), {}),
        ("tol", (W, "small"), {}),
        ("tol", (W, -1e-3), {}),
        ("tol", (W, 1.0), {}),
        ("rank", (W,), {"rank": 0}),
        ("rank", (W,), {"rank": 4}),
        ("rank", (np.ones((2, 2, 3, 3), "f4"),), {"rank": 7}),
    ],
)
def test_errors_of_filters(argument: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        separable(*arguments, **options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "w", "shape", "options"),
    [
        ("x_shape", W, (1, 9, 9), {}),
        ("x_shape", np.ones((4, 1, 3, 3), "f4"), (1, 3, 9, 9), {}),
        ("x_shape", np.ones((4, 2, 3, 3), "f4"), (1, 3, 9, 9), {}),
        ("method", W, (1, 1, 9, 9), {"method": "fast"}),
        ("layout", W, (1, 1, 9, 9), {"layout": "CHWN"}),
        ("stride", W, (1, 1, 9, 9), {"stride": 0}),
        ("threads", W, (1, 1, 9, 9), {"threads": 0}),
        ("w_shape", W, (1, 1, 2, 9), {}),
    ],
)
def test_errors_of_plans(argument: str, w: Array, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        separable(w).plan(shape, **options)
    assert caught.value.argument == argument


def test_errors_of_calls() -> None:
    filters = separable(W)
    x = np.ones((1, 2, 9, 9), "f4")
    for arguments, options, argument in (
        ((x[0, 0],), {}, "x"),
        ((x,), {"out": np.ones((1, 2, 9, 9), "f4")}, "out"),
        ((x, np.ones(3, "f4")), {"method": "two_passes"}, "bias"),
        ((x,), {"residual": np.ones((1, 2, 9, 9), "f4")}, "residual"),
    ):
        with pytest.raises(ArgumentError) as caught:
            filters.conv2d(*arguments, **options)
        assert caught.value.argument == argument
    with pytest.raises(NotApplicableError, match="not adjacent"):
        filters.conv2d(x[:, :, :, ::2], method="two_passes")
    assert np.allclose(filters.conv2d(x[:, :, :, ::2]), filters.conv2d(x[:, :, :, ::2].copy()))
    plan = filters.plan(x.shape)
    with pytest.raises(ArgumentError):
        plan.bind(np.ones(2, "f4"))
    with pytest.raises(ArgumentError):
        filters.plan(x.shape, bias=True, method="two_passes").bind()
    wide = separable(np.random.default_rng(0).standard_normal((4, 1, 20, 20)))
    with pytest.raises(NotApplicableError, match="rank is 20"):
        wide.plan((1, 30, 30, 4), layout="NHWC", method="two_passes")
    with pytest.raises(MemoryLimitError):
        filters.conv2d(x, method="two_passes", memory_limit=1)


@pytest.mark.parametrize("name", ["avx2", "avx512", "neon"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("taps", [3, 7, 11, 15])
def test_code_for_every_target(name: str, layout: str, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes compile; where pixels are adjacent no sum leaves its register in an inner loop on x86."""
    host = Host(TARGETS[name], 32 << 10, 512 << 10, 32 << 20)
    monkeypatch.setattr("leanconv.decomp.passes.this_host", lambda: host)
    shape = (1, 16, 64, 320) if layout == "NCHW" else (1, 64, 320, 16)
    whole = make_problem(2, shape, (16, 1, taps, taps), dtype="float32", padding=taps // 2, groups=16, layout=layout)
    (phase,) = Passes(whole, 1, False, False).plan(2, None).phases
    module = Module()
    phase.spec.emit(module, "kernel")
    busy = [
        loop for loop in innermost_loops(jit.compile_assembly(module.text(), TARGETS[name])) if count_fused(loop) > 3
    ]
    assert busy
    if layout == "NCHW":
        most = 0.3 if name == "neon" else 0.0
        assert all(len(spills(loop)) <= most * count_fused(loop) for loop in busy)


def test_it_is_part_of_the_package() -> None:
    assert leanconv.separable is separable
