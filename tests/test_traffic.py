"""What is asked for ahead, and what is stored past the caches; neither changes a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator
from leanconv.algorithms import traffic
from leanconv.algorithms.direct import Direct
from leanconv.algorithms.pointwise import Pointwise
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import AVX2, AVX512, TARGETS, Target
from leanconv.host import Host, this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.reduction import UNROLL
from strategies import EPILOGUES, POINTWISE, Case, Geometry, check_untouched, convolve

WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
RGB = Case((2, 3, 9, 31), (32, 3, 3, 3), WINDOW, layout="NHWC", threads=2)
LAYERS = [
    ("direct", RGB),
    ("direct", replace(RGB, w_shape=(96, 3, 3, 3))),
    ("direct", replace(RGB, dtype="float64", w_shape=(24, 3, 3, 3))),
    ("direct", replace(RGB, x_shape=(2, 40, 9, 31), w_shape=(64, 20, 3, 3), groups=2)),
    ("indirect", replace(RGB, epilogue=EPILOGUES[-1])),
    ("pointwise", Case((3, 20, 7, 9), (48, 20, 1, 1), POINTWISE[1], layout="NHWC", threads=2, epilogue=EPILOGUES[-1])),
    ("direct", replace(RGB, w_shape=(40, 3, 3, 3))),  # no whole registers
    ("direct", replace(RGB, layout="NCHW")),
]


@pytest.mark.parametrize(("name", "case"), LAYERS)
@pytest.mark.parametrize("shift", [0, 4, 16, 32])
def test_the_same_bits_wherever_the_output_begins(
    monkeypatch: pytest.MonkeyPatch, name: str, case: Case, shift: int
) -> None:
    inputs = case.guarded_inputs(viewed=False)
    want = convolve(case, inputs, algorithm=name, threads=1)
    monkeypatch.setattr(traffic, "LARGE", 0)
    whole = case.w_shape[0] // case.groups % this_host().target.lanes(case.dtype) == 0
    spec = case.plan(name).lowering.phases[-1].spec
    assert isinstance(spec, DenseSpec)
    assert spec.past == (whole and case.layout == "NHWC" and this_host().target.vector_bytes == 64)
    item = want.dtype.itemsize
    out = leanconv.empty(want.size + 64 // item, case.dtype)[shift // item :][: want.size].reshape(want.shape)
    assert shift % item or out.ctypes.data % 64 == shift
    out.fill(np.nan)
    np.testing.assert_array_equal(convolve(case, inputs, algorithm=name, threads=case.threads, out=out), want)
    if not shift:
        out = case.guarded_out(viewed=False)
        convolve(case, inputs, algorithm=name, threads=case.threads, out=out)
        check_untouched(out)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_only_what_no_cache_holds_and_only_whole_lines(target: Target) -> None:
    bytes_ = 4 * 32 * 40 * 48
    for last, past in ((bytes_ // 4, False), (bytes_ // 4 - 1, True)):
        low = Direct().lower(
            replace(RGB, x_shape=(1, 3, 40, 48)).problem, Host(target, 1 << 15, 1 << 18, last), 1, None, {}
        )
        spec = low.phases[0].spec
        assert isinstance(spec, DenseSpec)
        assert spec.past == (past and target.vector_bytes == 64)
        module = Module()
        spec.emit(module, "tested")
        text = jit.compile_assembly(module.text(), target)
        assert ("vmovntps" in text) == spec.past
        assert text.count("sfence") == spec.past


HOST = Host(AVX512, 48 << 10, 1 << 20, 32 << 20)
DEEP = Case((1, 320, 7, 7), (256, 320, 1, 1), POINTWISE[1], layout="NHWC")  # 320 KiB of weights


@pytest.mark.parametrize(
    ("case", "host", "lines"),
    [
        (DEEP, HOST, 2),  # five tiles share eight lines
        (replace(DEEP, x_shape=(1, 320, 10, 10)), HOST, 1),
        (replace(DEEP, x_shape=(1, 320, 4, 4)), HOST, 4),
        (replace(DEEP, x_shape=(1, 320, 2, 2)), HOST, 0),  # one tile: nobody has time to ask
        (replace(DEEP, x_shape=(1, 80, 7, 7), w_shape=(128, 80, 1, 1)), HOST, 0),  # weights that the first level holds
        (DEEP, replace(HOST, target=AVX2), 0),
    ],
)
def test_tiles_ask_for_the_next_panel_of_weights_together(case: Case, host: Host, lines: int) -> None:
    (phase,) = Pointwise().lower(case.problem, host, 1, None, {}).phases
    spec = phase.spec
    assert isinstance(spec, DenseSpec) and spec.later == lines
    if not lines:
        return
    tiles = -(-case.problem.out_size[0] * case.problem.out_size[1] // spec.rows[0])
    assert lines * tiles * 64 >= UNROLL * spec.panels.vectors * 64
    module = Module()
    spec.emit(module, "tested")
    loops = [loop for loop in innermost_loops(jit.compile_assembly(module.text(), AVX512)) if count_fused(loop)]
    for loop in loops:
        assert sum(i.operation == "prefetcht1" for i in loop) == lines and not spills(loop)


@pytest.mark.parametrize(("threads", "panels"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_next_panel_is_that_of_the_same_thread(threads: int, panels: int) -> None:
    (phase,) = Pointwise().lower(DEEP.problem, HOST, threads, None, {}).phases
    apart = panels * phase.fields["w_panel"]
    assert (phase.fields["w_later"], phase.fields["w_back"]) == (apart, -apart)


@pytest.mark.parametrize("name", ["direct", "pointwise", "direct_band", "implicit_gemm", "im2row", "indirect"])
@pytest.mark.parametrize("bias", [0, 1])
def test_nothing_beyond_the_weights_is_read(name: str, bias: int) -> None:
    case = replace(DEEP, x_shape=(3, 320, 7, 7), epilogue=EPILOGUES[bias])
    outs = []
    for threads in (1, 2, 4):
        out = case.guarded_out(viewed=False)
        with GuardedAllocator("right"):
            convolve(case, case.guarded_inputs(viewed=False), algorithm=name, threads=threads, out=out)
        case.check(out)
        check_untouched(out)
        outs.append(out.tobytes())
    assert len(set(outs)) == 1


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "target", "asked"),
    [
        (32, 16, 112, AVX512, False),
        (64, 16, 55, AVX512, False),
        (96, 16, 112, AVX512, True),  # not bound by loads
        (32, 12, 112, AVX512, True),  # stored under masks
        (32, 32, 112, AVX512, True),
        (32, 16, 448, AVX512, True),  # not in the last-level cache
        (32, 8, 112, AVX2, True),  # half a line
    ],
)
def test_tiles_bound_by_loads_ask_for_no_outputs(
    channels: int, outputs: int, size: int, target: Target, asked: bool
) -> None:
    problem = Case((1, channels, size, size), (outputs, channels, 1, 1), POINTWISE[1], layout="NHWC").problem
    low = Pointwise().lower(problem, Host(target, 48 << 10, 1 << 20, 32 << 20), 1, None, {})
    spec = low.phases[0].spec
    assert isinstance(spec, DenseSpec)
    assert spec.fetch == asked
