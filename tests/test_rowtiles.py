"""Padded images: tiles that end with the rows of the output and leave out the pixels that read padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator
from leanconv.algorithms.rowtiles import in_rows
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import AVX2, AVX512
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.rowtiles import RowTiles
from leanconv.network.steps.base import stand_in
from leanconv.plan import Plan
from leanconv.program import Phase
from strategies import EPILOGUES, WRITE_VIEWS, Case, Geometry, check_untouched, convolve

HOST = Host(AVX512, 48 << 10, 1 << 20, 32 << 20)
WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
PLAIN = Case((1, 32, 14, 14), (64, 32, 3, 3), WINDOW, layout="NHWC")


@st.composite
def padded_cases(draw: st.DrawFn) -> Case:
    """Layers under padding, channels last, with short rows."""
    kernel = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    pads = tuple((draw(st.integers(0, taps)), draw(st.integers(0, taps))) for taps in kernel)
    stride, dilation = (
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    )
    geometry = Geometry(kernel, stride, dilation, pads)
    groups, channels = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([9, 12, 40, 130, 300]))
    filters = draw(st.sampled_from([8, 16, 17, 24, 32, 48, 70, 88]))
    high, wide = (n + draw(st.integers(0, most)) for n, most in zip(geometry.smallest, (6, 60), strict=True))
    return Case(
        (draw(st.integers(1, 2)), groups * channels, high, wide),
        (groups * filters, channels, *kernel),
        geometry,
        groups,
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        layout="NHWC",
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        views=(draw(st.sampled_from(["dense", "dense", "gaps"])), "dense", "dense", draw(st.sampled_from(WRITE_VIEWS))),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@settings(settings.get_profile("engine"), max_examples=60)
@given(padded_cases())
def test_random_layers(case: Case) -> None:
    """Right, nothing touched beside the image and the output, the bits of one thread and of tiles that run on."""
    outs = []
    with GuardedAllocator(case.flush):
        for algorithm, threads in (("direct", 1), ("direct", case.threads), ("direct_band", 1)):
            out = case.guarded_out(viewed=True)
            convolve(case, case.guarded_inputs(viewed=True), algorithm=algorithm, threads=threads, out=out)
            case.check(out)
            check_untouched(out)
            outs.append(np.asarray(out))
    assert outs[0].tobytes() == outs[1].tobytes()
    np.testing.assert_array_equal(outs[0], outs[2])


@pytest.mark.parametrize("width", range(4, 40))
@pytest.mark.parametrize("filters", [32, 40])
def test_every_width(width: int, filters: int) -> None:
    """Rows of any width are covered exactly; 40 filters share a register between two pixels, one of them left out."""
    case = replace(PLAIN, x_shape=(1, 12, 5, width), w_shape=(filters, 12, 3, 3), threads=1 + width % 3)
    out = case.guarded_out(viewed=False)
    convolve(case, case.guarded_inputs(viewed=False), algorithm="direct", threads=case.threads, out=out)
    case.check(out)
    check_untouched(out)


@pytest.mark.parametrize(
    ("case", "taken"),
    [
        (PLAIN, True),
        (replace(PLAIN, x_shape=(1, 8, 14, 14), w_shape=(64, 8, 3, 3)), False),  # few channels: `rowwindows`
        (replace(PLAIN, layout="NCHW"), False),
        (replace(PLAIN, x_shape=(1, 32, 200, 200)), False),  # hardly any padding
        (replace(PLAIN, x_shape=(1, 32, 3, 3)), False),  # too few sums for the latency of multiply-adds
        (replace(PLAIN, geometry=replace(WINDOW, pads=((0, 0), (0, 0)))), False),
        (replace(PLAIN, geometry=replace(WINDOW, mode="reflect")), False),
        (replace(PLAIN, geometry=replace(WINDOW, dilation=(1, 7), pads=((1, 1), (7, 7)))), False),  # half outside
    ],
)
def test_what_is_read_so(case: Case, taken: bool) -> None:
    assert (in_rows(case.problem, HOST, 1) is not None) == taken
    assert in_rows(case.problem, replace(HOST, target=AVX2), 1) is None


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("channels", [32, 512])
def test_blocks_are_whole_rows(channels: int, threads: int) -> None:
    problem = replace(PLAIN, x_shape=(2, channels, 28, 28), w_shape=(64, channels, 3, 3)).problem
    found = in_rows(problem, HOST, threads)
    assert found is not None
    _, heights, cut = found
    assert cut.block % 28 == 0 and (cut.blocks - 1) * cut.block < 28 * 28 <= cut.blocks * cut.block
    assert heights == (10, 10)


def core(case: Case, host: Host) -> Phase:
    from leanconv.algorithms.direct import Direct

    return Direct().lower(case.problem, host, 1, None, {}).phases[0]


@pytest.mark.parametrize("filters", [16, 24, 32, 48, 64])
@pytest.mark.parametrize("width", [7, 13, 28])
@pytest.mark.parametrize("taps", [3, 5])
def test_inner_loops_hold_the_pixels_inside_and_spill_nothing(width: int, filters: int, taps: int) -> None:
    geometry = replace(WINDOW, kernel=(taps, taps), pads=((taps // 2, taps // 2),) * 2)
    case = replace(PLAIN, x_shape=(1, 32, width, width), w_shape=(filters, 32, taps, taps), geometry=geometry)
    spec = core(case, HOST).spec
    assert isinstance(spec, DenseSpec) and isinstance(spec.source, RowTiles)
    module = Module()
    spec.emit(module, "kernel")
    loops = innermost_loops(jit.compile_assembly(module.text(), AVX512))
    multiplying = [loop for loop in loops if count_fused(loop)]
    assert len(multiplying) >= taps
    assert not any(spills(loop) for loop in multiplying)
    if width == 7 and filters == 32:  # four steps of two registers for six, seven and six pixels
        assert {count_fused(loop) for loop in multiplying} == {4 * 2 * (7 - out) for out in range(taps // 2 + 1)}


def test_an_image_of_another_width_runs_on_tiles_that_run_on() -> None:
    phase = core(PLAIN, HOST)
    other = stand_in(phase)
    assert isinstance(other.spec, DenseSpec)
    assert not isinstance(other.spec.source, RowTiles) and other.fields == phase.fields


def test_the_stand_in_computes_the_same() -> None:
    case = replace(PLAIN, x_shape=(2, 40, 13, 13), w_shape=(48, 40, 3, 3))
    x, w = (case.values[name] for name in "xw")
    plan = case.plan("direct")
    low = plan.lowering
    free = Plan(plan.problem, "direct", 1, lowering=replace(low, phases=tuple(map(stand_in, low.phases))))
    np.testing.assert_array_equal(free.bind(w)(x), plan.bind(w)(x))
