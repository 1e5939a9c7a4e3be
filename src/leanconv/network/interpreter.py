"""Run a graph node by node: each in NumPy, or by a plan of leanconv where it is a convolution.

What a network does when it is not compiled as a whole: values are given back at their last use, convolutions run as
plans with packed weights.  It is also what the compiled form is compared with.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.errors import MemoryLimitError, ModelError
from leanconv.locks import new_lock
from leanconv.network.ceiling import physical_memory
from leanconv.network.graph import Graph, Node
from leanconv.network.operators import evaluate_node, operator
from leanconv.network.operators.base import dense
from leanconv.network.operators.convolution import conv_problem
from leanconv.plan import Plan
from leanconv.planning.choice import choose
from leanconv.planning.network import plan_layers
from leanconv.problem import Problem
from leanconv.threads import get_num_threads

Run = Callable[[list[Array | None]], tuple[Array, ...]]
CONVOLUTIONS = ("Conv", "leanconv.Conv")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one node took.

    Attributes:
        node: its name.
        op: its operator.
        start: seconds since the run began.
        seconds: how long.
        algorithm: of a convolution; `""` for others.
        nbytes: of its outputs.
    """

    node: str
    op: str
    start: float
    seconds: float
    algorithm: str
    nbytes: int


@dataclass(slots=True)
class _Step:
    node: Node
    run: Run
    algorithm: str
    dropped: tuple[str, ...]  # values that no later step reads


class Interpreter:
    """A graph made ready to run; safe to call from several threads at once.

    With a memory limit one run waits for another, since two at once would take the memory of two.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        accuracy: str = "standard",
    ) -> None:
        """Plan its convolutions and pack their weights.

        Args:
            graph: what to run; it is not changed.
            threads: most threads of a convolution; `get_num_threads()` if None.
            memory_limit: most bytes that values, the workspace all layers share, and packed weights beyond the plain
                ones may take together.
            accuracy: as in `leanconv.plan`.

        Raises:
            ModelError: an operator is not supported.
            MemoryLimitError: nothing fits the limit.
        """
        self.graph = graph
        last: dict[str, int] = {name: number for number, node in enumerate(graph.nodes) for name in node.inputs}
        for number, node in enumerate(graph.nodes):
            for name in node.outputs:
                last.setdefault(name, number)
        keep = {*graph.outputs, *graph.inputs, *graph.constants, ""}
        dying: dict[int, list[str]] = {}
        for name, number in last.items():
            if name not in keep:
                dying.setdefault(number, []).append(name)
        dropped = [tuple(dying.get(number, ())) for number in range(len(graph.nodes))]
        self.activation_bytes = self._peak(dropped)
        layers = [(node.name, _problem(graph, node)) for node in graph.nodes]
        convolutions = [(name, problem) for name, problem in layers if problem is not None]
        left = None if memory_limit is None else memory_limit - self.activation_bytes
        if memory_limit is not None and left is not None and left < 0:
            raise MemoryLimitError(memory_limit, self.activation_bytes, "what lies between the layers")
        count = get_num_threads() if threads is None else threads
        if left is None:
            plans = [choose(problem, "auto", count, None, accuracy=accuracy) for _, problem in convolutions]
        else:
            plans = [step.plan for step in plan_layers(convolutions, count, left, accuracy=accuracy).steps]
        self.workspace_bytes = max((plan.workspace_bytes for plan in plans), default=0)
        self.packed_weight_bytes = sum(plan.packed_weight_bytes for plan in plans)
        # Two runs at once would take the limit twice.
        self._turn = new_lock() if left is not None else contextlib.nullcontext()
        needed = self.activation_bytes + self.workspace_bytes + self.packed_weight_bytes
        if needed > physical_memory():
            # Better an error now than a machine that swaps, or a process that is killed.
            raise MemoryLimitError(physical_memory(), needed, "the network, on a machine of so much memory,")
        found = {name: plan for (name, _), plan in zip(convolutions, plans, strict=True)}
        self._steps = [
            self._step(node, names, found.get(node.name)) for node, names in zip(graph.nodes, dropped, strict=True)
        ]

    def run(self, inputs: Mapping[str, Array], timings: list[Timing] | None = None) -> dict[str, Array]:
        """Outputs by name.

        Args:
            inputs: arrays of the types of `graph.inputs`.
            timings: a list to which the time of each node is added; None to take none.

        Raises:
            ModelError: a node breaks a rule of its operator that depends on values.
            AllocationError: no memory for a value.
        """
        with self._turn:
            return self._run(inputs, timings)

    def _run(self, inputs: Mapping[str, Array], timings: list[Timing] | None) -> dict[str, Array]:
        values: dict[str, Array] = {**self.graph.constants, **inputs}
        begin = time.perf_counter()
        for step in self._steps:
            start = time.perf_counter()
            outputs = step.run([values[name] if name else None for name in step.node.inputs])
            values.update((name, array) for name, array in zip(step.node.outputs, outputs, strict=True) if name)
            if timings is not None:
                seconds, nbytes = time.perf_counter() - start, sum(array.nbytes for array in outputs)
                timings.append(Timing(step.node.name, step.node.op, start - begin, seconds, step.algorithm, nbytes))
            for name in step.dropped:
                del values[name]
        # Nobody may write into a constant or an input through an output.
        given = (*inputs.values(), *self.graph.constants.values())
        return {name: _own(values[name], given) for name in self.graph.outputs}

    def _step(self, node: Node, dropped: tuple[str, ...], plan: Plan | None) -> _Step:
        found = operator(node.op)
        if found is None:
            raise ModelError(f"node {node.name!r}: the operator {node.op} is not supported")
        if plan is None:
            return _Step(node, lambda arrays: evaluate_node(found, node, arrays), "", dropped)
        constants, bias = self.graph.constants, _bias(node)
        layer = plan.bind(constants[node.inputs[1]], constants[bias] if bias else None)

        def run(arrays: list[Array | None]) -> tuple[Array, ...]:
            residual = arrays[3] if len(arrays) > 3 else None
            return (layer(arrays[0], residual=residual),)

        return _Step(node, run, plan.algorithm, dropped)

    def _peak(self, dropped: list[tuple[str, ...]]) -> int:
        """Most bytes that values other than inputs and constants take at one time, if none is a view."""
        here = most = 0
        for node, names in zip(self.graph.nodes, dropped, strict=True):
            here += sum(self.graph.types[name].nbytes for name in node.outputs if name)
            most = max(most, here)
            here -= sum(self.graph.types[name].nbytes for name in names)
        return most


def _bias(node: Node) -> str:
    return node.inputs[2] if len(node.inputs) > 2 else ""


def _problem(graph: Graph, node: Node) -> Problem | None:
    """The problem of a convolution that can be planned: weights known, an element type that kernels have."""
    if node.op not in CONVOLUTIONS or graph.types[node.inputs[0]].dtype not in ("float32", "float64"):
        return None
    if any(name and name not in graph.constants for name in (node.inputs[1], _bias(node))):
        return None
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    return conv_problem(node, x, w, bias=bool(_bias(node)))


def _own(array: Array, given: tuple[Array, ...]) -> Array:
    if not array.flags.writeable or any(np.may_share_memory(array, other) for other in given):
        return array.copy(order="C")
    return dense(array)
