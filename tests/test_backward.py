"""Gradients with respect to weights: right, within their bytes, the same bits on any number of threads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from definitions_backward import weight_gradient
from guard import FailingAllocator, GuardedAllocator
from leanconv import oracle
from leanconv.backward.boxes import box_sizes
from leanconv.backward.registry import WEIGHTS
from leanconv.errors import AllocationError, ArgumentError, MemoryLimitError, NotApplicableError
from leanconv.memory import ALIGNMENT, Arena
from leanconv.problem import to_user
from strategies import CHANNELS, POINTWISE, READ_VIEWS, WINDOWS, WRITE_VIEWS, Geometry, check_untouched, spread

Array = np.ndarray[Any, Any]
ALGORITHMS = {algorithm.name: algorithm for algorithm in WEIGHTS}
ENGINE = settings(settings.get_profile("engine"), max_examples=40)
EXAMPLES = {"direct": 40, "winograd_f4": 20}
FUNCTIONS = (leanconv.conv1d_backward_weights, leanconv.conv2d_backward_weights, leanconv.conv3d_backward_weights)
GEOMETRIES = [geometry for geometry in POINTWISE + WINDOWS if geometry.mode == "zeros"]


@dataclass(frozen=True)
class Case:
    """A convolution whose weights' gradient is wanted, and how its arrays lie; `x_shape` is in canonical order."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    geometry: Geometry
    groups: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    bias: bool = False
    views: tuple[str, str, str] = ("dense",) * 3  # of x, the gradient and the result
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        g = self.geometry
        shared = {"stride": g.stride, "padding": g.pads, "dilation": g.dilation, "groups": self.groups}
        return {**shared, "layout": self.layout, "bias": self.bias}

    def plan(self, algorithm: str = "auto", threads: int = 1, **more: Any) -> leanconv.BackwardWeightsPlan:
        shape = to_user(self.x_shape, self.layout)
        arguments = {**self.options, "dtype": self.dtype, "threads": threads, **more}
        return leanconv.plan_backward_weights(shape, self.w_shape, algorithm=algorithm, **arguments)

    @cached_property
    def values(self) -> tuple[Array, Array]:
        rng, p = np.random.default_rng(self.seed), self.plan("direct").problem

        def draw(shape: tuple[int, ...], view: str) -> Array:
            small = tuple(1 if view == "broadcast" and i % 2 == self.seed % 2 else n for i, n in enumerate(shape))
            return np.ascontiguousarray(np.broadcast_to(rng.standard_normal(small).astype(self.dtype), shape))

        return draw(p.x_shape, self.views[0]), draw(p.out_shape, self.views[1])

    def inputs(self, *, viewed: bool) -> tuple[Array, Array]:
        x, grad = self.values
        how = self.views if viewed else ("dense",) * 3
        return spread(x, how[0], "right", self.seed), spread(grad, how[1], "right", self.seed)

    def results(self, *, viewed: bool) -> tuple[Array, Array | None]:
        blank = np.full(self.w_shape, np.nan, self.dtype)
        shift = np.full(self.w_shape[:1], np.nan, self.dtype)
        out = spread(blank, self.views[2] if viewed else "dense", "right", self.seed, writable=True)
        return out, spread(shift, "dense", "right", self.seed, writable=True) if self.bias else None

    def check(self, name: str, out: Array, bias: Array | None) -> None:
        p = self.plan("direct").problem
        bound = ALGORITHMS[name].error_bound(p)
        wants = weight_gradient(p, *self.values)
        squares = weight_gradient(p, *(np.square(value.astype(np.float64)) for value in self.values))
        sizes = weight_gradient(p, *(np.abs(value) for value in self.values))
        # Errors of equal products, which a broadcast array gives, do not cancel.
        terms = 256 + p.batch * math.prod(p.out_size) / 256 if "broadcast" in self.views else 0
        unit = float(np.finfo(self.dtype).eps) / 2
        for got, want, square, total in zip((out, bias), wants, squares, sizes, strict=True):
            if got is None:
                continue
            assert got.shape == want.shape and got.dtype == self.dtype
            assert not np.isnan(got).any(), f"{np.isnan(got).sum()} of {got.size} elements were not written"
            # Where results are too few to hold a large one, three standard deviations of a sum stand for it.
            size = max(float(np.abs(want).max()), 3 * math.sqrt(square.max()))
            error = float(np.abs(got - want).max())
            allowed = max(bound * size, terms * unit * float(total.max()))
            assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}; {p.describe()}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    geometry = draw(st.sampled_from(GEOMETRIES))
    ndim = len(geometry.kernel)
    most = draw(st.sampled_from([{1: 60, 2: 14, 3: 6}[ndim], {1: 700, 2: 30, 3: 9}[ndim]]))
    size = tuple(n + draw(st.integers(0, most)) for n in geometry.smallest)
    groups, inner, outer = 1, draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    kind = draw(st.sampled_from(["plain", "plain", "grouped", "depthwise"]))
    if kind == "grouped":
        groups, inner, outer = draw(st.sampled_from([2, 3, 7])), min(inner, 9), min(outer, 17)
    elif kind == "depthwise":
        groups, inner, outer = draw(st.integers(1, 40)), 1, draw(st.sampled_from([1, 1, 2]))
    return Case(
        (draw(st.sampled_from([1, 2, 3, 7, 0])), groups * inner, *size),
        (groups * outer, inner, *geometry.kernel),
        geometry,
        groups,
        draw(st.sampled_from(["float32", "float32", "float64"])),
        draw(st.sampled_from(["NCHW", "NHWC"])),
        draw(st.booleans()),
        (draw(st.sampled_from(READ_VIEWS)), draw(st.sampled_from(READ_VIEWS)), draw(st.sampled_from(WRITE_VIEWS))),
        draw(st.integers(0, 2**32 - 1)),
    )


def run_every_way(name: str, case: Case) -> None:
    """On 1 to 4 threads, on dense arrays and on views, by a plan and by a call: right, the same bits on any threads."""
    firsts: dict[bool, tuple[bytes, ...]] = {}
    for threads, viewed, planned in ((1, False, True), (2, True, False), (3, True, False), (4, False, False)):
        x, grad = case.inputs(viewed=viewed)
        out, bias = case.results(viewed=viewed)
        if planned:
            got = case.plan(name, threads)(x, grad, out=out, bias_out=bias)
        else:
            function = FUNCTIONS[len(case.w_shape) - 3]
            arguments = {**case.options, "algorithm": name, "threads": threads, "out": out, "bias_out": bias}
            try:
                got = function(x, grad, case.w_shape, **arguments)
            except NotApplicableError as error:
                assert viewed and "adjacent" in str(error), error
                continue
        assert (got[0] is out and got[1] is bias) if case.bias else got is out
        case.check(name, out, bias)
        check_untouched(out)
        if bias is not None:
            check_untouched(bias)
        bits = tuple(np.asarray(array).tobytes() for array in (out, bias) if array is not None)
        assert firsts.setdefault(viewed, bits) == bits, f"other bits: {threads} threads, viewed {viewed}"


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_random_gradients(name: str) -> None:
    @settings(ENGINE, max_examples=EXAMPLES.get(name, 12))
    @given(cases())
    def check(case: Case) -> None:
        if ALGORITHMS[name].refusal(case.plan("direct").problem) is None:
            with GuardedAllocator():
                run_every_way(name, case)

    check()


@settings(ENGINE, max_examples=40)
@given(cases())
def test_definition_is_the_adjoint(case: Case) -> None:
    """<dy, conv(x, w)> = <dw, w>, and the gradient of the bias is that of adding it."""
    case = replace(case, views=("dense",) * 3, dtype="float64")
    x, grad = case.values
    problem = leanconv.plan(
        to_user(case.x_shape, case.layout), case.w_shape, dtype="float64", algorithm="reference", **case.options
    ).problem
    rng = np.random.default_rng(case.seed + 1)
    w, b = rng.standard_normal(case.w_shape), rng.standard_normal(case.w_shape[0])
    left = (grad * oracle.reference(problem, x, w, b if case.bias else None)).sum()
    dw, db = weight_gradient(case.plan("direct").problem, x, grad)
    right = (dw * w).sum() + ((db * b).sum() if case.bias else 0.0)
    assert abs(left - right) <= 1e-10 * (1 + np.abs(grad).sum() * (1 + np.abs(x).max(initial=0.0)) * np.abs(w).max())


WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
SINGLE = Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
LARGE = [
    Case((2, 64, 30, 31), (48, 64, 3, 3), WINDOW, bias=True),
    Case((2, 64, 30, 31), (48, 64, 3, 3), WINDOW, bias=True, layout="NHWC"),
    Case((5, 40, 7, 7), (100, 40, 3, 3), WINDOW),
    Case((3, 70, 14, 14), (90, 70, 1, 1), SINGLE, layout="NHWC"),
    Case((3, 70, 14, 14), (90, 70, 1, 1), SINGLE, bias=True),
    Case((1, 3, 65, 67), (20, 3, 7, 7), Geometry((7, 7), (2, 2), (1, 1), ((3, 3), (3, 3)))),
    Case((1, 5, 3000), (9, 5, 4), Geometry((4,), (1,), (2,), ((3, 3),)), bias=True),
    Case((2, 37, 40, 41), (37, 1, 3, 3), WINDOW, groups=37, layout="NHWC", bias=True),
    Case((2, 37, 40, 41), (37, 1, 5, 5), Geometry((5, 5), (2, 2), (1, 1), ((2, 2), (2, 2))), groups=37),
    Case((2, 24, 9, 10), (24, 6, 3, 3), WINDOW, groups=4, dtype="float64"),
]
EACH_LARGE = pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))


@EACH_LARGE
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_bytes_are_exact(name: str, case: Case) -> None:
    """A call takes the workspace that its plan names; the least limit is named, and enough, with the same bits."""
    if ALGORITHMS[name].refusal(case.plan("direct").problem) is not None:
        pytest.skip("refused")
    with GuardedAllocator():
        run_every_way(name, case)
    x, grad = case.inputs(viewed=False)
    plan = case.plan(name, 2)
    plan.arena = Arena(plan.workspace_bytes)
    first = case.results(viewed=False)
    with GuardedAllocator() as running:
        plan(x, grad, *first)
    assert sum(-(-size // ALIGNMENT) * ALIGNMENT for size in running.sizes) == plan.workspace_bytes
    assert plan.arena.peak_bytes == plan.workspace_bytes
    if plan.workspace_bytes:
        with pytest.raises(MemoryLimitError) as caught:
            case.plan(name, 2, memory_limit=0)
        least = caught.value.needed
        assert least <= plan.workspace_bytes
        with pytest.raises(MemoryLimitError):
            case.plan(name, 2, memory_limit=least - 1)
        tight = case.plan(name, 2, memory_limit=least)
        assert tight.workspace_bytes <= least
        second = case.results(viewed=False)
        with GuardedAllocator():
            tight(x, grad, *second)
        case.check(name, *second)
        assert second[0].tobytes() == first[0].tobytes()


def test_long_sums_keep_their_bound() -> None:
    """Two hundred thousand pixels, all of one sign too, where errors do not cancel."""
    rng = np.random.default_rng(5)
    for layout in ("NCHW", "NHWC"):
        for groups in (1, 4):
            case = Case((1, 4, 448, 449), (8, 4 // groups, 1, 1), SINGLE, groups=groups, layout=layout, bias=True)
            shape = to_user(case.x_shape, layout)
            x = (1 + rng.random(shape)).astype("f4")
            grad = (1 + rng.random(to_user((1, 8, 448, 449), layout))).astype("f4")
            dw, db = leanconv.conv2d_backward_weights(x, grad, case.w_shape, **case.options | {"padding": 0})
            wants = weight_gradient(case.plan("direct").problem, x, grad)
            for got, want in zip((dw, db), wants, strict=True):
                assert np.abs(got / want - 1).max() < 2e-6


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_padding_of_other_modes(mode: str, layout: str) -> None:
    """Copies and tables know where the pixels of padding are; "auto" takes one where others refuse."""
    shape, rng = to_user((2, 7, 9, 10), layout), np.random.default_rng(3)
    for stride, name in (((2, 1), "auto"), ((1, 1), "winograd_f4"), ((2, 1), "im2row")):
        options: dict[str, Any] = {"padding": ((1, 2), (0, 3)), "pad_mode": mode, "stride": stride, "layout": layout}
        plan = leanconv.plan_backward_weights(shape, (5, 7, 3, 2), threads=2, algorithm=name, **options)
        assert plan.algorithm == ("indirect" if name == "auto" else name)
        x, grad = (rng.standard_normal(size).astype("f4") for size in (shape, plan.problem.out_shape))
        with GuardedAllocator():
            got = plan(x, grad)
        want, _ = weight_gradient(plan.problem, x, grad)
        assert np.abs(got - want).max() <= plan.error_bound * np.abs(want).max()


def test_accuracy_and_words() -> None:
    """Winograd where "standard" allows it, plain sums where they are asked for; words as for forward passes."""
    shapes = ((2, 64, 28, 28), (64, 64, 3, 3))
    for asked, accuracy, names in (
        ("auto", "standard", {"winograd_f4"}),
        ("auto", "exact", {"direct"}),
        (["!winograd_f4", "!winograd_f2"], "standard", {"direct"}),
        (["direct", "im2col"], "standard", {"direct", "im2col"}),
        ("winograd_f4", "exact", {"winograd_f4"}),
    ):
        plan = leanconv.plan_backward_weights(*shapes, padding=1, algorithm=asked, accuracy=accuracy, threads=1)
        assert plan.algorithm in names, (asked, accuracy, plan.algorithm)
    wide = leanconv.explain((1, 32, 40, 40), (32, 32, 5, 5), direction="backward_weights", padding=2)
    reasons = {row.name: row.reason for row in wide.rows}
    assert "accuracy 'standard'" in reasons["winograd_f4"] and not reasons["winograd_f2"].startswith("accuracy")
    fast = leanconv.plan_backward_weights((1, 32, 40, 40), (32, 32, 5, 5), padding=2, accuracy="fast", threads=1)
    assert fast.algorithm == "winograd_f4"
    with pytest.raises(ArgumentError, match="leaves no algorithm"):
        leanconv.plan_backward_weights(*shapes, algorithm=["auto", "!direct", "!depthwise"], accuracy="exact")
    with pytest.raises(ArgumentError, match="accuracy"):
        leanconv.conv2d_backward_weights(
            np.ones((3, 5, 6), "f4"), np.ones((2, 3, 4), "f4"), (2, 3, 3, 3), accuracy="no"
        )


def test_boxes_cover_lines() -> None:
    for batch, out in ((1, (56, 56)), (8, (7, 7)), (1, (100_000,)), (3, (2, 9, 300)), (64, (1, 1)), (0, (5, 5))):
        sizes = box_sizes(batch, out)
        assert math.prod(sizes) <= 256 and all(1 <= size <= extent for size, extent in zip(sizes[1:], out, strict=True))
        for size, extent in zip(sizes[2:], out[1:], strict=True):
            assert size == extent or math.prod(sizes[: sizes.index(size)] or (1,)) >= 1


def test_one_image_and_other_kinds_of_call() -> None:
    x, grad = np.ones((3, 5, 6), "f4"), np.ones((2, 3, 4), "f4")
    dw = leanconv.conv2d_backward_weights(x, grad, (2, 3, 3, 3))
    assert dw.shape == (2, 3, 3, 3) and (dw == 12).all()
    ones = np.broadcast_to(np.float32(1), (2, 3, 4))
    dw, db = leanconv.conv2d_backward_weights(x, ones, (2, 3, 3, 3), bias=True)
    assert (dw == 12).all() and (db == 12).all()
    plan = leanconv.plan_backward_weights((1, 3, 5, 6), (2, 3, 3, 3))
    assert plan.algorithm in repr(plan) and plan.steps and plan.parameters and plan.error_bound > 0


def test_out_of_memory_leaves_no_trace() -> None:
    case = LARGE[0]
    x, grad = case.inputs(viewed=False)
    with FailingAllocator(1), pytest.raises(AllocationError):
        case.plan(memory_limit="1GiB")(x, grad)
    out, bias = case.results(viewed=False)
    plan = case.plan(memory_limit="1GiB")
    plan(x, grad, out, bias)
    case.check(plan.algorithm, out, bias)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("grad_out", {"grad_out": np.ones((1, 2, 9, 9), "f4")}),
        ("grad_out", {"grad_out": np.ones((1, 2, 4, 5), "f8")}),
        ("w_shape", {"w_shape": (2, 4, 2, 2)}),
        ("out", {"out": np.ones((2, 3, 2, 3), "f4")}),
        ("out", {"out": np.ones((2, 3, 2, 2), "f8")}),
        ("out", {"out": np.broadcast_to(np.float32(1), (2, 3, 2, 2))}),
        ("bias_out", {"bias_out": np.ones(2, "f4")}),
        ("bias_out", {"bias": True, "bias_out": np.ones(3, "f4")}),
        ("bias_out", {"bias": True, "bias_out": np.ones(4, "f4")[::2]}),
        ("bias", {"bias": 1}),
        ("algorithm", {"algorithm": "fastest"}),
        ("threads", {"threads": 0}),
        ("stride", {"stride": 0}),
        ("x", {"x": "no array"}),
    ],
)
def test_errors_of_calls(argument: str, arguments: dict[str, Any]) -> None:
    call: dict[str, Any] = {
        "x": np.ones((1, 3, 5, 6), "f4"),
        "grad_out": np.ones((1, 2, 4, 5), "f4"),
        "w_shape": (2, 3, 2, 2),
    }
    with pytest.raises(ArgumentError) as caught:
        leanconv.conv2d_backward_weights(**{**call, **arguments})
    assert caught.value.argument == argument


def test_errors_of_plans() -> None:
    plan = leanconv.plan_backward_weights((1, 3, 5, 6), (2, 3, 2, 2))
    x, grad = np.ones((1, 3, 5, 6), "f4"), np.ones((1, 2, 4, 5), "f4")
    for arguments, argument in (
        ((x[:, :2], grad), "x"),
        ((x[..., ::-1], grad), "x"),
        ((x, grad[:, :1]), "grad_out"),
        ((x, grad, None, np.ones(2, "f4")), "bias_out"),
        ((x, grad, np.ones((2, 3, 2, 4), "f4")[..., ::2]), "out"),
        ((x, grad, x.reshape(-1)[:24].reshape(2, 3, 2, 2)), "out"),
    ):
        with pytest.raises(ArgumentError) as caught:
            plan(*arguments)
        assert caught.value.argument == argument
    with pytest.raises(ArgumentError, match="activation"):
        leanconv.plan_backward_weights((1, 3, 5, 6), (2, 3, 2, 2), activation="relu")
    with pytest.raises(NotApplicableError, match="reflect"):
        leanconv.plan_backward_weights((1, 3, 5, 6), (2, 3, 3, 3), padding=1, pad_mode="reflect", algorithm="direct")


def test_algorithms_and_reasons() -> None:
    listed = leanconv.algorithms((1, 8, 9, 9), (8, 8, 3, 3), direction="backward_weights", padding=1)
    assert [info.name for info in listed] == list(ALGORITHMS)
    for info in listed:
        assert info.title and info.paper
        if info.applies:
            plan = leanconv.plan_backward_weights(
                (1, 8, 9, 9), (8, 8, 3, 3), padding=1, algorithm=info.name, threads=leanconv.get_num_threads()
            )
            assert (info.workspace_bytes, info.error_bound) == (plan.workspace_bytes, plan.error_bound)
        else:
            with pytest.raises(NotApplicableError) as caught:
                leanconv.plan_backward_weights((1, 8, 9, 9), (8, 8, 3, 3), padding=1, algorithm=info.name)
            assert caught.value.reason == info.reason
