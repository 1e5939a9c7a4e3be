"""Blocks of layers in one pass: right, the same bits on any number of threads, in exactly the memory they say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv import blocks, oracle
from leanconv.bench.fused_blocks import MOBILENET_V2, InvertedResidual
from leanconv.blocks import inverted_lower
from leanconv.blocks.bands import Cut
from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.memory import ALIGNMENT, Arena

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=30)


@dataclass(frozen=True)
class BlockCase:
    """A block and its random arrays; `weights` are shapes, one a layer."""

    kind: str
    x_shape: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def plan(self, threads: int, **more: Any) -> blocks.BlockPlan:
        make = blocks.plan_separable if self.kind == "separable" else blocks.plan_inverted_residual
        return make(self.x_shape, *self.weights, threads=threads, **self.options, **more)

    def arrays(self, plan: blocks.BlockPlan) -> tuple[Array, list[Array], list[Array | None], Array | None]:
        rng, dtype = np.random.default_rng(self.seed), plan.layers[0].dtype

        def draw(shape: tuple[int, ...]) -> Array:
            return guarded_copy(rng.standard_normal(shape).astype(dtype))

        weights = [draw(shape) for shape in self.weights]
        biases = [draw(shape[:1]) if p.has_bias else None for shape, p in zip(self.weights, plan.layers, strict=True)]
        adds = plan.layers[-1].residual is not None and not plan.adds_image
        return draw(self.x_shape), weights, biases, draw(plan.out_shape) if adds else None

    def expected(self, plan: blocks.BlockPlan) -> tuple[Array, float]:
        """The layers one after another in float64, and the error allowed."""
        x, weights, biases, extra = self.arrays(plan)
        value: Array = x.astype(np.float64)
        for layer, w, b in zip(plan.layers, weights, biases, strict=True):
            last = layer is plan.layers[-1]
            added = None if layer.residual is None or not last else x if plan.adds_image else extra
            sums = oracle.reference(replace(layer, activation=None), value, w, b, added)
            value = oracle.reference(layer, value, w, b, added)
        # Errors of the first layer pass through the others; the largest of the last sums stands for the size of all.
        tolerance = 3e-6 if plan.layers[0].dtype == "float32" else 3e-14
        return value, 1.5 * tolerance * max(1.0, float(np.abs(sums).max(initial=0.0)))


def run(case: BlockCase, threads: int, **more: Any) -> Array:
    plan = case.plan(threads, **more)
    x, weights, biases, extra = case.arrays(plan)
    plan.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(*weights, biases=biases)
    assert sum(packing.sizes) == plan.packed_weight_bytes
    out = guarded(plan.out_shape, plan.layers[0].dtype)
    with GuardedAllocator() as running:
        assert bound(x, out=out, residual=extra) is out
    used = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in running.sizes)
    assert used == (plan.workspace_bytes if out.size else 0)
    again = guarded(plan.out_shape, plan.layers[0].dtype)  # a later call finds a way in through native code
    with GuardedAllocator():
        bound(x, out=again, residual=extra)
    check_canaries(again)
    assert again.tobytes() == out.tobytes()
    check_canaries(out)
    want, bound_error = case.expected(plan)
    assert not np.isnan(out).any()
    assert np.abs(out - want).max(initial=0.0) <= bound_error
    return out


ACTIVATIONS = ["relu6", "relu", None, "hardswish", ("clip", -1.0, 2.0)]
WINDOWS = [
    (1, 1, 0, 1),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (5, 1, 2, 1),
    (3, 1, 2, 2),
    (2, 3, 0, 1),
    (3, 1, 0, 1),
    (7, 2, 5, 1),
]


@st.composite
def block_cases(draw: st.DrawFn, kind: str) -> BlockCase:
    taps, stride, pad, dilation = draw(st.sampled_from(WINDOWS))
    least = max(1, (taps - 1) * dilation + 1 - 2 * pad)
    high, wide = draw(st.integers(least, least + 20)), draw(st.integers(least, least + 30))
    channels = draw(st.sampled_from([1, 3, 8, 16, 19, 24]))
    middle = draw(st.sampled_from([1, 5, 12, 16, 20, 37, 48, 64, 96, 144, 208]))
    outputs = draw(st.sampled_from([1, 7, 16, 24, 40]))
    batch = draw(st.sampled_from([1, 1, 2, 0]))
    if kind == "separable":
        middle = channels * draw(st.sampled_from([1, 1, 2, 3]))
        weights = ((middle, 1, taps, taps), (outputs, middle, 1, 1))
        window = {"padding": pad, "pad_mode": "zeros"}
    else:
        weights = ((middle, channels, 1, 1), (middle, 1, taps, taps), (outputs, middle, 1, 1))
        window = {"padding": pad}
    same = stride == 1 and 2 * pad == (taps - 1) * dilation
    options = {
        **window,
        "stride": stride,
        "dilation": dilation,
        "dtype": draw(st.sampled_from(["float32", "float32", "float64"])),
        "biases": tuple(draw(st.booleans()) for _ in weights),
        "activations": tuple(draw(st.sampled_from(ACTIVATIONS)) for _ in weights),
        "residual": draw(st.booleans()) if kind == "separable" else same and channels == outputs,
    }
    return BlockCase(kind, (batch, high, wide, channels), weights, options, draw(st.integers(0, 2**32 - 1)))


@pytest.mark.parametrize("kind", ["separable", "inverted"])
def test_random_blocks(kind: str) -> None:
    @ENGINE
    @given(block_cases(kind), st.sampled_from([1, 2, 3]), st.sampled_from([None, 0.3, 0.6]))
    def check(case: BlockCase, threads: int, tight: float | None) -> None:
        first = run(case, 1)
        assert run(case, threads).tobytes() == first.tobytes()
        if tight is not None:
            with pytest.raises(MemoryLimitError) as caught:
                case.plan(threads, memory_limit=0)
            least = caught.value.needed
            roomy = case.plan(threads).extra_bytes
            limit = least + int(tight * max(0, roomy - least))
            assert case.plan(threads, memory_limit=limit).extra_bytes <= limit
            run(case, threads, memory_limit=limit)

    check()


LARGE = [
    BlockCase("separable", (1, 56, 57, 40), ((40, 1, 3, 3), (24, 40, 1, 1)), {"padding": 1, "residual": True}),
    BlockCase("separable", (2, 9, 30, 11, 20), ((20, 1, 3, 3, 3), (17, 20, 1, 1, 1)), {"padding": 1}),
    BlockCase("separable", (1, 300, 12), ((24, 1, 9), (40, 24, 1)), {"padding": 4, "pad_mode": "reflect"}),
    BlockCase(
        "inverted",
        (1, 28, 28, 32),
        ((192, 32, 1, 1), (192, 1, 3, 3), (32, 192, 1, 1)),
        {"padding": 1, "residual": True, "biases": (True, True, True)},
    ),
    BlockCase("inverted", (1, 7, 7, 80), ((960, 80, 1, 1), (960, 1, 3, 3), (80, 960, 1, 1)), {"padding": 1}),
    BlockCase(
        "inverted", (2, 57, 55, 16), ((96, 16, 1, 1), (96, 1, 3, 3), (24, 96, 1, 1)), {"stride": 2, "padding": 1}
    ),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_large_blocks(case: BlockCase, threads: int) -> None:
    run(case, threads)


CLIPPED = {"stride": (1, 2), "activations": ("relu", None, ("clip", -1.0, 2.0)), "biases": (False, True, True)}
ADDED = {"residual": True, "activations": (None, "relu", "relu")}


def square(rows: int, width: int, channels: int, middle: int, out: int, taps: int, **options: Any) -> BlockCase:
    """An inverted residual of `taps` x 3 taps, padded so that rows stay as they are."""
    weights = ((middle, channels, 1, 1), (middle, 1, taps, 3), (out, middle, 1, 1))
    return BlockCase("inverted", (1, rows, width, channels), weights, {"padding": (taps // 2, 1), **options})


FEW_ROWS = [
    square(7, 13, 32, 288, 32, 3, residual=True),
    square(8, 9, 24, 320, 17, 3, **CLIPPED),
    square(8, 8, 24, 256, 24, 3, dtype="float64", **ADDED),
]


@pytest.mark.parametrize("case", FEW_ROWS, ids=range(len(FEW_ROWS)))
def test_threads_share_the_sections_of_few_rows(case: BlockCase) -> None:
    """Group by group, of which each adds to the output: of one thread as well, so that all have the same bits."""
    names = [phase.name for phase in case.plan(1).phases]
    assert len(names) > 2 and names == ["expand", "project"] * (len(names) // 2)
    results = [run(case, threads) for threads in (1, 2, 3, 5)]
    assert len({result.tobytes() for result in results}) == 1
    roomy = case.plan(2)
    assert case.plan(2, memory_limit=roomy.extra_bytes).phases == roomy.phases
    for limit in (roomy.extra_bytes - 1, roomy.extra_bytes // 2):
        plan = case.plan(2, memory_limit=limit)
        assert plan.extra_bytes <= limit
        run(case, 2, memory_limit=limit)
    assert [phase.name for phase in plan.phases] == ["block"]


def test_two_threads_expand_the_rows_between_them_once() -> None:
    case = square(14, 13, 32, 288, 32, 3, residual=True)
    assert [phase.name for phase in case.plan(2).phases] == ["shared rows", "block"]
    assert len({run(case, threads).tobytes() for threads in (1, 2, 3)}) == 1


CUTS = [
    (square(24, 9, 24, 192, 17, 5, **CLIPPED), Cut(2, 6, shared=4)),
    (square(20, 8, 24, 100, 24, 3, dtype="float64", **ADDED), Cut(5, 5, shared=2)),
    (replace(square(23, 8, 16, 96, 16, 3, residual=True), x_shape=(2, 23, 8, 16)), Cut(3, 8, shared=2)),
    (square(25, 9, 24, 64, 17, 3, stride=2), Cut(3, 4, shared=1)),
]


@pytest.mark.parametrize("case,cut", CUTS, ids=range(len(CUTS)))
def test_rows_that_two_chunks_read_are_expanded_once(
    case: BlockCase, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a phase before: the same bits as if each chunk expanded what it reads."""
    want = run(case, 1)
    monkeypatch.setattr(inverted_lower, "cut_into_bands", lambda *_: cut)
    for threads in (1, 3):
        assert [phase.name for phase in case.plan(threads).phases] == ["shared rows", "block"]
        assert run(case, threads).tobytes() == want.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", MOBILENET_V2, ids=[block.name for block in MOBILENET_V2])
def test_less_than_a_quarter_of_what_lies_between(block: InvertedResidual, threads: int) -> None:
    size, c, e, k = block.size, block.channels, block.middle, block.out
    shapes = ((e, c, 1, 1), (e, 1, 3, 3), (k, e, 1, 1))
    options: dict[str, Any] = {"stride": block.stride, "padding": 1, "residual": block.residual}
    plan = blocks.plan_inverted_residual((1, size, size, c), *shapes, **options, threads=threads)
    assert plan.workspace_bytes < plan.intermediate_bytes / 4
    assert plan.intermediate_bytes == (size**2 + (size // block.stride) ** 2) * e * 4


def test_functions_give_what_plans_give() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 9, 11, 6)).astype("f4")
    d, p = rng.standard_normal((6, 1, 3, 3)).astype("f4"), rng.standard_normal((10, 6, 1, 1)).astype("f4")
    b = rng.standard_normal(10).astype("f4")
    plan = blocks.plan_separable(x.shape, d.shape, p.shape, padding=1, biases=(False, True), activations=("relu", None))
    want = plan.bind(d, p, biases=(None, b))(x)
    out = np.empty_like(want)
    got = blocks.separable_conv2d(x, d, p, None, b, padding=1, activations=("relu", None), out=out)
    assert got is out and out.tobytes() == want.tobytes()
    e, q = rng.standard_normal((24, 6, 1, 1)).astype("f4"), rng.standard_normal((6, 24, 1, 1)).astype("f4")
    d = rng.standard_normal((24, 1, 3, 3)).astype("f4")
    plan = blocks.plan_inverted_residual(x.shape, e.shape, d.shape, q.shape, padding=1, residual=True)
    assert blocks.inverted_residual(x, e, d, q, padding=1, residual=True).tobytes() == plan.bind(e, d, q)(x).tobytes()


SHAPES = ((1, 9, 11, 6), (24, 6, 1, 1), (24, 1, 3, 3), (6, 24, 1, 1))


@pytest.mark.parametrize(
    ("argument", "shapes", "options"),
    [
        ("x_shape", ((1, 9, 11), *SHAPES[1:]), {}),
        ("expand_shape", (SHAPES[0], (24, 6, 3, 3), *SHAPES[2:]), {}),
        ("depthwise_shape", (*SHAPES[:2], (48, 1, 3, 3), SHAPES[3]), {}),
        ("project_shape", (*SHAPES[:3], (6, 23, 1, 1)), {}),
        ("project_shape", (*SHAPES[:3], (6, 24, 1)), {}),
        ("residual", SHAPES, {"residual": True}),
        ("biases", SHAPES, {"biases": (True, False)}),
        ("activations", SHAPES, {"activations": "relu"}),
        ("stride", SHAPES, {"stride": 0}),
        ("threads", SHAPES, {"threads": 0}),
    ],
)
def test_errors_of_plans(argument: str, shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        blocks.plan_inverted_residual(*shapes, **options)
    assert caught.value.argument == argument


def test_errors_of_calls() -> None:
    plan = blocks.plan_separable((1, 9, 11, 6), (6, 1, 3, 3), (8, 6, 1, 1), biases=(True, False))
    d, p, b = np.ones((6, 1, 3, 3), "f4"), np.ones((8, 6, 1, 1), "f4"), np.ones(6, "f4")
    x = np.ones((1, 9, 11, 6), "f4")
    for weights, biases, argument in (
        ((d,), (b, None), "weights"),
        ((d, p[:7]), (b, None), "pointwise"),
        ((d, p), None, "biases[0]"),
        ((d, p), (b, np.ones(8, "f4")), "biases[1]"),
        ((d, p), (b,), "biases"),
    ):
        with pytest.raises(ArgumentValueError) as caught:
            plan.bind(*weights, biases=biases)
        assert caught.value.argument == argument
    with pytest.raises(ArgumentTypeError):
        plan.bind(d.astype("f8"), p, biases=(b, None))
    bound = plan.bind(d, p, biases=(b, None))
    out = np.empty(plan.out_shape, "f4")
    for arguments, argument in (
        ({"x": x[:, :, ::-1]}, "x"),
        ({"x": x[:, 1:]}, "x"),
        ({"x": x, "residual": out}, "residual"),
        ({"x": x, "out": out[..., ::-1]}, "out"),
        ({"x": x, "out": np.ones((1, 9, 11, 6), "f4")}, "out"),
    ):
        with pytest.raises(ArgumentValueError) as caught:
            bound(**arguments)
        assert caught.value.argument == argument
    with pytest.raises(ArgumentTypeError):
        bound(x.astype("f8"))
    assert "separable" not in repr(plan) and "depthwise -> pointwise" in repr(plan)
    assert len(plan.steps) == 2 and plan.flops > 0
