"""Few channels: tiles that end with the rows of the output, and edges copied to the stack."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator
from leanconv.algorithms.rowwindows import by_rows
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host, this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.rowwindows import RowWindows
from leanconv.problem import Problem
from strategies import EPILOGUES, Case, Geometry, check_untouched, convolve

FUSED = [target for target in TARGETS.values() if target.fma]


@st.composite
def narrow_cases(draw: st.DrawFn) -> Case:
    """Layers of 1 to 8 channels, channels last, with rows of at least a tile."""
    kernel = draw(st.integers(1, 7)), draw(st.integers(1, 11))
    pads = tuple((draw(st.integers(0, taps)), draw(st.integers(0, taps))) for taps in kernel)
    stride, dilation = (draw(st.integers(1, 4)), draw(st.integers(1, 4))), (draw(st.integers(1, 3)), 1)
    geometry = Geometry(kernel, stride, dilation, pads)
    channels, filters = draw(st.integers(1, 8)), draw(st.sampled_from([1, 8, 16, 33, 70]))
    high, wide = (n + draw(st.integers(0, most)) for n, most in zip(geometry.smallest, (9, 160), strict=True))
    return Case(
        (draw(st.integers(1, 2)), channels, high, wide),
        (filters, channels, *kernel),
        geometry,
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        layout="NHWC",
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        flush=draw(st.sampled_from(["right", "left"])),
    )


@settings(settings.get_profile("engine"), max_examples=60)
@given(narrow_cases())
def test_random_layers(case: Case) -> None:
    """Right, nothing touched beside the image and the output, and the bits of one thread."""
    outs = []
    with GuardedAllocator(case.flush):
        for threads in (1, case.threads):
            out = case.guarded_out(viewed=False)
            convolve(case, case.guarded_inputs(viewed=False), algorithm="direct", threads=threads, out=out)
            case.check(out)
            check_untouched(out)
            outs.append(out.tobytes())
    assert outs[0] == outs[1]


@pytest.mark.parametrize("width", range(8, 64))
def test_every_width(width: int) -> None:
    """Rows of any width are covered exactly, by tiles over the left edge, over the right one and over both."""
    geometry = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    case = Case((1, 3, 5, width), (40, 3, 3, 3), geometry, layout="NHWC", threads=1 + width % 3)
    out = case.guarded_out(viewed=False)
    convolve(case, case.guarded_inputs(viewed=False), algorithm="direct", threads=case.threads, out=out)
    case.check(out)
    check_untouched(out)


WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
PLAIN = Case((1, 3, 40, 48), (64, 3, 3, 3), WINDOW, layout="NHWC")


@pytest.mark.parametrize(
    ("case", "taken"),
    [
        (PLAIN, True),
        (replace(PLAIN, x_shape=(1, 8, 40, 48), w_shape=(64, 8, 3, 3)), True),
        (replace(PLAIN, x_shape=(1, 9, 40, 48), w_shape=(64, 9, 3, 3)), False),  # not few
        (replace(PLAIN, layout="NCHW"), False),
        (replace(PLAIN, x_shape=(1, 3, 40, 3)), False),  # short rows
        (replace(PLAIN, geometry=replace(WINDOW, dilation=(1, 2))), False),  # taps of a row apart
        (replace(PLAIN, geometry=replace(WINDOW, mode="reflect")), False),
    ],
)
def test_what_is_read_so(case: Case, taken: bool) -> None:
    assert (by_rows(case.problem, this_host(), 1) is not None) == taken


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_blocks_are_whole_rows(threads: int) -> None:
    problem = replace(PLAIN, x_shape=(2, 3, 224, 224)).problem
    found = by_rows(problem, this_host(), threads)
    assert found is not None
    _, heights, cut = found
    high, width = problem.out_size
    assert cut.block % width == 0 and cut.blocks == math.ceil(high * width / cut.block)
    assert all(width >= height for height in heights)


RGB = {
    "3x3": Case((1, 3, 24, 224), (64, 3, 3, 3), WINDOW, layout="NHWC"),
    "3x3s2": Case((1, 3, 24, 224), (32, 3, 3, 3), replace(WINDOW, stride=(2, 2)), layout="NHWC"),
    "7x7s2": Case((1, 3, 24, 224), (64, 3, 7, 7), Geometry((7, 7), (2, 2), (1, 1), ((3, 3),) * 2), layout="NHWC"),
    "11x11s4": Case((1, 3, 24, 224), (64, 3, 11, 11), Geometry((11, 11), (4, 4), (1, 1), ((2, 2),) * 2), layout="NHWC"),
}


def core(problem: Problem, target: Target) -> DenseSpec:
    from leanconv.algorithms.direct import Direct

    low = Direct().lower(problem, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, None, {})
    spec = low.phases[0].spec
    assert isinstance(spec, DenseSpec) and isinstance(spec.source, RowWindows)
    return spec


NARROW = Case((1, 3, 24, 224), (16, 3, 3, 3), replace(WINDOW, stride=(2, 2)), layout="NHWC")


@pytest.mark.parametrize("target", FUSED, ids=[target.name for target in FUSED])
@pytest.mark.parametrize("name", [*RGB, "to 16"])
def test_inner_loops_hold_whole_steps_and_spill_next_to_nothing(name: str, target: Target) -> None:
    spec = core(RGB.get(name, NARROW).problem, target)
    module = Module()
    spec.emit(module, "kernel")
    loops = innermost_loops(jit.compile_assembly(module.text(), target))
    multiplying = [loop for loop in loops if count_fused(loop)]
    widths = (spec.panels.vectors, spec.panels.last or spec.panels.vectors)
    sizes = {(rows - short) * width for rows, width in zip(spec.rows, widths, strict=True) for short in (0, 1)}
    assert multiplying
    for loop in multiplying:
        assert any(count_fused(loop) % size == 0 for size in sizes)
        # One broadcast of a step of 11 on AVX2, where twelve sums leave four registers; else none.
        assert len(spills(loop)) * 20 < count_fused(loop) if name == "11x11s4" else not spills(loop)


@pytest.mark.parametrize("name", RGB)
def test_four_pixels_go_through_three_steps_before_the_next(name: str) -> None:
    """Where registers hold three rows of weights beside the sums: those of AVX-512."""
    spec = core(RGB[name].problem, TARGETS["avx512"])
    module = Module()
    spec.emit(module, "kernel")
    assembly = jit.compile_assembly(module.text(), spec.target)
    loops = [loop for loop in innermost_loops(assembly) if count_fused(loop) == 3 * 2 * spec.rows[0]]
    assert loops
    for loop in loops:
        sums = [instruction.operands.split(",")[-1].strip() for instruction in loop if instruction.fused]
        assert len(set(sums)) == 2 * spec.rows[0]
        assert len(set(sums[:24])) == 8


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize(("name", "stride"), [("3x3", 1), ("3x3s2", 2), ("7x7s2", 0), ("11x11s4", 0)])
def test_short_sums_ask_for_the_rows_of_the_image_that_are_new_below(name: str, stride: int, target: Target) -> None:
    spec = core(replace(RGB[name], epilogue={}).problem, target)
    module = Module()
    replace(spec, fetch=False, reduction=replace(spec.reduction, stream=False)).emit(module, "kernel")
    source = spec.source
    assert isinstance(source, RowWindows)
    lines = [
        stride * -(-source.reach(rows, spec.reduction.kernel[1]) * 12 // 64)
        for rows in {height - short for height in spec.rows for short in range(2 if spec.ragged else 1)}
    ]
    assert module.text().count("call void @llvm.prefetch") == sum(lines)
