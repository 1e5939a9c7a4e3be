"""Kernels for images of any size: what they compute, their machine code, and that a new size compiles nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, innermost_loops, spills
from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv import compiled, oracle
from leanconv.algorithms import REGISTRY
from leanconv.cache import ObjectCache
from leanconv.classes import replace
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.compiled import KernelSpec
from leanconv.host import Host, this_host
from leanconv.network import kept
from leanconv.network.steps import base
from leanconv.network.steps.base import stand_in
from leanconv.options import make_problem
from leanconv.plan import Plan

Array = np.ndarray[Any, Any]
BY_NAME = {algorithm.name: algorithm for algorithm in REGISTRY}


def other_of(plan: Plan) -> Plan | None:
    """The same plan on kernels that stand in for its own; None if none does."""
    low = plan.lowering
    phases = tuple(stand_in(phase) for phase in low.phases)
    if phases == low.phases:
        return None
    known = (plan.problem, plan.algorithm, plan.threads, plan.memory_limit, plan.tunables)
    return Plan(*known, staging=plan.staging, lowering=replace(low, phases=phases))


def shape_of(plan: Plan) -> tuple[int, ...]:
    """Of the output, channels last."""
    return (plan.problem.batch, *plan.problem.out_size, plan.problem.out_channels)


def results(plan: Plan, x: Array, w: Array, bias: Array, residual: Array | None) -> Array:
    """The output of a plan, between forbidden pages like all it reads and its workspace."""
    for flush in ("left", "right"):
        with GuardedAllocator():
            out = guarded(shape_of(plan), plan.problem.dtype, flush=flush)
            image = guarded_copy(x, flush=flush)
            bound = plan.bind(w, bias)
            bound(image, out=out) if residual is None else bound(image, out=out, residual=guarded_copy(residual))
            check_canaries(out)
    return cast(Array, out)


@settings(deadline=None, max_examples=60)
@given(
    channels=st.sampled_from([5, 16, 33, 40]),
    multiplier=st.sampled_from([1, 1, 2]),
    rows=st.integers(1, 6),
    wide=st.integers(1, 60),
    taps=st.sampled_from([2, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    pad=st.integers(0, 3),
    threads=st.sampled_from([1, 3]),
    residual=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_channelwise_gives_the_same_bits(
    channels: int,
    multiplier: int,
    rows: int,
    wide: int,
    taps: int,
    stride: int,
    pad: int,
    threads: int,
    residual: bool,
    dtype: str,
) -> None:
    assume(wide + 2 * pad >= taps and pad < taps)
    rng = np.random.default_rng(wide)
    x = rng.standard_normal((2, rows + taps, wide, channels)).astype(dtype)
    w = rng.standard_normal((channels * multiplier, 1, taps, taps)).astype(dtype)
    bias = rng.standard_normal(len(w)).astype(dtype)
    plan = leanconv.plan(
        x.shape,
        w.shape,
        stride=stride,
        padding=(0, pad),
        groups=channels,
        layout="NHWC",
        dtype=dtype,
        bias=True,
        residual=residual,
        activation="relu",
        algorithm="depthwise",
        threads=threads,
    )
    other = other_of(plan)
    more = rng.standard_normal(shape_of(plan)).astype(dtype) if residual else None
    out = plan.problem.out_size[-1]
    if other is None:
        assert out < 4 or pad >= 3 or out < 2 * taps, "rows of so many pixels are served"
        return
    wanted = results(plan, x, w, bias, more)
    np.testing.assert_array_equal(results(other, x, w, bias, more), wanted)


@pytest.mark.parametrize("fetch", [1, 2])
@pytest.mark.parametrize(("channels", "size", "stride"), [(96, 150, 1), (96, 151, 2), (40, 300, 1)])
def test_channelwise_that_asks_ahead(
    channels: int, size: int, stride: int, fetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images, whose next tiles are asked for."""
    for name in ("channeltiles", "channelwise"):
        module = importlib.import_module(f"leanconv.algorithms.{name}")
        monkeypatch.setattr(module, "fetched", lambda *_: fetch)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((1, size, size, channels)).astype("f")
    w, bias = rng.standard_normal((channels, 1, 3, 3)).astype("f"), np.zeros(channels, "f")
    options: dict[str, Any] = {"groups": channels, "layout": "NHWC", "bias": True, "algorithm": "depthwise"}
    plan = leanconv.plan(x.shape, w.shape, stride=stride, padding=1, threads=2, **options)
    other = other_of(plan)
    assert other is not None and other.lowering.phases[0].fields["asks"] > 0
    np.testing.assert_array_equal(results(other, x, w, bias, None), results(plan, x, w, bias, None))


@settings(deadline=None, max_examples=25)
@given(
    channels=st.sampled_from([3, 16, 20]),
    outputs=st.sampled_from([8, 33]),
    high=st.integers(5, 14),
    wide=st.integers(5, 14),
    taps=st.sampled_from([2, 3]),
    dilation=st.sampled_from([1, 1, 2]),
    name=st.sampled_from(["winograd_f2", "winograd_f4", "winograd_f4_on_the_fly"]),
    together=st.sampled_from([1, 2, 3]),
    threads=st.sampled_from([1, 3]),
    residual=st.booleans(),
)
def test_winograd(
    channels: int,
    outputs: int,
    high: int,
    wide: int,
    taps: int,
    dilation: int,
    name: str,
    together: int,
    threads: int,
    residual: bool,
) -> None:
    rng = np.random.default_rng(high * 100 + wide)
    x = rng.standard_normal((2, high, wide, channels)).astype("f")
    w = rng.standard_normal((outputs, channels, taps, taps)).astype("f")
    bias = rng.standard_normal(outputs).astype("f")
    plan = leanconv.plan(
        x.shape,
        w.shape,
        padding=1,
        dilation=dilation,
        layout="NHWC",
        bias=True,
        residual=residual,
        activation="relu",
        algorithm=name,
        threads=threads,
        parameters=None if "fly" in name else {"together": together},
    )
    other = other_of(plan)
    assert other is not None
    assert other.workspace_bytes == plan.workspace_bytes and other.packed_weight_bytes == plan.packed_weight_bytes
    more = rng.standard_normal(shape_of(plan)).astype("f") if residual else None
    got = results(other, x, w, bias, more)
    np.testing.assert_allclose(got, oracle.reference(plan.problem, x, w, bias, more), atol=2e-4)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("case", ["3x3", "3x3 stride 2", "5x5", "5x5 stride 2", "winograd"])
def test_machine_code(target: Target, case: str) -> None:
    """They compile for every target, and the loops that multiply spill no vector."""
    host = Host(target, 32 << 10, 512 << 10, 8 << 20)
    taps, stride = (5 if "5x5" in case else 3), (2 if "stride" in case else 1)
    deep = case == "winograd"
    groups = 1 if deep else 64
    problem = make_problem(
        2,
        (1, 60, 61, 64),
        (64, 64 // groups, taps, taps),
        dtype="float32",
        stride=stride,
        padding=taps // 2,
        groups=groups,
        layout="NHWC",
        bias=True,
        activation="relu",
    )
    (phase,) = BY_NAME["winograd_f4" if deep else "depthwise"].lower(problem, host, 1, None, {}).phases
    other = stand_in(phase)
    assert other is not phase
    exact, found = (spilled(each.spec, target) for each in (phase, other))
    # In tiles that look for the edge of the image addresses take the registers of some of 5 weights, with 16 in all;
    # Winograd's transforms have buffers on the stack.
    assert found <= exact + (20 if target.name == "avx2" and taps == 5 else 0)


def spilled(spec: KernelSpec, target: Target) -> int:
    """Moves of vectors to and from the stack in the loops that multiply."""
    module = Module()
    spec.emit(module, "kernel")
    loops = [loop for loop in innermost_loops(jit.compile_assembly(module.text(), target)) if count_fused(loop)]
    assert loops or target.name == "portable"
    return sum(len(spills(loop)) for loop in loops)


def test_what_is_at_hand_decides_no_bits_of_what_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "at_hand", lambda spec: False)
    layer = {"layout": "NHWC", "padding": 1, "algorithm": "winograd_f4", "threads": 1}
    phases = leanconv.plan((1, 27, 29, 32), (32, 32, 3, 3), **layer)._lowering.phases
    setting = base.Setting(this_host(), 1, free=True, later=True)
    assert [p.spec for p in setting.serving(phases)] != [p.spec for p in phases]
    same = replace(setting, deterministic=True)
    assert [p.spec for p in same.serving(phases)] == [p.spec for p in phases]
    assert not replace(same, later=False).spare(phases) and replace(setting, later=False).spare(phases)


def test_a_size_never_seen_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    import leanconv.onnx

    rng = np.random.default_rng(3)
    weights = {
        "depth": rng.standard_normal((32, 1, 3, 3)),
        "point": rng.standard_normal((48, 32, 1, 1)),
        "half": rng.standard_normal((48, 1, 5, 5)),
    }
    options = {
        "depth": {"group": 32, "pads": [1] * 4},
        "point": {},
        "half": {"group": 48, "strides": [2, 2], "pads": [2] * 4},
    }
    names = ["x", *weights]
    nodes = [
        helper.make_node("Conv", [before, f"w {name}"], [name], **options[name])
        for before, name in zip(names, weights, strict=False)
    ]
    nodes.append(helper.make_node("GlobalAveragePool", ["half"], ["y"]))  # so that images lie channels last
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 32, "h", "w"])],
        [value("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array((w / 9).astype("f"), f"w {name}") for name, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    objects = ObjectCache(tmp_path)
    monkeypatch.setattr(compiled, "object_cache", lambda: objects)
    monkeypatch.setattr(kept, "object_cache", lambda: objects)
    monkeypatch.setattr(compiled, "_kernels", {})
    session = leanconv.onnx.load(proto, threads=2)
    session.run({"x": np.zeros((1, 32, 64, 80), "f")})  # the thread pool's own code too
    before = objects.info().entries
    for high, wide in ((64, 82), (65, 75), (57, 86), (80, 64), (49, 99)):
        x = rng.standard_normal((1, 32, high, wide)).astype("f")
        got = session.run({"x": x})["y"]
        assert objects.info().entries == before
        (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
        np.testing.assert_allclose(got, wanted, atol=2e-4 * abs(wanted).max())
