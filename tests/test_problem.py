"""Problem: derived numbers, the one-line text, axis orders, activations."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest

from leanconv.options import make_problem
from leanconv.problem import (
    ACTIVATIONS,
    Activation,
    Problem,
    dense_strides,
    numpy_activation,
    to_canonical,
    to_user,
)


def test_derived_numbers_of_a_grouped_strided_layer() -> None:
    p = make_problem(
        2,
        (2, 15, 16, 8),
        (12, 4, 3, 5),
        dtype="float64",
        groups=2,
        stride=(2, 3),
        padding=((1, 0), 2),
        layout="NHWC",
    )
    assert p.in_size == (15, 16)
    assert p.out_size == ((15 + 1 - 3) // 2 + 1, (16 + 4 - 5) // 3 + 1) == (7, 6)
    assert (p.group_in, p.group_out, p.taps, p.itemsize) == (4, 6, 15, 8)
    assert p.x_shape == (2, 15, 16, 8)
    assert p.w_shape == (12, 4, 3, 5)
    assert p.out_shape == (2, 7, 6, 12)
    assert p.flops == 2 * (2 * 12 * 7 * 6) * (4 * 15)
    assert p.x_bytes == 8 * 2 * 15 * 16 * 8
    assert p.w_bytes == 8 * 12 * 15 * 4
    assert p.out_bytes == 8 * 2 * 7 * 6 * 12
    assert p.x_strides == (15 * 16 * 8, 1, 16 * 8, 8)
    assert p.w_strides == (4 * 15, 15, 5, 1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_dense_strides_are_those_of_numpy(ndim: int, layout: str) -> None:
    shape = (2, 3, 4, 5, 6)[: ndim + 2]
    array = np.zeros(to_user(shape, layout), np.float32)
    assert to_user(dense_strides(shape, layout), layout) == tuple(s // 4 for s in array.strides)
    assert to_canonical(to_user(shape, layout), layout) == shape


def test_a_problem_is_a_value() -> None:
    def make() -> Problem:
        return make_problem(2, (1, 4, 5, 6), (8, 4, 3, 3), dtype="float32", activation=("clip", 0, 6))

    p = make()
    assert p == make() and hash(p) == hash(make())
    assert pickle.loads(pickle.dumps(p)) == p
    assert p != dataclasses.replace(p, has_bias=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.batch = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            make_problem(2, (1, 56, 56, 64), (64, 64, 3, 3), dtype="float32", padding=1, layout="NHWC"),
            "conv2d f32 1x64x56x56 -> 1x64x56x56 k3x3 s1 p1 NHWC",
        ),
        (
            make_problem(1, (2, 8, 9), (6, 4, 3), dtype="float64", groups=2, padding=((2, 0),), dilation=2),
            "conv1d f64 2x8x9 -> 2x6x7 k3 s1 p2:0 d2 g2 NCHW",
        ),
        (
            make_problem(
                3,
                (1, 2, 6, 7, 8),
                (4, 2, 1, 3, 3),
                dtype="float32",
                stride=(1, 2, 2),
                padding=(0, 1, 1),
                pad_mode="circular",
                bias=True,
                activation=("leaky_relu", 0.2),
                residual=True,
                residual_order="after",
                x_strides=(0, 336, 56, 8, -1),
            ),
            "conv3d f32 1x2x6x7x8 -> 1x4x6x4x4 k1x3x3 s1x2x2 p0x1x1 NCHW circular strided-x +bias "
            "+leaky_relu(0.2) +residual",
        ),
    ],
)
def test_describe(problem: Problem, text: str) -> None:
    assert problem.describe() == text


# -- activations ---------------------------------------------------------------------------------------------

_DEFINITIONS = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "clip": lambda x: min(max(x, -0.5), 1.5),
    "leaky_relu": lambda x: x if x >= 0 else 0.2 * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hardsigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "tanh": math.tanh,
}
_PARAMS = {"clip": (-0.5, 1.5), "leaky_relu": (0.2,)}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_follows_its_definition(name: str) -> None:
    values = np.linspace(-8, 8, 97).reshape(1, 97)
    result = numpy_activation(Activation(name, _PARAMS.get(name, ())), values)
    assert result.shape == values.shape and result.dtype == np.float64
    expected = [_DEFINITIONS[name](float(x)) for x in values[0]]
    np.testing.assert_allclose(result[0], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_at_the_ends(name: str) -> None:
    values = np.array([-1e6, -800.0, 0.0, 800.0, 1e6, np.nan])
    result = numpy_activation(Activation(name, _PARAMS.get(name, ())), values)
    assert np.isfinite(result[:-1]).all() and np.isnan(result[-1])
    assert numpy_activation(Activation(name, _PARAMS.get(name, ())), np.empty((0, 3))).shape == (0, 3)


def test_gelu_and_silu_keep_the_digits_of_small_results() -> None:
    (gelu,) = numpy_activation(Activation("gelu"), np.array([-10.0]))
    (silu,) = numpy_activation(Activation("silu"), np.array([-100.0]))
    assert gelu == pytest.approx(-7.619853024160526e-23, rel=1e-12)
    assert silu == pytest.approx(-100 * math.exp(-100), rel=1e-12)
