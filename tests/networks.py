"""Graphs for tests: built node by node, drawn at random, and computed node by node in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.operators import evaluate_node, infer_node, operator

Array = np.ndarray[Any, Any]


class Builder:
    """A graph in the making; methods return names of values."""

    def __init__(self, seed: int = 0, dtype: str = "float32") -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.types: dict[str, ValueType] = {}
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, ValueType] = {}

    def input(self, *shape: int, dtype: str | None = None) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.types[name] = ValueType(shape, dtype or self.dtype)
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        self.types[name] = ValueType(np.shape(array), self.constants[name].dtype.name)
        return name

    def weights(self, *shape: int) -> str:
        """Random numbers, such that values keep their size."""
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(self.dtype))

    def many(self, op: str, *inputs: str, outputs: int, version: int = 13, **attributes: Any) -> tuple[str, ...]:
        name = f"n{len(self.nodes)}"
        node = Node(op, name, inputs, tuple(f"{name}.{i}" for i in range(outputs)), attributes, version)
        found = operator(op)
        assert found is not None, op
        types = [self.types[i] if i else None for i in inputs]
        for output, type_ in zip(
            node.outputs, infer_node(found, node, types, [self.constants.get(i) for i in inputs]), strict=True
        ):
            self.types[output] = type_
        self.nodes.append(node)
        return node.outputs

    def add(self, op: str, *inputs: str, version: int = 13, **attributes: Any) -> str:
        return self.many(op, *inputs, outputs=1, version=version, **attributes)[0]

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        pad: int | None = None,
        group: int = 1,
        residual: str = "",
        activation: tuple[Any, ...] | None = None,
    ) -> str:
        """`leanconv.Conv` with a bias."""
        shape = self.types[x].shape
        ndim = len(shape) - 2
        attributes: dict[str, Any] = {
            "strides": (stride,) * ndim,
            "pads": (kernel // 2 if pad is None else pad,) * (2 * ndim),
            "group": group,
        }
        if activation:
            attributes["activation"] = activation
        if residual:
            attributes["residual"] = "before"
        w, b = self.weights(channels, shape[1] // group, *(kernel,) * ndim), self.weights(channels)
        return self.add("leanconv.Conv", x, w, b, *([residual] if residual else []), **attributes)

    def graph(self, *outputs: str) -> Graph:
        return Graph(self.nodes, self.inputs, list(outputs), self.constants, self.types)

    def arrays(self) -> dict[str, Array]:
        """Random inputs."""
        result = {}
        for name, type_ in self.inputs.items():
            values = self.rng.standard_normal(type_.shape)
            result[name] = (
                values.astype(type_.dtype)
                if type_.dtype.startswith("float")
                else np.rint(3 * values).astype(type_.dtype)
            )
        return result


def reference(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, node by node in NumPy."""
    values: dict[str, Array] = {**graph.constants, **inputs}
    for node in graph.nodes:
        found = operator(node.op)
        assert found is not None
        results = evaluate_node(found, node, [values[i] if i else None for i in node.inputs])
        values.update((name, array) for name, array in zip(node.outputs, results, strict=False) if name)
    return {name: values[name] for name in graph.outputs}


def check(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float = 1e-5) -> None:
    """Compare, relative to the largest element of each output."""
    assert list(found) == list(dict.fromkeys(wanted))
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
        assert found[name].flags.c_contiguous
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], array)
            continue
        scale = max(1.0, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=scale * tolerance, err_msg=name)


# -- networks as people have them -------------------------------------------------------------------------------------


def residual_network(size: int = 24, seed: int = 0) -> Builder:
    """The parts of a ResNet."""
    b = Builder(seed)
    y = b.conv(b.input(1, 3, size, size), 16, 7, 2, activation=("relu",))
    y = b.add("MaxPool", y, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    for channels, stride in ((16, 1), (32, 2)):
        short = y if stride == 1 else b.conv(y, channels, 1, stride)
        z = b.conv(y, channels, 3, stride, activation=("relu",))
        y = b.conv(z, channels, 3, residual=short, activation=("relu",))
    y = b.add("Flatten", b.add("GlobalAveragePool", y))
    b.add("Softmax", b.add("Gemm", y, b.weights(10, 32), b.weights(10), transB=1))
    return b


def fire_network(size: int = 23, seed: int = 0) -> Builder:
    """The parts of a SqueezeNet."""
    b = Builder(seed)
    y = b.conv(b.input(1, 3, size, size), 8, 3, 2, 0, activation=("relu",))
    for squeeze, expand in ((4, 8), (8, 16)):
        y = b.add("MaxPool", y, kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1)
        s = b.conv(y, squeeze, 1, activation=("relu",))
        y = b.add("Concat", b.conv(s, expand, 1, activation=("relu",)), b.conv(s, expand, activation=("relu",)), axis=1)
    y = b.add("GlobalAveragePool", b.conv(y, 10, 1, activation=("relu",)))
    b.add("Softmax", b.add("Flatten", y))
    return b


def dense_network(size: int = 12, seed: int = 0) -> Builder:
    """The parts of a DenseNet: each layer reads all earlier ones."""
    b = Builder(seed)
    parts = [b.conv(b.input(2, 3, size, size), 8)]
    for _ in range(3):
        y = b.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        c = b.types[y].shape[1]
        mean, variance = b.weights(c), b.constant(np.abs(b.rng.standard_normal(c)).astype(b.dtype) + 0.5)
        y = b.add("Relu", b.add("BatchNormalization", y, b.weights(c), b.weights(c), mean, variance))
        parts.append(b.conv(y, 4))
    y = b.add("Concat", *parts, axis=1)
    b.add("AveragePool", y, kernel_shape=(2, 2), strides=(2, 2))
    return b


def shuffle_network(size: int = 10, seed: int = 0) -> Builder:
    """The parts of a ShuffleNet: channels are exchanged between groups by views and a copy."""
    b = Builder(seed)
    y = b.conv(b.input(1, 3, size, size), 12, activation=("relu",))
    y = b.conv(y, 24, 1, group=3)
    n, c, h, w = b.types[y].shape
    five = b.add("Reshape", y, b.constant(np.array([n, 3, c // 3, h, w])))
    y = b.add("Reshape", b.add("Transpose", five, perm=(0, 2, 1, 3, 4)), b.constant(np.array([n, c, h, w])))
    left, right = b.many("Split", y, b.constant(np.array([10, 14])), outputs=2, axis=1)
    y = b.add("Concat", b.conv(right, 14, 3, group=14), left, axis=1)
    b.add("Clip", b.conv(y, 8, 1), b.constant(np.float32(-0.5)), b.constant(np.float32(0.5)))
    return b


def branching_network(size: int = 16, seed: int = 0) -> Builder:
    """The parts of a U-Net and of attention to channels; several outputs, one of them an inner value."""
    b = Builder(seed)
    skip = b.conv(b.input(1, 4, size, size), 8, activation=("relu",))
    y = b.conv(b.add("MaxPool", skip, kernel_shape=(2, 2), strides=(2, 2)), 16)
    gate = b.add("HardSigmoid", b.conv(b.add("GlobalAveragePool", y), 16, 1))
    y = b.add("Mul", y, gate)
    y = b.add("DepthToSpace", b.conv(y, 32, 1), blocksize=2)
    y = b.add("Concat", skip, y, axis=1)
    b.add("Sigmoid", b.conv(y, 2, 3))
    return b


def mobile_network(size: int = 32, seed: int = 0) -> Builder:
    """The parts of MobileNets: separable convolutions and inverted residuals."""
    b = Builder(seed)
    six = ("clip", 0.0, 6.0)
    y = b.conv(b.input(1, 3, size, size), 8, 3, 2, activation=six)
    y = b.conv(b.conv(y, 8, group=8, activation=six), 16, 1)
    for channels, stride in ((16, 1), (24, 2), (24, 1)):
        x, middle = y, 6 * b.types[y].shape[1]
        y = b.conv(y, middle, 1, activation=six)
        y = b.conv(y, middle, 3, stride, group=middle, activation=six)
        y = b.conv(y, channels, 1, residual=x if stride == 1 else "")
    z = b.conv(b.conv(y, 24, 5, group=24), 24, 1, residual=y, activation=("relu",))
    b.add("Flatten", b.add("GlobalAveragePool", z))
    return b


NETWORKS = {
    "mobile": mobile_network,
    "residual": residual_network,
    "fire": fire_network,
    "dense": dense_network,
    "shuffle": shuffle_network,
    "branching": branching_network,
}

# -- random graphs -----------------------------------------------------------------------------------------------------

ELEMENTWISE = ["Relu", "Sigmoid", "HardSwish", "Tanh", "LeakyRelu", "Abs", "Neg", "Elu", "Softplus", "Erf"]


@st.composite
def graphs(draw: st.DrawFn) -> Builder:
    """Some operators after one another on images of two sizes, each on values drawn among all so far."""
    b = Builder(draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from(["float32", "float32", "float64"])))
    size = draw(st.integers(3, 14))
    values = [b.input(draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 3, 8, 17])), size, size + 2)]
    for _ in range(draw(st.integers(1, 9))):
        x = draw(st.sampled_from(values[-4:]))
        made = draw(st.sampled_from([_conv, _pool, _one, _two, _join, _part, _turn, _flat, _scale, _soft]))(
            draw, b, x, values
        )
        values.extend(made)
    used = {name for node in b.nodes for name in node.inputs}
    ends = [name for name in values if name not in used]
    extra = draw(st.lists(st.sampled_from(values), max_size=1))
    b.outputs = list(dict.fromkeys([*ends, *extra]))  # type: ignore[attr-defined]
    return b


def _conv(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    if len(shape) != 4 or min(shape[2:]) < 2:
        return []
    channels = draw(st.sampled_from([4, 8, 24]))
    same = [v for v in values if b.types[v].shape == (shape[0], channels, *shape[2:])]
    residual = draw(st.sampled_from(same)) if same and draw(st.booleans()) else ""
    kernel = draw(st.sampled_from([1, 3]))
    stride = 1 if residual else draw(st.sampled_from([1, 1, 2]))
    return [b.conv(x, channels, kernel, stride, residual=residual, activation=draw(st.sampled_from([None, ("relu",)])))]


def _pool(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    if len(shape) != 4 or min(shape[2:]) < 2:
        return []
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]))
    if op.startswith("Global"):
        return [b.add(op, x)]
    pads = draw(st.sampled_from([(0, 0, 0, 0), (1, 0, 1, 1)]))
    more = {"count_include_pad": draw(st.integers(0, 1))} if op == "AveragePool" else {}
    strides = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    ceil = draw(st.integers(0, 1))
    return [b.add(op, x, kernel_shape=(2, 2), strides=strides, pads=pads, ceil_mode=ceil, version=22, **more)]


def _one(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    return [b.add(draw(st.sampled_from(ELEMENTWISE)), x, version=14)]


def _two(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    same = [v for v in values if b.types[v].shape == b.types[x].shape]
    return [b.add(draw(st.sampled_from(["Add", "Mul", "Max", "Sub"])), x, draw(st.sampled_from(same)))]


def _join(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    axis = draw(st.integers(0, len(shape) - 1))
    others = [
        v
        for v in values
        if len(b.types[v].shape) == len(shape)
        and all(i == axis or n == m for i, (n, m) in enumerate(zip(shape, b.types[v].shape, strict=True)))
    ]
    parts = draw(st.lists(st.sampled_from(others), min_size=1, max_size=3))
    return [b.add("Concat", x, *parts, axis=axis)]


def _part(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    axis = draw(st.integers(0, len(shape) - 1))
    if shape[axis] < 2:
        return []
    cut = draw(st.integers(1, shape[axis] - 1))
    if draw(st.booleans()):
        return list(b.many("Split", x, b.constant(np.array([cut, shape[axis] - cut])), outputs=2, axis=axis))
    names = [b.constant(np.array([n])) for n in (shape[axis] - 1, -shape[axis] - 1, axis, -1)]
    return [b.add("Slice", x, *names)]


def _turn(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    rank = len(b.types[x].shape)
    return [b.add("Transpose", x, perm=tuple(draw(st.permutations(range(rank)))))]


def _flat(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    if draw(st.booleans()):
        return [b.add("Flatten", x, axis=draw(st.integers(0, len(shape))))]
    y = b.add("Reshape", x, b.constant(np.array([shape[0], -1])))
    k = b.types[y].shape[1]
    return [y, b.add("Gemm", y, b.weights(7, k), b.weights(7), transB=1)]


def _scale(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    shape = b.types[x].shape
    size = tuple(n if draw(st.booleans()) else 1 for n in shape)
    return [b.add(draw(st.sampled_from(["Add", "Mul"])), x, b.weights(*size))]


def _soft(draw: st.DrawFn, b: Builder, x: str, values: list[str]) -> list[str]:
    rank = len(b.types[x].shape)
    return [b.add(draw(st.sampled_from(["Softmax", "LogSoftmax"])), x, axis=draw(st.integers(0, rank - 1)))]
