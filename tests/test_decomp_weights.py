"""Weights that save a step: flipped, shuffled, two layers in one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from leanconv.decomp import flipped, fuse_filters, shuffle_channels, shuffle_inputs
from leanconv.errors import ArgumentError

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=40)
RUN = {1: leanconv.conv1d, 2: leanconv.conv2d, 3: leanconv.conv3d}


def shuffled(x: Array, groups: int) -> Array:
    """The definition of a channel shuffle: (N, C, ...)."""
    n, c, *size = x.shape
    return x.reshape(n, groups, c // groups, *size).swapaxes(1, 2).reshape(x.shape)


def test_convolution_flips() -> None:
    rng = np.random.default_rng(0)
    row, w = rng.standard_normal(20), rng.standard_normal(5)
    found = leanconv.conv1d(row[None, None], flipped(w[None, None]), padding=4)
    assert np.allclose(found[0, 0], np.convolve(row, w))
    filter_ = rng.standard_normal((3, 4))
    assert (flipped(filter_) == filter_[::-1, ::-1]).all()
    dense = rng.standard_normal((2, 3, 2, 3, 4)).astype("f4")
    assert (flipped(dense) == dense[:, :, ::-1, ::-1, ::-1]).all() and flipped(dense).flags.c_contiguous
    assert (leanconv.flipped(flipped(dense)) == dense).all()
    with pytest.raises(ArgumentError):
        flipped(np.ones(3))


@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
def test_shuffles_run_in_the_weights(groups: int) -> None:
    rng = np.random.default_rng(groups)
    x = rng.standard_normal((2, 5, 6, 7))
    before, bias = rng.standard_normal((12, 5, 1, 1)), rng.standard_normal(12)
    behind, depthwise = rng.standard_normal((4, 12, 3, 3)), rng.standard_normal((12, 1, 3, 3))
    middle = leanconv.conv2d(x, before, bias)
    want = shuffled(middle, groups)
    w, b = shuffle_channels(before, groups, bias=bias)
    assert np.allclose(leanconv.conv2d(x, w, b), want)
    assert np.allclose(leanconv.conv2d(x, shuffle_channels(before, groups)), want - b[:, None, None])
    assert np.allclose(leanconv.conv2d(middle, shuffle_inputs(behind, groups)), leanconv.conv2d(want, behind))
    # A depthwise layer behind the shuffle takes its filters along, and its outputs are shuffled later.
    kept = leanconv.conv2d(middle, shuffle_inputs(depthwise, groups), groups=12)
    assert np.allclose(shuffled(kept, groups), leanconv.conv2d(want, depthwise, groups=12))
    # Within the groups of a grouped layer there is nothing to refuse.
    assert (leanconv.shuffle_channels(before, 12, groups=4) == before).all()


W = np.ones((6, 4, 1, 1))


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("w", (np.ones(6), 2), {}),
        ("shuffle", (W, 4), {}),
        ("shuffle", (W, 0), {}),
        ("groups", (W, 2), {"groups": 4}),
        ("groups", (W, 2), {"groups": 2}),
        ("bias", (W, 2), {"bias": np.ones(5)}),
        ("bias", (W, 2), {"bias": np.ones(6, "f4")}),
    ],
)
def test_errors_of_shuffles(argument: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        shuffle_channels(*arguments, **options)
    assert caught.value.argument == argument


def test_errors_of_shuffled_inputs() -> None:
    for w, shuffle in ((np.ones((2, 6, 3)), 4), (np.ones(3), 1), (np.ones((6, 1, 3)), 4)):
        with pytest.raises(ArgumentError):
            shuffle_inputs(w, shuffle)


@st.composite
def chains(draw: st.DrawFn) -> tuple[int, dict[str, Any], dict[str, Any], tuple[int, ...], bool, int]:
    ndim, pads = draw(st.sampled_from([1, 2, 2, 3])), st.integers(0, 2)

    def layer(padded: bool) -> dict[str, Any]:
        return {
            "kernel": tuple(draw(st.integers(1, 3)) for _ in range(ndim)),
            "stride": tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(ndim)),
            "dilation": tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(ndim)),
            "padding": tuple(draw(st.tuples(pads, pads)) if padded else (0, 0) for _ in range(ndim)),
        }

    first, second = layer(True), layer(False)
    spans = [
        d1 * (r1 - 1) + s * d2 * (r2 - 1) + 1
        for r1, r2, s, d1, d2 in zip(
            first["kernel"], second["kernel"], first["stride"], first["dilation"], second["dilation"], strict=True
        )
    ]
    size = tuple(n + draw(st.integers(0, 6)) for n in spans)
    return ndim, first, second, size, draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


@ENGINE
@given(chains())
def test_two_layers_are_one(
    chain: tuple[int, dict[str, Any], dict[str, Any], tuple[int, ...], bool, int],
) -> None:
    ndim, first, second, size, biased, seed = chain
    rng, run = np.random.default_rng(seed), functools.partial(RUN[ndim], algorithm="reference")
    x = rng.standard_normal((2, 3, *size))
    w1, w2 = rng.standard_normal((4, 3, *first["kernel"])), rng.standard_normal((5, 4, *second["kernel"]))
    b1, b2 = (rng.standard_normal(4), rng.standard_normal(5)) if biased else (None, None)
    names = ("stride", "padding", "dilation")
    middle = run(x, w1, b1, **{name: first[name] for name in names})
    want = run(middle, w2, b2, **{name: second[name] for name in names})
    fused = fuse_filters(
        w1,
        w2,
        strides=(first["stride"], second["stride"]),
        dilations=(first["dilation"], second["dilation"]),
        paddings=(first["padding"], second["padding"]),
        biases=(b1, b2),
    )
    found = run(x, **fused.arguments)
    assert found.shape == want.shape and np.allclose(found, want, atol=1e-11)


def test_only_borders_differ() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 2, 20, 21)).astype("f4")
    w1, w2 = rng.standard_normal((3, 2, 3, 3)).astype("f4"), rng.standard_normal((4, 3, 5, 3)).astype("f4")
    want = leanconv.conv2d(leanconv.conv2d(x, w1, padding=1), w2, padding=(2, 1))
    with pytest.raises(ArgumentError, match="edges=True"):
        fuse_filters(w1, w2, paddings=(1, (2, 1)))
    fused = leanconv.fuse_filters(w1, w2, paddings=(1, (2, 1)), edges=True)
    assert fused.w.shape == (4, 2, 7, 5) and fused.padding == ((3, 3), (2, 2)) and fused.bias is None
    found = leanconv.conv2d(x, **fused.arguments)
    assert found.shape == want.shape and fused.w.dtype == np.float32
    assert np.allclose(found[:, :, 2:-2, 1:-1], want[:, :, 2:-2, 1:-1], atol=1e-4)
    assert not np.allclose(found, want, atol=1e-4)


ONE, TWO = np.ones((3, 2, 3, 3)), np.ones((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("first", (np.ones(3), TWO), {}),
        ("second", (ONE, np.ones((4, 2, 3, 3))), {}),
        ("second", (ONE, np.ones((4, 3, 3))), {}),
        ("second", (ONE, TWO.astype("f4")), {}),
        ("strides", (ONE, TWO), {"strides": 1}),
        ("strides", (ONE, TWO), {"strides": (0, 1)}),
        ("dilations", (ONE, TWO), {"dilations": (1, 1, 1)}),
        ("paddings", (ONE, TWO), {"paddings": ("same", 0)}),
        ("paddings", (ONE, TWO), {"paddings": ((1, 1, 1), 0)}),
        ("biases[1]", (ONE, TWO), {"biases": (None, np.ones(3))}),
        ("edges", (ONE, TWO), {"paddings": (0, 1), "edges": "yes"}),
    ],
)
def test_errors_of_chains(argument: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        fuse_filters(*arguments, **options)
    assert caught.value.argument == argument
