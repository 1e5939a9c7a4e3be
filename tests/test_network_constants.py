"""Constants that are made when looked at: networks hold packed weights, and nothing of the plain ones."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import leanconv
from leanconv.network import slabs
from leanconv.network.compile import compile_graph
from leanconv.network.constants import Constants, Derived, Held, Values, is_known
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.passes import run_passes


def _counted(array: np.ndarray) -> tuple[Derived, list[int]]:
    looks: list[int] = []

    def make() -> np.ndarray:
        looks.append(1)
        return array.copy()

    return Derived(array.shape, array.dtype, make), looks


def test_a_recipe_is_followed_when_somebody_looks_and_not_kept() -> None:
    recipe, looks = _counted(np.arange(6.0).reshape(2, 3))
    constants = Constants({"w": recipe, "b": np.ones(2)})
    assert "w" in constants
    assert constants.nbytes == 64
    assert [name for name, _ in constants.handles()] == ["w", "b"]
    assert not looks
    first = constants["w"]
    assert constants["w"] is first
    assert len(looks) == 1
    assert not first.flags.writeable
    del first
    gc.collect()
    np.testing.assert_array_equal(constants["w"], np.arange(6.0).reshape(2, 3))
    assert len(looks) == 2


def test_values_of_a_node_are_looked_at_one_by_one() -> None:
    recipe, looks = _counted(np.ones(3))
    values = Values([Held(np.zeros(1)), None, recipe])
    assert [is_known(values, i) for i in range(3)] == [True, False, True]
    assert values[1] is None
    assert not looks
    assert is_known([None, np.ones(1)], 1)
    assert len(values[1:]) == 2
    assert np.array_equal(values[2], np.ones(3))


def _graph(weights: Derived | np.ndarray) -> Graph:
    """A convolution, a batch norm, and an addition that NumPy computes (of integers)."""
    draw = np.random.default_rng(0)
    norm = {name: draw.uniform(0.5, 1.5, 8).astype(np.float32) for name in ("scale", "shift", "mean", "variance")}
    constants: dict[str, object] = {"w": weights, **norm, "i": np.arange(4, dtype=np.int8)}
    nodes = [
        Node("Conv", "conv", ("x", "w"), ("y",), {"pads": (1, 1, 1, 1)}, 11),
        Node("BatchNormalization", "norm", ("y", *norm), ("z",), {}, 9),
        Node("Add", "sum", ("n", "i"), ("m",), {}, 14),
    ]
    image = ValueType((1, 8, 6, 6), "float32")
    types = {name: image for name in "xyz"} | dict.fromkeys("nm", ValueType((4,), "int8"))
    graph = Graph(nodes, {"x": types["x"], "n": types["n"]}, ["z", "m"], constants, types)  # type: ignore[arg-type]
    graph.types |= {name: ValueType(c.shape, c.dtype.name) for name, c in graph.constants.handles()}
    return graph


def test_weights_are_looked_at_once_to_be_packed() -> None:
    w = np.random.default_rng(1).standard_normal((8, 8, 3, 3)).astype(np.float32)
    recipe, looks = _counted(w)
    graph = _graph(recipe)
    run_passes(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "Add"]
    assert not looks
    network = compile_graph(graph, threads=1)
    assert len(looks) == 1
    plain = _graph(w)
    inputs = {
        "x": np.random.default_rng(2).standard_normal((1, 8, 6, 6)).astype(np.float32),
        "n": np.ones(4, np.int8),
    }
    expected = compile_graph(plain, threads=1).run(inputs)
    found = network.run(inputs)
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["m"], np.arange(1, 5))


@pytest.mark.parametrize("limit", [None, "64KiB"])
def test_a_network_keeps_no_plain_weights(limit: str | None) -> None:
    w = np.random.default_rng(1).standard_normal((8, 8, 3, 3)).astype(np.float32)
    graph = _graph(w)
    graph.constants["unused"] = np.ones(5)
    network = compile_graph(graph, threads=1, memory_limit=limit)
    gone = weakref.ref(w)
    kept = sum(step.kept_bytes for step in network.steps)
    # What NumPy computes with is the model's own; packed weights and what is read in place are counted once.
    assert kept <= network.kept_bytes < kept + w.nbytes
    del graph, w
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("channels", [48, 200, 333])
@pytest.mark.parametrize("bias", [False, True])
def test_large_weights_packed_slab_by_slab_are_the_same(channels: int, bias: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(slabs, "SMALLEST", 0)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 3 * 40 * 32 * 4)
    draw = np.random.default_rng(channels)
    w = draw.standard_normal((channels, 40, 1, 1)).astype(np.float32)
    shift = draw.standard_normal(channels).astype(np.float32) if bias else None
    plan = leanconv.plan((1, 6, 5, 40), w.shape, bias=bias, algorithm="pointwise", threads=1, layout="NHWC")
    packing = plan.packing
    assert slabs.can_be_packed_in_slabs(packing)
    looks: list[tuple[int, int]] = []

    def rows(first: int, last: int) -> np.ndarray:
        looks.append((first, last))
        return w[first:last].copy()

    block = slabs.packed_in_slabs(packing, rows, channels, shift, 1)
    expected = plan.pack(w, shift)
    np.testing.assert_array_equal(
        np.asarray(block).view(np.float32)[: packing.nbytes // 4],
        np.asarray(expected).view(np.float32)[: packing.nbytes // 4],
    )
    assert looks[0][0] == 0
    assert looks[-1][1] == channels
    assert all(before[1] == after[0] for before, after in pairwise(looks))
    assert len(looks) > 1 or channels == 48
