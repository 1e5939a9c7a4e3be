"""make_problem: the spellings users may choose, and that equal problems are equal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from leanconv.errors import ArgumentValueError
from leanconv.options import make_problem
from leanconv.problem import Activation, Problem

X, W = (2, 4, 9, 10), (8, 4, 3, 3)


def make(x_shape: Any = X, w_shape: Any = W, **options: Any) -> Problem:
    return make_problem(len(x_shape) - 2, x_shape, w_shape, **{"dtype": "float32", **options})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"stride": 2}, {"stride": (2, 2)}),
        ({"stride": 2}, {"stride": [np.int64(2), np.int32(2)]}),
        ({"padding": 1}, {"padding": (1, 1)}),
        ({"padding": 1}, {"padding": ((1, 1), (1, 1))}),
        ({"padding": 1}, {"padding": [1, [1, 1]]}),
        ({"padding": 1}, {"padding": "same"}),
        ({}, {"padding": "valid"}),
        ({}, {"pad_mode": "reflect"}),
        ({}, {"dtype": np.float32}),
        ({}, {"dtype": np.dtype("f4")}),
        ({"dtype": "float64"}, {"dtype": float}),
        ({}, {"groups": np.int64(1)}),
        ({}, {"x_strides": (360, 90, 10, 1)}),
        ({}, {"residual": None, "residual_order": "after"}),
        ({"residual": True}, {"residual": True, "residual_order": "after"}),
        ({"activation": "relu"}, {"activation": ("relu",)}),
        ({"activation": "relu"}, {"activation": Activation("relu")}),
        ({"activation": "leaky_relu"}, {"activation": ["leaky_relu", 0.01]}),
        ({"activation": ("clip", 0, 6)}, {"activation": ("clip", np.float32(0), 6.0)}),
    ],
)
def test_spellings_of_one_problem(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert make(**one) == make(**other)
    assert hash(make(**one)) == hash(make(**other))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": ((0, 1), 0)},
        {"dilation": 2},
        {"layout": "NHWC"},
        {"dtype": "float64"},
        {"bias": True},
        {"activation": "relu"},
        {"residual": True},
        {"x_strides": (720, 180, 20, 2)},
        {"out_strides": (1, 112, 16, 2)},
    ],
)
def test_other_problems_differ(options: dict[str, Any]) -> None:
    shapes = ((2, 9, 10, 4), W) if "layout" in options else (X, W)
    assert make(*shapes, **options) != make()


@pytest.mark.parametrize(
    ("layouts", "x_shape", "w_shape"),
    [
        (("NCHW", "NCW", "NCL"), (2, 4, 9), (8, 4, 3)),
        (("NHWC", "NWC", "NLC"), (2, 9, 4), (8, 4, 3)),
        (("NCHW", "NCDHW"), (2, 4, 9, 9, 9), (8, 4, 3, 3, 3)),
        (("NHWC", "NDHWC"), (2, 9, 9, 9, 4), (8, 4, 3, 3, 3)),
    ],
)
def test_names_of_layouts(layouts: tuple[str, ...], x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
    problems = {make(x_shape, w_shape, layout=layout) for layout in layouts}
    assert len(problems) == 1
    assert problems.pop().layout == layouts[0]


def test_the_defaults_of_activations_and_their_order() -> None:
    assert make(activation="leaky_relu").activation == Activation("leaky_relu", (0.01,))
    assert make(activation="relu", residual=True).residual == "before"
    assert make(activation="relu", residual=True, residual_order="after").residual == "after"
    assert make().residual is None and make().residual_strides is None


def test_an_empty_batch_is_a_problem_with_an_empty_result() -> None:
    p = make((0, 4, 9, 10), x_strides=(7, 7, 7, 7), out_strides=(0, 0, 0, 0))
    assert p == make((0, 4, 9, 10))
    assert p.out_shape == (0, 8, 7, 8)
    assert p.flops == p.x_bytes == p.out_bytes == 0


def test_strides_of_single_elements_and_dilation_of_single_taps_mean_nothing() -> None:
    assert make((1, 4, 9, 1), (8, 4, 3, 1), x_strides=(-5, 9, 1, 77)) == make((1, 4, 9, 1), (8, 4, 3, 1))
    assert make((1, 4, 9, 5), (8, 4, 1, 1), w_strides=(4, 1, 0, -1), dilation=3) == make((1, 4, 9, 5), (8, 4, 1, 1))


def test_strides_are_given_in_the_users_axis_order_and_kept_in_canonical_order() -> None:
    x = np.zeros((2, 9, 10, 8), np.float32)[:, ::-1, ::2, ::2]
    strides = tuple(s // 4 for s in x.strides)
    p = make((2, 9, 5, 4), W, layout="NHWC", x_strides=strides, w_strides=(9, 72, -3, 1))
    assert p.w_strides == (9, 72, -3, 1)
    assert p.x_strides == (720, 2, -80, 16)
    broadcast = make(x_strides=(0, 0, 10, 1), residual=True, residual_strides=(0, 0, 0, -1))
    assert broadcast.x_strides == (0, 0, 10, 1)
    assert broadcast.residual_strides == (0, 0, 0, -1)


def test_padding_same_on_an_even_kernel_puts_the_odd_element_at_the_end() -> None:
    p = make(w_shape=(8, 4, 2, 4), padding="same", dilation=(3, 1))
    assert (p.pad_low, p.pad_high) == ((1, 1), (2, 2))
    assert p.out_size == p.in_size


@given(n=st.integers(1, 40), k=st.integers(1, 7), stride=st.integers(1, 5), dilation=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_padding_same_covers_the_input_with_the_least_padding(n: int, k: int, stride: int, dilation: int) -> None:
    p = make((1, 1, n), (1, 1, k), padding="same", stride=stride, dilation=dilation)
    (low,), (high,), (q,) = p.pad_low, p.pad_high, p.out_size
    assert q == math.ceil(n / stride)
    assert high - low in (0, 1)
    if low + high:  # one element less would lose an output
        assert low + high + n == (q - 1) * stride + p.dilation[0] * (k - 1) + 1


@given(
    n=st.integers(1, 30),
    k=st.integers(1, 5),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 4),
    pads=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
@settings(max_examples=150, deadline=None)
def test_the_output_has_one_element_for_each_place_the_kernel_fits(
    n: int, k: int, stride: int, dilation: int, pads: tuple[int, int]
) -> None:
    starts = range(-pads[0], n + pads[1], stride)
    fits = [start for start in starts if start + dilation * (k - 1) < n + pads[1]]
    try:
        p = make((1, 1, n), (1, 1, k), padding=(pads,), stride=stride, dilation=dilation)
    except ArgumentValueError:
        assert not fits
    else:
        assert p.out_size == (len(fits),)


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    strides=st.tuples(*[st.integers(-3, 20)] * 3),
)
@settings(max_examples=300, deadline=None)
def test_accepted_output_strides_give_every_element_its_own_memory(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    n, k, q = shape
    try:
        p = make((n, 1, q), (k, 1, 1), out_strides=strides)
    except ArgumentValueError as error:
        assert error.argument == "out_strides"
        return
    places = as_strided(np.arange(200), shape, [8 * s for s in p.out_strides])
    assert len(np.unique(places)) == n * k * q


def test_outputs_may_be_slices_and_transposes() -> None:
    whole = np.zeros((4, 8, 14, 20), np.float32)
    for out in (
        whole[:2, :, :7, :8],
        whole[::2, :, ::2, 1:17:2],
        whole[:2, :, :7].transpose(0, 1, 2, 3)[..., :8],
    ):
        make(out_strides=tuple(s // 4 for s in out.strides))
    channels_last = np.zeros((2, 7, 8, 64), np.float32)[..., 8:16].transpose(0, 3, 1, 2)
    assert make(out_strides=tuple(s // 4 for s in channels_last.strides)).out_strides == (3584, 1, 512, 64)
