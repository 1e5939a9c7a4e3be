"""Every algorithm computes what it accepts, in exactly the memory it says, and says why it refuses the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import leanconv
from guard import FailingAllocator, GuardedAllocator
from leanconv.errors import AllocationError, MemoryLimitError, NotApplicableError
from leanconv.host import this_host
from leanconv.kernels.columns import ColumnSpec
from leanconv.memory import ALIGNMENT, Arena
from strategies import (
    ALGORITHMS,
    ANY_KIND,
    EPILOGUES,
    POINTWISE,
    WINDOWS,
    Case,
    Geometry,
    applies,
    cases,
    check_untouched,
    convolve,
    is_blas,
)

NAMES = list(ALGORITHMS)
ENGINE = settings(settings.get_profile("engine"), max_examples=25)
# The core and its edges are those of nearly all: what `direct` computes right, most others need not show again.
THOROUGH = settings(ENGINE, max_examples=150)
FEW = settings(ENGINE, max_examples=8)  # kernels of unrolled transforms: half a second each to compile


def effort(name: str) -> settings:
    """How many cases an algorithm is tried on."""
    if name in ("direct", "direct_blocks"):
        return THOROUGH
    return FEW if ALGORITHMS[name].error_class == "transformed" else ENGINE


WINDOW = Geometry((3, 3), (2, 1), (1, 1), ((1, 0), (1, 1)))
SINGLE = Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
PROBE = Case((1, 4, 6, 7), (8, 4, 3, 3), WINDOW)


# Input and output channels and groups of a plain case, and of those that some algorithms are for.
SHAPES = ((4, 8, 1), (4, 8, 4), (8, 8, 2), (4, 4, 4))


def accepted(name: str) -> list[Geometry]:
    """The geometries to draw from: those that an algorithm accepts in one of the shapes, in some layout."""
    result = []
    for geometry in POINTWISE + WINDOWS:
        size = tuple(n + 2 for n in geometry.smallest)
        plain = [Case((1, c, *size), (k, c // g, *geometry.kernel), geometry, groups=g) for c, k, g in SHAPES]
        if any(applies(name, replace(case, layout=layout).problem) for case in plain for layout in ("NCHW", "NHWC")):
            result.append(geometry)
    return result


def kinds(name: str) -> tuple[str, ...]:
    """What to draw: of an algorithm for one kind of groups, nothing else."""
    few = {"depthwise": ("depthwise",), "fft_depthwise": ("depthwise",), "grouped": ("grouped",)}
    return few.get(name, ANY_KIND)


def same_bits(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run_every_way(name: str, case: Case) -> None:
    """Bound and unbound, on 1, 2 and 4 threads, on dense arrays and on views: right, and the same bits each time."""
    firsts: dict[bool, Any] = {}
    for threads, viewed in ((1, False), (2, True), (4, False), (case.threads, True)):
        inputs = case.guarded_inputs(viewed=viewed)
        images = {k: v for k, v in inputs.items() if k in ("x", "residual")}
        weights = {k: v for k, v in inputs.items() if k in ("w", "bias")}
        bound = case.plan(name, threads).bind(**weights)
        for call in (
            lambda out, bound=bound, images=images: bound(**images, out=out),
            lambda out, inputs=inputs, threads=threads: convolve(
                case, inputs, algorithm=name, threads=threads, out=out
            ),
        ):
            out = case.guarded_out(viewed=viewed)
            assert call(out) is out
            check_untouched(out)
            order = viewed and is_blas(name)
            if order not in firsts:
                case.check(out, name)
                firsts[order] = out
            assert same_bits(out, firsts[order]), f"other bits: {threads} threads, viewed {viewed}"


@pytest.mark.parametrize("name", NAMES)
def test_random_convolutions(name: str) -> None:
    @effort(name)
    @given(cases(geometries=accepted(name), kinds=kinds(name)))
    def check(case: Case) -> None:
        if not applies(name, case.problem):
            return
        with GuardedAllocator(case.flush):
            run_every_way(name, case)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_give_the_same_bits(name: str) -> None:
    if is_blas(name):
        pytest.skip("BLAS multiplies other matrices for the other layout")
    if name == "im2win":
        pytest.skip("each layout has a window tensor of its own, summed in its own order")

    @settings(ENGINE, max_examples=6)
    @given(cases(geometries=accepted(name), kinds=kinds(name)))
    def check(case: Case) -> None:
        dense = replace(case, views=("dense",) * 4, layout="NCHW")
        other = replace(dense, layout="NHWC")
        for key, value in dense.values.items():
            turned = np.moveaxis(value, 1, -1) if key in ("x", "residual") else value
            other.values[key] = np.ascontiguousarray(turned)
        if not (applies(name, dense.problem) and applies(name, other.problem)):
            return
        first, last = (convolve(c, c.values, algorithm=name, threads=c.threads) for c in (dense, other))
        assert same_bits(np.moveaxis(last, -1, 1), first)

    check()


# Shapes that matter to how the core is cut: several blocks of pixels and groups of panels, long sums of several
# taps, weights larger than the caches, one pixel, one channel, every width of the last panel.
LARGE = [
    Case((1, 3, 61, 67), (24, 3, 3, 3), WINDOW, epilogue={"bias": True, "activation": "relu"}),
    Case((2, 40, 33, 31), (48, 40, 3, 3), WINDOW, layout="NHWC", views=("gaps", "permuted", "gaps", "gaps")),
    Case((1, 300, 9, 8), (33, 300, 3, 3), WINDOW, layout="NHWC", epilogue={"residual": True}),
    Case((1, 1537, 5, 5), (17, 1537, 1, 1), SINGLE, views=("permuted", "dense", "dense", "permuted")),
    Case((1, 64, 23, 29), (512, 64, 1, 1), SINGLE, layout="NHWC", threads=4),
    Case((1, 96, 14, 15), (192, 96, 3, 3), WINDOW, groups=1, dtype="float64", threads=2),
    Case((1, 3000, 4, 4), (8, 3000, 3, 3), WINDOW),  # in one run its error would be six times as large
    Case((1, 2, 1, 1), (1, 2, 3, 3), replace(WINDOW, pads=((1, 1), (1, 1)))),
    Case((3, 16, 40, 9), (16, 1, 3, 3), WINDOW, groups=16, layout="NHWC", threads=2),
    Case((1, 37, 9, 61), (37, 1, 3, 3), replace(WINDOW, stride=(1, 1)), groups=37, layout="NHWC", threads=3),
    Case((2, 21, 20, 70), (63, 1, 5, 5), Geometry((5, 5), (1, 1), (1, 1), ((2, 2), (2, 2))), groups=21),
    Case((1, 5, 33, 35), (5, 1, 17, 19), Geometry((17, 19), (1, 2), (1, 1), ((8, 8), (9, 9))), groups=5),
    Case((1, 3, 900), (3, 1, 600), Geometry((600,), (1,), (1,), ((299, 300),)), groups=3, layout="NHWC"),
    Case((1, 130, 11, 12), (130, 1, 3, 3), replace(WINDOW, dilation=(2, 3)), groups=130, epilogue={"residual": True}),
]


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.problem.describe().split(" ", 2)[2].replace(" ", "_"))
@pytest.mark.parametrize("name", NAMES)
def test_large_convolutions(name: str, case: Case) -> None:
    if not applies(name, case.problem):
        pytest.skip("refused")
    with GuardedAllocator():
        run_every_way(name, case)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [3, 12])
def test_every_geometry(name: str, channels: int) -> None:
    """Rows long enough for whole tiles inside the image, and images high enough for every edge to have its own."""
    groups, filters = {"grouped": (3, 15)}.get(name, (channels,) * 2 if "depthwise" in name else (1, 16))
    if channels == groups and name == "grouped":
        channels = 6
    for i, geometry in enumerate(accepted(name)):
        size = (*(n + 5 for n in geometry.smallest[:-1]), geometry.smallest[-1] + 28)
        for layout in ("NCHW", "NHWC"):
            w_shape = (filters, channels // groups, *geometry.kernel)
            case = Case((1, channels, *size), w_shape, geometry, groups=groups, layout=layout, seed=i)
            if not applies(name, case.problem):
                continue
            out = case.guarded_out(viewed=False)
            convolve(case, case.guarded_inputs(viewed=False), algorithm=name, threads=1 + i % 2, out=out)
            case.check(out, name)
            check_untouched(out)


@pytest.mark.parametrize("pixels", range(1, 40))
def test_every_number_of_pixels(pixels: int) -> None:
    """Blocks are covered exactly by tiles of two heights, whatever the number of pixels and the width of the panels."""
    for out_channels in (5, 16, 24):
        geometry = Geometry((3,), (1,), (1,), ((1, 1),))
        case = Case((1, 4, pixels), (out_channels, 4, 3), geometry, threads=1 + pixels % 4, layout="NHWC")
        out = case.guarded_out(viewed=False)
        convolve(case, case.guarded_inputs(viewed=False), algorithm="direct", threads=case.threads, out=out)
        case.check(out)
        check_untouched(out)


# -- memory ------------------------------------------------------------------------------------------------------

MEMORY = [
    PROBE,
    replace(PROBE, layout="NHWC", x_shape=(2, 4, 9, 31), epilogue={"bias": True}),
    replace(PROBE, groups=2, x_shape=(1, 8, 12, 5), dtype="float64", epilogue={"residual": True}),
    Case((1, 24, 7, 9), (31, 24, 1, 1), SINGLE, epilogue={"bias": True, "residual": True}),
    replace(PROBE, groups=9, x_shape=(2, 9, 12, 9), w_shape=(18, 1, 3, 3), epilogue={"bias": True}),
    replace(PROBE, groups=13, x_shape=(2, 13, 9, 9), w_shape=(13, 1, 3, 3), layout="NHWC"),
    replace(PROBE, groups=3, x_shape=(1, 12, 9, 9), w_shape=(12, 4, 3, 3), layout="NHWC", epilogue={"bias": True}),
    Case((2, 13, 9, 8), (13, 1, 3, 3), replace(WINDOW, stride=(1, 1)), groups=13, epilogue={"bias": True}),
    Case((2, 6, 9, 10), (20, 6, 3, 3), replace(WINDOW, stride=(1, 1), pads=((1, 1), (1, 1))), layout="NHWC"),
]
EACH_MEMORY = pytest.mark.parametrize("case", MEMORY, ids=range(len(MEMORY)))


def lent(sizes: list[int]) -> int:
    """What the allocations of an arena cost, every buffer on cache lines of its own."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


@EACH_MEMORY
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_workspace_is_exact(name: str, threads: int, case: Case) -> None:
    if not applies(name, case.problem):
        pytest.skip("refused")
    inputs = case.guarded_inputs(viewed=False)
    weights = {k: inputs.pop(k) for k in ("w", "bias") if k in inputs}
    plan = case.plan(name, threads)
    plan.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(**weights)
    apart = case.problem.out_channels * case.problem.itemsize
    *tables, packed = packing.sizes or [0]
    assert packed in (plan.packed_weight_bytes, plan.packed_weight_bytes - apart)
    assert lent(tables) == plan.table_bytes
    with GuardedAllocator() as running:
        case.check(bound(**inputs), name)
    each_call = plan.workspace_bytes - plan.table_bytes
    assert lent(running.sizes) == each_call == plan.arena.peak_bytes
    assert plan.arena.live_bytes == 0
    case.check(bound(**inputs), name)  # with memory of the system, a spare the next time
    case.check(bound(**inputs), name)
    assert plan.arena.spare_bytes == each_call
    if each_call:
        tight = case.plan(name, threads)
        tight.arena = Arena(each_call - 1)
        with pytest.raises(MemoryLimitError) as caught:
            tight.bind(**weights)(**inputs)
        assert (caught.value.limit, caught.value.needed) == (each_call - 1, each_call)


@EACH_MEMORY
@pytest.mark.parametrize("name", NAMES)
def test_the_least_limit_is_named_and_enough(name: str, case: Case) -> None:
    if not applies(name, case.problem):
        pytest.skip("refused")
    inputs = case.guarded_inputs(viewed=False)
    weights = {k: inputs.pop(k) for k in ("w", "bias") if k in inputs}
    try:
        least = case.plan(name, 2, memory_limit=0).extra_bytes
        assert least == 0
    except MemoryLimitError as error:
        least = error.needed
        with pytest.raises(MemoryLimitError) as caught:
            case.plan(name, 2, memory_limit=least - 1)
        assert (caught.value.limit, caught.value.needed) == (least - 1, least)
        assert name in str(caught.value)
    plan = case.plan(name, 2, memory_limit=least)
    assert plan.extra_bytes <= least
    assert plan.workspace_bytes <= case.plan(name, 2).workspace_bytes
    with GuardedAllocator():
        case.check(plan.bind(**weights)(**inputs), name)
    # So with the workspace of each thread, whatever packed weights take.
    try:
        assert case.plan(name, 2, workspace_limit=0).workspace_bytes == 0
    except MemoryLimitError as error:
        narrow = case.plan(name, 2, workspace_limit=error.needed)
        assert 0 < narrow.workspace_bytes <= error.needed * narrow.threads


GAPLESS = ("direct", "pointwise")  # what runs in no memory at all


@EACH_MEMORY
@pytest.mark.parametrize("name", NAMES)
def test_limits_of_unbound_calls_leave_out_what_plain_weights_take(name: str, case: Case) -> None:
    if not applies(name, case.problem):
        pytest.skip("refused")
    plan = case.plan(name)
    assert plan.unbound_bytes < plan.workspace_bytes + plan.packed_weight_bytes + ALIGNMENT
    counted = plan.unbound_extra_bytes
    assert abs(counted - plan.extra_bytes) < ALIGNMENT
    inputs = case.guarded_inputs(viewed=False)
    with GuardedAllocator() as guard:
        case.check(convolve(case, inputs, algorithm=name, threads=1, memory_limit=counted), name)
    assert lent(guard.sizes) <= plan.unbound_bytes
    least = 0
    try:
        case.check(convolve(case, inputs, algorithm=name, threads=1, memory_limit=0), name)
    except MemoryLimitError as error:
        least = error.needed
        with pytest.raises(MemoryLimitError):
            convolve(case, inputs, algorithm=name, threads=1, memory_limit=least - 1)
        case.check(convolve(case, inputs, algorithm=name, threads=1, memory_limit=least), name)
    assert least <= counted
    assert least == 0 or name not in GAPLESS


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("channels", [16, 43])
def test_pixels_of_an_image_larger_than_the_second_cache_are_asked_for_ahead(channels: int, layout: str) -> None:
    """Behind the last pixel there is nothing to read: asking for it must not touch it."""
    pixels = this_host().l2 // (4 * channels) + 7
    case = Case((1, channels, 1, pixels), (20, channels, 1, 1), SINGLE, layout=layout, epilogue=EPILOGUES[0])
    spec = case.plan("pointwise").lowering.phases[0].spec
    assert spec.ahead if isinstance(spec, ColumnSpec) else spec.source.ahead  # type: ignore[attr-defined]
    inputs = case.guarded_inputs(viewed=False)
    case.check(convolve(case, inputs, algorithm="pointwise", threads=2), "pointwise")


@pytest.mark.parametrize("name", NAMES)
def test_out_of_memory_leaves_no_trace(name: str) -> None:
    even = Case((1, 4, 6, 7), (8, 4, 3, 3), Geometry((3, 3), (1, 1), (1, 1), ((1, 0), (1, 1))))
    case = next(case for case in (*MEMORY, PROBE, even, replace(even, layout="NHWC")) if applies(name, case.problem))
    inputs = case.guarded_inputs(viewed=False)
    for nth in range(1, 8):
        # An arena of its own: the shared one may have spares to free, and then tries a second time.
        with FailingAllocator(nth) as failing:
            try:
                case.check(convolve(case, inputs, algorithm=name, threads=2, memory_limit="1GiB"), name)
            except AllocationError:
                assert failing.count == nth
                continue
        assert failing.count < nth
        break
    else:
        pytest.fail("never enough memory")
    case.check(convolve(case, inputs, algorithm=name, threads=2, memory_limit="1GiB"), name)


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", POINTWISE + WINDOWS, ids=range(len(POINTWISE + WINDOWS)))
def test_refusals_say_why(geometry: Geometry) -> None:
    size = tuple(n + 2 for n in geometry.smallest)
    case = Case((1, 4, *size), (8, 4, *geometry.kernel), geometry)
    listed = leanconv.algorithms(**case.plan_arguments)
    assert [info.name for info in listed] == NAMES
    for info in listed:
        assert info.applies == applies(info.name, case.problem)
        assert info.title and info.paper and info.error_class in ("plain", "float64", "transformed")
        if info.applies:
            assert info.reason is None
            plan = case.plan(info.name, leanconv.get_num_threads())
            assert plan.algorithm == info.name
            assert info.workspace_bytes == plan.workspace_bytes
            assert info.packed_weight_bytes == plan.packed_weight_bytes
            continue
        assert info.workspace_bytes is None and info.packed_weight_bytes is None
        assert info.reason and len(info.reason.split()) >= 3 and info.reason.strip(" .\n") == info.reason
        for call in (case.plan, lambda name: convolve(case, case.values, algorithm=name)):
            with pytest.raises(NotApplicableError) as caught:
                call(info.name)
            assert (caught.value.algorithm, caught.value.reason) == (info.name, info.reason)
            assert info.reason in str(caught.value)


def test_automatic_choice_is_one_that_applies() -> None:
    for geometry in POINTWISE + WINDOWS:
        size = tuple(n + 2 for n in geometry.smallest)
        case = Case((1, 4, *size), (8, 4, *geometry.kernel), geometry)
        plan = case.plan("auto")
        assert plan.algorithm != "reference" and applies(plan.algorithm, case.problem)
        case.check(convolve(case, case.values))
