"""Winograd along rows for images of few channels: right, within its bytes and its bound, and no register spilled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv.algorithms import traffic
from leanconv.algorithms.winograd_rows import POINTS, WinogradRows, transform_of
from leanconv.arrays import address_of
from leanconv.bound import Runner
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import AVX512, TARGETS, Target
from leanconv.host import Host, this_host
from leanconv.kernels.winograd_row_pack import RowPackSpec
from leanconv.kernels.winograd_rows import WinogradRowsSpec
from leanconv.network.steps.base import stand_in
from leanconv.plan import arena_for, packed_block
from leanconv.planning.phases import phase_cost
from leanconv.problem import dense_strides
from leanconv.program import Compiled, Program
from leanconv.staging import refusal
from strategies import ALGORITHMS, EPILOGUES, Array, Case, Geometry, check_untouched, convolve

NAME = "winograd_rows"
FUSED = [target for target in TARGETS.values() if target.fma]
WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
RGB = Case((1, 3, 24, 64), (64, 3, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True})


@st.composite
def few_channels(draw: st.DrawFn) -> Case:
    """Layers of 1 to 8 channels with 2 to 5 taps a phase along rows, padded on any side."""
    stride = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3, 4]))
    high, phase = draw(st.integers(1, 7)), draw(st.integers(2, 5))
    wide = max(stride[1], phase * stride[1] - draw(st.integers(0, stride[1] - 1)))
    pads = tuple((draw(st.integers(0, taps + 1)), draw(st.integers(0, taps + 1))) for taps in (high, wide))
    geometry = Geometry((high, wide), stride, (1, 1), pads)
    more = st.integers(0, 9), st.integers(0, 120)
    size = tuple(n + draw(some) for n, some in zip(geometry.smallest, more, strict=True))
    channels, filters = draw(st.integers(1, 8)), draw(st.sampled_from([1, 5, 16, 24, 32, 40, 50, 64]))
    return Case(
        (draw(st.integers(1, 3)), channels, *size),
        (filters, channels, high, wide),
        geometry,
        layout="NHWC",
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def between_guards(case: Case, threads: int) -> Array:
    """The result between guard pages, checked."""
    out = case.guarded_out(viewed=False)
    convolve(case, case.guarded_inputs(viewed=False), algorithm=NAME, threads=threads, out=out)
    case.check(out, NAME)
    check_untouched(out)
    return out


def test_random_layers() -> None:
    """Right, nothing touched beside image and output, and the same bits on any number of threads."""
    found = 0

    @settings(settings.get_profile("engine"), max_examples=120)
    @given(few_channels())
    def check(case: Case) -> None:
        nonlocal found
        if refusal(ALGORITHMS[NAME], case.problem) is not None:  # a point of many products
            return
        found += 1
        with GuardedAllocator(case.flush):
            np.testing.assert_array_equal(*(between_guards(case, threads) for threads in (1, case.threads)))

    check()
    assert found


@pytest.mark.parametrize("width", range(1, 140, 3))
def test_every_width(width: int) -> None:
    """Rows of any width: less than a tile, one register of tiles and several, a last tile of any size."""
    case = replace(RGB, x_shape=(1, 3, 5, width), w_shape=(13 + width % 40, 3, 3, 3), threads=1 + width % 3)
    with GuardedAllocator():
        between_guards(case, case.threads)


@pytest.mark.parametrize(("taps", "stride"), [(2, 1), (3, 1), (4, 1), (5, 1), (4, 2), (7, 2), (11, 4), (5, 3)])
def test_transforms_have_six_points(taps: int, stride: int) -> None:
    """Whatever the stride makes of the taps."""
    geometry = Geometry((taps, taps), (stride, stride), (1, 1), ((0, 0), (0, 0)))
    case = replace(RGB, geometry=geometry, w_shape=(16, 3, taps, taps), x_shape=(1, 3, 40, 60))
    assert transform_of(case.problem).size == POINTS
    case.check(convolve(case, case.values, algorithm=NAME), NAME)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("channels", "taps", "stride"), [(1, 3, 1), (2, 3, 1), (3, 3, 1), (3, 7, 2), (4, 5, 3), (8, 3, 1)]
)
def test_planes_give_the_same_bits(channels: int, taps: int, stride: int, threads: int) -> None:
    """An image that comes channels first, as a network's does, whose first layer stores channels last."""
    geometry = Geometry((taps, taps), (stride, stride), (1, 1), ((1, 2), (taps // 2, 1)))
    case = Case((2, channels, 13, 40), (24, channels, taps, taps), geometry, layout="NHWC", epilogue={"bias": True})
    problem, values = case.plan(NAME).problem, case.values
    planes = replace(problem, x_strides=dense_strides(case.x_shape, "NCHW"))
    assert refusal(ALGORITHMS[NAME], planes) is None
    results = []
    for one, x in ((problem, values["x"]), (planes, np.ascontiguousarray(np.moveaxis(values["x"], -1, 1)))):
        low = ALGORITHMS[NAME].lower(one, this_host(), threads, None, {})
        assert low.packing is not None
        with GuardedAllocator():
            packed = packed_block(low.packing, values["w"], values["bias"], threads)
            runner = Runner(
                Compiled(Program(low.phases, low.workspace, threads)), threads, arena_for(None), {1: packed.address}
            )
            image, out = guarded_copy(x), guarded((2, *one.out_size, 24), "float32", flush="right")
            runner.run(address_of(image), address_of(out))
            check_canaries(out)
        results.append(np.array(out))
    case.check(results[0], NAME)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (replace(RGB, layout="NCHW"), "output are not adjacent"),
        (replace(RGB, x_shape=(1, 9, 24, 64), w_shape=(64, 9, 3, 3)), "9 channels"),
        (replace(RGB, x_shape=(1, 6, 24, 64), groups=2), "2 groups"),
        (replace(RGB, geometry=replace(WINDOW, mode="reflect")), "not of zeros"),
        (replace(RGB, geometry=replace(WINDOW, dilation=(1, 2))), "dilated"),
        (replace(RGB, w_shape=(64, 3, 3, 1), geometry=replace(WINDOW, kernel=(3, 1))), "1 taps"),
        (replace(RGB, geometry=replace(WINDOW, stride=(1, 4))), "at stride 4"),
        (replace(RGB, w_shape=(64, 3, 3, 6), geometry=replace(WINDOW, kernel=(3, 6))), "6 taps"),
        (replace(RGB, x_shape=(1, 8, 24, 64), w_shape=(64, 8, 17, 4), geometry=replace(WINDOW, kernel=(17, 4),
            stride=(1, 2), pads=((8, 8), (2, 2)))), "at most 256"),
    ],
)  # fmt: skip
def test_what_is_refused(case: Case, rule: str) -> None:
    said = refusal(ALGORITHMS[NAME], case.problem)
    assert said is not None and rule in said


def bound(plan: leanconv.Plan) -> Array:
    values = RGB.values
    return np.asarray(plan.bind(values["w"], values["bias"])(values["x"]))


def test_weights_are_as_many_as_points() -> None:
    """Six for three taps, and the bias."""
    assert RGB.plan(NAME).packed_weight_bytes == 64 * 4 * (3 * 3 * POINTS + 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_bands_of_any_height(threads: int) -> None:
    """The same bits, and more bytes for more rows."""
    plans = [RGB.plan(NAME, threads, parameters={"rows": rows}) for rows in (1, 5, 1000)]
    assert [plan.lowering.parameters["rows"] for plan in plans] == [1, 5, 24]
    nbytes = [plan.workspace_bytes for plan in plans]
    assert nbytes == sorted(set(nbytes))
    for plan in plans:
        np.testing.assert_array_equal(bound(plan), bound(RGB.plan(NAME)))


def test_a_limit_makes_bands_lower_and_changes_no_bit() -> None:
    whole = RGB.plan(NAME)
    packed = whole.packed_weight_bytes - 64 * 4 * (27 + 1)
    low = RGB.plan(NAME, memory_limit=packed + whole.workspace_bytes // 2)
    assert low.workspace_bytes <= whole.workspace_bytes // 2
    assert int(low.lowering.parameters["rows"]) < int(whole.lowering.parameters["rows"])
    np.testing.assert_array_equal(bound(low), bound(whole))


@pytest.mark.parametrize("width", [1, 2, 4, 13, 47, 48, 49, 56, 101])
@pytest.mark.parametrize("filters", [16, 40, 50])
def test_one_kernel_stands_in_for_rows_of_any_length(width: int, filters: int) -> None:
    """Same bits, same workspace, and nothing written beside the image."""
    case = replace(RGB, x_shape=(2, 3, 6, width), w_shape=(filters, 3, 3, 3), threads=2, epilogue=EPILOGUES[4])
    plan = case.plan(NAME, 2)
    low = plan.lowering
    (phase,) = (stand_in(phase) for phase in low.phases)
    assert isinstance(phase.spec, WinogradRowsSpec)
    elsewhere = replace(case, x_shape=(1, 3, 6, 30)).plan(NAME).lowering.phases[0]
    assert phase.spec == stand_in(elsewhere).spec
    known = (plan.problem, plan.algorithm, 2, None, plan.tunables)
    other = leanconv.Plan(*known, staging=plan.staging, lowering=replace(low, phases=(phase,)))
    results = []
    for one in (plan, other):
        with GuardedAllocator(case.flush):
            out = case.guarded_out(viewed=False)
            values = case.guarded_inputs(viewed=False)
            one.bind(values["w"], values["bias"])(values["x"], out=out, residual=values["residual"])
            check_untouched(out)
        results.append(out)
    np.testing.assert_array_equal(*results)


def lowered(case: Case, target: Target) -> WinogradRowsSpec:
    low = WinogradRows().lower(case.problem, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, None, {})
    spec = low.phases[0].spec
    assert isinstance(spec, WinogradRowsSpec)
    return spec


def square(size: int, taps: int, stride: int, channels: int = 3, filters: int = 64, dtype: str = "float32") -> Case:
    geometry = Geometry((taps,) * 2, (stride,) * 2, (1, 1), ((taps // 2,) * 2,) * 2)
    shapes = (1, channels, size, size), (filters, channels, taps, taps)
    return Case(*shapes, geometry, layout="NHWC", dtype=dtype, epilogue={"bias": True, "activation": "relu6"})


LAYERS = {
    "3x3": square(224, 3, 1),
    "5x5": square(224, 5, 1),
    "7x7s2": square(224, 7, 2),
    "11x11s4": square(224, 11, 4, filters=96),
    "grey": square(96, 3, 1, channels=1, filters=16),
    "eight": square(128, 3, 1, channels=8, filters=40),
    "float64": square(64, 3, 1, dtype="float64"),
}


def text_of(spec: WinogradRowsSpec | RowPackSpec, target: Target) -> str:
    module = Module()
    spec.emit(module, "kernel")
    return jit.compile_assembly(module.text(), target)


@pytest.mark.parametrize("target", FUSED, ids=[target.name for target in FUSED])
@pytest.mark.parametrize("name", LAYERS)
def test_inner_loops_spill_nothing(name: str, target: Target) -> None:
    """Those over terms hold whole terms of a register tile."""
    spec = lowered(LAYERS[name], target)
    loops = [loop for loop in innermost_loops(text_of(spec, target)) if count_fused(loop)]
    widths = {spec.panels.vectors, spec.panels.last or spec.panels.vectors}
    tiles = {high * wide for rows in spec.rows for high in (rows, rows - 1) for wide in widths}
    assert any(count_fused(loop) % tile == 0 for loop in loops for tile in tiles if tile)
    assert not any(spills(loop) for loop in loops)


def test_products_read_weights_and_broadcast_points() -> None:
    """AVX-512: twelve tiles by two registers, nine terms as three times three."""
    spec = lowered(LAYERS["3x3"], AVX512)
    assert spec.rows[0] == 12
    loops = innermost_loops(text_of(spec, AVX512))
    assert any(count_fused(loop) == 3 * 24 for loop in loops)


def test_every_target_compiles_it_and_its_packing() -> None:
    for target in TARGETS.values():
        low = WinogradRows().lower(LAYERS["7x7s2"].problem, Host(target, 1 << 15, 1 << 19, 1 << 23), 1, None, {})
        assert low.packing is not None
        pack = low.packing.phase.spec
        assert isinstance(pack, RowPackSpec)
        for spec in (lowered(LAYERS["7x7s2"], target), pack, stand_in(low.phases[0]).spec):
            assert isinstance(spec, WinogradRowsSpec | RowPackSpec)
            assert "kernel" in text_of(spec, target)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_large_outputs_are_stored_past_the_caches(target: Target) -> None:
    """In whole lines only: 64 channels, not 40."""
    for filters in (64, 40):
        case = replace(RGB, w_shape=(filters, 3, 3, 3))
        low = WinogradRows().lower(case.problem, Host(target, 1 << 15, 1 << 18, 1 << 10), 1, None, {})
        spec = low.phases[0].spec
        assert isinstance(spec, WinogradRowsSpec)
        assert spec.past == (filters == 64 and target.vector_bytes == 64)
        text = text_of(spec, target)
        assert ("vmovntps" in text) == spec.past
        assert text.count("sfence") == spec.past


@pytest.mark.parametrize("shift", [0, 4, 32])
def test_past_the_caches_or_not_is_the_same(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the output begins within a line decides, and changes nothing."""
    case = replace(RGB, x_shape=(2, 3, 9, 50), w_shape=(64, 3, 3, 3), threads=2)
    want = convolve(case, case.values, algorithm=NAME)
    monkeypatch.setattr(traffic, "LARGE", 0)
    out = leanconv.empty(want.size + 16)[shift // 4 :][: want.size].reshape(want.shape)
    out.fill(np.nan)
    convolve(case, case.values, algorithm=NAME, threads=2, out=out)
    np.testing.assert_array_equal(out, want)


@pytest.mark.skipif(not this_host().target.masks, reason="the model's constants for registers of whole lines")
def test_auto_takes_it_where_it_saves_products() -> None:
    """3x3 taps of an RGB image, and 7x7 with stride 2; not 3x3 with stride 2, which has 2.4 products for 3."""
    for name in ("3x3", "7x7s2"):
        assert LAYERS[name].plan("auto").algorithm == NAME
    assert square(224, 3, 2, filters=32).plan("auto").algorithm != NAME


def test_exact_sums_do_without() -> None:
    for case in LAYERS.values():
        assert case.plan("auto", accuracy="exact").algorithm != NAME


@pytest.mark.parametrize("name", LAYERS)
def test_the_model_counts_every_product(name: str) -> None:
    """At least those of whole registers of outputs."""
    problem = LAYERS[name].problem
    transform = transform_of(problem)
    for target in TARGETS.values():
        host = Host(target, 32 << 10, 512 << 10, 8 << 20)
        phase = WinogradRows().lower(problem, host, 1, None, {}).phases[0]
        cost = phase_cost(phase, host)
        assert cost is not None
        saved = problem.kernel[1] * transform.outputs / (problem.stride[1] * transform.size)
        assert cost.counts["multiply"] >= problem.flops / 2 / target.lanes(problem.dtype) / saved
