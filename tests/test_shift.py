"""Shift convolution: the definition, every pad mode, staged and in place: right, same bits, exact memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv.algorithms.shift import Shift
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS
from leanconv.decomp import plan_shift, shift_conv2d
from leanconv.errors import ArgumentError, ArgumentTypeError, MemoryLimitError
from leanconv.host import Host
from leanconv.memory import ALIGNMENT, Arena
from leanconv.options import make_problem

Array = np.ndarray[Any, Any]
ENGINE = settings(settings.get_profile("engine"), max_examples=25)
NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def shifted(x: Array, shifts: Array, stride: tuple[int, int], pad_mode: str) -> Array:
    """The definition: every channel of (N, C, H, W), read at its shift, on the output's grid."""
    high, wide = x.shape[2:]
    reach = int(np.abs(shifts).max(initial=0))
    mode: Any = NUMPY_MODE[pad_mode]
    out = []
    for c, (down, along) in enumerate(shifts):
        if pad_mode in ("zeros", "replicate"):
            padded = np.pad(x[:, c], ((0, 0), (reach, reach), (reach, reach)), mode=mode)
            moved = padded[:, reach + down : reach + down + high, reach + along : reach + along + wide]
        else:
            pads = ((0, 0), (abs(down), abs(down)), (abs(along), abs(along)))
            padded = np.pad(x[:, c], pads, mode=mode)
            moved = padded[:, abs(down) + down :, abs(along) + along :][:, :high, :wide]
        out.append(moved[:, :: stride[0], :: stride[1]])
    return np.stack(out, axis=1)


@dataclass(frozen=True)
class Case:
    channels: int
    filters: int
    size: tuple[int, int]
    batch: int
    reach: int
    together: int  # channels that share a shift
    stride: tuple[int, int]
    pad_mode: str
    layout: str
    dtype: str
    epilogue: tuple[bool, str | None, bool]
    seed: int


CASES = st.builds(
    Case,
    channels=st.sampled_from([1, 3, 8, 19, 36, 300]),
    filters=st.sampled_from([1, 7, 16, 33]),
    size=st.tuples(st.integers(1, 14), st.integers(1, 23)),
    batch=st.sampled_from([1, 1, 2, 0]),
    reach=st.sampled_from([0, 1, 1, 2, 40]),
    together=st.sampled_from([1, 1, 4, 40]),
    stride=st.tuples(st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 2, 3])),
    pad_mode=st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    dtype=st.sampled_from(["float32", "float32", "float64"]),
    epilogue=st.tuples(st.booleans(), st.sampled_from([None, "relu"]), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)


def run(case: Case, threads: int, memory_limit: int | None = None) -> Array:
    rng = np.random.default_rng(case.seed)
    reach = np.array([case.reach, case.reach])
    if case.pad_mode in ("reflect", "circular"):
        reach = np.minimum(reach, np.array(case.size) - (case.pad_mode == "reflect"))
    groups = -(-case.channels // case.together)
    shifts = np.repeat(rng.integers(-reach, reach + 1, (groups, 2)), case.together, axis=0)[: case.channels]
    x = rng.standard_normal((case.batch, case.channels, *case.size)).astype(case.dtype)
    w = rng.standard_normal((case.filters, case.channels, 1, 1)).astype(case.dtype)
    b = rng.standard_normal(case.filters).astype(case.dtype) if case.epilogue[0] else None
    moved = shifted(x.astype(float), shifts, case.stride, case.pad_mode)
    want = np.einsum("kc,ncyx->nkyx", w[:, :, 0, 0].astype(float), moved)
    if b is not None:
        want += b[:, None, None]
    if case.layout == "NHWC":
        x, want = np.moveaxis(x, 1, -1), np.moveaxis(want, 1, -1)
    extra = rng.standard_normal(want.shape).astype(case.dtype) if case.epilogue[2] else None
    size = max(1.0, np.abs(want).max(initial=0.0))
    want = want if extra is None else want + extra
    want = np.maximum(want, 0) if case.epilogue[1] else want
    x = guarded_copy(np.ascontiguousarray(x))
    plan = plan_shift(
        x.shape,
        shifts,
        case.filters,
        dtype=case.dtype,
        bias=b is not None,
        stride=case.stride,
        pad_mode=case.pad_mode,
        layout=case.layout,
        activation=case.epilogue[1],
        residual=extra is not None,
        memory_limit=memory_limit,
        threads=threads,
    )
    plan.arena = Arena(plan.workspace_bytes)
    with GuardedAllocator() as packing:
        bound = plan.bind(w, b)
    assert sum(packing.sizes) == plan.packed_weight_bytes
    out = guarded(want.shape, case.dtype)
    with GuardedAllocator() as running:
        assert bound(x, out=out, residual=extra) is out
    used = sum(-(-n // ALIGNMENT) * ALIGNMENT for n in running.sizes)
    assert used == (plan.workspace_bytes if out.size else 0)
    check_canaries(out)
    unit = 1e-6 if case.dtype == "float32" else 1e-14
    assert np.abs(out - want).max(initial=0.0) <= unit * size
    return out


def test_random_shifts() -> None:
    @ENGINE
    @given(CASES, st.sampled_from([2, 3]))
    def check(case: Case, threads: int) -> None:
        first = run(case, 1)
        assert run(case, threads).tobytes() == first.tobytes()
        try:
            plan_shift((1, case.channels, *case.size), np.zeros((case.channels, 2), int), case.filters, memory_limit=0)
        except MemoryLimitError as error:
            limit = 2 * error.needed + 1  # of packed weights, whatever the element type: none is left for rows
        else:
            limit = 0
        assert run(case, threads, memory_limit=limit + 64 * case.filters).tobytes() == first.tobytes()

    check()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_larger_maps(layout: str) -> None:
    case = Case(72, 64, (40, 41), 2, 1, 8, (1, 1), "zeros", layout, "float32", (True, "relu", True), 7)
    first = run(case, 1)
    assert run(case, 2).tobytes() == first.tobytes()
    assert run(case, 2, memory_limit=0).tobytes() == first.tobytes()


def test_the_function() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 9, 12, 14)).astype("f4")
    w, b = rng.standard_normal((5, 9)).astype("f4"), rng.standard_normal(5).astype("f4")
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    y = leanconv.shift_conv2d(x, shifts, w, b, activation="relu")
    # A shift is a depthwise window with a single one in it.
    ones = np.zeros((9, 1, 3, 3), "f4")
    for c, (down, along) in enumerate(shifts):
        ones[c, 0, 1 + down, 1 + along] = 1
    depthwise = leanconv.conv2d(x, ones, padding=1, groups=9)
    assert np.allclose(y, leanconv.conv2d(depthwise, w[:, :, None, None], b, activation="relu"), atol=1e-5)
    assert y.tobytes() == shift_conv2d(x, np.array(shifts), w[:, :, None, None], b, activation="relu").tobytes()
    assert shift_conv2d(x[0], shifts, w, b, activation="relu").tobytes() == y[0].tobytes()
    view = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert np.allclose(shift_conv2d(view, shifts, w, b, activation="relu"), y, atol=1e-6)
    out = np.empty((2, 5, 6, 14), "f4")
    assert shift_conv2d(x, shifts, w, stride=(2, 1), out=out) is out
    assert np.allclose(out, shift_conv2d(x, shifts, w)[:, :, ::2], atol=1e-5)


X, SHIFTS, W = np.ones((1, 3, 5, 6), "f4"), np.zeros((3, 2), int), np.ones((4, 3), "f4")


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("x", (X[0, 0], SHIFTS, W), {}),
        ("shifts", (X, SHIFTS[:2], W), {}),
        ("shifts", (X, SHIFTS.astype(float), W), {}),
        ("shifts", (X, SHIFTS + 5, W), {"pad_mode": "reflect"}),
        ("shifts", (X, SHIFTS + 6, W), {"pad_mode": "circular"}),
        ("shifts", (X, [[1], [2, 3], []], W), {}),
        ("w", (X, SHIFTS, W[0]), {}),
        ("w", (X, SHIFTS, np.ones((4, 3, 3, 3), "f4")), {}),
        ("w", (X, SHIFTS, W[:, :2]), {}),
        ("w", (X, SHIFTS, W.astype("f8")), {}),
        ("bias", (X, SHIFTS, W, np.ones(3, "f4")), {}),
        ("pad_mode", (X, SHIFTS, W), {"pad_mode": "mirror"}),
        ("layout", (X, SHIFTS, W), {"layout": "CHWN"}),
        ("stride", (X, SHIFTS, W), {"stride": 0}),
        ("out", (X, SHIFTS, W), {"out": np.ones((1, 4, 5, 5), "f4")}),
        ("threads", (X, SHIFTS, W), {"threads": 0}),
    ],
)
def test_errors(argument: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        shift_conv2d(*arguments, **options)
    assert caught.value.argument == argument


def test_errors_of_plans() -> None:
    with pytest.raises(ArgumentError, match="x_shape"):
        plan_shift((1, 3, 5), SHIFTS, 4)
    with pytest.raises(ArgumentTypeError, match="filters"):
        plan_shift((1, 3, 5, 6), SHIFTS, 4.0)  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError):
        plan_shift((1, 5, 6, 3), SHIFTS, 1, memory_limit=0, layout="NHWC")
    grouped = make_problem(2, (1, 4, 5, 6), (4, 2, 1, 1), dtype="float32", groups=2)
    assert Shift(((0, 0),) * 4, "zeros").refusal(grouped)


@pytest.mark.parametrize("name", ["avx2", "avx512", "neon"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("workspace", [None, 0])
def test_code_for_every_target(name: str, layout: str, workspace: int | None) -> None:
    """The core compiles; over staged rows it multiplies without stack traffic."""
    host = Host(TARGETS[name], 32 << 10, 512 << 10, 32 << 20)
    shape = (1, 64, 30, 30) if layout == "NCHW" else (1, 30, 30, 64)
    problem = make_problem(2, shape, (64, 64, 1, 1), dtype="float32", layout=layout)
    (phase,) = Shift(((1, -1),) * 64, "zeros").lower(problem, host, 1, workspace, {}).phases
    module = Module()
    phase.spec.emit(module, "kernel")
    loops = innermost_loops(jit.compile_assembly(module.text(), TARGETS[name]))
    best = max(count_fused(loop) for loop in loops)
    assert best >= 12
    if workspace is None and name != "neon":
        assert any(count_fused(loop) == best and not spills(loop) for loop in loops)
