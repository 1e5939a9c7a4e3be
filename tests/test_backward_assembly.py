"""The machine code of transposed convolutions and gradients for every target: inner loops spill nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import leanconv
from assembly import count_fused, innermost_loops, parse, spills
from leanconv.algorithms.base import Algorithm
from leanconv.algorithms.direct import Direct
from leanconv.backward.depthwise import DepthwiseWeights
from leanconv.backward.direct import DirectWeights
from leanconv.backward.indirect import IndirectWeights
from leanconv.backward.winograd import WinogradF4Weights
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.compiled import KernelSpec
from leanconv.host import Host
from leanconv.staging import around_copies

FUSED = [target for target in TARGETS.values() if target.fma]
EACH_TARGET = pytest.mark.parametrize("target", FUSED, ids=[target.name for target in FUSED])
BESIDE = ("fill the table", "windows", "gradients", "taps", "gradient of the bias")  # phases without sums over pixels
LAYERS = [
    ((2, 64, 28, 28), (64, 64, 3, 3), {"padding": 1}),
    ((2, 28, 28, 64), (64, 64, 3, 3), {"padding": 1, "layout": "NHWC", "bias": True}),
    ((1, 3, 56, 56), (40, 3, 7, 7), {"padding": 3, "stride": 2}),
    ((2, 14, 14, 96), (70, 96, 1, 1), {"layout": "NHWC"}),
    ((2, 96, 14, 14), (70, 96, 1, 1), {"stride": 2, "dtype": "float64"}),
    ((1, 32, 40, 41), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
    ((1, 40, 41, 33), (33, 1, 3, 3), {"groups": 33, "padding": 1, "stride": 2, "layout": "NHWC"}),
    ((1, 8, 400), (24, 8, 5), {"dilation": 2}),
]


def host(target: Target) -> Host:
    return Host(target, 32 << 10, 512 << 10, 8 << 20)


def assembly(spec: KernelSpec, target: Target) -> str:
    module = Module()
    spec.emit(module, "kernel")
    return jit.compile_assembly(module.text(), target)


@EACH_TARGET
@pytest.mark.parametrize("layer", LAYERS, ids=range(len(LAYERS)))
@pytest.mark.parametrize(
    "algorithm",
    [DirectWeights(), DepthwiseWeights(), IndirectWeights(), WinogradF4Weights()],
    ids=["direct", "depthwise", "indirect", "winograd_f4"],
)
def test_gradients_of_weights(algorithm: Algorithm, target: Target, layer: tuple[Any, ...]) -> None:
    x_shape, w_shape, options = layer
    problem = leanconv.plan_backward_weights(x_shape, w_shape, **options).problem
    if algorithm.refusal(problem) is not None:
        pytest.skip("refused")
    phases = algorithm.lower(problem, host(target), 1, None, {}).phases
    sums = {phase.spec: None for phase in phases if phase.name not in BESIDE}
    assert sums
    for spec in sums:
        text = assembly(spec, target)
        assert "kernel" in parse(text)[1]
        loops = [loop for loop in innermost_loops(text) if count_fused(loop)]
        assert loops
        for loop in loops:
            assert not spills(loop), spills(loop)


@EACH_TARGET
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_scattered_outputs(layout: str, target: Target) -> None:
    """Tiles that are stored to every other place stay in registers as the others do while they are summed."""
    shape = (1, 64, 14, 14) if layout == "NCHW" else (1, 14, 14, 64)
    problem = leanconv.plan_transpose(
        shape, (64, 64, 4, 4), stride=2, padding=1, layout=layout, bias=True, activation="relu"
    ).problem
    low = around_copies(problem, Direct(), host(target), 1, None, {})
    assert len(low.phases) == 4
    for phase in low.phases:
        loops = [loop for loop in innermost_loops(assembly(phase.spec, target)) if count_fused(loop)]
        plain = assembly(replace(phase.spec, scattered=0), target)
        others = [loop for loop in innermost_loops(plain) if count_fused(loop)]
        assert [bool(spills(loop)) for loop in loops] == [bool(spills(loop)) for loop in others]
        assert not all(spills(loop) for loop in loops if count_fused(loop) == max(map(count_fused, loops)))
