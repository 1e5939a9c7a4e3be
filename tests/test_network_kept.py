"""What was chosen for a network is kept on disk: made again without weighing, or planned anew if it does not hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanconv import compiled
from leanconv.algorithms import REGISTRY
from leanconv.cache import ObjectCache
from leanconv.compiled import StoredSpec
from leanconv.errors import MemoryLimitError
from leanconv.host import this_host
from leanconv.network import kept
from leanconv.network.choose import plan_network
from leanconv.network.compile import compile_graph
from leanconv.network.constants import Constants
from leanconv.network.graph import Graph
from leanconv.network.nearby import Ways
from leanconv.network.steps import blocks, convolution
from leanconv.network.steps.base import Setting
from leanconv.planning import layer_options
from networks import NETWORKS, check, reference


def graph_of(name: str) -> tuple[Graph, dict[str, Any]]:
    b = NETWORKS[name]()
    return b.graph(b.nodes[-1].outputs[0]), b.arrays()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("weighed again")


def least(graph: Graph) -> int:
    with pytest.raises(MemoryLimitError) as caught:
        plan_network(graph, Setting(this_host(), 2, True), 0)
    return caught.value.needed


@pytest.mark.parametrize(("name", "limited"), [("mobile", True), ("residual", False), ("fire", True), ("dense", True)])
def test_a_choice_is_made_again_without_weighing(name: str, limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = graph_of(name)
    limit = least(graph) if limited else None
    first = compile_graph(graph, threads=2, memory_limit=limit)
    monkeypatch.setattr(convolution, "layer_options", refuse)
    monkeypatch.setattr(layer_options, "layer_options", refuse)
    again = compile_graph(graph_of(name)[0], threads=2, memory_limit=limit)
    assert again.decisions == first.decisions
    sizes = [(n.peak_bytes, n.kept_bytes, n.extra_bytes, n.predicted_seconds) for n in (first, again)]
    assert sizes[0] == sizes[1]
    found = again.run(inputs)
    check(found, reference(graph, inputs))
    for key, array in first.run(inputs).items():
        np.testing.assert_array_equal(array, found[key])


def test_another_question_is_weighed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectCache(tmp_path, folder="networks")  # other tests may have asked the same
    monkeypatch.setattr(kept, "_disk", lambda: store)
    graph, _ = graph_of("residual")
    compile_graph(graph, threads=2)
    monkeypatch.setattr(convolution, "layer_options", refuse)
    for other in ({"threads": 1}, {"accuracy": "exact"}, {"deterministic": True}, {"algorithm": "!winograd_f2"}):
        with pytest.raises(AssertionError, match="weighed again"):
            compile_graph(graph, **{"threads": 2, **other})
    monkeypatch.setattr(REGISTRY, "_added", {"mine": REGISTRY["direct"]})
    assert kept.question(graph, Setting(this_host(), 2), None) is None  # what a program adds is not on disk


def test_the_order_of_constants_is_no_other_question() -> None:
    """A model that was read before lists those left in the file last."""
    graph, _ = graph_of("residual")
    turned = dict(reversed([*graph.constants.handles()]))
    assert [*turned] != [*graph.constants]
    other = Graph(graph.nodes, graph.inputs, graph.outputs, Constants(turned), graph.types)
    keys = {kept.question(each, Setting(this_host(), 2), None) for each in (graph, other)}
    assert len(keys) == 1 and None not in keys


def test_what_does_not_hold_is_planned_anew() -> None:
    graph, inputs = graph_of("mobile")
    setting = Setting(this_host(), 2)
    wanted = plan_network(graph, setting, None)[1]
    key = kept.question(graph, setting, None)
    assert key is not None
    known = kept.recalled(key)
    assert known is not None
    steps = known.steps
    first = next(i for i, step in enumerate(steps) if isinstance(step, dict) and step["algorithm"])
    for change in ({"algorithm": "im2row", "limit": None}, {"algorithm": "no such"}, {"threads": 1, "limit": 1}):
        wrong = [*steps[:first], {**steps[first], **change}, *steps[first + 1 :]]
        for other in (wrong, steps[:-1], [*steps[:-1], 99]):
            kept.write(key, known.blocks, other, known.made, known.specs, tight=False)
            again = plan_network(graph, setting, None)[1]
            assert [o and o.name for o in again.options] == [o and o.name for o in wanted.options]
    check(compile_graph(graph, threads=2).run(inputs), reference(graph, inputs))


def test_blocks_are_kept_too() -> None:
    graph, _ = graph_of("mobile")
    limit = least(graph)
    setting = Setting(this_host(), 2, True)
    found, choice = plan_network(graph, setting, limit)
    assert any(step.op in (blocks.SEPARABLE, blocks.INVERTED) for step in found.steps)
    known = kept.recalled(kept.question(graph, setting, limit))
    assert known is not None and known.blocks
    assert choice.needed_bytes <= limit


def test_other_sizes_take_over_what_no_limit_asked_for() -> None:
    graph, _ = graph_of("residual")
    free = compile_graph(graph, threads=2)
    assert free.ways is not None
    convolutions = [step.name for step in free.steps if step.op == "leanconv.Conv"]
    assert set(convolutions) <= set(free.ways.steps)
    limit = least(graph)
    for _ in range(2):  # weighed, and recalled
        assert compile_graph(graph, threads=2, memory_limit=limit).ways is None
    found, _ = plan_network(graph, Setting(this_host(), 2), None, None)
    halved, far = (
        Ways({name: (op, (times * shape[0], *shape[1:]), d) for name, (op, shape, d) in free.ways.steps.items()})
        for times in (2, 3)
    )
    for step, once, half, none in zip(found.steps, *(w.decided(found) for w in (free.ways, halved, far)), strict=True):
        if step.name in free.ways.steps:
            assert once == free.ways.steps[step.name][2] and none is None
            assert half is not None and half.seconds == once.seconds / 2


def test_kernels_that_are_gone_are_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    objects = ObjectCache(tmp_path)
    monkeypatch.setattr(compiled, "object_cache", lambda: objects)
    monkeypatch.setattr(kept, "object_cache", lambda: objects)
    graph, inputs = graph_of("residual")
    setting = Setting(this_host(), 2)
    monkeypatch.setattr(compiled, "_kernels", {})
    first = compile_graph(graph, threads=2).run(inputs)
    known = plan_network(graph, setting, None)[1]
    stored = [spec for o in known.options if o is not None for spec in o.specs if isinstance(spec, StoredSpec)]
    assert stored and all(objects.holds(spec.key) for spec in stored)
    # Gone between planning and linking: the layer is lowered again, in this process or for one that compiles.
    objects.clear()
    monkeypatch.setattr(compiled, "_kernels", {})
    spec = stored[0]
    assert compiled.key_of(pickle.loads(pickle.dumps(spec))) == spec.key
    assert compiled.kernel(spec) is compiled.kernel(spec.origin())
    assert objects.holds(spec.key)
    # Gone before: planned anew.
    monkeypatch.setattr(convolution, "layer_options", refuse)
    with pytest.raises(AssertionError, match="weighed again"):
        plan_network(graph, setting, None)
    monkeypatch.undo()
    for name, array in compile_graph(graph, threads=2).run(inputs).items():
        np.testing.assert_array_equal(array, first[name])
