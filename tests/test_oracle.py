"""The oracle against loops over single numbers, against SciPy, and against facts one can check by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.options import make_problem
from leanconv.oracle import reference
from leanconv.problem import Problem, numpy_activation, to_canonical, to_user


def source(position: int, size: int, mode: str) -> int | None:
    """Return the image element that padding repeats at a position, None for a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position % size
    return -position if position < 0 else 2 * (size - 1) - position


def naive(p: Problem, x: Any, w: Any, bias: Any, residual: Any) -> Any:
    """One output number at a time, one product at a time; indices in the user's axis order."""
    out = np.zeros(p.out_shape)
    for n, k, *place in itertools.product(*map(range, (p.batch, p.out_channels, *p.out_size))):
        total = 0.0
        for c, *tap in itertools.product(*map(range, (p.group_in, *p.kernel))):
            pixel = [
                source(q * s + t * d - low, size, p.pad_mode)
                for q, s, t, d, low, size in zip(place, p.stride, tap, p.dilation, p.pad_low, p.in_size, strict=True)
            ]
            if None not in pixel:
                channel = (k // p.group_out) * p.group_in + c
                at_x = to_user((n, channel, *(i or 0 for i in pixel)), p.layout)
                total += float(x[at_x]) * float(w[(k, c, *tap)])
        here = to_user((n, k, *place), p.layout)
        total += 0.0 if bias is None else float(bias[k])
        if p.residual == "before":
            total += float(residual[here])
        if p.activation is not None:
            total = float(numpy_activation(p.activation, np.array(total)))
        if p.residual == "after":
            total += float(residual[here])
        out[here] = total
    return out


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    ndim = draw(st.integers(1, 3))
    longest = {1: 7, 2: 5, 3: 4}[ndim]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, dilation, size = each(1, 3), each(1, 2), each(3, longest)
    groups = draw(st.integers(1, 2))
    group_in, group_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    # At least as much padding as makes the kernel fit; at most 2, which every padding mode allows.
    pads = tuple(
        (draw(st.integers(0, 2)), draw(st.integers(max(0, min(2, d * (k - 1) + 1 - n)), 2)))
        for k, d, n in zip(kernel, dilation, size, strict=True)
    )
    layout = draw(st.sampled_from(["NCHW", "NHWC"]))
    return make_problem(
        ndim,
        to_user((draw(st.integers(0, 2)), groups * group_in, *size), layout),
        (groups * group_out, group_in, *kernel),
        dtype="float64",
        stride=each(1, 3),
        padding=pads,
        dilation=dilation,
        groups=groups,
        layout=layout,
        pad_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from([None, "relu", "tanh", ("clip", -0.5, 0.5)])),
        residual=draw(st.booleans()),
        residual_order=draw(st.sampled_from(["before", "after"])),
    )


@given(p=problems(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_agrees_with_scalar_loops(p: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(p.x_shape), rng.standard_normal(p.w_shape)
    bias = rng.standard_normal(p.out_channels) if p.has_bias else None
    residual = rng.standard_normal(p.out_shape) if p.residual else None
    result = reference(p, x, w, bias, residual)
    assert result.shape == p.out_shape and result.dtype == np.float64 and result.flags.c_contiguous
    np.testing.assert_allclose(result, naive(p, x, w, bias, residual), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("padding", "mode"), [("valid", "valid"), ("same", "same")])
def test_agrees_with_scipy(ndim: int, padding: str, mode: str) -> None:
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(ndim)
    x = rng.standard_normal((2, 3, *(6, 7, 8)[:ndim]))
    w = rng.standard_normal((4, 3, *(3, 5, 3)[:ndim]))
    p = make_problem(ndim, x.shape, w.shape, dtype="float64", padding=padding)
    expected = [[sum(signal.correlate(x[n, c], w[k, c], mode) for c in range(3)) for k in range(4)] for n in range(2)]
    np.testing.assert_allclose(reference(p, x, w), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("pad_mode", "expected"),
    [
        ("zeros", [0, 0, 1, 2, 3, 0, 0]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1]),
        ("replicate", [1, 1, 1, 2, 3, 3, 3]),
        ("circular", [2, 3, 1, 2, 3, 1, 2]),
    ],
)
def test_what_padding_holds(pad_mode: str, expected: list[int]) -> None:
    p = make_problem(1, (1, 1, 3), (1, 1, 1), dtype="float32", padding=2, pad_mode=pad_mode)
    x = np.array([[[1, 2, 3]]], np.float32)
    assert reference(p, x, np.ones((1, 1, 1), np.float32)).ravel().tolist() == expected


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    x, w, b = torch.randn(2, 6, 9, 10).double(), torch.randn(8, 3, 3, 2).double(), torch.randn(8).double()
    options: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 3), "groups": 2}
    p = make_problem(2, x.shape, w.shape, dtype="float64", bias=True, activation="gelu", **options)
    expected = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, w, b, **options))
    np.testing.assert_allclose(reference(p, x.numpy(), w.numpy(), b.numpy()), expected, atol=1e-12)
    same = make_problem(2, x.shape, w.shape, dtype="float64", padding="same", groups=2, dilation=(2, 3))
    expected = torch.nn.functional.conv2d(x, w, padding="same", groups=2, dilation=(2, 3))
    np.testing.assert_allclose(reference(same, x.numpy(), w.numpy()), expected, atol=1e-12)


def test_memory_order_and_element_type_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 9, 10, 8)).astype(np.float32)[:, ::-1, ::2, ::2]
    w = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    p = make_problem(2, x.shape, w.shape, dtype="float32", layout="NHWC", padding=1)
    result = reference(p, x, w)
    np.testing.assert_array_equal(result, reference(p, x.astype(np.float64), np.asfortranarray(w)))
    first = make_problem(2, to_canonical(x.shape, "NHWC"), w.shape, dtype="float32", padding=1)
    moved = reference(first, np.moveaxis(x, -1, 1), w)
    np.testing.assert_array_equal(result, np.moveaxis(moved, 1, -1))
