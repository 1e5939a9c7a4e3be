"""Passes: outputs stay what they were, and what should be fused is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.interpreter import Interpreter
from leanconv.network.operators import infer_node, operator
from leanconv.network.passes import PASSES, run_passes

rng = np.random.default_rng(5)


def array(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def n(op: str, inputs: str, output: str, version: int = 17, **attributes: Any) -> Node:
    """A node; inputs are joined by spaces, `-` is an absent one."""
    names = tuple("" if name == "-" else name for name in inputs.split())
    return Node(op, f"{op}:{output}", names, (output,), attributes, version)


def graph_of(
    nodes: Sequence[Node],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: str = "y",
    shape: Sequence[int] = (2, 4, 7, 6),
) -> Graph:
    types = {"x": ValueType(tuple(shape), "float32")}
    found = Graph(list(nodes), dict(types), outputs.split(), dict(constants or {}), types)
    for name, value in found.constants.items():
        found.types[name] = ValueType(value.shape, value.dtype.name)
    for node in found.nodes:
        kind = operator(node.op)
        assert kind is not None
        inputs = [found.types[name] if name else None for name in node.inputs]
        known = [found.constants.get(name) for name in node.inputs]
        for name, type_ in zip(node.outputs, infer_node(kind, node, inputs, known), strict=True):
            found.types[name] = type_
    return found


def check(graph: Graph, *wanted: str, tolerance: float = 2e-5, passes: Any = PASSES) -> Graph:
    """Run passes; outputs must stay, and the operators left must be these."""
    x = array(*graph.inputs["x"].shape) * 3
    before = Interpreter(graph, threads=1).run({"x": x})
    types = {name: graph.types[name] for name in graph.outputs}
    run_passes(graph, passes)
    after = Interpreter(graph, threads=1).run({"x": x})
    for name in graph.outputs:
        assert graph.types[name] == types[name]
        np.testing.assert_allclose(after[name], before[name], atol=tolerance, rtol=tolerance)
    if wanted:
        assert Counter(node.op for node in graph.nodes) == Counter(wanted)
    alive = {*graph.inputs, *graph.outputs, *(name for node in graph.nodes for name in (*node.inputs, *node.outputs))}
    assert set(graph.constants) <= alive and set(graph.types) <= alive
    return graph


W = {"w": array(6, 4, 3, 3), "b": array(6)}
NORM = {"s": array(6), "t": array(6), "m": array(6), "v": np.abs(array(6)) + 0.5}


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded(bias: bool) -> None:
    conv = n("Conv", "x w b" if bias else "x w", "c", pads=(1, 1, 1, 1))
    graph = graph_of([conv, n("BatchNormalization", "c s t m v", "y", epsilon=1e-3)], {**W, **NORM})
    check(graph, "Conv")


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_after_a_transposed_convolution(groups: int) -> None:
    constants = {"w": array(4, 6 // groups, 3, 3), **NORM}
    conv = n("ConvTranspose", "x w", "c", strides=(2, 2), group=groups)
    check(graph_of([conv, n("BatchNormalization", "c s t m v", "y")], constants), "ConvTranspose")


@pytest.mark.parametrize(
    ("op", "inputs", "shape"),
    [
        ("Mul", "c k", (6, 1, 1)),
        ("Mul", "k c", (1, 6, 1, 1)),
        ("Div", "c k", (6, 1, 1)),
        ("Add", "c k", ()),
        ("Sub", "c k", (6, 1, 1)),
        ("Sub", "k c", (6, 1, 1)),
    ],
)
def test_factors_and_summands_of_channels_are_folded(op: str, inputs: str, shape: tuple[int, ...]) -> None:
    constants = {**W, "k": np.asarray(np.abs(array(*shape)) + 0.5)}
    check(graph_of([n("Conv", "x w b", "c"), n(op, inputs, "y")], constants), "Conv")


@pytest.mark.parametrize(("inputs", "shape"), [("c k", (6, 5, 1)), ("c k", (4,)), ("k c", (3, 1, 6, 1, 1))])
def test_other_summands_are_not_folded(inputs: str, shape: tuple[int, ...]) -> None:
    constants = {**W, "k": array(*shape)}
    graph = check(graph_of([n("Conv", "x w b", "c"), n("Add", inputs, "y")], constants))
    assert len(graph.nodes) == 2


def test_what_others_read_is_not_folded() -> None:
    nodes = [n("Conv", "x w b", "c"), n("BatchNormalization", "c s t m v", "y")]
    check(graph_of(nodes, {**W, **NORM}, "y c"), "Conv", "leanconv.Pointwise")


def test_batch_norms_without_a_convolution() -> None:
    """As DenseNet writes them: norm, factor and summand apart, an activation."""
    constants = {name: value[:4] for name, value in NORM.items()}
    more = {"k": array(4, 1, 1), "l": array(4, 1, 1)}
    nodes = [
        n("BatchNormalization", "x s t m v", "a"),
        n("Mul", "a k", "b"),
        n("Add", "b l", "c"),
        n("Relu", "c", "y"),
    ]
    graph = check(graph_of(nodes, {**constants, **more}), "leanconv.Pointwise")
    assert [step[0] for step in graph.nodes[0].attributes["steps"]] == ["Mul", "Add", "Relu"]
    check(graph_of(nodes, {**constants, **more}, "y a"), "leanconv.Pointwise", "leanconv.Pointwise")
    check(graph_of(nodes[:1], constants, "a"), "leanconv.Pointwise")


ACTIVATIONS = {
    "Relu": ({}, ("relu",)),
    "Sigmoid": ({}, ("sigmoid",)),
    "Tanh": ({}, ("tanh",)),
    "HardSwish": ({}, ("hardswish",)),
    "LeakyRelu": ({"alpha": 0.2}, ("leaky_relu", 0.2)),
    "HardSigmoid": ({"alpha": 1 / 6, "beta": 0.5}, ("hardsigmoid",)),
    "Gelu": ({}, ("gelu",)),
    "Swish": ({}, ("silu",)),
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations_are_fused(op: str) -> None:
    attributes, wanted = ACTIVATIONS[op]
    graph = check(graph_of([n("Conv", "x w b", "c"), n(op, "c", "y", 24, **attributes)], W), "leanconv.Conv")
    assert graph.nodes[0].attributes["activation"] == wanted


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [((0.0, 6.0), ("relu6",)), ((-1.0, 2.0), ("clip", -1, 2)), ((None, 1.0), ("clip", -np.inf, 1))],
)
@pytest.mark.parametrize("version", [6, 11])
def test_clips_are_fused(bounds: tuple[float | None, float], wanted: tuple[Any, ...], version: int) -> None:
    names = ("min", "max")
    given = {name: bound for name, bound in zip(names, bounds, strict=True) if bound is not None}
    if version < 11:
        graph = graph_of([n("Conv", "x w b", "c"), n("Clip", "c", "y", version, **given)], W)
    else:
        constants = {name: np.asarray(bound, np.float32) for name, bound in given.items()}
        inputs = "c " + " ".join(name if name in given else "-" for name in names)
        graph = graph_of([n("Conv", "x w b", "c"), n("Clip", inputs, "y", version)], {**W, **constants})
    check(graph, "leanconv.Conv")
    assert graph.nodes[0].attributes["activation"] == wanted


def test_hard_sigmoids_with_other_numbers_stay() -> None:
    check(graph_of([n("Conv", "x w b", "c"), n("HardSigmoid", "c", "y")], W), "Conv", "HardSigmoid")


def _number(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


COMPOSITES = {
    "silu": [n("Sigmoid", "c", "s"), n("Mul", "c s", "y")],
    "hardswish": [n("HardSigmoid", "c", "s", alpha=1 / 6, beta=0.5), n("Mul", "s c", "y")],
    "hardswish by parts": [
        n("Add", "c three", "a"),
        n("Clip", "a zero six", "k"),
        n("Mul", "c k", "p"),
        n("Div", "p six", "y"),
    ],
    "hardswish by other parts": [
        n("Add", "three c", "a"),
        n("Clip", "a zero six", "k"),
        n("Div", "k six", "p"),
        n("Mul", "c p", "y"),
    ],
    "hardsigmoid": [n("Add", "c three", "a"), n("Clip", "a zero six", "k"), n("Div", "k six", "y")],
    "gelu": [
        n("Div", "c root", "d"),
        n("Erf", "d", "e"),
        n("Add", "e one", "a"),
        n("Mul", "c a", "p"),
        n("Mul", "p half", "y"),
    ],
    "gelu in another order": [
        n("Mul", "c half", "h"),
        n("Div", "c root", "d"),
        n("Erf", "d", "e"),
        n("Add", "one e", "a"),
        n("Mul", "h a", "y"),
    ],
}
NUMBERS = {
    "one": _number(1),
    "half": _number(0.5),
    "three": _number(3),
    "six": _number(6),
    "zero": _number(0),
    "root": _number(2**0.5),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_activations_of_several_nodes(name: str) -> None:
    graph = check(graph_of([n("Conv", "x w b", "c"), *COMPOSITES[name]], {**W, **NUMBERS}), "leanconv.Conv")
    assert graph.nodes[0].attributes["activation"] == (name.split()[0],)


def test_a_residual_before_the_activation() -> None:
    nodes = [
        n("Relu", "x", "r"),
        n("Conv", "r w", "c", pads=(1, 1, 1, 1)),
        n("Add", "r c", "a"),
        n("Relu", "a", "y"),
    ]
    graph = check(graph_of(nodes, {"w": array(4, 4, 3, 3)}), "Relu", "leanconv.Conv")
    conv = graph.nodes[1]
    assert conv.inputs == ("r", "w", "", "r")
    assert conv.attributes["residual"] == "before" and conv.attributes["activation"] == ("relu",)


def test_a_residual_after_the_activation() -> None:
    nodes = [n("Conv", "x w", "c", pads=(1, 1, 1, 1)), n("Relu", "c", "r"), n("Add", "x r", "s"), n("Tanh", "s", "y")]
    graph = check(graph_of(nodes, {"w": array(4, 4, 3, 3)}), "leanconv.Conv", "Tanh")
    assert graph.nodes[0].attributes["residual"] == "after"


def test_of_two_convolutions_the_later_takes_the_residual() -> None:
    nodes = [
        n("Conv", "x w", "c"),
        n("Conv", "x w2", "d"),
        n("Add", "d c", "a"),
        n("Relu", "a", "y"),
    ]
    graph = check(graph_of(nodes, {"w": array(6, 4, 1, 1), "w2": array(6, 4, 1, 1)}), "Conv", "leanconv.Conv")
    assert graph.nodes[1].inputs == ("x", "w2", "", "c")


@pytest.mark.parametrize(
    "nodes",
    [
        [n("Conv", "x w", "c"), n("GlobalAveragePool", "c", "g"), n("Add", "c g", "y")],  # broadcast
        [n("Conv", "x w", "c"), n("Add", "c c", "y")],
    ],
)
def test_other_sums_are_no_residuals(nodes: list[Node]) -> None:
    graph = check(graph_of(nodes, {"w": array(4, 4, 1, 1)}))
    assert len(graph.nodes) == len(nodes)


PADS = {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}


@pytest.mark.parametrize(("mode", "own"), [("constant", (1, 1, 1, 1)), ("reflect", ()), ("edge", ()), ("wrap", ())])
def test_pads_are_folded(mode: str, own: tuple[int, ...]) -> None:
    conv = n("Conv", "q w b", "y", 19, **({"pads": own} if own else {}))
    graph = graph_of([n("Pad", "x p", "q", 19, mode=mode), conv], {**W, **PADS})
    check(graph, "Conv" if mode == "constant" else "leanconv.Conv")


def test_pads_that_are_no_padding_of_a_convolution_stay() -> None:
    constants = {**W, **PADS, "one": _number(1), "c": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "w5": array(2, 5, 1, 1)}
    check(graph_of([n("Pad", "x p one", "q"), n("Conv", "q w b", "y")], constants), "Pad", "Conv")
    check(graph_of([n("Pad", "x c", "q"), n("Conv", "q w5", "y")], constants), "Pad", "Conv")
    mirrored = n("Pad", "x p", "q", mode="reflect")
    check(graph_of([mirrored, n("Conv", "q w b", "y", pads=(1, 1, 1, 1))], constants), "Pad", "Conv")
    check(graph_of([n("Pad", "x p", "q"), n("Conv", "q w b", "y")], constants, "y q"), "Pad", "Conv")


def test_pads_with_several_readers() -> None:
    nodes = [n("Pad", "x p", "q"), n("Conv", "q w b", "c"), n("Conv", "q w b", "d"), n("Concat", "c d", "y", axis=1)]
    check(graph_of(nodes, {**W, **PADS}), "Conv", "Conv", "Concat")


def test_identities_are_removed() -> None:
    nodes = [
        n("Identity", "x", "a"),
        n("Dropout", "a", "b"),
        n("Cast", "b", "c", to=1),
        n("Transpose", "c", "d", perm=(0, 1, 2, 3)),
        n("Mul", "d one", "e"),
        n("Reshape", "e same", "f"),
        n("Relu", "f", "y"),
    ]
    check(graph_of(nodes, {**NUMBERS, "same": np.array([0, 0, 0, 0])}), "Relu")
    check(graph_of([n("Identity", "x", "y")]), "Identity")


def test_constants_are_folded() -> None:
    nodes = [n("Add", "a b", "c"), n("Mul", "c c", "d"), n("Add", "x d", "y")]
    graph = check(graph_of(nodes, {"a": array(4, 1, 1), "b": array(1)}), "Add")
    assert len(graph.constants) == 1


def test_matrices() -> None:
    nodes = [n("MatMul", "x k", "m"), n("Add", "m r", "y")]
    constants = {"k": array(5, 3), "r": array(3)}
    check(graph_of(nodes, constants, shape=(4, 5)), "Gemm")
    check(graph_of(nodes, constants, shape=(2, 4, 5)), "MatMul", "Add")
    check(graph_of([n("ReduceMean", "x", "y", axes=(-1, 2))]), "GlobalAveragePool")
    check(graph_of([n("ReduceMean", "x", "y", axes=(1, 2))]), "ReduceMean")


def test_chains_are_joined() -> None:
    nodes = [
        n("Sigmoid", "x", "a"),
        n("Add", "a k", "b"),
        n("Mul", "b x", "c"),
        n("Max", "c zero", "y"),
    ]
    graph = check(graph_of(nodes, {"k": array(4, 1, 1), **NUMBERS}), "leanconv.Pointwise")
    assert graph.nodes[0].inputs == ("x", "k", "zero")
    assert [step[:2] for step in graph.nodes[0].attributes["steps"]] == [
        ("Sigmoid", (0,)),
        ("Add", (3, 1)),
        ("Mul", (4, 0)),
        ("Max", (5, 2)),
    ]


def test_chains_end_where_others_read() -> None:
    nodes = [n("Exp", "x", "a"), n("Neg", "a", "b"), n("Tanh", "b", "y")]
    check(graph_of(nodes, {}, "y b"), "leanconv.Pointwise", "Tanh")


@st.composite
def element_wise(draw: Any) -> list[Node]:
    """A random graph of element-wise operators over the values there are."""
    values, nodes = ["x", "k", "one"], []
    for number in range(draw(st.integers(2, 12))):
        op = draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Relu", "Sigmoid", "Tanh", "Neg", "Where", "Elu"]))
        count = {"Relu": 1, "Sigmoid": 1, "Tanh": 1, "Neg": 1, "Elu": 1}.get(op, 2)
        inputs = [draw(st.sampled_from(values)) for _ in range(count)]
        if op == "Where":
            nodes.append(n("Greater", " ".join(inputs), f"g{number}"))
            inputs = [f"g{number}", *inputs]
        nodes.append(n(op, " ".join(inputs), f"v{number}"))
        values.append(f"v{number}")
    nodes.append(n("Sum", f"x {values[-1]} {draw(st.sampled_from(values))}", "y"))
    return nodes


@given(element_wise())
@settings(max_examples=60, deadline=None)
def test_random_chains_stay_equal(nodes: list[Node]) -> None:
    check(graph_of(nodes, {"k": array(4, 1, 1), "one": _number(1)}), tolerance=1e-4)


@st.composite
def layers(draw: Any) -> list[Node]:
    """A random stack of layers of four channels, with sums of what came before."""
    values, nodes = ["x"], []

    def add(op: str, inputs: str, **attributes: Any) -> None:
        nodes.append(n(op, inputs, f"v{len(nodes)}", 20, **attributes))
        values.append(f"v{len(nodes) - 1}")

    for _ in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["conv", "conv", "norm", "activation", "add", "pad", "identity"]))
        last = draw(st.sampled_from(values[-2:]))
        if kind == "conv":
            add("Conv", f"{last} w4", pads=(1, 1, 1, 1))
        elif kind == "norm":
            add("BatchNormalization", f"{last} s t m v")
        elif kind == "activation":
            add(draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh"])), last)
        elif kind == "add":
            add("Add", f"{last} {draw(st.sampled_from(values))}")
        elif kind == "identity":
            add("Identity", last)
        else:
            add("Pad", f"{last} p1", mode=draw(st.sampled_from(["constant", "reflect", "edge"])))
            padded = values.pop()  # of another size; read by one convolution only
            add("Conv", f"{padded} w4")
    nodes.append(n("Add", f"{values[-1]} x", "y"))
    return nodes


@given(layers())
@settings(max_examples=30, deadline=None)
def test_random_networks_stay_equal(nodes: list[Node]) -> None:
    constants = {
        "w4": W["w"][:4] / 6,
        **{name: value[:4] for name, value in NORM.items()},
        "p1": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    check(graph_of(nodes, constants), tolerance=1e-3)


def test_derived_constants_are_shared_by_graphs() -> None:
    derived: dict[str, np.ndarray] = {}
    constants = {**W, **NORM}
    found = []
    for size in (5, 9):
        nodes = [n("Conv", "x w b", "c"), n("BatchNormalization", "c s t m v", "y")]
        graph = graph_of(nodes, constants, shape=(1, 4, size, size))
        run_passes(graph, derived=derived, shared=constants)
        found.append(graph.constants[graph.nodes[0].inputs[1]])
    assert found[0] is found[1] and len(derived) == 2
