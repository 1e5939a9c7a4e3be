"""Depthwise convolution: its definition, the order of its sums, and the inner loops that LLVM makes of its kernels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import leanconv
from assembly import count_fused, innermost_loops, spills
from leanconv import oracle
from leanconv.algorithms import channeltiles, channelwise
from leanconv.algorithms.depthwise import Depthwise
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.reduction import SECTION
from leanconv.kernels.taporder import LONGEST, TapOrder
from leanconv.options import make_problem
from leanconv.problem import to_user

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)


def definition(x: Array, w: Array, stride: int, pad: int) -> Array:
    """Output channel k * m + j is channel k under its j-th filter: a weighted sum of shifted planes."""
    multiplier, (rows, taps) = w.shape[0] // x.shape[1], w.shape[2:]
    image = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))).repeat(multiplier, axis=1)
    high, wide = (n - k + 1 for n, k in zip(image.shape[2:], (rows, taps), strict=True))
    return sum(
        image[:, :, r : r + high : stride, s : s + wide : stride] * w[:, 0, r, s, None, None]
        for r, s in itertools.product(range(rows), range(taps))
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("multiplier", "stride", "taps"), [(1, 1, 3), (2, 2, 3), (3, 1, 5), (12, 2, 4)])
def test_the_definition(layout: str, multiplier: int, stride: int, taps: int) -> None:
    x, w = RNG.standard_normal((2, 7, 12, 13)), RNG.standard_normal((7 * multiplier, 1, taps, taps))
    want = definition(x, w, stride, 1)
    problem = make_problem(2, x.shape, w.shape, dtype="float64", stride=stride, padding=1, groups=7)
    np.testing.assert_allclose(oracle.reference(problem, x, w), want, atol=1e-13)
    image = x if layout == "NCHW" else np.moveaxis(x, 1, -1)
    plan = leanconv.plan(
        image.shape, w.shape, dtype="float64", stride=stride, padding=1, groups=7, layout=layout, algorithm="depthwise"
    )
    got = plan.bind(w)(image)
    np.testing.assert_allclose(got if layout == "NCHW" else np.moveaxis(got, -1, 1), want, atol=1e-13)


def test_auto_takes_it() -> None:
    for layout in ("NCHW", "NHWC"):
        shape = to_user((1, 16, 9, 9), layout)
        assert leanconv.plan(shape, (16, 1, 3, 3), groups=16, layout=layout).algorithm == "depthwise"
        assert leanconv.plan(shape, (32, 1, 3, 3), groups=16, layout=layout).algorithm == "depthwise"
    with pytest.raises(leanconv.NotApplicableError, match="4 input channels"):
        leanconv.plan((1, 16, 9, 9), (16, 4, 3, 3), groups=4, algorithm="depthwise")


def test_channels_last_need_no_workspace() -> None:
    plan = leanconv.plan((2, 30, 30, 40), (40, 1, 7, 7), groups=40, padding=3, layout="NHWC", algorithm="depthwise")
    assert plan.workspace_bytes == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_channels_first_stay_below_a_limit(threads: int) -> None:
    """Bands get lower with the memory, down to one row of tiles."""
    shape, taps = (1, 6, 90, 70), (6, 1, 9, 9)
    free = leanconv.plan(shape, taps, groups=6, padding=4, threads=threads, algorithm="depthwise")
    with pytest.raises(leanconv.MemoryLimitError) as caught:
        leanconv.plan(shape, taps, groups=6, padding=4, threads=threads, algorithm="depthwise", memory_limit=1)
    assert caught.value.needed < free.workspace_bytes
    x, w = RNG.standard_normal(shape).astype("f4"), RNG.standard_normal(taps).astype("f4")
    want = free.bind(w)(x)
    for limit in (caught.value.needed, (caught.value.needed + free.workspace_bytes) // 2):
        plan = leanconv.plan(
            shape, taps, groups=6, padding=4, threads=threads, algorithm="depthwise", memory_limit=limit
        )
        assert plan.workspace_bytes <= limit
        assert plan.bind(w)(x).tobytes() == want.tobytes()


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("taps", [*range(1, 64), 100, 257, 1000])
def test_chunks_and_sections_cover_the_taps(taps: int, channels: int) -> None:
    for outer in ((), (1,), (5,), (31,), (3, 5)):
        order = TapOrder((*outer, taps), channels)
        size, long, short = order.chunks
        assert long * size + short * (size - 1) == taps and long >= 1 and 1 <= size <= LONGEST
        sections = order.sections
        terms = size * channels
        if sections is None:
            assert order.channels * taps * int(np.prod(outer)) <= SECTION
            continue
        dim, every = sections
        terms *= every
        for d in range(dim + 1, len(order.kernel)):
            terms *= (long + short) if d == len(order.kernel) - 1 else order.kernel[d]
        assert terms <= SECTION or every == 1


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize("group_out", [1, 2, 3, 5, 8, 20])
def test_lanes_hold_every_output_once(lanes: int, group_out: int) -> None:
    shape = Lanes(lanes, 2, group_out)
    counts = [shape.valid(part, shape.groups) for part in range(shape.parts)]
    assert sum(counts) == shape.groups * group_out and max(counts) <= lanes and min(counts) >= 1


TYPICAL = {
    "3x3": (3, {}),
    "3x3-stride2": (3, {"stride": 2}),
    "3x3-dilated": (3, {"dilation": 2}),
    "5x5": (5, {}),
    "7x7": (7, {}),
    "5x5-stride2": (5, {"stride": 2}),
    "7x7-stride2": (7, {"stride": 2}),
}


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.fma], ids=lambda t: t.name)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("size", [96, 56, 14, 7])
@pytest.mark.parametrize("case", TYPICAL)
def test_inner_loops_spill_next_to_nothing(case: str, size: int, layout: str, target: Target) -> None:
    taps, options = TYPICAL[case]
    pad = taps // 2 * options.get("dilation", 1)
    shape = to_user((1, 96, size, size), layout)
    problem = make_problem(
        2, shape, (96, 1, taps, taps), dtype="float32", groups=96, layout=layout, padding=pad, bias=True, **options
    )
    low = Depthwise().lower(problem, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, None, {})
    spec = low.phases[-1].spec
    module = Module()
    spec.emit(module, "kernel")
    loops = [loop for loop in innermost_loops(jit.compile_assembly(module.text(), target)) if count_fused(loop)]
    assert loops
    # Weights that fill all registers but those of the sums: LLVM may keep one or two of them on the stack.
    allowed = 0.1 if layout == "NCHW" else 0.0
    for loop in loops:
        found = spills(loop)
        assert len(found) <= allowed * count_fused(loop), (
            f"{len(found)} beside {count_fused(loop)} multiply-adds: {found[:4]}"
        )


STREAMED = [(24, 1, 1), (8, 2, 1), (16, 8, 1), (24, 1, 4), (20, 1, 1)]  # the last has no whole vectors


@pytest.mark.parametrize(("channels", "multiplier", "group_in"), STREAMED)
@pytest.mark.parametrize("shift", [0, 4, 16, 32])
def test_outputs_past_the_caches(
    monkeypatch: pytest.MonkeyPatch, channels: int, multiplier: int, group_in: int, shift: int
) -> None:
    """The same bits wherever the output begins, whether or not it is stored past the caches."""
    x = RNG.standard_normal((2, 9, 11, channels), dtype=np.float32)
    w = RNG.standard_normal((channels * multiplier, group_in, 3, 3), dtype=np.float32)

    def plan() -> leanconv.Plan:
        algorithm = "depthwise" if group_in == 1 else "grouped"
        options = {"padding": 1, "groups": channels // group_in, "layout": "NHWC", "threads": 2}
        return leanconv.plan(x.shape, w.shape, algorithm=algorithm, **options)

    want = plan().bind(w)(x)
    monkeypatch.setattr(channelwise, "streams", lambda problem, host: True)
    out = leanconv.empty(want.size + 16)[shift // 4 :][: want.size].reshape(want.shape)
    assert out.ctypes.data % 64 == shift
    out.fill(np.nan)
    np.testing.assert_array_equal(plan().bind(w)(x, out=out), want)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_only_what_no_cache_holds_is_stored_past_them(target: Target) -> None:
    problem = make_problem(2, (1, 56, 56, 32), (32, 1, 3, 3), dtype="float32", padding=1, groups=32, layout="NHWC")
    for l3, stream in ((1 << 25, False), (1 << 20, True)):
        (phase,) = Depthwise().lower(problem, Host(target, 1 << 15, 1 << 18, l3), 1, None, {}).phases
        module = Module()
        phase.spec.emit(module, "tested")
        assert ("!nontemporal" in module.text()) == stream


@pytest.mark.parametrize(("channels", "arrays"), [((24, 24), 1), ((20, 20), 2), ((16, 32), 2)])
def test_what_is_asked_for_ahead_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, channels: tuple[int, int], arrays: int
) -> None:
    """With strides and dilation, and where channels do not fill a register."""
    x = RNG.standard_normal((2, 9, 13, channels[0]), dtype=np.float32)
    w = RNG.standard_normal((channels[1], 1, 3, 3), dtype=np.float32)

    def results() -> list[Array]:
        options = {"padding": 1, "groups": channels[0], "layout": "NHWC", "algorithm": "depthwise"}
        steps = ((1, 1), (2, 1), (1, 2))
        return [leanconv.plan(x.shape, w.shape, stride=s, dilation=d, **options).bind(w)(x) for s, d in steps]

    want = results()
    monkeypatch.setattr(channelwise, "fetched", lambda problem, host: arrays)
    for got, expected in zip(results(), want, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("channels", "group_in"), [(24, 1), (20, 1), (24, 3)])
@pytest.mark.parametrize(("stride", "taps"), [(1, 3), (2, 3), (2, 5), (1, 7)])
def test_strips_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, channels: int, group_in: int, stride: int, taps: int
) -> None:
    """One strip a chunk, on one to three threads: the bits of whole rows."""
    x = RNG.standard_normal((2, 19, 37, channels), dtype=np.float32)
    w = RNG.standard_normal((channels, group_in, taps, taps), dtype=np.float32)
    algorithm = "depthwise" if group_in == 1 else "grouped"
    options = {"stride": stride, "padding": 1, "groups": channels // group_in, "layout": "NHWC", "algorithm": algorithm}
    want = leanconv.plan(x.shape, w.shape, threads=1, **options).bind(w)(x)
    monkeypatch.setattr(channelwise, "narrow", lambda *_: True)
    monkeypatch.setattr(channeltiles, "narrow", lambda *_: True)
    monkeypatch.setattr(channeltiles, "MOST_WIDE", 9)
    for threads in (1, 2, 3):
        plan = leanconv.plan(x.shape, w.shape, threads=threads, **options)
        assert plan.parameters["chunks"] > 2
        np.testing.assert_array_equal(plan.bind(w)(x), want)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_what_lies_far_away_is_asked_for_ahead(target: Target) -> None:
    """What the last-level cache holds is not if vectors are whole lines: chunks go down a strip."""
    problem = make_problem(2, (1, 56, 56, 32), (32, 1, 3, 3), dtype="float32", padding=1, groups=32, layout="NHWC")
    narrow = target.vector_bytes >= 64
    for l2, l3, asked in ((1 << 20, 1 << 25, False), (1 << 17, 1 << 25, not narrow), (1 << 17, 1 << 19, True)):
        (phase,) = Depthwise().lower(problem, Host(target, 1 << 15, l2, l3), 1, None, {}).phases
        module = Module()
        phase.spec.emit(module, "tested")
        assert ("@llvm.prefetch" in module.text()) == asked
