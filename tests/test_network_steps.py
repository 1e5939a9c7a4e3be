"""Single operators with kernels, in the cases that networks rarely have: every layout, padding, mode and edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.host import Host
from leanconv.network.arrange import arrange
from leanconv.network.compile import compile_graph
from leanconv.network.steps.base import Setting
from networks import Builder, check, reference
from test_network_compile import guarded_run

ENGINE = settings(settings.get_profile("engine"), max_examples=40)


def compare(b: Builder, *outputs: str, threads: int = 2, native: bool = True, tolerance: float = 1e-5) -> None:
    graph, inputs = b.graph(*outputs), b.arrays()
    network = compile_graph(graph, threads=threads)
    assert not native or not [step for step in network.steps if step.reason], network.steps
    wanted = reference(graph, inputs)
    check(network.run(inputs), wanted, tolerance)
    check(guarded_run(network, inputs), wanted, tolerance)


def image(b: Builder, *shape: int, last: bool = True) -> str:
    """A value that lies channels last inside, or as the caller gives it."""
    x = b.input(*shape)
    return b.add("MaxPool", x, kernel_shape=(1,) * (len(shape) - 2)) if last else x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling(op: str, dtype: str) -> None:
    @ENGINE
    @given(st.data())
    def one(data: st.DataObject) -> None:
        draw = data.draw
        b = Builder(draw(st.integers(0, 9)), dtype)
        ndim = draw(st.sampled_from([1, 2, 2, 3]))
        size = tuple(draw(st.integers(5, 9)) for _ in range(ndim))
        x = image(b, draw(st.integers(1, 2)), draw(st.sampled_from([1, 5, 8, 37, 64])), *size, last=draw(st.booleans()))
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
        more: dict[str, Any] = {"dilations": tuple(draw(st.integers(1, 2)) if k > 1 else 1 for k in kernel)}
        if op == "AveragePool":
            more["count_include_pad"] = draw(st.integers(0, 1))
        pads = [min(k - 1, draw(st.integers(0, 2))) for k in (*kernel, *kernel)]
        strides = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
        ceil = draw(st.integers(0, 1))
        y = b.add(op, x, kernel_shape=kernel, pads=pads, strides=strides, ceil_mode=ceil, version=22, **more)
        compare(b, y)

    one()


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("channels", [3, 64, 200])
def test_all_pixels(op: str, channels: int) -> None:
    for last in (False, True):
        for keep in (0, 1):
            b = Builder()
            x = image(b, 2, channels, 9, 31, last=last)
            if op.startswith("Global"):
                y = b.add(op, x)
            elif op == "ReduceSum":
                y = b.add(op, x, b.constant(np.array([2, 3])), keepdims=keep)
            else:
                y = b.add(op, x, axes=(-1, 2), keepdims=keep)
            compare(b, y)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_along_any_axis(op: str) -> None:
    for shape in ((2, 5), (3, 40), (2, 19, 4, 3), (1, 1000), (4, 1, 7), (2, 3, 9, 16)):
        for axis in range(len(shape)):
            for last in (False, True):
                b = Builder()
                x = image(b, *shape, last=True) if last and len(shape) == 4 else b.input(*shape)
                compare(b, b.add(op, x, axis=axis))
    b = Builder()
    compare(b, b.add(op, b.input(2, 7, 1, 1), axis=1, version=11))


UNARY = [
    *("Relu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "Exp", "Neg", "Abs", "Floor", "Ceil", "Round", "Erf"),
    *("LeakyRelu", "HardSigmoid", "Elu", "Selu", "Gelu", "Mish", "Softsign", "Swish"),
    *("Celu", "ThresholdedRelu", "Shrink", "Sign"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_operand(op: str, dtype: str) -> None:
    b = Builder(dtype=dtype)
    x = b.input(3, 5, 7, 3)
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    compare(b, b.add(op, b.add("Mul", x, b.constant(np.array(3, dtype))), version=24), tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_positive_numbers(dtype: str) -> None:
    b = Builder(dtype=dtype)
    x = b.add("Add", b.add("Abs", b.input(2, 3, 17)), b.constant(np.array(0.01, dtype)))
    powers = [b.add("Pow", x, b.constant(np.array(p, dtype))) for p in (0.5, 0.75, 2, 3, -1, -0.75, 0, 1.25)]
    outputs = [b.add("Log", x), b.add("Sqrt", x), b.add("Reciprocal", x), *powers]
    tolerance = 3e-6 if dtype == "float32" else 1e-13
    compare(b, *outputs, tolerance=tolerance)


def test_logarithm_at_its_ends() -> None:
    b = Builder()
    x = b.input(9)
    graph = b.graph(b.add("Log", x))
    values = np.array([0, -1, np.inf, np.nan, 1e-42, 1, 3e38, 1.1754944e-38, 0.70710677], "f4")
    with np.errstate(all="ignore"):
        wanted = np.log(values)
    np.testing.assert_allclose(compile_graph(graph).run({x: values})[graph.outputs[0]], wanted, rtol=3e-7, atol=2e-7)


def test_operands_are_broadcast() -> None:
    shapes = [(1,), (), (7,), (5, 1, 1), (2, 1, 4, 1), (1, 5, 4, 7), (2, 5, 1, 1), (2, 5, 4, 7)]
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"):
        b = Builder()
        x = image(b, 2, 5, 4, 7)
        ends = []
        for shape in shapes:
            other = b.constant(np.asarray(b.rng.standard_normal(shape) + 3, "f4"))
            ends.append(b.add(op, x, other))
            if shape and op != "PRelu":
                ends.append(b.add(op, b.input(*shape), x))
        compare(b, *ends)
    b = Builder()
    compare(b, b.add("Mean", b.input(2, 3), b.input(3), b.input(2, 1)))


def test_chains() -> None:
    b = Builder()
    x, y = image(b, 1, 19, 6, 5), b.input(1, 19, 1, 1)
    steps = (
        ("Mul", (0, 1), {}, 13),
        ("Clip", (4, 2, -1), {}, 13),
        ("Sigmoid", (5,), {}, 13),
        ("Add", (6, 0), {}, 13),
        ("Pow", (7, 3), {}, 13),
    )
    low, two = b.constant(np.float32(-0.3)), b.constant(np.float32(2))
    compare(b, b.add("leanconv.Pointwise", x, y, low, two, steps=steps))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode: str) -> None:
    nothing = np.array([], "f4")
    for coordinates in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        for shape, scales in (
            ((1, 19, 5, 6), (1, 1, 2, 2)),
            ((2, 3, 7, 4), (1, 1, 0.6, 1.7)),
            ((1, 64, 4, 3), (1, 1, 3, 1)),
        ):
            for last in (True, False):
                b = Builder()
                x, empty = image(b, *shape, last=last), b.constant(nothing)
                to = b.constant(np.array(scales, "f4"))
                options = {"mode": mode, "coordinate_transformation_mode": coordinates}
                compare(b, b.add("Resize", x, empty, to, **options))
    b = Builder()
    sizes = b.constant(np.array([1, 4, 9], np.int64))
    y = b.add("Resize", b.input(1, 4, 5), b.constant(nothing), b.constant(nothing), sizes, mode=mode, version=19)
    compare(b, y)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    for last in (True, False):
        b = Builder()
        x = image(b, 2, 17, 5, 6, last=last)
        ends = [
            b.add("Pad", x, b.constant(np.array(pads)), mode=mode, version=19)
            for pads in ((0, 0, 1, 2, 0, 0, 3, 0), (0, 0, 0, 0, 0, 0, 0, 4))
        ]
        if mode == "constant":
            pads = b.constant(np.array((1, 0, -1, 2, 0, 3, 1, -2)))
            ends.append(b.add("Pad", x, pads, b.constant(np.float32(1.5))))
        compare(b, *ends)


def test_local_response_normalisation() -> None:
    for channels, size in ((3, 5), (8, 5), (16, 3), (37, 4), (64, 5), (5, 1)):
        for last in (True, False):
            b = Builder()
            x = image(b, 2, channels, 4, 5, last=last)
            y = b.add("LRN", x, size=size, alpha=0.5, beta=0.75, bias=1.5)
            compare(b, b.add("Relu", y), b.add("LRN", x, size=size, alpha=2.0, beta=0.6))


def test_blocks_of_pixels() -> None:
    for mode in ("DCR", "CRD"):
        b = Builder()
        x = image(b, 2, 36, 4, 6)
        compare(b, b.add("DepthToSpace", x, blocksize=3, mode=mode), b.add("SpaceToDepth", x, blocksize=2))


def test_products() -> None:
    b = Builder()
    a, x = b.input(5, 12), b.input(2, 3, 12)
    w, row = b.weights(12, 7), b.weights(7)
    ends = [
        b.add("Gemm", a, w, row, alpha=0.5, beta=2.0),
        b.add("Gemm", a, b.weights(9, 12), transB=1),
        b.add("Gemm", b.input(12, 5), w, b.weights(1, 7), transA=1),
        b.add("MatMul", x, w),
        b.add("MatMul", b.add("Transpose", b.input(12, 3, 2), perm=(2, 1, 0)), w),
        b.add("MatMul", b.add("Transpose", b.input(3, 2, 12), perm=(1, 0, 2)), w),
    ]
    compare(b, *ends)


def test_products_of_computed_matrices() -> None:
    b = Builder()
    q, k = b.input(2, 4, 9, 6), b.input(2, 4, 6, 11)
    keys = b.add("Transpose", b.input(2, 11, 4, 6), perm=(0, 2, 3, 1))
    ends = [
        b.add("MatMul", q, k),
        b.add("MatMul", b.add("Softmax", b.add("MatMul", q, keys)), b.input(11, 5)),
        b.add("MatMul", b.input(3, 4), b.input(2, 1, 4, 5)),
        b.add("MatMul", b.add("Transpose", b.input(7, 9), perm=(1, 0)), b.input(7, 1)),
        b.add("MatMul", q, b.constant(b.rng.standard_normal((4, 6, 3)).astype("f4"))),
    ]
    compare(b, *ends)


def test_transposed_convolutions() -> None:
    for shape, kernel, more in (
        ((1, 16, 5, 6), (2, 2), {"strides": (2, 2)}),
        ((2, 8, 5, 4), (3, 3), {"strides": (2, 1), "pads": (1, 1, 0, 1), "output_padding": (1, 0)}),
        ((1, 8, 9), (4,), {"strides": (3,), "group": 4}),
        ((1, 6, 4, 5), (3, 3), {"strides": (2, 2), "output_shape": (8, 10), "dilations": (1, 2)}),
    ):
        for last in (True, False):
            b = Builder()
            x = image(b, *shape, last=last)
            w, bias = b.weights(shape[1], 6 // more.get("group", 1) or 1, *kernel), b.weights(6)
            if more.get("group", 1) > 1:
                bias = b.weights(b.types[w].shape[1] * 4)
            y = b.add("leanconv.ConvTranspose", x, w, bias, activation=("relu",), **more)
            compare(b, b.add("MaxPool", y, kernel_shape=(1,) * (len(shape) - 2)), y)


# -- machine code of other targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_kernels_compile_for_every_target(target: Target) -> None:
    host = Host(target, 32 << 10, 512 << 10, 8 << 20)
    seen = set()
    for dtype in ("float32", "float64"):
        for last in (True, False):
            b = Builder(dtype=dtype)
            x = image(b, 1, 37, 9, 11, last=last)
            empty = b.constant(np.array([], "f4"))
            up = b.constant(np.array([1, 1, 2, 2], "f4"))
            ends = [
                b.add("AveragePool", x, kernel_shape=(3, 3), count_include_pad=1, pads=(1, 1, 1, 1)),
                b.add("Softmax", x, axis=1),
                b.add("LogSoftmax", x, axis=3),
                b.add("LRN", x, size=5),
                b.add("Resize", x, empty, up, mode="linear"),
                b.add("Resize", x, empty, up, mode="nearest"),
                b.add("Gelu", b.add("Softplus", b.add("Mul", x, b.weights(1, 37, 1, 1))), version=20),
                b.add("Pad", x, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), mode="edge", version=19),
            ]
            found = arrange(b.graph(*ends))
            setting = Setting(host, 2)
            for step in found.steps:
                assert step.lowerer is not None
                for phase in step.lowerer.options(step.call, setting)[0].build().phases:
                    if phase.spec not in seen:
                        seen.add(phase.spec)
                        module = Module()
                        phase.spec.emit(module, "kernel")
                        assert "kernel" in jit.compile_assembly(module.text(), target)
    assert {type(spec).__name__ for spec in seen} >= {
        "MapSpec",
        "TurnSpec",
        "PoolSpec",
        "SoftmaxSpec",
        "GatherSpec",
        "LrnSpec",
    }
