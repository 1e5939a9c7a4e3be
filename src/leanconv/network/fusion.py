"""Blocks of layers found in a graph: depthwise then pointwise, and expand, depthwise, project.

As one node their middle tensors, the largest of a MobileNet, are never whole: see `leanconv.blocks`.  Which blocks are
joined is decided by whoever plans the network: those whose middle tensors leave the cache and, at a memory limit, those
that run when most is alive.
"""

from __future__ import annotations

from collections.abc import Collection

from leanconv.classes import dataclass
from leanconv.network.graph import Graph, Node
from leanconv.network.operators.convolution import conv_groups, conv_windows

SEPARABLE, INVERTED = "leanconv.Separable", "leanconv.InvertedResidual"
CONVOLUTIONS = ("Conv", "leanconv.Conv")


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """Convolutions that one step can compute.

    Attributes:
        op: SEPARABLE or INVERTED.
        nodes: of the graph, in order.
        residual: a value that is added to the last one's output, or `""`; of INVERTED it is the block's input.
    """

    op: str
    nodes: tuple[Node, ...]
    residual: str

    @property
    def node(self) -> Node:
        """The node that stands for all."""
        inputs = [self.nodes[0].inputs[0]]
        for node in self.nodes:
            inputs += [node.inputs[1], _input(node, 2)]
        if self.op == SEPARABLE and self.residual:
            inputs.append(self.residual)
        last = self.nodes[-1]
        return Node(self.op, last.name, tuple(inputs), last.outputs, {"nodes": self.nodes}, last.version)

    @property
    def pays_from(self) -> float:
        """How many times the second-level cache the tensors between its layers take if it is faster than these."""
        return 1 / 3 if self.op == INVERTED else 2

    def middle_bytes(self, graph: Graph) -> int:
        """Bytes of the tensors between the layers."""
        return sum(graph.types[node.outputs[0]].nbytes for node in self.nodes[:-1])


def find_blocks(graph: Graph) -> list[FoundBlock]:
    """All blocks, each convolution in one of them at most; inverted residuals first."""
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            counts[name] = counts.get(name, 0) + 1
    taken: set[str] = set()
    found: list[FoundBlock] = []

    def before(node: Node) -> Node | None:
        """The convolution whose output only this node reads, as its image."""
        name = node.inputs[0]
        maker = producers.get(name)
        if maker is None or counts[name] != 1 or name in graph.outputs or maker.name in taken:
            return None
        return maker if _plain(graph, maker) else None

    for op in (INVERTED, SEPARABLE):
        for node in graph.nodes:
            if node.name in taken or not _pointwise(graph, node):
                continue
            middle, residual = before(node), _input(node, 3)
            if middle is None or not _depthwise(graph, middle) or _input(middle, 3):
                continue
            first = before(middle)
            if op == INVERTED:
                if first is None or not _pointwise(graph, first) or _input(first, 3):
                    continue
                same = residual == first.inputs[0] and node.attributes.get("residual") == "before"
                if residual and not same:
                    continue
                parts: tuple[Node, ...] = (first, middle, node)
            else:
                parts = (middle, node)
            taken |= {part.name for part in parts}
            found.append(FoundBlock(op, parts, residual))
    return found


def with_blocks(graph: Graph, blocks: Collection[FoundBlock]) -> Graph:
    """A graph in which each of these blocks is one node; it shares constants and types with the given one."""
    if not blocks:
        return graph
    last = {block.nodes[-1].name: block.node for block in blocks}
    gone = {node.name for block in blocks for node in block.nodes[:-1]}
    nodes = [last.get(node.name, node) for node in graph.nodes if node.name not in gone]
    return Graph(nodes, graph.inputs, graph.outputs, graph.constants, graph.types)


def _input(node: Node, position: int) -> str:
    return node.inputs[position] if position < len(node.inputs) else ""


def _plain(graph: Graph, node: Node) -> bool:
    """A convolution of images with constant weights, padded with zeros if at all."""
    if node.op not in CONVOLUTIONS or node.attributes.get("pad_mode", "zeros") != "zeros":
        return False
    names = [node.inputs[1], _input(node, 2)]
    x = graph.types[node.inputs[0]]
    constant = all(not name or name in graph.constants for name in names)
    return constant and len(x.shape) == 4 and x.size > 0 and x.dtype in ("float32", "float64")


def _pointwise(graph: Graph, node: Node) -> bool:
    if not _plain(graph, node) or conv_groups(node) != 1:
        return False
    x, w = graph.types[node.inputs[0]].shape, graph.types[node.inputs[1]].shape
    window = conv_windows(node, x, w)
    return window.kernel == (1, 1) and window.stride == (1, 1) and not any((*window.low, *window.high))


def _depthwise(graph: Graph, node: Node) -> bool:
    w = graph.types[node.inputs[1]].shape
    return _plain(graph, node) and conv_groups(node) == w[0] and w[1] == 1
