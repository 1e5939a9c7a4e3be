"""Normalisations with kernels: every shape and grouping, numbers far from zero, several nodes that are one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host
from leanconv.network.arrange import arrange
from leanconv.network.compile import compile_graph
from leanconv.network.passes import run_passes
from leanconv.network.steps.base import Setting
from networks import Builder, check, reference
from test_network_steps import compare, image

RELU = ("relu",)


def _numbers(b: Builder, count: int) -> tuple[str, str]:
    return tuple(b.constant((b.rng.standard_normal(count) + 1).astype(b.dtype)) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 64, 40, 17), (3, 24, 9), (1, 3, 80, 90), (2, 72, 3, 4, 5)])
def test_instance_and_group_norms(shape: tuple[int, ...], dtype: str) -> None:
    for last in (True, False):
        b = Builder(dtype=dtype)
        x, channels = image(b, *shape, last=last), shape[1]
        y = b.add("InstanceNormalization", x, *_numbers(b, channels), epsilon=1e-3)
        z = b.add("leanconv.InstanceNormalization", b.add("Neg", x), *_numbers(b, channels), activation=RELU)
        ends = [y, z]
        for groups in {1, channels, *([4] if channels % 4 == 0 else [])}:
            ends.append(b.add("GroupNormalization", x, *_numbers(b, channels), num_groups=groups, version=21))
            ends.append(b.add("GroupNormalization", x, *_numbers(b, groups), num_groups=groups, version=18))
        compare(b, *ends, tolerance=3e-6 if dtype == "float32" else 1e-13)


def test_moments_far_from_zero() -> None:
    """With a mean that is a thousand times the spread the error is the mean's own rounding: half a unit of 2**-14."""
    b = Builder()
    x = b.input(1, 19, 90, 70)
    graph = b.graph(b.add("InstanceNormalization", x, *_numbers(b, 19)))
    values = (1000 + np.random.default_rng(0).standard_normal((1, 19, 90, 70))).astype("f4")
    wanted = reference(graph, {x: values.astype("f8")})
    (name,) = graph.outputs
    found = compile_graph(graph).run({x: values})[name]
    np.testing.assert_allclose(found, wanted[name], rtol=0, atol=2e-4)


def test_the_same_bits_from_any_number_of_threads() -> None:
    b = Builder()
    x = image(b, 1, 40, 61, 67)
    y = b.add("GroupNormalization", x, *_numbers(b, 40), num_groups=8, version=21)
    z = b.add("LayerNormalization", b.add("Transpose", x, perm=(0, 2, 3, 1)), *_numbers(b, 40), version=17)
    graph, inputs = b.graph(y, z), b.arrays()
    one, three = (compile_graph(graph, threads=n).run(inputs) for n in (1, 3))
    for name in graph.outputs:
        np.testing.assert_array_equal(one[name], three[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norms(dtype: str) -> None:
    for shape in ((4, 5), (2, 3, 96), (1, 7, 9, 64), (2, 5, 131)):
        for axis in range(1, len(shape)):
            b = Builder(dtype=dtype)
            x, row = b.input(*shape), shape[axis:]
            scale, bias = b.weights(*row), b.weights(*row[-1:])
            ends = [
                b.add("LayerNormalization", x, scale, bias, axis=axis, version=17),
                b.add("LayerNormalization", x, scale, axis=axis - len(shape), epsilon=1e-2, version=17),
                b.add("RMSNormalization", x, scale, axis=axis, version=23),
            ]
            compare(b, *ends, tolerance=3e-6 if dtype == "float32" else 1e-13)


def test_layer_norms_of_images_that_lie_channels_last() -> None:
    b = Builder()
    x = image(b, 2, 48, 5, 6)
    last = b.add("Transpose", x, perm=(0, 2, 3, 1))
    ends = [
        b.add("LayerNormalization", last, *_numbers(b, 48), version=17),
        b.add("LayerNormalization", x, b.weights(48, 5, 6), axis=1, version=17),
        b.add("LayerNormalization", b.add("Slice", last, *_slice(b)), *_numbers(b, 48), version=17),
    ]
    compare(b, *ends)


def _slice(b: Builder) -> list[str]:
    return [b.constant(np.array(numbers)) for numbers in ([1, 0], [4, 6], [1, 2], [1, 2])]


def _whole(b: Builder, *outputs: str) -> tuple[Any, list[str]]:
    """Compare what passes make of a graph with the graph; its operators then."""
    plain, inputs = b.graph(*outputs), b.arrays()
    wanted = reference(plain, inputs)
    graph = b.graph(*outputs)
    run_passes(graph)
    network = compile_graph(graph)
    assert network.native_calls == 1 and not [step for step in network.steps if step.reason]
    check(network.run(inputs), wanted)
    return graph, [node.op for node in graph.nodes if node.op not in ("Transpose", "MaxPool")]


@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_around_an_instance_norm(affine: bool) -> None:
    b = Builder()
    x = image(b, 2, 12, 6, 5)
    seen = b.add("Reshape", x, b.constant(np.array([0, 4, -1])))
    one, zero = b.constant(np.ones(4, "f4")), b.constant(np.zeros(4, "f4"))
    y = b.add("InstanceNormalization", seen, one, zero, epsilon=1e-3)
    y = b.add("Reshape", y, b.constant(np.array([2, 12, 6, 5])))
    if affine:
        y = b.add("Add", b.add("Mul", y, b.weights(12, 1, 1)), b.weights(1, 12, 1, 1))
    _, ops = _whole(b, b.add("Relu", y))
    assert ops == ["leanconv.GroupNormalization"]


@pytest.mark.parametrize("squared", ["Pow", "Mul"])
@pytest.mark.parametrize("axes", [(-1,), (2, 3), (1,)])
def test_a_layer_norm_written_as_means(axes: tuple[int, ...], squared: str) -> None:
    b = Builder()
    x = image(b, 2, 12, 6, 5)
    d = b.add("Sub", x, b.add("ReduceMean", x, axes=axes))
    square = b.add("Mul", d, d) if squared == "Mul" else b.add("Pow", d, b.constant(np.float32(2)))
    root = b.add("Sqrt", b.add("Add", b.add("ReduceMean", square, axes=axes), b.constant(np.float32(1e-3))))
    row = {(-1,): (5,), (2, 3): (6, 5), (1,): (12, 1, 1)}[axes]
    y = b.add("Add", b.add("Mul", b.add("Div", d, root), b.weights(*row)), b.weights(*row))
    _, ops = _whole(b, y)
    assert ops == ["LayerNormalization"]


def test_what_only_looks_like_a_layer_norm() -> None:
    for extra in ("mean", "apart", "square"):
        b = Builder()
        x = b.input(2, 3, 7)
        mean = b.add("ReduceMean", x, axes=(-1,))
        d = b.add("Sub", x, mean)
        square = b.add("Mul", d, d)
        root = b.add("Sqrt", b.add("Add", b.add("ReduceMean", square, axes=(-1,)), b.constant(np.float32(1e-3))))
        y = b.add("Div", d, root)
        graph = b.graph(y, {"mean": mean, "apart": d, "square": square}[extra])
        run_passes(graph)
        assert "LayerNormalization" not in [node.op for node in graph.nodes]
        inputs = b.arrays()
        check(compile_graph(graph).run(inputs), reference(b.graph(*graph.outputs), inputs))


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_kernels_compile_for_every_target(target: Target) -> None:
    host = Host(target, 32 << 10, 512 << 10, 8 << 20)
    for dtype in ("float32", "float64"):
        b = Builder(dtype=dtype)
        x = image(b, 1, 40, 9, 11)
        ends = [
            b.add("InstanceNormalization", x, *_numbers(b, 40)),
            b.add("leanconv.GroupNormalization", x, *_numbers(b, 40), num_groups=4, activation=("silu",)),
            b.add("LayerNormalization", b.add("Transpose", x, perm=(0, 2, 3, 1)), *_numbers(b, 40), version=17),
        ]
        kinds = set()
        for step in arrange(b.graph(*ends)).steps:
            assert step.lowerer is not None
            for phase in step.lowerer.options(step.call, Setting(host, 2))[0].build().phases:
                kinds.add(type(phase.spec).__name__)
                module = Module()
                phase.spec.emit(module, "kernel")
                assert "kernel" in jit.compile_assembly(module.text(), target)
        assert kinds >= {"MomentsSpec", "StatisticsSpec", "StandardSpec", "RowNormSpec"}
