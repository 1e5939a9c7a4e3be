"""Tiles whose last register holds its channels of two pixels (AVX-512): the sums of whole registers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import GuardedAllocator
from leanconv.host import this_host
from leanconv.kernels.dense import DenseSpec
from strategies import EPILOGUES, POINTWISE, WINDOWS, WRITE_VIEWS, Case, applies, check_untouched, convolve

ENGINE = settings(settings.get_profile("engine"), max_examples=60)


@st.composite
def half_empty(draw: st.DrawFn, name: str) -> Case:
    """Output channels that leave half of the last register, or more, empty on AVX-512."""
    geometry = draw(st.sampled_from(POINTWISE if name == "pointwise" else POINTWISE + WINDOWS))
    size = tuple(n + draw(st.integers(0, 9)) for n in geometry.smallest)
    groups, group_in = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 3, 8, 17, 40, 300]))
    dtype = draw(st.sampled_from(["float32", "float32", "float64"]))
    lanes = 8 if dtype == "float64" else 16
    group_out = draw(st.integers(1, 4)) * lanes + draw(st.integers(1, lanes // 2))
    return Case(
        (draw(st.integers(1, 3)), groups * group_in, *size),
        (groups * group_out, group_in, *geometry.kernel),
        geometry,
        groups,
        dtype=dtype,
        layout=draw(st.sampled_from(["NHWC", "NHWC", "NCHW"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        views=("dense", "dense", "dense", draw(st.sampled_from(WRITE_VIEWS))),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("name", ["pointwise", "direct", "im2row", "indirect"])
def test_two_pixels_share_a_register(name: str) -> None:
    @ENGINE
    @given(half_empty(name))
    def check(case: Case) -> None:
        if not applies(name, case.problem):
            return
        inputs, out = case.guarded_inputs(viewed=True), case.guarded_out(viewed=True)
        with GuardedAllocator(case.flush):
            convolve(case, inputs, algorithm=name, threads=case.threads, out=out)
        case.check(out, name)
        check_untouched(out)
        if name not in (
            "im2row",
            "indirect",
        ):  # a limit of nothing leaves no gaps in the weights: those registers are whole
            whole = convolve(case, inputs, algorithm=name, threads=1, memory_limit=0)
            np.testing.assert_array_equal(out, whole)

    check()


def test_they_do_where_registers_have_masks() -> None:
    case = Case((1, 96, 9, 9), (24, 96, 1, 1), POINTWISE[1], layout="NHWC")
    spec = case.plan("pointwise").lowering.phases[0].spec
    assert isinstance(spec, DenseSpec)
    assert spec.pairs == (this_host().target.lanes("float32") == 16)
