"""Transposed convolutions and gradients with respect to the image: right, within their bytes, the same bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from definitions_transposed import by_phases
from guard import GuardedAllocator
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.errors import ArgumentError, MemoryLimitError, NotApplicableError
from leanconv.memory import ALIGNMENT, Arena
from leanconv.problem import Problem, to_user
from leanconv.staging import error_bound, refusal
from strategies import EPILOGUES, READ_VIEWS, SLOPES, WRITE_VIEWS, check_untouched, spread

Array = np.ndarray[Any, Any]
ALGORITHMS = {algorithm.name: algorithm for algorithm in REGISTRY}
ENGINE = settings(settings.get_profile("engine"), max_examples=25)
FUNCTIONS = {
    "transposed": (leanconv.conv_transpose1d, leanconv.conv_transpose2d, leanconv.conv_transpose3d),
    "data": (leanconv.conv1d_backward_data, leanconv.conv2d_backward_data, leanconv.conv3d_backward_data),
}


@dataclass(frozen=True)
class Case:
    """A transposed convolution, or a gradient with respect to an image, and how its arrays lie; shapes are canonical.

    `x_shape` is that of the image: what a transposed convolution reads and a gradient gives.
    """

    kind: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    options: dict[str, Any]
    dtype: str = "float32"
    layout: str = "NCHW"
    epilogue: dict[str, Any] = field(default_factory=dict)
    views: tuple[str, str, str, str] = ("dense",) * 4  # of what is read, w, residual and out
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        rest = {k: v for k, v in self.epilogue.items() if k not in ("bias", "residual")}
        return {**self.options, **rest, "layout": self.layout}

    def plan(self, algorithm: str = "direct", threads: int = 1, **more: Any) -> leanconv.Plan:
        make = leanconv.plan_transpose if self.kind == "transposed" else leanconv.plan_backward_data
        flags = {name: True for name in ("bias", "residual") if self.epilogue.get(name)}
        shape = to_user(self.x_shape, self.layout)
        arguments = {**self.settings, **flags, "dtype": self.dtype, **more}
        return make(shape, self.w_shape, algorithm=algorithm, threads=threads, **arguments)

    @cached_property
    def problem(self) -> Problem:
        return self.plan("reference").problem

    @cached_property
    def values(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.seed)

        def draw(shape: tuple[int, ...], view: str) -> Array:
            small = tuple(1 if view == "broadcast" and i % 2 == self.seed % 2 else n for i, n in enumerate(shape))
            return np.ascontiguousarray(np.broadcast_to(rng.standard_normal(small).astype(self.dtype), shape))

        p = self.problem
        result = {"x": draw(p.x_shape, self.views[0]), "w": draw(p.w_shape, "dense")}
        if p.has_bias:
            result["bias"] = draw((p.out_channels,), "dense")
        if p.residual:
            result["residual"] = draw(p.out_shape, self.views[2])
        return result

    def inputs(self, *, viewed: bool) -> dict[str, Array]:
        how = dict(zip(("x", "w", "residual"), self.views, strict=False)) if viewed else {}
        return {name: spread(v, how.get(name, "dense"), "right", self.seed) for name, v in self.values.items()}

    def out(self, *, viewed: bool) -> Array:
        blank = np.full(self.problem.out_shape, np.nan, self.dtype)
        return spread(blank, self.views[3] if viewed else "dense", "right", self.seed, writable=True)

    def call(self, inputs: dict[str, Array], **more: Any) -> Any:
        function = FUNCTIONS[self.kind][len(self.w_shape) - 3]
        x, rest = inputs["x"], {k: v for k, v in inputs.items() if k != "x"}
        if self.kind == "data":
            return function(x, x_shape=to_user(self.x_shape, self.layout), **rest, **self.settings, **more)
        return function(x, **rest, **self.settings, **more)

    def check(self, got: Array, name: str) -> None:
        p, v = self.problem, self.values
        want = oracle.reference(p, **v)
        assert got.shape == want.shape and got.dtype == self.dtype
        assert not np.isnan(got).any(), f"{np.isnan(got).sum()} of {got.size} elements were not written"
        if not want.size:
            return
        plain = replace(p, activation=None)
        squares = {key: np.square(value.astype(np.float64)) for key, value in v.items()}
        size = max(
            float(np.abs(oracle.reference(plain, **v)).max()), 3 * math.sqrt(oracle.reference(plain, **squares).max())
        )
        slope = SLOPES.get(p.activation.name, 1.0) if p.activation else 1.0
        bound = slope * size * error_bound(ALGORITHMS[name], p)
        if p.activation is not None and p.activation.name in ("sigmoid", "silu", "tanh", "gelu"):
            bound += (4e-7 if self.dtype == "float32" else 1e-14) * max(1.0, size)
        error = float(np.abs(got - want).max())
        assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}; {p.describe()}"


# What kernels are specialised for: kernel, stride, dilation, padding, output padding; None: a gradient's own.
GEOMETRIES = [
    ((3,), (2,), (1,), ((1, 1),), (1,)),
    ((4,), (4,), (1,), ((0, 0),), (0,)),
    ((5,), (3,), (2,), ((4, 2),), (2,)),
    ((1,), (3,), (1,), ((0, 0),), (2,)),
    ((2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), (0, 0)),
    ((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), (0, 0)),
    ((4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), (0, 0)),
    ((3, 2), (2, 3), (2, 1), ((1, 2), (0, 1)), (1, 0)),
    ((1, 1), (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    (
        (3, 3),
        (2, 1),
        (4, 2),
        ((0, 3), (2, 2)),
        (0, 1),
    ),  # stride and dilation with a common divisor: outputs no tap reaches
    ((2, 3), (1, 2), (1, 1), ((3, 2), (2, 4)), (0, 0)),  # more cut off than the kernel reaches
    ((2, 3, 3), (2, 2, 2), (1, 1, 1), ((0, 0), (1, 1), (1, 1)), (0, 1, 1)),
    ((3, 1, 2), (1, 2, 1), (1, 1, 2), ((1, 1), (0, 0), (1, 0)), (0, 0, 0)),
]
CHANNELS = (1, 2, 3, 5, 8, 13, 16, 17, 24)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel, stride, dilation, pads, extra = draw(st.sampled_from(GEOMETRIES))
    kind = draw(st.sampled_from(["transposed", "transposed", "data"]))
    groups, inner, outer = 1, draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    if draw(st.integers(0, 2)) == 0:
        groups, inner, outer = draw(st.sampled_from([2, 3, 7])), min(inner, 5), min(outer, 9)
        if draw(st.booleans()):
            inner, outer = 1, 1
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": pads, "groups": groups}
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    most = {1: 40, 2: 12, 3: 5}[len(kernel)]
    if kind == "transposed":
        options["output_padding"] = extra
        least = [
            max(1, -(-(low + high + 1 - span) // s) + 1)
            for (low, high), span, s in zip(pads, spans, stride, strict=True)
        ]
    else:
        least = [max(1, span - low - high) for (low, high), span in zip(pads, spans, strict=True)]
    size = tuple(n + draw(st.integers(0, most)) for n in least)
    epilogue = draw(st.sampled_from(EPILOGUES))
    if kind == "data":
        epilogue = {k: v for k, v in epilogue.items() if k != "bias"}
    return Case(
        kind,
        (draw(st.sampled_from([1, 2, 2, 0])), groups * inner, *size),
        (groups * inner, outer, *kernel) if kind == "transposed" else (groups * outer, inner, *kernel),
        options,
        draw(st.sampled_from(["float32", "float32", "float64"])),
        draw(st.sampled_from(["NCHW", "NHWC"])),
        epilogue,
        (*(draw(st.sampled_from(READ_VIEWS)) for _ in range(3)), draw(st.sampled_from(WRITE_VIEWS))),
        draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize(
    "name",
    [
        "direct",
        "pointwise",
        "im2row",
        "im2col_strip",
        "indirect",
        "depthwise",
        "kn2row_exact",
        "im2row_blas",
        "reference",
        "winograd_f4_on_the_fly",
        "mec",
    ],
)
def test_random_transposed_convolutions(name: str) -> None:
    """Bound and unbound, on 1 to 4 threads, on dense arrays and on views: right, and the same bits each time."""

    @settings(ENGINE, max_examples=40 if name == "direct" else 5 if name.startswith("winograd") else 10)
    @given(cases())
    def check(case: Case) -> None:
        if refusal(ALGORITHMS[name], case.problem) is not None:
            return
        first: dict[bool, bytes] = {}
        with GuardedAllocator():
            for threads, viewed in ((1, False), (2, True), (4, False)):
                inputs = case.inputs(viewed=viewed)
                weights = {k: v for k, v in inputs.items() if k in ("w", "bias")}
                images = {k: v for k, v in inputs.items() if k in ("x", "residual")}
                results = [case.out(viewed=viewed) for _ in range(2)]
                assert case.plan(name, threads).bind(**weights)(**images, out=results[0]) is results[0]
                assert case.call(inputs, algorithm=name, threads=threads, out=results[1]) is results[1]
                for out in results:
                    check_untouched(out)
                    bits = np.asarray(out).tobytes()
                    apart = viewed and name.endswith("_blas")
                    if apart not in first:
                        case.check(out, name)
                        first[apart] = bits
                    assert bits == first[apart], f"other bits: {threads} threads, viewed {viewed}"

    check()


@settings(ENGINE, max_examples=60)
@given(cases())
def test_definition_by_phases(case: Case) -> None:
    """The phases of the stride give what the definition gives, output by output."""
    case = replace(case, layout="NCHW", epilogue={}, views=("dense",) * 4)
    v = case.values
    want = oracle.reference(case.problem, **v)
    np.testing.assert_allclose(by_phases(case.problem, v["x"], v["w"]), want, rtol=1e-6, atol=1e-5)


@settings(ENGINE, max_examples=40)
@given(cases())
def test_definition_is_the_adjoint(case: Case) -> None:
    """<dy, conv(x)> = <dx, x>: the gradient's definition against the convolution's."""
    if case.kind != "data":
        return
    case = replace(case, epilogue={}, views=("dense",) * 4, dtype="float64")
    v = case.values
    options = {k: v for k, v in case.settings.items() if k != "output_padding"}
    forward = leanconv.plan(case.problem.out_shape, case.w_shape, dtype="float64", algorithm="reference", **options)
    x = np.random.default_rng(case.seed + 1).standard_normal(case.problem.out_shape)
    left = (v["x"] * oracle.reference(forward.problem, x, v["w"])).sum()
    right = (oracle.reference(case.problem, **v) * x).sum()
    assert abs(left - right) <= 1e-10 * (1 + np.abs(v["x"]).sum() * np.abs(x).max(initial=0.0) * np.abs(v["w"]).max())


LARGE = [
    Case("transposed", (2, 64, 14, 15), (64, 40, 2, 2), {"stride": 2}),
    Case("transposed", (1, 33, 20, 21), (33, 24, 4, 4), {"stride": 2, "padding": 1}, layout="NHWC"),
    Case("data", (1, 24, 29, 31), (40, 24, 3, 3), {"stride": 2, "padding": 1}, epilogue={"residual": True}),
    Case("data", (1, 24, 29, 31), (40, 24, 3, 3), {"stride": 2, "padding": 1}, layout="NHWC"),
    Case("data", (1, 600, 9, 8), (300, 600, 1, 1), {"stride": 2}, layout="NHWC"),
    Case("data", (2, 12, 9, 8), (24, 3, 3, 3), {"padding": "same", "groups": 4}, dtype="float64"),
]


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
@pytest.mark.parametrize("name", ["direct", "im2row_strip", "indirect", "winograd_f2"])
def test_bytes_are_exact(name: str, case: Case) -> None:
    """A call takes the workspace that its plan names; the least limit is named, and enough."""
    if refusal(ALGORITHMS[name], case.problem) is not None:
        pytest.skip("refused")
    inputs = case.inputs(viewed=False)
    x, extra = inputs["x"], {k: v for k, v in inputs.items() if k == "residual"}
    plan = case.plan(name, 2)
    plan.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(inputs["w"])
    assert sum(-(-size // ALIGNMENT) * ALIGNMENT for size in packing.sizes[:-1]) == plan.table_bytes
    assert packing.sizes[-1] == plan.packed_weight_bytes
    with GuardedAllocator() as running:
        case.check(bound(x, **extra), name)
    used = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in running.sizes)
    assert used == plan.workspace_bytes - plan.table_bytes == plan.arena.peak_bytes
    try:
        case.plan(name, 2, memory_limit=0)
        least = 0
    except MemoryLimitError as error:
        least = error.needed
    tight = case.plan(name, 2, memory_limit=least)
    assert tight.extra_bytes <= least
    with GuardedAllocator():
        case.check(tight.bind(inputs["w"])(x, **extra), name)


NOTHING = [  # kind, channels of a group (of what is read, of what is made), kernel, stride
    ("transposed", 3, 5, (3, 3), (2, 2)),
    ("transposed", 9, 16, (2, 2), (3, 3)),  # outputs without taps
    ("transposed", 4, 1, (4,), (2,)),
    ("data", 2, 11, (3, 5), (1, 2)),
]


@pytest.mark.parametrize("kind, reads, makes, kernel, stride", NOTHING)
@pytest.mark.parametrize("groups, layout", [(1, "NHWC"), (3, "NCHW")])
def test_a_limit_of_nothing_runs_every_layer(
    kind: str, reads: int, makes: int, kernel: tuple[int, ...], stride: tuple[int, ...], groups: int, layout: str
) -> None:
    """Bound or not, to the same bits as without a limit, and no byte behind weights or bias is read."""
    x_channels = groups * (reads if kind == "transposed" else makes)
    epilogue = {"bias": True, "activation": "relu", "residual": True} if kind == "transposed" else {}
    case = Case(
        kind,
        (1, x_channels, 7, 9)[: len(kernel) + 2],
        (groups * reads, makes, *kernel),
        {"stride": stride, "groups": groups},
        layout=layout,
        epilogue=epilogue,
    )
    with GuardedAllocator():
        inputs = case.inputs(viewed=False)
    weights = {name: inputs[name] for name in ("w", "bias") if name in inputs}
    more = {name: inputs[name] for name in ("residual",) if name in inputs}
    plan = case.plan("auto", 2, memory_limit=0)
    assert plan.extra_bytes == plan.unbound_extra_bytes == 0 and plan.algorithm != "reference"
    with GuardedAllocator():
        got = plan.bind(**weights)(inputs["x"], **more)
        called = case.call(inputs, memory_limit=0, threads=2)
    case.check(got, plan.algorithm)
    free = case.plan(plan.algorithm, 1)
    assert np.array_equal(got, called) and np.array_equal(got, free.bind(**weights)(inputs["x"], **more))


def test_weights_anywhere() -> None:
    """Weights that are not dense, bound or not; a bound plan copies what it needs."""
    for groups in (1, 3):
        case = Case("transposed", (1, 6, 5, 6), (6, 4, 3, 3), {"stride": 2, "groups": groups}, views=("gaps",) * 4)
        for name in ("direct", "reference", "im2col_blas"):
            inputs = case.inputs(viewed=True)
            case.check(case.call(inputs, algorithm=name), name)
            case.check(case.plan(name).bind(inputs["w"])(inputs["x"]), name)


def test_one_image_and_automatic_choice() -> None:
    x, w = np.ones((3, 5, 6), "f4"), np.ones((3, 2, 2, 2), "f4")
    y = leanconv.conv_transpose2d(x, w, stride=2)
    assert y.shape == (2, 10, 12) and (y == 3).all()
    plan = leanconv.plan_transpose((1, 3, 5, 6), w.shape, stride=2)
    assert "transpose" in repr(plan) and plan.algorithm != "reference"
    assert any("phase 4 of 4" in step for step in plan.steps)


def test_a_gradient_can_be_added_in_place() -> None:
    rng = np.random.default_rng(1)
    grad, w = rng.standard_normal((1, 8, 5, 5)).astype("f4"), rng.standard_normal((8, 3, 3, 3)).astype("f4")
    options = {"x_shape": (1, 3, 10, 10), "stride": 2, "padding": 1}
    once = leanconv.conv2d_backward_data(grad, w, **options)
    total = once.copy()
    assert leanconv.conv2d_backward_data(grad, w, **options, residual=total, out=total) is total
    np.testing.assert_allclose(total, 2 * once, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("output_padding", {"output_padding": 2, "stride": 2}),
        ("output_padding", {"output_padding": (0, 0, 0)}),
        ("padding", {"padding": "same"}),
        ("padding", {"padding": 9}),
        ("stride", {"stride": 0}),
        ("groups", {"groups": 4}),
        ("pad_mode", {"pad_mode": "reflect"}),
        ("w_shape", {"w": np.ones((4, 2, 2, 2), "f4")}),
        ("layout", {"layout": "HWCN"}),
        ("bias", {"bias": np.ones(5, "f4")}),
    ],
)
def test_errors_of_transposed_convolutions(argument: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        leanconv.conv_transpose2d(**{"x": np.ones((1, 3, 5, 6), "f4"), "w": np.ones((3, 2, 2, 2), "f4"), **arguments})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("grad_out", {"x_shape": (1, 3, 9, 9)}),
        ("x_shape", {"x_shape": 3}),
        ("w_shape", {"x_shape": (1, 4, 6, 6)}),
        ("pad_mode", {"pad_mode": "circular"}),
        ("grad_out", {"grad_out": "no array"}),
    ],
)
def test_errors_of_gradients(argument: str, arguments: dict[str, Any]) -> None:
    grad, w = np.ones((1, 2, 5, 5), "f4"), np.ones((2, 3, 2, 2), "f4")
    with pytest.raises(ArgumentError) as caught:
        leanconv.conv2d_backward_data(**{"grad_out": grad, "w": w, "x_shape": (1, 3, 6, 6), **arguments})
    assert caught.value.argument == argument


def test_refusals_name_the_phase_that_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="taps"):
        leanconv.plan_transpose((1, 3, 5, 6), (3, 2, 3, 3), stride=2, algorithm="pointwise")


def test_algorithms_and_explanations() -> None:
    for direction, shapes in (
        ("transposed", ((1, 8, 9, 9), (8, 6, 3, 3))),
        ("backward_data", ((1, 6, 18, 18), (8, 6, 3, 3))),
    ):
        options = {"direction": direction, "stride": 2, "padding": 1}
        listed = {info.name: info for info in leanconv.algorithms(*shapes, **options)}
        assert list(listed) == list(ALGORITHMS)
        assert listed["direct"].applies and not listed["pointwise"].applies and listed["pointwise"].reason
        explained = leanconv.explain(*shapes, **options)
        assert explained.plan.problem.direction == "transposed" and "conv_transpose2d" in str(explained)
    with pytest.raises(ArgumentError) as caught:
        leanconv.algorithms((1, 8, 9, 9), (8, 6, 3, 3), direction="sideways")
    assert caught.value.argument == "direction"
