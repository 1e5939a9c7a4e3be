"""Box filters: every size, stride and pad; the error bound; what is not finite stays where it is; exact memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv import oracle
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS
from leanconv.decomp import box_filter, separable
from leanconv.decomp.box import Boxes
from leanconv.errors import ArgumentError, MemoryLimitError, NotApplicableError
from leanconv.host import Host
from leanconv.kernels.boxrow import digits
from leanconv.memory import ALIGNMENT, Arena
from leanconv.options import make_problem
from leanconv.problem import Problem

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=24)


def defined(x: Array, size: tuple[int, int]) -> Array:
    """Column sums from two ends of blocks, then row sums by digits, in NumPy: (N, C, H, W) without padding."""
    high, wide = size
    rows = []
    for top in range(x.shape[2] - high + 1):
        block = top // high * high
        rows.append(x[:, :, top : block + high].sum(2) + x[:, :, block + high : top + high].sum(2))
    middle = np.stack(rows, 2)
    columns = x.shape[3] - wide + 1
    total, offset = np.zeros((*middle.shape[:3], columns)), 0
    for level, digit in enumerate(digits(wide)):
        for k in range(digit):
            at = offset + k * 4**level
            total += middle[..., at : at + columns]
        offset += digit * 4**level
        if level + 1 < len(digits(wide)):
            count = middle.shape[3] - 3 * 4**level
            middle = sum(middle[..., k * 4**level :][..., :count] for k in range(4))
    return total


@dataclass(frozen=True)
class Case:
    channels: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    batch: int
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    pad_mode: str
    layout: str
    dtype: str
    activation: str | None
    seed: int

    @property
    def problem(self) -> Problem:
        shape = (self.batch, self.channels, *self.size)
        return make_problem(
            2,
            shape if self.layout == "NCHW" else (self.batch, *self.size, self.channels),
            (self.channels, 1, *self.kernel),
            dtype=self.dtype,
            stride=self.stride,
            padding=self.padding,
            groups=self.channels,
            layout=self.layout,
            pad_mode=self.pad_mode,
            activation=self.activation,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.tuples(st.integers(1, 40), st.integers(1, 70)))
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    size, padding = [], []
    for taps in kernel:
        low, high = draw(st.integers(0, taps)), draw(st.integers(0, taps))
        most = max(low, high) + (mode == "reflect") if mode in ("reflect", "circular") else 1
        size.append(draw(st.integers(0, 30)) + max(1, taps - low - high, most))
        padding.append((low, high))
    return Case(
        draw(st.sampled_from([1, 2, 3, 8, 17])),
        kernel,
        (size[0], size[1]),
        draw(st.sampled_from([1, 1, 2, 0])),
        draw(st.tuples(st.sampled_from([1, 1, 2, 3, 50]), st.sampled_from([1, 1, 2, 3, 50]))),
        (padding[0], padding[1]),
        mode,
        draw(st.sampled_from(["NCHW", "NHWC"])),
        draw(st.sampled_from(["float32", "float32", "float64"])),
        draw(st.sampled_from([None, None, "relu"])),
        draw(st.integers(0, 2**32 - 1)),
    )


def run(case: Case, threads: int, memory_limit: int | None = None) -> Array:
    rng, problem = np.random.default_rng(case.seed), case.problem
    boxes = Boxes(problem, uniform=case.layout == "NHWC")
    assert boxes.refusal() is None
    plan = boxes.plan(threads, memory_limit)
    value = rng.standard_normal(1 if case.layout == "NHWC" else case.channels)[:, None, None, None]
    w = np.broadcast_to(value.astype(case.dtype), problem.w_shape)
    x = guarded_copy(rng.standard_normal(problem.x_shape).astype(case.dtype))
    plan.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(w)
    assert sum(packing.sizes) == plan.packed_weight_bytes
    out = guarded(problem.out_shape, case.dtype)
    with GuardedAllocator() as running:
        assert bound(x, out=out) is out
    used = sum(-(-n // ALIGNMENT) * ALIGNMENT for n in running.sizes)
    assert used == (plan.workspace_bytes if out.size else 0)
    check_canaries(out)
    want = oracle.reference(problem, x, w)
    # The bound that is promised, for each output.
    unit = np.finfo(case.dtype).eps / 2
    roundings = case.kernel[0] + 6 * np.log(case.kernel[1]) / np.log(4) + 8
    sizes = oracle.reference(problem, np.abs(x), np.abs(w))
    assert not np.isnan(out).any()
    assert (np.abs(out - want) <= roundings * unit * sizes + 1e-12 * unit).all()
    return out


def reachable(case: Case) -> bool:
    return Boxes(case.problem, uniform=True).refusal() is None


def test_random_boxes() -> None:
    @ENGINE
    @given(cases().filter(reachable), st.sampled_from([2, 3]), st.sampled_from([None, 0.0, 0.3]))
    def check(case: Case, threads: int, tight: float | None) -> None:
        first = run(case, 1)
        assert run(case, threads).tobytes() == first.tobytes()
        if tight is not None:
            boxes = Boxes(case.problem, uniform=True)
            roomy = boxes.plan(threads, None).extra_bytes
            with pytest.raises(MemoryLimitError) as caught:
                boxes.plan(threads, 0)
            limit = caught.value.needed + int(tight * (roomy - caught.value.needed))
            assert boxes.plan(threads, limit).extra_bytes <= limit
            assert run(case, threads, limit).tobytes() == first.tobytes()

    check()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_large_boxes(layout: str) -> None:
    case = Case(3, (31, 63), (200, 700), 1, (1, 1), ((15, 15), (31, 31)), "zeros", layout, "float32", None, 3)
    assert run(case, 2).tobytes() == run(case, 1).tobytes()
    plan = Boxes(case.problem, True).plan(2, None)
    assert plan.workspace_bytes < 2 * (512 << 10) + (64 << 10)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (5, 7), (2, 16), (6, 21)])
def test_the_definition(size: tuple[int, int]) -> None:
    x = np.random.default_rng(4).standard_normal((2, 3, 17, 40))
    want = leanconv.conv2d(x, np.ones((3, 1, *size)), groups=3)
    assert np.allclose(defined(x, size), want, atol=1e-11)
    assert np.allclose(box_filter(x, size, padding=0, normalize=False), want, atol=1e-11)


def test_what_is_not_finite_stays_in_its_boxes() -> None:
    """A running sum that subtracts would carry it on to the end of the row."""
    x = np.random.default_rng(5).standard_normal((1, 1, 40, 50)).astype("f4")
    clean = box_filter(x, 5)
    x[0, 0, 20, 25] = np.inf
    found = box_filter(x, 5)
    touched = np.zeros((40, 50), bool)
    touched[18:23, 23:28] = True
    assert np.isinf(found[0, 0][touched]).all()
    assert found[0, 0][~touched].tobytes() == clean[0, 0][~touched].tobytes()
    x[0, 0, 20, 25] = 1e30
    assert box_filter(x, 5)[0, 0][~touched].tobytes() == clean[0, 0][~touched].tobytes()


def test_the_function() -> None:
    x = np.random.default_rng(6).standard_normal((2, 30, 41, 3)).astype("f4")
    w = np.full((3, 1, 7, 5), 1 / 35, "f4")
    want = leanconv.conv2d(x, w, padding=(3, 2), groups=3, layout="NHWC")
    y = leanconv.box_filter(x, (7, 5), layout="NHWC")
    assert np.allclose(y, want, atol=1e-6)
    assert box_filter(x[0], (7, 5), layout="NHWC").tobytes() == y[0].tobytes()
    sums = box_filter(x, (7, 5), layout="NHWC", normalize=False, activation="relu")
    assert np.allclose(sums, np.maximum(35 * want, 0), atol=1e-4)
    out = np.empty((2, 15, 21, 3), "f4")
    assert box_filter(x, (7, 5), 2, ((3, 3), (2, 2)), layout="NHWC", out=out) is out
    assert np.allclose(out, want[:, ::2, ::2], atol=1e-6)
    assert box_filter(x[:0], 3, layout="NHWC").shape == (0, 30, 41, 3)
    limited = box_filter(x, (7, 5), layout="NHWC", memory_limit="12KiB", threads=1)
    assert limited.tobytes() == y.tobytes()


def test_constant_filters_are_boxes() -> None:
    filters = separable(np.stack([np.full((25, 25), 0.5), np.full((25, 25), -2.0)])[:, None].astype("f4"))
    x = np.random.default_rng(7).standard_normal((1, 2, 80, 90)).astype("f4")
    assert filters.constants == (0.5, -2.0) and filters.methods == ("two_passes", "box")
    plan = filters.plan(x.shape, padding=12)
    assert plan.method == "box" and len(plan.steps) == 2
    whole = filters.conv2d(x, padding=12, method="whole")
    for method in ("auto", "box", "two_passes"):
        assert np.allclose(filters.conv2d(x, padding=12, method=method), whole, atol=2e-3)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    with pytest.raises(NotApplicableError, match="same one"):
        filters.conv2d(last, padding=12, layout="NHWC", method="box")
    one = separable(np.full((25, 25), 0.5, "f4"))
    assert one.plan(last.shape, padding=12, layout="NHWC").method == "box"
    assert np.allclose(one.conv2d(last, layout="NHWC")[..., 0], filters.conv2d(x)[:, 0], atol=2e-3)


X = np.ones((1, 2, 9, 8), "f4")


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("x", (X[0, 0], 3), {}),
        ("x", ([1.0], 3), {}),
        ("size", (X, 0), {}),
        ("size", (X, (3, 3, 3)), {}),
        ("size", (X, 2.5), {}),
        ("stride", (X, 3, 0), {}),
        ("padding", (X, 3, 1, "half"), {}),
        ("w_shape", (X, 20, 1, 0), {}),
        ("normalize", (X, 3), {"normalize": 1}),
        ("pad_mode", (X, 3), {"pad_mode": "mirror"}),
        ("layout", (X, 3), {"layout": "CHWN"}),
        ("out", (X, 3), {"out": np.ones((1, 2, 9, 9), "f4")}),
        ("out", (X, 3), {"out": X}),
        ("out", (X, 3), {"out": X.astype("f8")}),
        ("threads", (X, 3), {"threads": 0}),
    ],
)
def test_errors(argument: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        box_filter(*arguments, **options)
    assert caught.value.argument == argument


def test_what_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="not adjacent"):
        box_filter(X[:, :, :, ::2], 3)
    with pytest.raises(NotApplicableError, match="into the image"):
        box_filter(np.ones((1, 1, 5, 1), "f4"), (1, 1), (1, 3), ((0, 0), (2, 0)))
    with pytest.raises(MemoryLimitError):
        box_filter(X, 3, memory_limit=0)
    filters = separable(np.ones((3, 3), "f4"))
    for options, reason in (({"bias": True}, "bias"), ({"dilation": 2}, "apart")):
        with pytest.raises(NotApplicableError, match=reason):
            filters.plan(X.shape, method="box", **options)  # type: ignore[arg-type]
    several = separable(np.ones((4, 1, 3, 3), "f4"))
    with pytest.raises(NotApplicableError, match="each channel"):
        several.plan(X.shape, method="box")


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_code_for_every_target(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(TARGETS[name], 32 << 10, 512 << 10, 32 << 20)
    monkeypatch.setattr("leanconv.decomp.box.this_host", lambda: host)
    case = Case(16, (9, 31), (60, 64), 1, (1, 2), ((4, 4), (15, 15)), "zeros", layout, "float32", "relu", 0)
    (phase,) = Boxes(case.problem, True).plan(1, None).phases
    module = Module()
    phase.spec.emit(module, "kernel")
    assert jit.compile_assembly(module.text(), TARGETS[name])
