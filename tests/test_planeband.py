"""Few channels first by bands that stay planes: vectors of pixels along a row, weights broadcast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator
from leanconv.algorithms import planeband, traffic
from leanconv.algorithms.band import DirectBand
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import AVX512, TARGETS, Target
from leanconv.host import Host, this_host
from leanconv.kernels.cost import issue_slots
from leanconv.kernels.planeband import PlaneBandSpec
from leanconv.memory import ALIGNMENT
from leanconv.planning.phases import phase_cost
from leanconv.problem import Problem
from strategies import EPILOGUES, Array, Case, Geometry, check_untouched, convolve

FUSED = [target for target in TARGETS.values() if target.fma]
MODES = ["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]


@st.composite
def planar_cases(draw: st.DrawFn) -> Case:
    """Layers of 1 to 8 channels a group, channels first, of one to three dimensions."""
    dims = draw(st.sampled_from([1, 2, 2, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 7 if dims < 3 else 3)) for _ in range(dims))
    pads = tuple((draw(st.integers(0, taps)), draw(st.integers(0, taps))) for taps in kernel)
    stride = tuple(draw(st.sampled_from([1, 1, 2, 3, 4, 8])) for _ in kernel)
    dilation = tuple(draw(st.integers(1, 2)) for _ in kernel)
    geometry = Geometry(kernel, stride, dilation, pads, draw(st.sampled_from(MODES)))
    groups, channels = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(1, 8))
    filters = draw(st.sampled_from([2, 3, 4, 8, 13, 24, 40])) * groups
    more = [st.integers(0, 9)] * (dims - 1) + [st.integers(0, 160)]
    size = tuple(n + draw(some) for n, some in zip(geometry.smallest, more, strict=True))
    return Case(
        (draw(st.integers(1, 2)), channels * groups, *size),
        (filters, channels, *kernel),
        geometry,
        groups,
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many lanes stay empty, and however narrow rows are."""
    monkeypatch.setattr(planeband, "worth", lambda *_: True)


def taken(case: Case, threads: int = 1) -> bool:
    return isinstance(case.plan("direct_band", threads).lowering.phases[0].spec, PlaneBandSpec)


@pytest.mark.usefixtures("always")
def test_random_layers() -> None:
    """Right, nothing touched beside the image and the output, and the bits of `direct` on any number of threads."""
    found = 0

    @settings(settings.get_profile("engine"), max_examples=120)
    @given(planar_cases())
    def check(case: Case) -> None:
        nonlocal found
        found += taken(case)
        outs = []
        with GuardedAllocator(case.flush):
            for threads in (1, case.threads):
                out = case.guarded_out(viewed=False)
                convolve(case, case.guarded_inputs(viewed=False), algorithm="direct_band", threads=threads, out=out)
                case.check(out)
                check_untouched(out)
                outs.append(out)
        np.testing.assert_array_equal(*outs)
        np.testing.assert_array_equal(outs[0], convolve(case, case.values, algorithm="direct"))

    check()
    assert found


WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
RGB = Case((1, 3, 24, 64), (64, 3, 3, 3), WINDOW, epilogue={"bias": True})


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("width", range(1, 130, 3))
def test_every_width(width: int) -> None:
    """Rows of any width: of one register and many, whose last one is full or not."""
    case = replace(RGB, x_shape=(1, 3, 5, width), w_shape=(13, 3, 3, 3), threads=1 + width % 3)
    assert taken(case)
    out = case.guarded_out(viewed=False)
    with GuardedAllocator():
        convolve(case, case.guarded_inputs(viewed=False), algorithm="direct_band", threads=case.threads, out=out)
    case.check(out)
    check_untouched(out)


@pytest.mark.parametrize(
    ("case", "yes"),
    [
        (RGB, True),
        (replace(RGB, x_shape=(1, 8, 24, 64), w_shape=(64, 8, 3, 3)), True),
        (replace(RGB, x_shape=(1, 9, 24, 64), w_shape=(64, 9, 3, 3)), False),  # not few
        (replace(RGB, layout="NHWC"), False),
        (replace(RGB, x_shape=(1, 3, 24, 4)), False),  # a register would be mostly empty
        (
            replace(RGB, x_shape=(1, 3, 40, 35), w_shape=(64, 3, 9, 9)),
            False,
        ),  # and many terms be multiplied for nothing
        (replace(RGB, geometry=replace(WINDOW, mode="reflect")), True),
        (replace(RGB, w_shape=(64, 3, 1, 1), geometry=Geometry((1, 1), (1, 1), (1, 1), ((0, 0),) * 2)), False),
        (
            replace(
                RGB,
                x_shape=(1, 3, 8, 300),
                w_shape=(8, 3, 1, 90),
                geometry=Geometry((1, 90), (1, 1), (1, 1), ((0, 0),) * 2),
            ),
            False,
        ),
    ],
)
def test_what_is_computed_so(case: Case, yes: bool) -> None:
    assert taken(case) == yes


def test_planes_that_share_sets_of_the_cache_are_worth_more_empty_lanes() -> None:
    """Planes of 64 x 64 are 16 KiB, those of 63 x 65 elements are not a multiple of anything."""
    apart = [
        planeband.turned(replace(RGB, x_shape=(1, 3, *size)).problem, 16) for size in ((64, 64), (56, 56), (63, 65))
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 5 * apart[1]


def bound(plan: leanconv.Plan) -> Array:
    values = RGB.values
    return np.asarray(plan.bind(values["w"], values["bias"])(values["x"]))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("rows", [None, 1, 5, 1000])
def test_workspace_is_the_rows_of_a_band(rows: int | None, threads: int) -> None:
    more = {} if rows is None else {"parameters": {"rows": rows}}
    plan = RGB.plan("direct_band", threads, **more)
    band = int(plan.lowering.parameters["rows"])
    assert band <= (rows or 24)
    lanes = this_host().target.lanes("float32")
    width = 64 + lanes  # two columns more than outputs, in whole registers
    nbytes = 3 * (band + 2) * width * 4
    assert plan.workspace_bytes == threads * (-(-nbytes // ALIGNMENT) * ALIGNMENT)
    RGB.check(bound(plan))


def test_a_limit_makes_bands_lower_and_changes_no_bit() -> None:
    whole = RGB.plan("direct_band")
    least = whole.workspace_bytes // 3
    low = RGB.plan("direct_band", memory_limit=least)
    assert low.workspace_bytes <= least and int(low.lowering.parameters["rows"]) < int(
        whole.lowering.parameters["rows"]
    )
    np.testing.assert_array_equal(bound(low), bound(whole))


def lowered(case: Case, target: Target) -> PlaneBandSpec:
    spec = DirectBand().lower(case.problem, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, None, {}).phases[0].spec
    assert isinstance(spec, PlaneBandSpec)
    return spec


def square(size: int, taps: int, stride: int, channels: int = 3, filters: int = 64, dtype: str = "float32") -> Case:
    geometry = Geometry((taps,) * 2, (stride,) * 2, (1, 1), ((taps // 2,) * 2,) * 2)
    return Case(
        (1, channels, size, size), (filters, channels, taps, taps), geometry, dtype=dtype, epilogue={"bias": True}
    )


LAYERS = {
    "3x3": square(224, 3, 1),
    "3x3s2": square(224, 3, 2, filters=32),
    "7x7s2": square(224, 7, 2),
    "grey": square(96, 5, 1, channels=1, filters=16),
    "rgba": square(128, 3, 1, channels=4),
    "eight": square(128, 3, 1, channels=8, filters=40),
    "to three": square(256, 3, 1, filters=3),
    "float64": square(64, 3, 1, dtype="float64"),
    "sections": replace(square(256, 11, 4), dtype="float64"),
}


@pytest.mark.parametrize("target", FUSED, ids=[target.name for target in FUSED])
@pytest.mark.parametrize("name", LAYERS)
def test_inner_loops_hold_whole_terms_and_spill_nothing(name: str, target: Target) -> None:
    spec = lowered(LAYERS[name], target)
    module = Module()
    spec.emit(module, "kernel")
    loops = [loop for loop in innermost_loops(jit.compile_assembly(module.text(), target)) if count_fused(loop)]
    assert loops
    rows, widths = {spec.rows, spec.rows - spec.short}, {spec.vectors, spec.vectors - spec.narrow}
    for loop in loops:
        assert any(count_fused(loop) % (high * wide) == 0 for high in rows for wide in widths)
        assert not spills(loop)


@pytest.mark.parametrize("name", ["3x3", "7x7s2"])
def test_four_channels_go_through_terms_before_the_next(name: str) -> None:
    """As many terms as registers hold the pixels of: three of two registers, two of three."""
    spec = lowered(LAYERS[name], AVX512)
    terms = {2: 3, 3: 2}[spec.vectors]
    module = Module()
    spec.emit(module, "kernel")
    loops = innermost_loops(jit.compile_assembly(module.text(), AVX512))
    (loop,) = [loop for loop in loops if count_fused(loop) == terms * spec.rows * spec.vectors][:1]
    sums = [instruction.operands.split(",")[-1].strip() for instruction in loop if instruction.fused]
    assert len(set(sums)) == spec.rows * spec.vectors
    assert len(set(sums[: 4 * spec.vectors * terms])) == 4 * spec.vectors


def test_every_target_compiles_it() -> None:
    for target in TARGETS.values():
        module = Module()
        lowered(LAYERS["3x3s2"], target).emit(module, "kernel")
        assert "kernel" in jit.compile_assembly(module.text(), target)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_large_outputs_are_stored_past_the_caches(target: Target) -> None:
    """In whole lines only: rows of 64 and of 68 pixels."""
    for width in (64, 68):
        case = replace(RGB, x_shape=(1, 3, 64, width))
        low = DirectBand().lower(case.problem, Host(target, 1 << 15, 1 << 18, 1 << 10), 1, None, {})
        spec = low.phases[0].spec
        assert isinstance(spec, PlaneBandSpec)
        assert spec.past == (width == 64 and target.vector_bytes == 64)
        module = Module()
        spec.emit(module, "kernel")
        text = jit.compile_assembly(module.text(), target)
        assert ("vmovntps" in text) == spec.past
        assert text.count("sfence") == spec.past


@pytest.mark.parametrize("shift", [0, 4, 32])
def test_past_the_caches_or_not_is_the_same(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the output begins within a line decides, and changes nothing."""
    case = replace(RGB, x_shape=(2, 3, 9, 48), w_shape=(20, 3, 3, 3), threads=2)
    want = convolve(case, case.values, algorithm="direct")
    monkeypatch.setattr(traffic, "LARGE", 0)
    out = leanconv.empty(want.size + 16)[shift // 4 :][: want.size].reshape(want.shape)
    out.fill(np.nan)
    convolve(case, case.values, algorithm="direct_band", threads=2, out=out)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("name", LAYERS)
def test_the_model_counts_every_product(name: str) -> None:
    """At least those of the definition, in whole registers and whole tiles."""
    problem: Problem = LAYERS[name].problem
    for target in TARGETS.values():
        host = Host(target, 32 << 10, 512 << 10, 8 << 20)
        phase = DirectBand().lower(problem, host, 1, None, {}).phases[0]
        cost = phase_cost(phase, host)
        assert cost is not None
        assert cost.counts["multiply"] >= problem.flops / 2 / target.lanes(problem.dtype)
        assert issue_slots(1, 1) * cost.counts["tile"] <= cost.counts["multiply"]
