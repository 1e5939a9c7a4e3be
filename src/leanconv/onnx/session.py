"""A loaded model: arrays in, arrays out, for any sizes the model leaves free."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanconv.arrays import Array
from leanconv.checks import integer, one_of
from leanconv.errors import ArgumentTypeError, ArgumentValueError, LeanconvError, MemoryLimitError, ModelError
from leanconv.locks import new_lock
from leanconv.network.ceiling import physical_memory
from leanconv.network.compile import CompiledNetwork, compile_graph
from leanconv.network.graph import Graph, ValueType
from leanconv.network.passes import run_passes
from leanconv.onnx.model import Model, NeedsValuesError, Port, check_shape
from leanconv.onnx.source import read
from leanconv.onnx.specialise import LARGEST_SHAPE_INPUT, specialise
from leanconv.planning.limits import resolve_limit
from leanconv.progress import Watcher, watched
from leanconv.threads import get_num_threads

if TYPE_CHECKING:
    from leanconv.network.profile import Profile
    from leanconv.onnx.lock import Key, Lock

_TOO_LARGE = f"shapes must follow from the shapes of inputs, or from inputs of at most {LARGEST_SHAPE_INPUT} bytes"

ACCURACIES = ("exact", "standard", "fast")


class Session:
    """A model ready to run; safe to call from several threads at once.

    Attributes:
        threads: most threads of a run; None for as many as leanconv chooses.
        memory_limit: bytes, or None.
        accuracy: of sums.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None,
        memory_limit: int | None,
        accuracy: str,
        most_shapes: int,
        lock: Lock | None = None,
        progress: Watcher | None = None,
    ) -> None:
        """Use `leanconv.onnx.load`."""
        self._model = model
        self.threads, self.memory_limit, self.accuracy = threads, memory_limit, accuracy
        self._most = most_shapes
        self._pinned, self._progress = lock, progress
        self._ready: OrderedDict[Key, CompiledNetwork] = OrderedDict()
        self._by_value: frozenset[str] = frozenset()
        self._lock = new_lock()
        self._building = new_lock()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs: name, element type and shape of each."""
        return tuple(self._model.inputs.values())

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs: name, element type and shape of each, as far as the file says."""
        return tuple(self._model.outputs.values())

    @property
    def model(self) -> Model:
        """What was read."""
        return self._model

    @property
    def shape_inputs(self) -> frozenset[str]:
        """Inputs whose values decide about shapes, as far as runs have shown; each value is planned by itself."""
        return self._by_value

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: an array for each input, of its element type and a shape that fits; any strides.  Shapes not met
                before are planned first, which takes milliseconds, or longer where kernels must be compiled.

        Returns:
            A new array for each output.

        Raises:
            ArgumentTypeError: not arrays, or another element type.
            ArgumentValueError: an input is missing or unknown, or a shape does not fit.
            ModelError: a node breaks a rule of its operator with these shapes or values.
            MemoryLimitError: nothing fits the limit; says the least that would do.
            AllocationError: no memory.
        """
        self._model.check_inputs(inputs)
        network, values = self._prepared(inputs)
        return network.run(values)

    def __reduce__(self) -> str:
        """Machine code and its memory stay in their process."""
        raise TypeError("a session cannot be copied or pickled: load the model where it is to run, from a warm cache")

    def profile(self, inputs: Mapping[str, Array], repeat: int = 1) -> Profile:
        """As `run`, with the time of each step.

        Args:
            inputs: as in `run`.
            repeat: how many runs; the time of a step is the median.
        """
        self._model.check_inputs(inputs)
        network, values = self._prepared(inputs)
        return network.profile(values, repeat)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> CompiledNetwork:
        """Plan and compile for given shapes, without running; a later run of these shapes starts at once.

        Args:
            shapes: of each input; those that the file fixes may be left out.

        Returns:
            The network compiled, with `peak_bytes`, `steps` and more.

        Raises:
            ArgumentValueError: a free shape is not given, or does not fit.
            ModelError: a node breaks a rule of its operator; or values of inputs are needed too.
            MemoryLimitError: nothing fits the limit; says the least that would do.
        """
        given = dict(shapes or {})
        sizes: dict[str, tuple[int, str]] = {}
        types: dict[str, ValueType] = {}
        for name in given:
            if name not in self._model.inputs:
                names = ", ".join(map(repr, self._model.inputs))
                raise ArgumentValueError("shapes", shapes, f"has {name!r}, but the model's inputs are {names}")
        for name, port in self._model.inputs.items():
            if name not in given:
                if not port.fixed or port.shape is None:
                    raise ArgumentValueError("shapes", shapes, f"must have the shape of input {port}")
                given[name] = tuple(extent for extent in port.shape if isinstance(extent, int))
            shape = tuple(integer("shapes", extent, 0, shown=given[name], what="extents") for extent in given[name])
            check_shape(port, shape, sizes)
            types[name] = ValueType(shape, str(port.dtype))
        if self._by_value:
            needed = ", ".join(sorted(self._by_value))
            raise ModelError(f"shapes depend on the values of {needed}: such a model is planned when it first runs")
        return self._get((tuple((name, type_.shape) for name, type_ in types.items()), ()), types, {})

    def _prepared(self, inputs: Mapping[str, Array]) -> tuple[CompiledNetwork, dict[str, Array]]:
        """The network for these inputs, and those of them that it takes: values that decide about shapes are in it."""
        shapes = tuple((name, inputs[name].shape) for name in self._model.inputs)
        types = {name: ValueType(inputs[name].shape, inputs[name].dtype.name) for name in self._model.inputs}
        while True:
            names = self._by_value
            nbytes = sum(inputs[name].nbytes for name in names)
            if nbytes > LARGEST_SHAPE_INPUT:
                which = ", ".join(sorted(names))
                raise ModelError(f"shapes depend on the values of {which}, {nbytes} bytes: {_TOO_LARGE}")
            values = {name: inputs[name].copy() for name in names}
            try:
                key = (shapes, tuple((name, values[name].tobytes()) for name in names))
                network = self._get(key, types, values)
                return network, {name: inputs[name] for name in network.inputs}
            except NeedsValuesError as error:
                nbytes = sum(inputs[name].nbytes for name in error.inputs)
                if error.inputs <= names or not error.inputs or nbytes > LARGEST_SHAPE_INPUT:
                    raise ModelError(f"{error}: {_TOO_LARGE}") from error
                with self._lock:
                    self._by_value |= error.inputs

    def _get(self, key: Key, types: dict[str, ValueType], values: dict[str, Array]) -> CompiledNetwork:
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                self._ready.move_to_end(key)
                return found
        # One at a time: what two callers of one new shape would do twice, and the memory of it.
        with self._building:
            with self._lock:
                found = self._ready.get(key)
            if found is None:
                found = self._build(key, types, values)
                with self._lock:
                    self._ready[key] = found
                    while len(self._ready) > self._most:
                        self._ready.popitem(last=False)
        return found

    def graph(self, types: Mapping[str, ValueType], values: Mapping[str, Array] | None = None) -> Graph:
        """The graph of the model for inputs of given types, after all passes."""
        graph = specialise(self._model, types, values or {})
        run_passes(graph, derived=self._model.derived, shared=self._model.constants)
        return graph

    def save_lock(self, path: str | os.PathLike[str]) -> int:
        """Write down how the networks that are ready are computed, for `load(..., lock=path)`.

        Args:
            path: of a JSON file, which is replaced in one step.  It names no machine.

        Returns:
            How many networks: one for each set of shapes that plans are kept for.

        Raises:
            CacheError: it cannot be written.
        """
        from leanconv.onnx.lock import save_lock

        with self._lock:
            ready = list(self._ready.items())
        return save_lock(path, {self._question(key): network.decisions for key, network in ready})

    def _question(self, key: Key) -> str:
        from leanconv.onnx.lock import question

        count = get_num_threads() if self.threads is None else self.threads
        return question(*key, threads=count, memory_limit=self.memory_limit, accuracy=self.accuracy)

    def _build(self, key: Key, types: Mapping[str, ValueType], values: Mapping[str, Array]) -> CompiledNetwork:
        with watched(self._progress):
            return self._compiled(key, types, values)

    def _nearest(self, key: Key) -> CompiledNetwork | None:
        """The network that is ready for inputs of the most similar size."""
        with self._lock:
            ready = list(self._ready.items())

        def distance(other: Key) -> float:
            return abs(math.log(max(1, _elements(key)) / max(1, _elements(other))))

        return min(ready, key=lambda item: distance(item[0]), default=(key, None))[1]

    def _compiled(self, key: Key, types: Mapping[str, ValueType], values: Mapping[str, Array]) -> CompiledNetwork:
        pinned = None if self._pinned is None else self._pinned.network(self._question(key))
        graph = self.graph(types, values)
        free = not all(port.fixed for port in self._model.inputs.values())
        machine = physical_memory()
        # Better an error now than a machine that swaps, or a process that is killed.
        alone = max((type_.nbytes for type_ in graph.types.values()), default=0)
        if alone > machine:
            raise MemoryLimitError(machine, alone, "one value of the network, on a machine of so much memory,")
        try:
            network = compile_graph(
                graph,
                threads=self.threads,
                memory_limit=self.memory_limit,
                accuracy=self.accuracy,
                pinned=pinned,
                shared=self._model.shared(graph) if free else None,
                like=self._nearest(key),
                free=free,
            )
        except LeanconvError:
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # Attributes that no operator's types depend on, and that make no sense.
            raise ModelError(f"the model cannot be compiled: {error}") from error
        needed = network.peak_bytes + network.kept_bytes
        if needed > machine:
            raise MemoryLimitError(machine, needed, "the network, on a machine of so much memory,")
        return network


def _elements(key: Key) -> int:
    return sum(math.prod(shape) for _, shape in key[0])


def load(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    accuracy: str = "standard",
    folder: str | os.PathLike[str] | None = None,
    most_shapes: int = 8,
    lock: str | os.PathLike[str] | None = None,
    progress: Watcher | None = None,
) -> Session:
    """Load an ONNX model.

    Args:
        source: path of a file, its bytes, or an `onnx.ModelProto`.
        memory_limit: most bytes (an int, or text such as "64MiB") that all that lies between the layers, workspace,
            and packed weights beyond the plain ones may take together; None for any number.
        threads: most threads a run uses; `leanconv.get_num_threads()` if None.
        accuracy: of sums, as in `leanconv.plan`.
        folder: where external data lies; the folder of the file if None.  No file outside of it is read.
        most_shapes: for how many sets of input shapes plans are kept; the one used longest ago goes first.
        lock: a file that `Session.save_lock` wrote: what it does not hold is not run, and what it holds is run as it
            says, or not at all.
        progress: called with what is done ("plan", "pack" or "compile"), how many of it, and of how many (0: not
            known), while a network is made; from any thread.

    Raises:
        CacheError: the lock file cannot be read, or is none; later, that it does not hold what is asked for.
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed.
        ModelError: the file is malformed, damaged, or not there.
        UnsupportedModelError: it holds what is not supported; `.reasons` says all of it.
        MissingPackageError: the package `onnx` is not installed.
    """
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise ArgumentTypeError("folder", folder, "must be a path")
    one_of("accuracy", accuracy, ACCURACIES)
    count = None if threads is None else integer("threads", threads, 1)
    limit, most = resolve_limit(memory_limit), integer("most_shapes", most_shapes, 1)
    if progress is not None and not callable(progress):
        raise ArgumentTypeError("progress", progress, "must be callable")
    pinned: Lock | None = None
    if lock is not None:
        from leanconv.onnx.lock import Lock  # only here, as all that few sessions need

        pinned = Lock.read(lock)
    model = read(source, folder)
    return Session(
        model, threads=count, memory_limit=limit, accuracy=accuracy, most_shapes=most, lock=pinned, progress=progress
    )
