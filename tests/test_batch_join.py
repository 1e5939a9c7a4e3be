"""Small images in one tile: the sums of each, bit for bit, in no more memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import GuardedAllocator
from leanconv.algorithms.batchjoin import joined, with_images
from leanconv.host import this_host
from strategies import EPILOGUES, POINTWISE, WINDOWS, WRITE_VIEWS, Case, Geometry, applies, check_untouched, convolve

ENGINE = settings(settings.get_profile("engine"), max_examples=40)
NAMES = ["direct", "pointwise", "direct_band"]
SINGLE = Geometry((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))


@st.composite
def small(draw: st.DrawFn, geometries: list[Geometry]) -> Case:
    """Batches of images with few output pixels."""
    geometry = draw(st.sampled_from(geometries))
    size = tuple(n + draw(st.integers(0, 2)) for n in geometry.smallest)
    groups, group_in = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.sampled_from([1, 3, 8, 17, 300]))
    group_out = draw(st.sampled_from([1, 5, 8, 16, 24, 33]))
    return Case(
        (draw(st.integers(2, 23)), groups * group_in, *size),
        (groups * group_out, group_in, *geometry.kernel),
        geometry,
        groups,
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        views=(
            *(draw(st.sampled_from(["dense", "gaps", "permuted", "negative"])) for _ in range(3)),
            draw(st.sampled_from(WRITE_VIEWS)),
        ),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_joined_images_are_those_that_stand_alone(name: str) -> None:
    @ENGINE
    @given(small(POINTWISE if name == "pointwise" else POINTWISE + WINDOWS), st.booleans())
    def check(case: Case, viewed: bool) -> None:
        if not applies(name, case.problem):
            return
        inputs, out = case.guarded_inputs(viewed=viewed), case.guarded_out(viewed=viewed)
        with GuardedAllocator(case.flush):
            convolve(case, inputs, algorithm=name, threads=case.threads, out=out)
        case.check(out, name)
        check_untouched(out)
        for image in {0, len(out) // 2, len(out) - 1}:
            single: dict[str, Any] = {**inputs}
            for key in ("x", "residual"):
                if key in single:
                    single[key] = single[key][image : image + 1]
            alone = convolve(case, single, algorithm=name, threads=1)
            assert np.asarray(alone).tobytes() == np.ascontiguousarray(out[image : image + 1]).tobytes()

    check()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_one_pixel_an_image_is_joined_and_needs_no_workspace(layout: str) -> None:
    case = Case((20, 40, 3, 3), (32, 40, 3, 3), SINGLE, layout=layout)  # whole registers on each CPU
    plan = case.plan("direct")
    assert "20 images together" in plan.steps[0] and plan.workspace_bytes == 0
    assert plan.packed_weight_bytes == case.plan("direct", 1).packed_weight_bytes == 32 * 40 * 9 * 4
    alone = replace(case, x_shape=(1, 40, 3, 3))
    assert "together" not in alone.plan("direct").steps[0]


def test_images_are_joined_only_where_outputs_are_evenly_spaced() -> None:
    host = this_host()
    padded = replace(SINGLE, pads=((1, 1), (1, 1)))
    first = Case((6, 16, 1, 2), (16, 16, 3, 3), padded, layout="NHWC").problem
    assert joined(first, host) == with_images(first)
    # Channels first, a pixel of the next image is a whole image further on.
    second = Case((6, 16, 1, 2), (16, 16, 3, 3), padded, layout="NCHW").problem
    assert joined(second, host) is second
    large = Case((6, 16, 20, 20), (16, 16, 3, 3), padded, layout="NHWC").problem
    assert joined(large, host) is large


def test_every_number_of_images() -> None:
    for images in range(1, 30):
        for out_channels in (5, 24):
            case = Case((images, 6, 2, 2), (out_channels, 6, 2, 2), Geometry((2, 2), (1, 1), (1, 1), ((0, 0),) * 2))
            case = replace(case, layout="NHWC", threads=1 + images % 3)
            case.check(convolve(case, case.values, algorithm="direct", threads=case.threads))
