"""What functions take by keyword: shown in their signatures, and refused by name where unknown."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import leanconv
from leanconv.keywords import CallOptions

X, W = (1, 4, 8, 8), (4, 4, 3, 3)
IMAGE, WEIGHTS = np.ones(X, np.float32), np.ones(W, np.float32)

CALLS = {
    "conv2d": lambda **more: leanconv.conv2d(IMAGE, WEIGHTS, **more),
    "conv_transpose2d": lambda **more: leanconv.conv_transpose2d(IMAGE, WEIGHTS, **more),
    "conv2d_backward_data": lambda **more: leanconv.conv2d_backward_data(IMAGE[..., 2:, 2:], WEIGHTS, X, **more),
    "conv2d_backward_weights": lambda **more: leanconv.conv2d_backward_weights(IMAGE, IMAGE[..., 2:, 2:], W, **more),
    "plan_transpose": lambda **more: leanconv.plan_transpose(X, W, **more),
    "plan_backward_data": lambda **more: leanconv.plan_backward_data(X, W, **more),
    "plan_backward_weights": lambda **more: leanconv.plan_backward_weights(X, W, **more),
    "explain": lambda **more: leanconv.explain(X, W, **more),
    "algorithms": lambda **more: leanconv.algorithms(X, W, **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_option_is_named(name: str) -> None:
    with pytest.raises(leanconv.ArgumentTypeError) as caught:
        CALLS[name](strides=2)
    assert caught.value.argument == "strides"
    assert "did you mean stride?" in str(caught.value)
    with pytest.raises(leanconv.ArgumentTypeError, match="the options are ") as caught:
        CALLS[name](colour="red")
    assert caught.value.argument == "colour"


@pytest.mark.parametrize("name", CALLS)
def test_what_the_signature_shows_is_taken(name: str) -> None:
    signature = inspect.signature(getattr(leanconv, name))
    shown = [entry for entry in signature.parameters.values() if entry.kind is entry.KEYWORD_ONLY]
    assert len(shown) >= 6
    assert all(entry.kind is not entry.VAR_KEYWORD for entry in signature.parameters.values())
    # Each at the default that is shown; an output padding belongs to another direction than explain's default.
    CALLS[name](**{entry.name: entry.default for entry in shown if entry.name != "output_padding"})


def test_conv2d_shows_every_option_with_its_type() -> None:
    signature = inspect.signature(leanconv.conv2d)
    assert set(CallOptions.__annotations__) < set(signature.parameters)
    assert str(signature.parameters["layout"]) == "layout: 'str' = 'NCHW'"


def test_a_gradient_has_no_pad_mode() -> None:
    assert "pad_mode" not in inspect.signature(leanconv.conv2d_backward_data).parameters
    with pytest.raises(leanconv.ArgumentValueError, match="pad_mode"):
        leanconv.conv2d_backward_data(IMAGE[..., 2:, 2:], WEIGHTS, X, pad_mode="reflect")
