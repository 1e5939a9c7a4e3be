"""Implicit GEMM: taps packed as one run, four channels side by side, and tiles packed while others are multiplied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator, guarded, guarded_copy
from kernels import Compiled
from leanconv.algorithms.implicit_gemm import ImplicitGemm, slot_bytes
from leanconv.codegen import jit
from leanconv.codegen.ir import SCALARS, Module, vector
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host, this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.micropanels import FOUR, PackTiles, fours_together
from leanconv.problem import Problem
from strategies import EPILOGUES, Case, Geometry, convolve

ENGINE = settings(settings.get_profile("engine"), max_examples=40)


def core(problem: Problem, target: Target | None = None, threads: int = 1) -> DenseSpec:
    host = Host(target, 48 << 10, 1 << 20, 32 << 20) if target else this_host()
    spec = ImplicitGemm().lower(problem, host, threads, None, {}).phases[0].spec
    assert isinstance(spec, DenseSpec)
    return spec


def packing(problem: Problem) -> PackTiles:
    stage = core(problem).stage
    assert isinstance(stage, PackTiles)
    return stage


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
    assert packing(case.problem).joint == case.w_shape[-1]
    with GuardedAllocator(case.flush):
        out = case.guarded_out(viewed=False)
        convolve(case, case.guarded_inputs(viewed=False), algorithm="implicit_gemm", out=out)
    case.check(out, "implicit_gemm")


@pytest.mark.parametrize(
    ("options", "why"),
    [
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


# -- packed while others are multiplied ------------------------------------------------------------------------------


@st.composite
def deep_images(draw: Any) -> Case:
    """Images whose windows have runs of 64 elements and more, with rows shorter and longer than tiles."""
    taps = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 2))))
    reach = [(n - 1) * d + 1 for n, d in zip(taps, dilation, strict=True)]
    pads = tuple((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))) for n in reach)
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = tuple(n + draw(st.integers(0, 30)) for n in reach)
    channels, outputs = 4 * draw(st.integers(16, 24)), draw(st.integers(1, 70))
    return Case(
        (draw(st.integers(1, 2)), channels, *size),
        (outputs, channels, *taps),
        Geometry(taps, stride, dilation, pads),
        layout="NHWC",
        dtype=draw(st.sampled_from(("float32", "float64"))),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        seed=draw(st.integers(0, 99)),
    )


@ENGINE
@given(deep_images())
def test_tiles_are_packed_ahead(case: Case) -> None:
    one_run = case.geometry.dilation[1] == 1 or case.w_shape[-1] == 1
    assert core(case.problem).ahead == (this_host().target.masks and one_run)
    results = []
    for threads in (1, 2):
        with GuardedAllocator(case.flush):
            out = case.guarded_out(viewed=False)
            convolve(case, case.guarded_inputs(viewed=False), algorithm="implicit_gemm", out=out, threads=threads)
        case.check(out, "implicit_gemm")
        results.append(np.array(out).tobytes())
    assert results[0] == results[1]


DEEP = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


@pytest.mark.parametrize(("outputs", "part"), [(32, 1), (128, 1), (1024, 2)])
def test_room_for_two_parts(outputs: int, part: int) -> None:
    """Of one tile, or of two if the second-level cache does not hold the weights."""
    case = Case((1, 64, 40, 40), (outputs, 64, 3, 3), DEEP, layout="NHWC")
    host = Host(TARGETS["avx512"], 48 << 10, 1 << 20, 32 << 20)
    low = ImplicitGemm().lower(case.problem, host, 1, None, {})
    packed = 12 * 9 * 64 * 4 + 64
    assert slot_bytes(case.problem, host, 12) == packed
    assert [buffer.nbytes for buffer in low.workspace] == [2 * part * packed]
    less = ImplicitGemm().lower(case.problem, host, 1, 2 * part * packed - 1, {})
    spec = less.phases[0].spec
    assert isinstance(spec, DenseSpec) and not spec.ahead
    assert sum(buffer.nbytes for buffer in less.workspace) < 2 * part * packed


def test_a_limit_and_threads_change_no_bit() -> None:
    case = Case((1, 64, 20, 20), (40, 64, 3, 3), DEEP, layout="NHWC", epilogue={"bias": True})
    limits: list[dict[str, Any]] = [{}, {"threads": 2}, {"memory_limit": 40_000}]
    results = [convolve(case, case.values, algorithm="implicit_gemm", **more).tobytes() for more in limits]
    assert len(set(results)) == 1


@pytest.mark.parametrize(("outputs", "panels"), [(128, 4), (136, 4), (256, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_share_the_panels_of_few_pixels(outputs: int, panels: int, dtype: str) -> None:
    """Rather than pack tiles of three pixels; each packs them all."""
    case = Case((1, 64, 5, 5), (outputs, 64, 3, 3), DEEP, layout="NHWC", dtype=dtype, epilogue={"bias": True})
    plans = [case.plan("implicit_gemm", threads) for threads in (1, 2)]
    if this_host().target.name == "avx512" and dtype == "float32":
        assert [plan.parameters["panels"] for plan in plans] == [panels, panels // 2]
        assert [plan.parameters["tile"] for plan in plans] == ["9x32"] * 2
    results = []
    for threads in (1, 2, 3):
        with GuardedAllocator(case.flush):
            out = case.guarded_out(viewed=False)
            convolve(case, case.guarded_inputs(viewed=False), algorithm="implicit_gemm", out=out, threads=threads)
        case.check(out, "implicit_gemm")
        results.append(np.array(out).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_a_round_copies_four_channels_of_each_pixel(target: Target) -> None:
    """With 32 registers: beside the multiply-adds as many short stores as the tile has pixels, and nothing spilled."""
    spec = core(Case((1, 64, 40, 40), (64, 64, 3, 3), DEEP, layout="NHWC").problem, target)
    assert isinstance(spec.stage, PackTiles)
    assert spec.stage.fours == (target.name != "neon")
    assert spec.ahead == target.masks
    if not spec.ahead:
        return
    module = Module()
    spec.emit(module, "kernel")
    text = jit.compile_assembly(module.text(), target)
    rows, vectors = spec.rows[0], spec.panels.vectors
    loops = [loop for loop in innermost_loops(text) if count_fused(loop) >= FOUR * (rows - 1) * vectors]
    copying = [loop for loop in loops if any("%xmm" in i.operands.split(",")[0] and "(" in i.operands for i in loop)]
    assert copying and len(copying) < len(loops)
    for loop in loops:
        assert not spills(loop)
    for loop in copying:
        stores = [i for i in loop if i.operation.startswith("vmov") and i.operands.startswith("%xmm")]
        assert len(stores) * vectors * FOUR == count_fused(loop)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("missing", [0, 1])
def test_four_channels_stay_together(dtype: str, missing: int) -> None:
    lanes = jit.host_target().lanes(dtype)
    if lanes % FOUR:
        pytest.skip("vectors hold no fours")
    kind, width = vector(SCALARS[dtype], lanes), jit.host_target().vector_bytes
    pixels = max(1, lanes // FOUR - missing)
    source = guarded_copy(np.arange(pixels * lanes, dtype=dtype).reshape(pixels, lanes))
    target = guarded((lanes // FOUR, lanes), dtype)

    def write(fn: Any, a: Any, b: Any) -> None:
        vectors = fours_together(fn, [fn.load(kind, a, i * width) for i in range(pixels)])
        for i, value in enumerate(vectors):
            fn.store(value, b, i * width)

    Compiled("pp", write)(source, target)
    fours = source.reshape(pixels, lanes // FOUR, FOUR).transpose(1, 0, 2).reshape(lanes // FOUR, -1)
    np.testing.assert_array_equal(target[:, : pixels * FOUR], fours)
