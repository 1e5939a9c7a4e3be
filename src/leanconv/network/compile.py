"""A graph compiled: one native program over one arena, its bytes known before it runs.

`compile_graph` gives every value its place (`arrange.py`), chooses how each step is computed under the memory limit
(`choose.py`), packs all weights, compiles the kernels and links the steps (`native.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv import allocation
from leanconv.arrays import Array
from leanconv.checks import integer, one_of
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.host import this_host
from leanconv.network import scratch
from leanconv.network.arrangement import CONSTANT, INPUT, OUTPUT, Arrangement, live_bytes
from leanconv.network.choose import Choice, plan_network
from leanconv.network.contexts import Context, Contexts
from leanconv.network.graph import Graph, ValueType
from leanconv.network.lock import decisions
from leanconv.network.native import ABSOLUTE, Linked, LinkedStep, NumpyStep, link_step, prepare_steps
from leanconv.network.nearby import Ways
from leanconv.network.shared import SharedWeights
from leanconv.network.steps.base import Setting
from leanconv.outputs import new_output
from leanconv.planning.wanted import ACCURACIES
from leanconv.progress import report
from leanconv.sizes import parse_bytes
from leanconv.threads import get_num_threads

if TYPE_CHECKING:
    from leanconv.network.profile import Profile, StepInfo


def compile_graph(
    graph: Graph,
    *,
    threads: int | None = None,
    memory_limit: int | str | None = None,
    algorithm: Any = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    pinned: Mapping[str, Any] | None = None,
    shared: SharedWeights | None = None,
    like: CompiledNetwork | None = None,
    free: bool = False,
) -> CompiledNetwork:
    """Compile a graph.

    Args:
        graph: what to compute; it is not changed, and its constants may be released afterwards.
        threads: most threads of a run; `leanconv.get_num_threads()` if None.
        memory_limit: most bytes (an int, or text such as "64MiB") that a run's arena (values between the layers and
            workspace) and packed weights beyond the size of the plain ones may take together; None for what the
            fastest arena takes, and packed weights at most twice as large as the plain ones (or 8 MiB larger).
        algorithm: of convolutions, as in `leanconv.plan`.
        accuracy: see there.
        deterministic: see there; results are then the same bits for any number of threads.
        pinned: `CompiledNetwork.decisions` of an earlier one, which is to be computed in the same way.
        shared: packed weights that other networks have or will have as well; None to share none.
        like: the same network at another size: layers of a similar size are computed as there, without weighing.
        free: whether other sizes will be wanted: kernels then serve any of them where that costs nothing that matters.

    Returns:
        A network to run; `peak_bytes` and all other sizes are known.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed.
        NotApplicableError: no algorithm that may run can compute a layer.
        MemoryLimitError: nothing fits the limit; says the least that would do.
        AllocationError: no memory for packed weights.
        CacheError: what is pinned is not for this graph, or cannot be carried out here.
    """
    one_of("accuracy", accuracy, ACCURACIES)
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    limit = parse_bytes(memory_limit, "memory_limit")
    setting = Setting(
        this_host(),
        count,
        limit is not None,
        algorithm,
        accuracy,
        deterministic,
        shared=shared,
        free=free,
        later=like is not None,
    )
    report("plan", 0, 1)
    found, choice = plan_network(
        graph, setting, limit, pinned, like.ways if like is not None and like.threads == count else None
    )
    report("plan", 1, 1)
    return CompiledNetwork(graph, found, choice, count, limit)


class CompiledNetwork:
    """A network ready to run; safe to call from several threads at once.

    Attributes:
        inputs: name and type of each input.
        outputs: name and type of each output.
        threads: most threads of a run.
        memory_limit: bytes, or None.
        peak_bytes: of the arena of a run, exactly: values between the layers, and workspace.  What the caller gives and
            gets is not in it.
        bound_bytes: what is alive at once at the worst step; no arena could be smaller with the steps chosen.
        kept_bytes: memory kept between runs: packed weights, tables, constants that are read as they are; blocks that
            networks of one model share count for each of them.
        extra_bytes: what of it is beyond the size of the plain weights.
        predicted_seconds: of a run, by the cost model.
    """

    def __init__(
        self, graph: Graph, found: Arrangement, choice: Choice, threads: int, memory_limit: int | None
    ) -> None:
        """Made by `compile_graph`."""
        self.inputs: dict[str, ValueType] = dict(graph.inputs)
        self.outputs: dict[str, ValueType] = {name: graph.types[name] for name in dict.fromkeys(graph.outputs)}
        self.threads, self.memory_limit = threads, memory_limit
        self.peak_bytes, self.bound_bytes = choice.arena.nbytes, choice.arena.bound
        self.kept_bytes = sum(option.kept_bytes for option in choice.options if option is not None)
        self.extra_bytes = choice.extra_bytes
        self.predicted_seconds = choice.seconds
        # Layer by layer: the plain weights of one are dropped before those of the next are asked for.
        with scratch.kept():
            ready = prepare_steps(choice.options)
            self._linked = [
                NumpyStep.of(step) if option is None else link_step(i, option, threads, ready.pop(i, None))
                for i, (step, option) in enumerate(zip(found.steps, choice.options, strict=True))
            ]
        self._constants = {
            name: np.require(graph.constants[name.removeprefix(CONSTANT)], requirements=["C", "A"])
            for name in {name for linked in self._linked for name in linked.storages if name.startswith(CONSTANT)}
        }
        self._found, self._choice = found.without_constants(), choice.without_recipes()
        self.kept_bytes += sum(array.nbytes for array in self._constants.values())
        self._regions = [ABSOLUTE, *(region.name for region in choice.arena.regions)]
        self._ends = [*(INPUT + name for name in self.inputs), *(OUTPUT + name for name in self.outputs)]
        names = [*self._regions, *self._ends, *self._constants]
        self._index = {name: i for i, name in enumerate(names)}
        self._segments = self._cut(self._linked)
        # Concurrent calls share a limit: each has an arena, and those that find none free wait.
        most = None
        if memory_limit is not None and self.peak_bytes:
            most = max(1, (memory_limit - self.extra_bytes) // self.peak_bytes)
        apart = memory_limit is None
        make = partial(Context, choice.arena, self._segments, self._index, self._constants, apart=apart)
        self._contexts = Contexts(make, most)
        if memory_limit is not None:
            # Planning leaves megabytes of holes, which a run would have beside its arena.
            gc.collect()
            allocation.trim_heap()

    def _cut(self, steps: Sequence[LinkedStep | NumpyStep]) -> list[Linked | NumpyStep]:
        """Runs of native steps as programs."""
        segments: list[Linked | NumpyStep] = []
        run: list[LinkedStep] = []
        for step in [*steps, None]:
            if isinstance(step, LinkedStep):
                run.append(step)
                continue
            if run:
                segments.append(Linked(run, self.threads, self._index))
                run = []
            if step is not None:
                segments.append(step)
        return segments

    @property
    def native_calls(self) -> int:
        """Calls into native code that a run takes: one, unless steps without kernels stand between."""
        return sum(isinstance(segment, Linked) for segment in self._segments)

    @property
    def decisions(self) -> dict[str, Any]:
        """How it is computed, as JSON's types; `compile_graph` takes it as `pinned`."""
        return decisions(self._found, self._choice.options)

    @property
    def ways(self) -> Ways | None:
        """How it is computed, for the same network at another size; None if a limit asked for slower ways."""
        return None if self._choice.pressed else Ways.of(self._found, self._choice.options)

    @property
    def activation_bytes(self) -> int:
        """Bytes of values between the layers that are alive at once at the worst step."""
        return live_bytes(self._found)

    @property
    def workspace_bytes(self) -> int:
        """The largest workspace of a step; it lies in the arena."""
        return max((o.workspace_bytes(self.threads) for o in self._choice.options if o is not None), default=0)

    @property
    def packed_weight_bytes(self) -> int:
        """The same as `kept_bytes`."""
        return self.kept_bytes

    @property
    def steps(self) -> list[StepInfo]:
        """What runs, in order, with what each step takes."""
        from leanconv.network.profile import describe

        return describe(self._found, self._choice, self.threads)

    def run(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the network.

        Args:
            inputs: an array for each input, of its shape and element type; one that is not in C order is copied first.
            out: arrays for some or all outputs, in C order, which share no memory with the inputs; new ones are made
                for the others.

        Returns:
            An array for each output.

        Raises:
            ArgumentTypeError: not an array, or another element type.
            ArgumentValueError: an input is missing or unknown, or has another shape.
            ModelError: a step of NumPy breaks a rule that depends on values.
            AllocationError: no memory for the arena or an output.
        """
        given, results = self._checked(inputs), self._results(inputs, out)
        with self._contexts.lent() as context:
            context.run(given, results)
        return results

    def profile(self, inputs: Mapping[str, Array], repeat: int = 1) -> Profile:
        """Run step by step, and tell the time of each.

        Args:
            inputs: as in `run`.
            repeat: how many runs; the time of a step is the median.
        """
        from leanconv.network.profile import measure

        return measure(self, inputs, integer("repeat", repeat, 1))

    def trim(self) -> int:
        """Free the arenas that are kept for later calls, and return how many bytes that were."""
        return self._contexts.trim() * self.peak_bytes

    def _checked(self, inputs: Mapping[str, Array]) -> list[Array]:
        for name in inputs:
            if name not in self.inputs:
                names = ", ".join(map(repr, self.inputs))
                raise ArgumentValueError("inputs", sorted(inputs), f"has {name!r}; the inputs are {names}")
        result = []
        for name, type_ in self.inputs.items():
            array = inputs.get(name)
            if array is None:
                raise ArgumentValueError("inputs", sorted(inputs), f"must have the input {name!r}")
            _check(f"inputs[{name!r}]", array, type_)
            result.append(np.require(array, requirements=["C", "A"]))
        return result

    def _results(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None) -> dict[str, Array]:
        out = out or {}
        for name, array in out.items():
            if name not in self.outputs:
                names = ", ".join(map(repr, self.outputs))
                raise ArgumentValueError("out", sorted(out), f"has {name!r}; the outputs are {names}")
            _check(f"out[{name!r}]", array, self.outputs[name])
            if not array.flags.c_contiguous or not array.flags.aligned or not array.flags.writeable:
                raise ArgumentValueError(f"out[{name!r}]", array, "must be writable, aligned and in C order")
            others = [*inputs.values(), *(a for other, a in out.items() if other != name)]
            if any(np.may_share_memory(array, other) for other in others):
                raise ArgumentValueError(
                    f"out[{name!r}]", array, "must share no memory with an input or another output"
                )
        return {
            name: out[name] if name in out else new_output(type_.shape, np.dtype(type_.dtype))
            for name, type_ in self.outputs.items()
        }


def _check(argument: str, array: Any, type_: ValueType) -> None:
    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(argument, array, "must be a NumPy array")
    if array.dtype != type_.dtype:
        raise ArgumentTypeError(argument, array, f"must have element type {type_.dtype}")
    if array.shape != type_.shape:
        raise ArgumentValueError(argument, array, f"must have shape {type_.shape}")
