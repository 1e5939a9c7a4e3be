"""Compiled networks: equal to NumPy node by node, in exactly the memory they say, from any number of threads."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from guard import GuardedAllocator, check_canaries, guarded, guarded_copy
from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.host import this_host
from leanconv.network.choose import FREE_BYTES, plan_network
from leanconv.network.compile import CompiledNetwork, compile_graph
from leanconv.network.fusion import find_blocks, with_blocks
from leanconv.network.steps.base import Setting
from networks import NETWORKS, Builder, check, graphs, reference

Array = np.ndarray[Any, Any]
EACH_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def build(name: str) -> tuple[Any, dict[str, Array]]:
    b = NETWORKS[name]()
    outputs = [b.nodes[-1].outputs[0]] + ([b.nodes[1].outputs[0]] if name == "branching" else [])
    return b.graph(*outputs), b.arrays()


def guarded_run(network: CompiledNetwork, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run with all memory between guard pages, the caller's arrays too."""
    given_ = {name: guarded_copy(array) for name, array in inputs.items()}
    out = {name: guarded(t.shape, t.dtype) for name, t in network.outputs.items()}
    with GuardedAllocator() as memory:
        result = network.run(given_, out)
    for array in out.values():
        check_canaries(array)
    assert all(result[name] is out[name] for name in out)
    if network.memory_limit is not None:
        assert sum(memory.sizes) == network.peak_bytes
    return result


@EACH_NETWORK
@pytest.mark.parametrize("threads", [1, 2])
def test_networks_as_people_have_them(name: str, threads: int) -> None:
    graph, inputs = build(name)
    network = compile_graph(graph, threads=threads)
    assert network.native_calls == 1
    assert not [step for step in network.steps if step.reason]
    wanted = reference(graph, inputs)
    check(network.run(inputs), wanted)
    check(guarded_run(network, inputs), wanted)


def test_random_graphs() -> None:
    @settings(settings.get_profile("engine"), max_examples=80)
    @given(graphs())
    def one(b: Builder) -> None:
        graph, inputs = b.graph(*b.outputs), b.arrays()  # type: ignore[attr-defined]
        wanted = reference(graph, inputs)
        network = compile_graph(graph, threads=2)
        check(network.run(inputs), wanted)
        check(guarded_run(network, inputs), wanted)
        tight = compile_graph(graph, threads=2, memory_limit=network.peak_bytes + network.extra_bytes)
        check(guarded_run(tight, inputs), wanted)

    one()


@EACH_NETWORK
def test_same_bits_on_any_number_of_threads(name: str) -> None:
    graph, inputs = build(name)
    first, *others = (compile_graph(graph, threads=n, deterministic=True).run(inputs) for n in (1, 2, 3))
    for other in others:
        for key, array in first.items():
            assert array.tobytes() == other[key].tobytes()


@EACH_NETWORK
def test_a_limit_is_kept_and_the_least_is_told(name: str) -> None:
    graph, inputs = build(name)
    free = compile_graph(graph, threads=2)
    with pytest.raises(MemoryLimitError) as caught:
        compile_graph(graph, threads=2, memory_limit=1)
    least = caught.value.needed
    assert 0 < least <= free.peak_bytes + free.extra_bytes
    wanted = reference(graph, inputs)
    for limit in (least, (least + free.peak_bytes + free.extra_bytes) // 2):
        network = compile_graph(graph, threads=2, memory_limit=limit)
        assert network.peak_bytes + network.extra_bytes <= limit
        check(guarded_run(network, inputs), wanted)


def test_memory_is_shared() -> None:
    graph, _ = build("residual")
    network = compile_graph(graph, threads=1)
    infos = network.steps
    assert network.peak_bytes >= network.bound_bytes >= max(i.live_bytes + i.workspace_bytes for i in infos)
    # The sum of a block is written over the value that is added.
    sizes = [i.live_bytes for i in infos if i.op == "leanconv.Conv" and i.shape == (1, 16, 6, 6)]
    assert max(sizes) <= 3 * 16 * 6 * 6 * 4
    dense, _ = build("dense")
    assert not [step for step in compile_graph(dense, threads=1).steps if step.op in ("Concat", "leanconv.Copy")][1:]


def test_a_part_that_lives_long_is_copied_where_that_takes_less_memory() -> None:
    b = Builder()
    skip = b.conv(b.input(1, 4, 32, 32), 4)
    y = b.conv(b.conv(b.conv(skip, 24), 24), 4)
    b.conv(b.add("Concat", skip, y, axis=1), 1)
    network = compile_graph(b.graph(b.nodes[-1].outputs[0]), threads=1)
    assert [step for step in network.steps if step.op == "leanconv.Copy"]


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation", "channels", "over"),
    [(3, 2, 1, 1, 64, True), (2, 2, 0, 1, 9, True), (3, 2, 1, 2, 20, True), (3, 1, 1, 1, 16, False)],
)
def test_a_pool_over_its_image(kernel: int, stride: int, pad: int, dilation: int, channels: int, over: bool) -> None:
    b = Builder(kernel)
    y = b.conv(b.input(1, 4, 21, 30), channels, activation=("relu",))
    window = {"kernel_shape": (kernel,) * 2, "strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (dilation,) * 2}
    y = b.conv(b.add("MaxPool", y, **window), 8, 1)
    graph, inputs = b.graph(y), b.arrays()
    with pytest.raises(MemoryLimitError) as caught:
        compile_graph(graph, threads=2, memory_limit=1)
    network = compile_graph(graph, threads=2, memory_limit=caught.value.needed)
    first, second = (step.live_bytes for step in network.steps[:2])
    assert (first == second == 21 * 30 * channels * 4) == over
    check(guarded_run(network, inputs), reference(graph, inputs))
    pinned = compile_graph(
        graph, threads=2, memory_limit=network.peak_bytes + network.extra_bytes, pinned=network.decisions
    )
    check(pinned.run(inputs), reference(graph, inputs))


def test_several_threads_call_one_network() -> None:
    graph, inputs = build("fire")
    free = compile_graph(graph, threads=2)
    for network in (free, compile_graph(graph, threads=2, memory_limit=free.peak_bytes + free.extra_bytes)):
        wanted = network.run(inputs)
        wrong: list[str] = []

        def work(network: CompiledNetwork = network, wanted: Any = wanted, wrong: list[str] = wrong) -> None:
            for _ in range(20):
                found = network.run(inputs)
                if any(found[k].tobytes() != wanted[k].tobytes() for k in wanted):
                    wrong.append("different")

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong
        assert network.trim() >= network.peak_bytes
        assert network.trim() == 0


def test_what_has_no_kernels_is_left_to_numpy() -> None:
    b = Builder()
    y = b.conv(b.input(1, 3, 8, 8), 8, activation=("relu",))
    y = b.add("Cos", y)
    top, where = b.many("TopK", b.conv(y, 4), b.constant(np.array([2])), outputs=2, axis=1)
    graph = b.graph(top, where)
    network = compile_graph(graph, threads=2)
    inputs = b.arrays()
    assert network.native_calls == 2
    assert [step.op for step in network.steps if step.reason] == ["Cos", "TopK"]
    check(network.run(inputs), reference(graph, inputs))
    check(guarded_run(network, inputs), reference(graph, inputs))


def test_outputs_that_nothing_computes() -> None:
    b = Builder()
    x, c = b.input(2, 3, 4, 4), b.constant(np.arange(6.0, dtype="f4").reshape(2, 3))
    turned = b.add("Transpose", x, perm=(0, 2, 3, 1))
    graph, inputs = b.graph(x, c, turned), b.arrays()
    network = compile_graph(graph)
    found = network.run(inputs)
    check(found, reference(graph, inputs))
    assert not np.shares_memory(found[x], inputs[x]) and network.peak_bytes == 0


def test_other_element_types_and_empty_values() -> None:
    b = Builder()
    x, i = b.input(0, 3, 4, 4), b.input(2, 3, dtype="int64")
    y = b.conv(x, 4)
    pooled = b.add("GlobalAveragePool", y)
    j = b.add("Concat", b.add("Transpose", i, perm=(1, 0)), b.constant(np.ones((3, 1), np.int64)), axis=1)
    graph, inputs = b.graph(y, pooled, j), b.arrays()
    check(compile_graph(graph).run(inputs), reference(graph, inputs))


def test_profile_and_trace() -> None:
    import json

    graph, inputs = build("shuffle")
    network = compile_graph(graph, threads=2)
    profile = network.profile(inputs, repeat=3)
    check(profile.outputs, reference(graph, inputs))
    assert len(profile.seconds) == len(profile.steps) and all(s > 0 for s in profile.seconds)
    events = json.loads(profile.trace())["traceEvents"]
    assert {event["name"] for event in events} >= {step.name for step in profile.steps}
    assert "total" in str(profile)


def test_errors() -> None:
    graph, inputs = build("fire")
    network = compile_graph(graph)
    (name,), (end,) = network.inputs, network.outputs
    x, out = inputs[name], np.empty((1, 10), "f4")
    for given_, results, argument in (
        ({}, None, "inputs"),
        ({**inputs, "y": x}, None, "inputs"),
        ({name: x[:, :1]}, None, f"inputs[{name!r}]"),
        ({name: x.astype("f8")}, None, f"inputs[{name!r}]"),
        ({name: x.tolist()}, None, f"inputs[{name!r}]"),
        (inputs, {"y": out}, "out"),
        (inputs, {end: out[:, :5]}, f"out[{end!r}]"),
        (inputs, {end: x.reshape(-1)[:10].reshape(1, 10)}, f"out[{end!r}]"),
    ):
        with pytest.raises(ArgumentError) as caught:
            network.run(given_, results)
        assert caught.value.argument == argument
    for options, kind in (
        ({"threads": 0}, ArgumentValueError),
        ({"memory_limit": -1}, ArgumentValueError),
        ({"memory_limit": 1.5}, ArgumentTypeError),
        ({"accuracy": "bad"}, ArgumentValueError),
        ({"algorithm": "bad"}, ArgumentValueError),
    ):
        with pytest.raises(kind):
            compile_graph(graph, **options)


def test_weights_do_not_grow_without_end_unless_allowed() -> None:
    b = Builder()
    x = b.input(1, 256, 28, 28)
    for _ in range(4):
        x = b.conv(x, 256, 3)
    graph = b.graph(x)
    setting = Setting(this_host(), 2)
    free = plan_network(graph, setting, None)[1]
    ample = plan_network(graph, replace(setting, limited=True), 1 << 40)[1]
    plain = sum(option.kept_bytes - option.extra_bytes for option in free.options if option is not None)
    assert plain > FREE_BYTES
    assert free.extra_bytes <= plain
    assert ample.extra_bytes >= free.extra_bytes
    assert ample.seconds <= free.seconds


def test_blocks_of_layers_take_less_memory() -> None:
    b = NETWORKS["mobile"](64)
    graph, inputs = b.graph(b.nodes[-1].outputs[0]), b.arrays()
    free = compile_graph(graph, threads=2, algorithm=["auto"])
    assert not [step for step in free.steps if "Residual" in step.op or "Separable" in step.op]
    with pytest.raises(MemoryLimitError) as caught:
        compile_graph(graph, threads=2, memory_limit=1)
    least = caught.value.needed
    assert least < 0.6 * (free.peak_bytes + free.extra_bytes)
    wanted = reference(graph, inputs)
    ops = set()
    for limit in (least, 2 * least, 3 * least):
        network = compile_graph(graph, threads=2, memory_limit=limit)
        ops |= {step.op for step in network.steps}
        check(guarded_run(network, inputs), wanted)
    assert "leanconv.InvertedResidual" in ops


def test_blocks_that_are_none() -> None:
    b = Builder()
    x = b.input(1, 8, 9, 9)
    wide = b.conv(x, 16, 1)
    deep = b.conv(wide, 16, group=16)
    one = b.conv(deep, 8, 1)
    other = b.conv(b.conv(one, 8, group=8), 8, 1, residual=one)
    graph = b.graph(wide, other)
    found = find_blocks(graph)
    assert [(block.op, block.residual) for block in found] == [("leanconv.Separable", ""), ("leanconv.Separable", one)]
    assert len(with_blocks(graph, found).nodes) == 3
    inputs = b.arrays()
    check(compile_graph(with_blocks(graph, found)).run(inputs), reference(graph, inputs))
