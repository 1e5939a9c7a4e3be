"""Plans: what they say about themselves, limits, settings and errors; the layers of networks, planned and not run."""

from __future__ import annotations

import functools
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanconv
from leanconv import BoundPlan, Plan, Problem
from leanconv.algorithms import REGISTRY
from leanconv.bench.layers import read_csv
from leanconv.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    MemoryLimitError,
    NotApplicableError,
)
from leanconv.memory import Arena
from leanconv.sizes import format_bytes

F32 = np.float32
LAYER: dict[str, Any] = {"x_shape": (1, 16, 24, 24), "w_shape": (32, 16, 3, 3), "padding": 1}
NETWORKS = sorted((Path(leanconv.__file__).parent / "bench" / "networks").glob("*.csv"))


def test_what_a_plan_says() -> None:
    large = {**LAYER, "x_shape": (1, 16, 96, 96)}  # for two threads to be worth their start
    plan = leanconv.plan(**large, bias=True, activation="relu", residual=True, threads=2)
    assert isinstance(plan, Plan) and isinstance(plan.problem, Problem)
    assert plan.algorithm in {algorithm.name for algorithm in REGISTRY} - {"reference"}
    assert plan.threads == 2 and plan.memory_limit is None
    assert plan.problem.out_shape == (1, 32, 96, 96)
    assert plan.steps and all(isinstance(step, str) and len(step) > 10 for step in plan.steps)
    assert plan.parameters and all(isinstance(name, str) for name in plan.parameters)
    assert repr(plan) == (
        f"<Plan {plan.problem.describe()}: {plan.algorithm}, 2 threads, workspace {plan.workspace_bytes} B, "
        f"packed weights {plan.packed_weight_bytes} B>"
    )
    plan.steps.append("changed")
    assert "changed" not in plan.steps
    bound = plan.bind(np.zeros((32, 16, 3, 3), F32), np.zeros(32, F32))
    assert isinstance(bound, BoundPlan) and bound.plan is plan


def test_what_counts_against_a_limit() -> None:
    plain = 32 * 16 * 9 * 4
    for name in (algorithm.name for algorithm in REGISTRY):
        for bias in (False, True):
            try:
                plan = leanconv.plan(**LAYER, bias=bias, algorithm=name, threads=2)
            except NotApplicableError:
                continue
            free = plain + (32 * 4 if bias else 0)
            assert plan.extra_bytes == plan.workspace_bytes + max(0, plan.packed_weight_bytes - free)
    assert leanconv.plan(**LAYER, algorithm="direct").extra_bytes == 0
    odd = leanconv.plan((1, 16, 24, 24), (17, 16, 3, 3), algorithm="direct")
    assert odd.extra_bytes == odd.packed_weight_bytes - 17 * 16 * 9 * 4 > 0
    assert leanconv.plan(**LAYER, algorithm="reference").packed_weight_bytes == 0


@pytest.mark.parametrize("limit", [0, 1 << 20, "0", "1MiB", "189.0 KiB", "2 GB"])
def test_limits_in_numbers_and_text(limit: int | str) -> None:
    # Packed for `direct` these weights take as much as plain ones: the limit is what workspace may take.
    plan = leanconv.plan(**LAYER, algorithm="direct", memory_limit=limit)
    number = {"0": 0, "1MiB": 1 << 20, "189.0 KiB": 189 << 10, "2 GB": 2_000_000_000}.get(limit, limit)  # type: ignore[call-overload]
    assert plan.memory_limit == number
    assert plan.arena is not leanconv.plan(**LAYER).arena and plan.arena.limit == number
    assert plan.extra_bytes <= number


def test_limits_choose_among_algorithms() -> None:
    whole = leanconv.plan(**LAYER, algorithm="im2col", threads=1)
    text = format_bytes(whole.extra_bytes)
    assert leanconv.plan(**LAYER, algorithm="im2col", threads=1, memory_limit=whole.extra_bytes).extra_bytes
    with pytest.raises(MemoryLimitError) as caught:
        leanconv.plan(**LAYER, algorithm="im2col", threads=1, memory_limit="1 KiB")
    assert (caught.value.limit, caught.value.needed) == (1024, whole.extra_bytes)
    assert "im2col" in caught.value.what and f"{whole.extra_bytes:,}" in str(caught.value)
    assert isinstance(caught.value, MemoryError) and text


ODD = {**LAYER, "w_shape": (17, 16, 3, 3)}  # rows of 17 weights fill two vectors and a bit


def test_a_limit_leaves_out_the_gaps_of_packed_weights() -> None:
    free, none = (leanconv.plan(**ODD, algorithm="direct", threads=1, memory_limit=limit) for limit in (None, 0))
    plain = 17 * 16 * 9 * 4
    assert none.extra_bytes == 0 and none.packed_weight_bytes == plain < free.packed_weight_bytes
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(ODD[name], dtype=F32) for name in ("x_shape", "w_shape"))
    assert none.bind(w)(x).tobytes() == free.bind(w)(x).tobytes()
    once = leanconv.conv2d(x, w, memory_limit=0, threads=1, **{k: v for k, v in ODD.items() if "shape" not in k})
    assert once.tobytes() == none.bind(w)(x).tobytes()


def test_concurrent_calls_share_the_limit() -> None:
    """An arena with a limit lends no more than that, whoever asks."""
    plan = leanconv.plan(**LAYER, algorithm="im2col", threads=1, memory_limit="1 MiB")
    plan.arena = Arena(2 * plan.workspace_bytes)
    x, w = np.ones((1, 16, 24, 24), F32), np.ones((32, 16, 3, 3), F32)
    bound = plan.bind(w)
    leases = [plan.arena.acquire(plan.compiled.layout) for _ in range(2)]
    with pytest.raises(MemoryLimitError):
        bound(x)
    leases.pop().release()
    assert (bound(x)[:, :, 1:-1, 1:-1] == 144).all()
    leases.pop().release()


def test_settings() -> None:
    applying = {info.name for info in leanconv.algorithms(**LAYER) if info.applies}
    tuned = [algorithm for algorithm in REGISTRY if algorithm.tunables and algorithm.name in applying]
    assert tuned
    x, w = np.ones((1, 16, 24, 24), F32), np.ones((32, 16, 3, 3), F32)
    for algorithm in tuned:
        listed = {i.name: i.applies for i in leanconv.algorithms(**LAYER)}
        layout = "NCHW" if listed[algorithm.name] else "NHWC"
        layer = {**LAYER, "layout": layout, "x_shape": x.shape if layout == "NCHW" else (1, 24, 24, 16)}
        image = x.reshape(layer["x_shape"])  # ones, in any order
        sizes = set()
        for key in algorithm.tunables:
            for value in (1, 3, 1000):
                plan = leanconv.plan(**layer, algorithm=algorithm.name, parameters={key: value})
                sizes.add(plan.workspace_bytes)
                y = plan.bind(w)(image)
                inner = y[:, :, 1:-1, 1:-1] if layout == "NCHW" else y[:, 1:-1, 1:-1]
                assert np.allclose(inner, 144, rtol=1e-5, atol=0)
        assert len(sizes) > 1
        for bad in ({"nonsense": 1}, {key: 0}, {key: "1"}, {key: 1.5}):
            with pytest.raises(ArgumentError):
                leanconv.plan(**layer, algorithm=algorithm.name, parameters=bad)
    with pytest.raises(ArgumentValueError):
        leanconv.plan(**LAYER, parameters={key: 1})
    with pytest.raises(ArgumentValueError):
        leanconv.plan(**LAYER, algorithm="direct", parameters={key: 1})


@pytest.mark.parametrize(
    ("options", "kind", "argument"),
    [
        ({"algorithm": "winograd9"}, ArgumentValueError, "algorithm"),
        ({"algorithm": 3}, ArgumentTypeError, "algorithm"),
        ({"algorithm": None}, ArgumentTypeError, "algorithm"),
        ({"threads": 0}, ArgumentValueError, "threads"),
        ({"threads": 1.0}, ArgumentTypeError, "threads"),
        ({"memory_limit": -1}, ArgumentValueError, "memory_limit"),
        ({"memory_limit": "many"}, ArgumentValueError, "memory_limit"),
        ({"memory_limit": 1.5}, ArgumentTypeError, "memory_limit"),
        ({"x_shape": (16, 24)}, ArgumentValueError, "x_shape"),
        ({"x_shape": 3}, ArgumentValueError, "x_shape"),
        ({"dtype": "float16"}, ArgumentTypeError, "dtype"),
        ({"bias": 1}, ArgumentTypeError, "bias"),
        ({"layout": "HWCN"}, ArgumentValueError, "layout"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], kind: type[ArgumentError], argument: str) -> None:
    for call in (leanconv.plan, leanconv.algorithms):
        if call is leanconv.algorithms and argument in ("algorithm", "memory_limit"):
            continue
        with pytest.raises(kind) as caught:
            call(**{**LAYER, **options})
        assert caught.value.argument == argument


def test_binding_from_many_threads() -> None:
    plan = leanconv.plan(**LAYER, algorithm="direct", threads=2)
    x, failures = np.ones((1, 16, 24, 24), F32), []
    start = threading.Barrier(8)

    def work(i: int) -> None:
        start.wait()
        for n in range(25):
            value = 1 + (i * 25 + n) % 13
            result = plan.bind(np.full((32, 16, 3, 3), value, F32))(x)
            if not (result[:, :, 1:-1, 1:-1] == 144 * value).all():
                failures.append((i, n))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures


SHARDS = 16


@functools.cache
def layers_of_networks() -> list[tuple[Any, Any, dict[str, Any]]]:
    """Shapes and options of all layers of all networks in both layouts; what several of them have, once."""
    found = {}
    for path in NETWORKS:
        layers = read_csv(path)
        assert layers, path
        for layer in layers:
            for layout in ("NCHW", "NHWC"):
                shapes, options = layer.shapes(layout), layer.options(layout)
                found[repr((shapes, sorted(options.items())))] = (*shapes, options)
    return list(found.values())


@pytest.mark.parametrize("shard", range(SHARDS))
def test_layers_of_real_networks(shard: int) -> None:
    """Every layer has a plan by every algorithm that lists it, in both layouts; nothing is compiled or run."""
    for x_shape, w_shape, options in layers_of_networks()[shard::SHARDS]:
        listed = leanconv.algorithms(x_shape, w_shape, threads=2, **options)
        assert {"direct", "reference"} <= {info.name for info in listed if info.applies}
        for info in listed:
            if not info.applies:
                assert info.reason
                continue
            plan = leanconv.plan(x_shape, w_shape, threads=2, algorithm=info.name, **options)
            assert plan.workspace_bytes == info.workspace_bytes
            assert plan.packed_weight_bytes == info.packed_weight_bytes
            assert info.name != "direct" or plan.workspace_bytes == 0
            assert re.match(r"<Plan conv[123]d f32 .*>$", repr(plan))
        plan = leanconv.plan(x_shape, w_shape, threads=2, **options)
        assert plan.algorithm != "reference"
