"""What a call means besides its numbers: where NaN goes, which memory is shared, and what a bound plan remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import leanconv
from guard import guarded_copy
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError
from leanconv.options import make_problem
from strategies import applies

F32 = np.float32
NAMES = [algorithm.name for algorithm in REGISTRY]
EACH = pytest.mark.parametrize("name", NAMES)
RNG = np.random.default_rng(7)


# Winograd mixes the pixels of a tile: an infinity or a NaN among them leaves no output of that tile a number.
MIXES = {algorithm.name for algorithm in REGISTRY if algorithm.error_class == "transformed"}
TILE = 6  # the most outputs of one tile along an axis


def randn(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F32)


def arrays(name: str, layout: str | None = None, batch: int = 2, groups: int = 1) -> tuple[Any, Any, dict[str, Any]]:
    """An image, weights and options that an algorithm accepts: 3x3 with padding, or 1x1 or other groups if need be."""
    padded = {"padding": ((1, 2), (0, 1)), "stride": (1, 2)}
    for order in ("NCHW", "NHWC") if layout is None else (layout,):
        x = randn(batch, 8, 9, 10) if order == "NCHW" else randn(batch, 9, 10, 8)
        for filters, taps, number, options in (
            (12, 3, groups, padded),
            (12, 3, groups, {"padding": ((1, 2), (0, 2))}),
            (12, 1, groups, {}),
            (8 * groups, 3, 8, padded),
            (12, 3, 2, padded),
        ):
            w = randn(filters, 8 // number, taps, taps)
            options = {**options, "layout": order, "groups": number}
            if applies(name, make_problem(2, x.shape, w.shape, dtype=F32, **options)):
                return x, w, options
    pytest.skip(f"{name} refuses {layout}")


def exact(x: Any, w: Any, bias: Any = None, residual: Any = None, **options: Any) -> Any:
    problem = make_problem(
        2, x.shape, w.shape, dtype=x.dtype, bias=bias is not None, residual=residual is not None, **options
    )
    return oracle.reference(problem, x, w, bias, residual)


def close(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a) - b).max() <= 1e-5 * max(1.0, np.abs(b).max()))


# -- not a number, and infinity -------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_reach_their_windows_only(name: str, layout: str, groups: int, value: float) -> None:
    x, w, options = arrays(name, layout, groups=groups)
    plain = leanconv.conv2d(x, w, algorithm=name, **options)
    bound = leanconv.plan(x.shape, w.shape, algorithm=name, **options).bind(w)
    for _ in range(12):
        at = tuple(int(RNG.integers(n)) for n in x.shape)
        spoilt = x.copy()
        spoilt[at] = value
        with np.errstate(invalid="ignore"):
            want = exact(spoilt, w, **options)
        got = bound(spoilt)
        reached = ~np.isfinite(want)
        if name in MIXES:
            lost = ~np.isfinite(got)
            assert lost[reached].all() and not lost[~near(reached, layout)].any()
            continue
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[reached], want[reached].astype(F32))
        np.testing.assert_array_equal(got[~reached], plain[~reached])


def near(reached: Any, layout: str) -> Any:
    """The outputs that share a tile with one that is reached, at the most."""
    result = reached.copy()
    for axis in (2, 3) if layout == "NCHW" else (1, 2):
        for shift in range(1, TILE):
            for step in (shift, -shift):
                result |= np.roll(reached, step, axis)
        reached = result.copy()
    return result


def nan_alike(name: str, got: Any, want: Any) -> None:
    """NaN stands where it should; of an algorithm that mixes pixels, there at least."""
    if name in MIXES:
        assert np.isnan(got)[np.isnan(want)].all() and not np.isnan(got).all()
    else:
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@EACH
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_special_values_under_other_pad_modes(name: str, mode: str) -> None:
    x, w, options = arrays(name)
    if "padding" not in options:
        pytest.skip("takes no padding")
    options["pad_mode"] = mode
    if not applies(name, make_problem(2, x.shape, w.shape, dtype=F32, **options)):
        pytest.skip(f"refuses {mode}")
    x[1, 3, 0, -1] = np.nan
    nan_alike(name, leanconv.conv2d(x, w, algorithm=name, **options), exact(x, w, **options))


@EACH
@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "silu", "hardswish", "hardsigmoid", "gelu", "tanh"])
def test_activations_keep_nan(name: str, activation: str) -> None:
    x, w, options = arrays(name)
    x[0, 2, 4, 4] = np.nan
    got = leanconv.conv2d(x, w, activation=activation, algorithm=name, **options)
    nan_alike(name, got, exact(x, w, **options))


def test_limits_beyond_the_element_type() -> None:
    """What float32 cannot hold limits nothing; as an infinite limit does."""
    x, w = randn(1, 4, 6, 6), randn(8, 4, 3, 3)
    want = leanconv.conv2d(x, w)
    for limit in (1e39, 1e300, np.inf):
        np.testing.assert_array_equal(leanconv.conv2d(x, w, activation=("clip", -limit, limit)), want)
    steep = leanconv.conv2d(x, w, activation=("leaky_relu", 1e39))
    np.testing.assert_array_equal(np.isinf(steep), want < 0)


# -- out and residual -----------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("strided", [False, True])
def test_residual_may_be_out_itself(name: str, layout: str, order: str, strided: bool) -> None:
    x, w, options = arrays(name, layout)
    options |= {"activation": "relu", "residual_order": order}
    plan = leanconv.plan(x.shape, w.shape, residual=True, algorithm=name, **options)
    residual = randn(*plan.problem.out_shape)
    want = exact(x, w, None, residual, **options)
    for bound in (False, True):
        room = np.full((*residual.shape[:-1], 2 * residual.shape[-1]), 7.0, F32)
        out = room[..., ::2] if strided else residual.copy()
        out[...] = residual
        if bound:
            result = plan.bind(w)(x, out=out, residual=out)
        else:
            result = leanconv.conv2d(x, w, out=out, residual=out, algorithm=name, **options)
        assert result is out
        assert close(out, want)
        assert (room[..., 1::2] == 7.0).all()


def calls(x: Any, w: Any, **options: Any) -> list[Any]:
    """The same convolution unbound and bound, to be called with out= and residual=."""

    def unbound(**more: Any) -> Any:
        return leanconv.conv2d(x, w, **options, **more)

    def bound(residual: Any = None, **more: Any) -> Any:
        plan = leanconv.plan(x.shape, w.shape, residual=residual is not None, **options)
        return plan.bind(w)(x, residual=residual, **more)

    return [unbound, bound]


def test_overlaps_are_refused() -> None:
    room = randn(4, 8, 10, 10)
    x, w = room[:2], randn(8, 8, 1, 1)
    for call in calls(x, w):
        for out in (room[1:3], room[0:2], room[:2, :, ::-1][:, :, ::-1], x):
            before = room.copy()
            with pytest.raises(ArgumentValueError, match="must not overlap x"):
                call(out=out)
            np.testing.assert_array_equal(room, before)
        assert close(call(out=room[2:]), exact(x, w))
        with pytest.raises(ArgumentValueError, match="residual itself"):
            call(out=room[2:], residual=room[2:][::-1])
    shared = np.zeros(2 * 8 * 100, F32)
    out, residual = shared[:1600].reshape(2, 8, 10, 10), np.zeros(3200, F32)
    for call in calls(x, w):
        call(out=out, residual=residual[1:1601].reshape(2, 8, 10, 10))
        with pytest.raises(ArgumentValueError, match="residual itself"):
            call(out=residual[:1600].reshape(2, 8, 10, 10), residual=residual[1:1601].reshape(2, 8, 10, 10))
    with pytest.raises(ArgumentValueError, match="must not overlap w"):
        leanconv.conv2d(randn(1, 8, 8, 8), room[:, :, :1, :1], out=room[:1, :4, :8, :8])


def test_views_that_interleave_do_not_overlap() -> None:
    room = randn(2, 9, 10, 16)
    x, out, w = room[..., :8], room[..., 8:], randn(8, 8, 1, 1)
    want = exact(x, w, layout="NHWC")
    for call in calls(x, w, layout="NHWC"):
        before = x.copy()
        assert call(out=out) is out
        assert close(out, want)
        np.testing.assert_array_equal(x, before)


def test_outs_that_cannot_be_written() -> None:
    x, w = randn(1, 4, 6, 6), randn(8, 4, 3, 3)
    frozen = np.zeros((1, 8, 4, 4), F32)
    frozen.flags.writeable = False
    for call in calls(x, w):
        for out, kind, rule in (
            (frozen, ArgumentValueError, "must be writable"),
            (np.zeros((1, 8, 4, 5), F32), ArgumentValueError, "must have shape"),
            (np.zeros((8, 4, 4), F32), ArgumentValueError, "must have"),
            (np.zeros((1, 8, 4, 4)), ArgumentTypeError, "element type"),
            (np.broadcast_to(np.zeros((1, 8, 4, 1), F32), (1, 8, 4, 4)), ArgumentValueError, "must"),
            ([[1.0]], ArgumentTypeError, "must be a NumPy array"),
        ):
            with pytest.raises(kind, match=rule):
                call(out=out)
    assert (frozen == 0.0).all()
    image = guarded_copy(x)  # the page is read-only too: nothing writes there
    assert close(leanconv.conv2d(image, w), exact(x, w))


@EACH
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_out_is_what_comes_back(name: str, layout: str) -> None:
    x, w, options = arrays(name, layout)
    want = exact(x, w, **options)
    for call in calls(x, w, algorithm=name, **options):
        for view in (np.s_[:], np.s_[..., ::2], np.s_[:, ::3], np.s_[:, :, 1:]):
            shape = [n * (3 if i == 1 else 2) + (i == 2) for i, n in enumerate(want.shape)]
            room = np.full(shape, 5.0, F32)
            out = room[view][tuple(map(slice, want.shape))]
            assert call(out=out) is out
            assert close(out, want)
            out[...] = 5.0
            assert (room == 5.0).all()
        assert call().flags.c_contiguous


# -- single images, empty batches ------------------------------------------------------------------------------------


def test_single_images() -> None:
    x, w, b = randn(4, 7, 8), randn(6, 4, 3, 3), randn(6)
    residual = randn(6, 5, 6)
    want = exact(x[None], w, b, residual[None])[0]
    assert close(leanconv.conv2d(x, w, b, residual=residual), want)
    out = np.empty((6, 5, 6), F32)
    assert leanconv.conv2d(x, w, b, residual=residual, out=out) is out
    assert close(out, want)
    assert leanconv.conv1d(randn(3, 9), randn(2, 3, 3)).shape == (2, 7)
    assert leanconv.conv3d(randn(5, 5, 5, 3), randn(2, 3, 1, 2, 3), layout="NHWC").shape == (5, 4, 3, 2)
    two = np.repeat(residual[None], 2, axis=0)
    with pytest.raises(ArgumentError):
        leanconv.conv2d(x, w, residual=two)
    with pytest.raises(ArgumentError):
        leanconv.conv2d(x, w, out=two)


@EACH
def test_empty_batches(name: str) -> None:
    x, w, options = arrays(name, batch=0)
    plan = leanconv.plan(x.shape, w.shape, algorithm=name, **options)
    shape = plan.problem.out_shape
    assert shape[0] == 0
    out = np.empty(shape, F32)
    for result in (plan.bind(w)(x), leanconv.conv2d(x, w, algorithm=name, **options)):
        assert result.shape == shape and result.dtype == F32
    assert plan.bind(w)(x, out=out) is out
    assert leanconv.conv2d(x, w, out=out, algorithm=name, **options) is out
    with pytest.raises(ArgumentError):
        plan.bind(w)(x[:, :-1])


# -- what is checked at every call -----------------------------------------------------------------------------------


def test_bound_plans_take_only_what_was_planned() -> None:
    x, w, b = randn(1, 4, 6, 6), randn(8, 4, 3, 3), randn(8)
    plan = leanconv.plan(x.shape, w.shape, bias=True)
    for bad in (
        (w[:, :3], b),
        (w.astype(float), b),
        (w, None),
        (w, b[:-1]),
        (w, b.astype(float)),
        (w.tolist(), b),
    ):
        with pytest.raises(ArgumentError):
            plan.bind(*bad)
    bound = plan.bind(w, b)
    for image in (x[0], x[:, :3], x[..., :-1], x.astype(float), x.tolist(), None, x.T):
        with pytest.raises(ArgumentError):
            bound(image)
    with pytest.raises(ArgumentValueError, match="has no residual"):
        bound(x, residual=np.zeros((1, 8, 4, 4), F32))
    with pytest.raises(ArgumentValueError, match="must be given"):
        leanconv.plan(x.shape, w.shape, residual=True).bind(w)(x)
    with pytest.raises(ArgumentValueError, match="has no bias"):
        leanconv.plan(x.shape, w.shape).bind(w, b)


def test_what_was_refused_once_is_refused_again() -> None:
    """Plans of recent calls are found by their options; True equals 1 and 1.0 equals 1, but they are not the same."""
    x, w = randn(1, 4, 6, 6), randn(8, 4, 3, 3)
    leanconv.conv2d(x, w, stride=1, groups=1, padding=0, memory_limit=1 << 30)
    for bad in (
        {"stride": 1.0},
        {"stride": True},
        {"groups": True},
        {"padding": False},
        {"padding": (0, 0.0)},
        {"dilation": 1.0},
        {"memory_limit": float(1 << 30)},
        {"activation": ["clip", 0, [1]]},
        {"threads": 0},
        {"out": np.zeros((1, 8, 4, 4))},
        {"residual": np.zeros((1, 8, 4, 4))},
        {"bias": np.zeros(8)},
    ):
        for _ in range(2):
            with pytest.raises(ArgumentError):
                leanconv.conv2d(x, w, **{"groups": 1, "memory_limit": 1 << 30, **bad})
