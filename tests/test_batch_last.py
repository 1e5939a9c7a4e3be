"""Layouts with the batch last: converters, and every algorithm against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from guard import GuardedAllocator
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.bench import run as bench
from leanconv.bench.layers import Layer
from leanconv.bench.run import Settings
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.layouts import shape_in
from leanconv.options import make_problem
from leanconv.staging import error_bound
from strategies import (
    ALGORITHMS,
    CHANNELS,
    EPILOGUES,
    POINTWISE,
    READ_VIEWS,
    SLOPES,
    WINDOWS,
    WRITE_VIEWS,
    Geometry,
    applies,
    check_untouched,
    is_blas,
    spread,
)

Array = np.ndarray[Any, Any]
NAMES = [algorithm.name for algorithm in REGISTRY]
ENGINE = settings(settings.get_profile("engine"), max_examples=40)
OTHERS = settings(ENGINE, max_examples=10)  # to which these layouts are channels first with an axis more
BATCH_LAST = ("CHWN", "CHWN8")
FLAT = [geometry for geometry in POINTWISE + WINDOWS if len(geometry.kernel) < 3]
SAME = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def options_of(geometry: Geometry, epilogue: dict[str, Any], groups: int, layout: str) -> dict[str, Any]:
    rest = {k: v for k, v in epilogue.items() if k not in ("bias", "residual")}
    g = geometry
    shape = {"stride": g.stride, "padding": g.pads, "dilation": g.dilation, "pad_mode": g.mode}
    return {**shape, "groups": groups, "layout": layout, **rest}


def convolve(w: Array, **arguments: Any) -> Any:
    return (leanconv.conv1d, leanconv.conv2d)[w.ndim - 3](w=w, **arguments)


def check_algorithm(name: str, data: st.DataObject) -> None:
    """Right, for bound and unbound calls, any number of threads, dense arrays and views; with the same bits."""
    draw = data.draw
    geometry = draw(st.sampled_from(FLAT))
    layout, dtype = draw(st.sampled_from(BATCH_LAST)), draw(st.sampled_from(["float32", "float32", "float64"]))
    kind = draw(st.sampled_from(["plain", "plain", "grouped", "depthwise"]))
    groups = 1 if kind == "plain" else draw(st.integers(2, 4))
    group_in = 1 if kind == "depthwise" else draw(st.sampled_from(CHANNELS[:10]))
    group_out = draw(st.integers(1, 2)) if kind == "depthwise" else draw(st.sampled_from(CHANNELS[:12]))
    batch = 8 * draw(st.integers(0, 3)) if layout == "CHWN8" else draw(st.sampled_from([1, 3, 8, 16, 21, 37]))
    size = tuple(n + draw(st.integers(0, 5)) for n in geometry.smallest)
    epilogue = draw(st.sampled_from(EPILOGUES))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    canonical = (batch, groups * group_in, *size)
    w_shape = (groups * group_out, group_in, *geometry.kernel)
    options = options_of(geometry, epilogue, groups, layout)
    flags = {flag: bool(epilogue.get(flag)) for flag in ("bias", "residual")}
    x_shape = shape_in(canonical, layout)
    p = make_problem(len(size), x_shape, w_shape, dtype=dtype, **options, **flags)
    if not applies(name, p):
        return
    values = {"x": rng.standard_normal(x_shape), "w": rng.standard_normal(w_shape)}
    if flags["bias"]:
        values["bias"] = rng.standard_normal(w_shape[:1])
    if flags["residual"]:
        values["residual"] = rng.standard_normal(p.out_shape)
    values = {key: value.astype(dtype) for key, value in values.items()}
    first = wanted = oracle.reference(p, **values)
    size_of_sums = 3 * np.sqrt(np.prod(w_shape[1:])) + 3
    error = max(1e-6 if dtype == "float32" else 1e-14, error_bound(ALGORITHMS[name], p))
    bound = 2 * error * size_of_sums * (SLOPES.get(p.activation.name, 1.0) if p.activation else 1.0)
    if p.activation and p.activation.name in ("sigmoid", "silu", "tanh", "gelu"):
        bound += (4e-7 if dtype == "float32" else 1e-14) * size_of_sums
    views = draw(st.tuples(*[st.sampled_from(READ_VIEWS[:4])] * 3, st.sampled_from(WRITE_VIEWS)))
    for threads, viewed in ((1, False), (2, True), (4, False)):
        how = dict(zip(("x", "w", "residual"), views, strict=False)) if viewed else {}
        inputs = {key: spread(value, how.get(key, "dense"), "right", seed) for key, value in values.items()}
        out = spread(np.full(p.out_shape, np.nan, dtype), views[3] if viewed else "dense", "right", seed, writable=True)
        with GuardedAllocator():
            if threads == 2:
                weights = {key: inputs.pop(key) for key in ("w", "bias") if key in inputs}
                plan = leanconv.plan(x_shape, w_shape, dtype=dtype, **options, **flags, algorithm=name, threads=2)
                got = plan.bind(**weights)(**inputs, out=out)
            else:
                got = convolve(**inputs, **options, algorithm=name, threads=threads, out=out)
        assert got is out
        check_untouched(out)
        assert out.shape == wanted.shape and not np.isnan(out).any()
        assert float(np.abs(out - wanted).max(initial=0)) <= bound
        if not viewed or not is_blas(name):
            assert first is wanted or np.asarray(out).tobytes() == first.tobytes()
            first = np.array(out)


@pytest.mark.parametrize("name", NAMES)
def test_random_convolutions(name: str) -> None:
    @(ENGINE if name in ("direct", "im2win", "im2win_band") else OTHERS)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_algorithm(name, data)

    check()


@pytest.mark.parametrize("layout", BATCH_LAST)
def test_images_are_those_of_channels_first(layout: str) -> None:
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((13, 5, 9, 8)).astype("f"), rng.standard_normal((6, 5, 3, 3)).astype("f")
    turned = leanconv.to_layout(x, "NCHW", layout)
    got = leanconv.conv2d(turned, w, padding=1, stride=2, layout=layout)
    back = leanconv.to_layout(got, layout, "NCHW", batch=13)
    np.testing.assert_allclose(back, leanconv.conv2d(x, w, padding=1, stride=2), rtol=0, atol=2e-5)
    if layout == "CHWN8":
        assert got.shape == (2, 6, 5, 4, 8)
        assert not got[1, ..., 5:].any()  # images that fill the block are zeros, and so are their results


@pytest.mark.parametrize("layout", BATCH_LAST)
def test_the_bench_measures_them(layout: str) -> None:
    layer = Layer("a", 8, 3, (9, 7), 5, (3, 3), (2, 1), ((1, 0), (1, 1)), (1, 1))
    settings = Settings(layouts=(layout,), algorithms=("direct", "mec_rows"), time=0.001, rounds=1)
    rows = bench.run([layer], settings).rows
    assert [(row.layout, row.status) for row in rows] == [(layout, "ok"), (layout, "not applicable")]
    assert rows[0].error is not None and rows[0].error < 1e-6


def test_what_has_no_such_layout_is_told_why() -> None:
    settings = Settings(layouts=("CHWN8",), algorithms=("direct",), time=0.001, rounds=1)
    for layer, reason in (
        (Layer("a", 3, 3, (9, 7), 5, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), "whole blocks of 8 images"),
        (Layer("b", 8, 3, (5,) * 3, 5, (3,) * 3, (1,) * 3, ((1, 1),) * 3, (1,) * 3), "must be one of"),
    ):
        (row,) = bench.run([layer], settings).rows
        assert row.status == "not applicable" and reason in row.reason
    layers = [leanconv.plan(X.shape, W.shape, layout="CHWN", algorithm="direct")]
    assert leanconv.plan_network(layers).steps[0].layout == "CHWN"
    with pytest.raises(ArgumentValueError, match="chain chooses"):
        leanconv.plan_network(layers, chain=True)


def test_auto_weighs_bands_of_images_only_with_the_batch_last() -> None:
    for layout, weighed in (("CHWN", True), ("NHWC", False)):
        found = leanconv.explain(shape_in((32, 3, 20, 20), layout), (24, 3, 3, 3), layout=layout)
        row = next(row for row in found.rows if row.name == "im2win_band")
        assert ("taken by name only" in (row.reason or "")) != weighed
        assert row.predicted_seconds is not None


def test_problems_describe_what_the_user_asked_for() -> None:
    problem = make_problem(2, (3, 9, 8, 20), (6, 3, 3, 3), dtype="float32", padding=1, layout="CHWN")
    assert problem.describe() == "conv2d f32 20x3x9x8 -> 20x6x9x8 k3x3 s1 p1 CHWN"
    assert (problem.x_shape, problem.w_shape, problem.out_shape) == ((3, 9, 8, 20), (6, 3, 3, 3), (6, 9, 8, 20))
    blocked = make_problem(2, (2, 3, 9, 8, 8), (6, 3, 3, 3), dtype="float32", dilation=(1, 2), layout="CHWN8")
    assert blocked.describe() == "conv2d f32 16x3x9x8 -> 16x6x7x4 k3x3 s1 p0 d1x2 CHWN8"
    plain = make_problem(2, (16, 3, 9, 8), (6, 3, 3, 3), dtype="float32", dilation=(1, 2))
    assert blocked.flops == plain.flops


# -- converters --------------------------------------------------------------------------------------------------

LAYOUTS = ("NCHW", "NHWC", *BATCH_LAST)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("batch", [0, 1, 8, 11])
def test_converting_there_and_back(source: str, target: str, spatial: tuple[int, ...], batch: int) -> None:
    x = np.random.default_rng(3).standard_normal((batch, 3, *spatial))
    start = leanconv.to_layout(x, "NCHW", source)
    assert start.shape == shape_in(x.shape, source)
    turned = leanconv.to_layout(start, source, target, batch=batch)
    assert turned.flags.c_contiguous and not np.shares_memory(turned, start)
    np.testing.assert_array_equal(turned, leanconv.to_layout(x, "NCHW", target))
    np.testing.assert_array_equal(leanconv.to_layout(turned, target, "NCHW", batch=batch), x)


def test_where_elements_lie() -> None:
    x = np.arange(11 * 3 * 4 * 5, dtype="float32").reshape(11, 3, 4, 5)
    n, c, h, w = 9, 2, 3, 1
    assert leanconv.to_layout(x, "NCHW", "NHWC")[n, h, w, c] == x[n, c, h, w]
    assert leanconv.to_layout(x, "NCHW", "CHWN")[c, h, w, n] == x[n, c, h, w]
    blocked = leanconv.to_layout(x, "NCHW", "CHWN8")
    assert blocked.shape == (2, 3, 4, 5, 8) and blocked[n // 8, c, h, w, n % 8] == x[n, c, h, w]
    assert not blocked[1, ..., 3:].any()


# -- what is refused ---------------------------------------------------------------------------------------------

X, W = np.zeros((3, 6, 7, 4), "float32"), np.zeros((5, 3, 3, 3), "float32")
BLOCKED = np.zeros((2, 3, 6, 7, 8), "float32")


@pytest.mark.parametrize(
    ("x", "layout", "argument", "rule"),
    [
        (X[0], "CHWN", "x_shape", "4 axes, (C, H, W, N)"),
        (BLOCKED, "CHWN", "x_shape", "4 axes, (C, H, W, N)"),
        (X[..., :0], "CHWN", "x_shape", "extents must be at least 1"),
        (X, "CHWN8", "x_shape", "5 axes, (N/8, C, H, W, 8)"),
        (BLOCKED[..., :7], "CHWN8", "x_shape", "8 images in its last axis; see to_layout"),
        (BLOCKED[:, :, :, :0], "CHWN8", "x_shape", "extents other than the first"),
        (X[:2], "CHWN", "w_shape", "C/groups = 2/1"),
        (X[:, :2, :2], "CHWN", "w_shape", "spans 3 along H"),
        (X, "HWCN", "layout", "'CHWN8'"),
    ],
)
def test_images_that_are_refused(x: Array, layout: str, argument: str, rule: str) -> None:
    with pytest.raises(ArgumentValueError) as caught:
        leanconv.conv2d(x, W, layout=layout)
    assert caught.value.argument == argument
    assert rule in caught.value.rule


def test_results_and_residuals_that_are_refused() -> None:
    for argument, array in (
        ("out", np.zeros((5, 4, 6, 4), "float32")),
        ("residual", np.zeros((5, 4, 6, 4), "float32")),
    ):
        with pytest.raises(ArgumentValueError) as caught:
            leanconv.conv2d(X, W, layout="CHWN", **{argument: array})
        assert caught.value.argument == argument
    with pytest.raises(ArgumentValueError, match="layout"):
        leanconv.conv3d(np.zeros((3, 4, 4, 4, 2), "float32"), np.zeros((1, 3, 2, 2, 2), "float32"), layout="CHWN")
    with pytest.raises(ArgumentValueError, match="x_strides"):
        make_problem(2, X.shape, W.shape, dtype="float32", layout="CHWN", x_strides=(1, 2, 3))
    with pytest.raises(ArgumentValueError, match="residual_strides"):
        make_problem(2, X.shape, W.shape, dtype="float32", layout="CHWN", residual_strides=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"x": X[0, 0]}, "x"),
        ({"x": BLOCKED[..., 0], "source": "CHWN8"}, "x"),
        ({"x": np.zeros((1,) * 6)}, "x"),
        ({"source": "HWCN"}, "source"),
        ({"target": "nchw"}, "target"),
        ({"batch": 5}, "batch"),
        ({"batch": -1}, "batch"),
    ],
)
def test_conversions_that_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentValueError) as caught:
        leanconv.to_layout(**{"x": X, "source": "CHWN", "target": "NCHW", **arguments})
    assert caught.value.argument == argument
    for arguments in ({"x": [1.0]}, {"source": None}, {"target": 3}, {"batch": 1.5}):
        with pytest.raises(ArgumentTypeError):
            leanconv.to_layout(**{"x": X, "source": "CHWN", "target": "NCHW", **arguments})
