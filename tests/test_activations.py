"""Activations and the exponential on vector registers, against float64 on all magnitudes there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kernels import elementwise
from leanconv.kernels.activations import emit_activation, emit_exp
from leanconv.problem import ACTIVATIONS, Activation, numpy_activation

BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])
CASES = [Activation(name, {"clip": (-1.5, 2.25), "leaky_relu": (0.01,)}.get(name, ())) for name in ACTIVATIONS] + [
    Activation("clip", (-math.inf, 0.5)),
    Activation("clip", (0.0, 0.0)),
    Activation("leaky_relu", (-2.0,)),
]
SMOOTH = {"float32": 4e-7, "float64": 1e-14}  # relative to max(1, |x|), as stated
CURVED = ("sigmoid", "silu", "tanh", "gelu")


def everywhere(dtype: str) -> Any:
    """Every magnitude of either sign down to denormals and zero, densely where activations bend."""
    info = np.finfo(dtype)
    small = math.log10(float(info.smallest_subnormal))
    powers = np.logspace(small, math.log10(float(info.max)) - 1e-9, 4001)
    bends = np.concatenate([np.linspace(-8, 8, 20001), np.linspace(-110, 110, 20001), np.linspace(-760, 760, 5001)])
    steps = np.array([0.0, -0.0, 1.0, 3.0, 6.0, float(info.tiny), float(info.max), float(info.eps), 1 / 3])
    values = np.concatenate([powers, -powers, bends, steps, -steps]).astype(dtype)
    near = values[np.abs(values) < 1e3]
    with np.errstate(under="ignore"):
        return np.concatenate([values, np.nextafter(near, np.inf, dtype=dtype)])


@BOTH
@pytest.mark.parametrize("activation", CASES, ids=str)
def test_activations(activation: Activation, dtype: str) -> None:
    x = everywhere(dtype)
    got = elementwise(dtype, lambda fn, v: emit_activation(fn, activation, v))(x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        want = numpy_activation(activation, x.astype(np.float64))
        error = np.abs(got.astype(np.float64) - want)
        finite = np.isfinite(want) & (np.abs(want) <= np.finfo(dtype).max)
        if activation.name in CURVED:
            bound = SMOOTH[dtype] * np.maximum(1.0, np.abs(x.astype(np.float64)))
        elif activation.name in ("hardswish", "hardsigmoid"):
            bound = 2 * np.finfo(dtype).eps * np.maximum(1.0, np.abs(x.astype(np.float64)))
        else:  # a choice, or one product
            bound = np.finfo(dtype).eps * np.abs(want) + float(np.finfo(dtype).smallest_subnormal)
    worst = int(np.argmax(np.where(finite, error - bound, -1.0)))
    assert error[worst] <= bound[worst], f"x={x[worst]!r}: {got[worst]!r}, exactly {want[worst]!r}"
    assert not np.isnan(got).any()


@BOTH
@pytest.mark.parametrize("activation", CASES, ids=str)
def test_activations_of_special_values(activation: Activation, dtype: str) -> None:
    function = elementwise(dtype, lambda fn, v: emit_activation(fn, activation, v))
    got = function(np.array([np.nan, np.inf, -np.inf, 1.0], dtype))
    assert np.isnan(got[0])
    with np.errstate(invalid="ignore"):
        limits = numpy_activation(activation, np.array([np.inf, -1e30]))  # x * 0 of a limit is its value before it
    assert got[1] == limits[0]
    if activation.name in ("silu", "hardswish", "gelu"):
        assert np.isnan(got[2]) or abs(got[2]) < 1e-30  # -inf * 0, or the limit
    else:
        low = numpy_activation(activation, np.array([-np.inf]))[0]
        assert got[2] == low or abs(got[2] - low) < 1e-30
    assert abs(got[3] - numpy_activation(activation, np.ones(1))[0]) <= 4e-7  # a neighbour's NaN stays there


@BOTH
def test_signs_and_saturation(dtype: str) -> None:
    """Results stay in their range: no sigmoid above 1, no tanh beyond it, no relu below 0."""
    x = everywhere(dtype)
    for name, low, high in (
        ("sigmoid", 0, 1),
        ("tanh", -1, 1),
        ("hardsigmoid", 0, 1),
        ("relu", 0, np.inf),
        ("relu6", 0, 6),
    ):
        got = elementwise(dtype, lambda fn, v, name=name: emit_activation(fn, Activation(name), v))(x)
        assert (got >= low).all() and (got <= high).all(), name


@BOTH
def test_monotone_where_it_should_be(dtype: str) -> None:
    x = np.sort(everywhere(dtype))
    for name in ("hardsigmoid", "relu", "relu6"):
        got = elementwise(dtype, lambda fn, v, name=name: emit_activation(fn, Activation(name), v))(x)
        assert (np.diff(got[np.isfinite(got)]) >= 0).all(), name


@BOTH
def test_exponential(dtype: str) -> None:
    """Within two units in the last place where the result is a normal number."""
    low, high = {"float32": (-87.0, 88.0), "float64": (-708.0, 709.0)}[dtype]
    x = np.concatenate([np.linspace(low, high, 100001), np.linspace(-1, 1, 20001), np.logspace(-30, -1, 301)]).astype(
        dtype
    )
    exp = elementwise(dtype, emit_exp)
    got, want = exp(x), np.exp(x.astype(np.longdouble))
    unit = np.spacing(want.astype(dtype)).astype(np.longdouble)
    assert float((np.abs(got.astype(np.longdouble) - want) / unit).max()) <= 2.0
    far = exp(np.array([np.nan, high * 2, np.inf, low * 2, -np.inf], dtype))
    assert np.isnan(far[0])
    assert np.isfinite(far[1:]).all() and (far[1:3] >= exp(np.array([high], dtype)) * 0.99).all()
    assert (far[3:] <= exp(np.array([low], dtype)) * 1.01).all() and (far[3:] >= 0).all()


@BOTH
def test_every_width_computes_the_same(dtype: str) -> None:
    """A vector of any number of lanes, and a single element, give the same bits."""
    x = everywhere(dtype)[:4096]
    for activation in CASES:
        results = [
            elementwise(dtype, lambda fn, v, a=activation: emit_activation(fn, a, v), lanes)(x) for lanes in (2, 4, 8)
        ]
        for result in results[1:]:
            np.testing.assert_array_equal(result.view(np.uint8), results[0].view(np.uint8), err_msg=str(activation))
