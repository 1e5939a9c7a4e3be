"""Implicit GEMM: taps that follow each other in the image are packed as one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import GuardedAllocator
from leanconv.algorithms.implicit_gemm import ImplicitGemm
from leanconv.host import this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.micropanels import PackTiles
from leanconv.problem import Problem
from strategies import Case, Geometry, convolve

ENGINE = settings(settings.get_profile("engine"), max_examples=40)


def packing(problem: Problem) -> PackTiles:
    spec = ImplicitGemm().lower(problem, this_host(), 1, None, {}).phases[0].spec
    assert isinstance(spec, DenseSpec) and isinstance(spec.stage, PackTiles)
    return spec.stage


@st.composite
def wide_images(draw: Any) -> Case:
    """Images with tiles inside and at the edges, and channels that leave vectors partly empty."""
    taps = draw(st.tuples(st.integers(1, 4), st.integers(2, 7)))
    pads = tuple((draw(st.integers(0, n // 2)), draw(st.integers(0, n // 2))) for n in taps)
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = (draw(st.integers(taps[0], 9)), draw(st.integers(taps[1] + 16, 70)))
    channels, outputs = draw(st.integers(1, 19)), draw(st.integers(1, 40))
    return Case(
        (draw(st.integers(1, 2)), channels, *size),
        (outputs, channels, *taps),
        Geometry(taps, stride, (1, 1), pads),
        layout="NHWC",
        dtype=draw(st.sampled_from(("float32", "float64"))),
        epilogue={"bias": True},
        seed=draw(st.integers(0, 99)),
    )


@ENGINE
@given(wide_images())
def test_taps_in_one_run(case: Case) -> None:
    lanes = this_host().target.lanes(case.dtype)
    assert packing(case.problem).joint == (case.w_shape[-1] if case.w_shape[1] % lanes else 1)
    with GuardedAllocator(case.flush):
        out = case.guarded_out(viewed=False)
        convolve(case, case.guarded_inputs(viewed=False), algorithm="implicit_gemm", out=out)
    case.check(out, "implicit_gemm")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"channels": 32}, "whole vectors"),
        ({"dilation": 2}, "taps lie apart"),
        ({"groups": 3}, "channels of other groups lie between"),
        ({"layout": "NCHW"}, "channels are not adjacent"),
    ],
)
def test_taps_on_their_own(options: dict[str, Any], why: str) -> None:
    channels, groups, dilation = options.get("channels", 3), options.get("groups", 1), options.get("dilation", 1)
    geometry = Geometry((3, 3), (1, 1), (dilation, dilation), ((1, 1), (1, 1)))
    shape, w_shape = (1, channels, 9, 40), (6, channels // groups, 3, 3)
    case = Case(shape, w_shape, geometry, groups=groups, layout=options.get("layout", "NHWC"))
    assert packing(case.problem).joint == 1, why
    got = convolve(case, case.values, algorithm="implicit_gemm")
    case.check(np.asarray(got), "implicit_gemm")
