"""Reductions along any axes: the sums of NumPy, whatever lies adjacent, and places of the largest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host
from leanconv.network.arrange import arrange
from leanconv.network.compile import compile_graph
from leanconv.network.steps.base import Setting
from networks import Builder
from test_network_steps import compare, image

SIGNED = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_axes(dtype: str) -> None:
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for number, shape in enumerate([(3, 37, 4, 5), (1, 8, 9, 1), (2, 5, 3, 40)]):
        for last in (True, False):
            b = Builder(dtype=dtype)
            x = image(b, *shape, last=last)
            ends = []
            for axes in [c for k in (1, 2, 3, 4) for c in itertools.combinations(range(4), k)]:
                op = SIGNED[(number + len(ends)) % len(SIGNED)]
                ends.append(b.add(op, x, b.constant(np.array(axes)), keepdims=len(ends) % 2, version=18))
            compare(b, *ends, tolerance=tolerance)


@pytest.mark.parametrize("op", [*SIGNED, "ReduceProd", "ReduceLogSum"])
def test_each_reduction(op: str) -> None:
    b = Builder()
    x = b.add("Abs", image(b, 2, 41, 5, 6))
    ends = [b.add(op, x, b.constant(np.array(axes)), keepdims=1, version=18) for axes in ((1,), (1, 3), (0, 2))]
    compare(b, *ends, b.add(op, x, keepdims=0, version=18), tolerance=3e-5)


def test_nan_and_infinity() -> None:
    b = Builder()
    x = b.input(3, 70)
    ends = [b.add(op, x, axes=(1,)) for op in ("ReduceMax", "ReduceMin", "ReduceSum")]
    values = np.random.default_rng(0).standard_normal((3, 70)).astype("f4")
    values[0, 40], values[1, 3] = np.nan, np.inf
    found = compile_graph(b.graph(*ends)).run({x: values})
    for name, function in zip(ends, (np.max, np.min, np.sum), strict=True):
        np.testing.assert_allclose(found[name], function(values, axis=1, keepdims=True), rtol=1e-5)


def test_the_same_bits_from_any_number_of_threads() -> None:
    b = Builder()
    x = image(b, 2, 40, 31, 17)
    graph = b.graph(*(b.add("ReduceSum", x, b.constant(np.array(axes))) for axes in ((1,), (0, 3), (1, 2))))
    inputs = b.arrays()
    one, three = (compile_graph(graph, threads=n).run(inputs) for n in (1, 3))
    for name in graph.outputs:
        np.testing.assert_array_equal(one[name], three[name])


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_kernels_compile_for_every_target(target: Target) -> None:
    host = Host(target, 32 << 10, 512 << 10, 8 << 20)
    for dtype in ("float32", "float64"):
        b = Builder(dtype=dtype)
        x = image(b, 1, 40, 9, 11)
        ends = [b.add(op, x, b.constant(np.array(axes)), version=18) for op in SIGNED for axes in ((1,), (0, 2))]
        seen = set()
        for step in arrange(b.graph(*ends, b.add("ReduceLogSum", x, version=18))).steps:
            assert step.lowerer is not None
            for phase in step.lowerer.options(step.call, Setting(host, 2))[0].build().phases:
                if type(phase.spec).__name__ == "ReduceSpec" and phase.spec not in seen:
                    seen.add(phase.spec)
                    module = Module()
                    phase.spec.emit(module, "kernel")
                    assert "kernel" in jit.compile_assembly(module.text(), target)
        assert len(seen) > len(SIGNED)
