"""A model as networks, one for each kind of inputs, compiled when these are first seen.

What the model is made of is looked at before each call: weights that have changed are packed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from leanconv.arrays import Array
from leanconv.errors import LeanconvError
from leanconv.locks import new_lock
from leanconv.network.constants import Constant
from leanconv.network.graph import ValueType
from leanconv.torch.engine import readable
from leanconv.torch.lowering import NotLoweredError, lower
from leanconv.torch.options import LayerOptions
from leanconv.torch.packed import RESTLESS, SAMPLES, Mark
from leanconv.torch.parked import Parked
from leanconv.torch.ready import Ready
from leanconv.torch.recipe import Recipe
from leanconv.torch.tensors import DTYPES, as_array, is_channels_last

SIGNATURES_KEPT = 8  # kinds of inputs whose networks a model keeps
FEW_SAMPLES = 4  # elements that are compared of a tensor in a file, each of which takes a page

Known: TypeAlias = Mapping[str, Any]
"""What a caller knows of placeholders that are no inputs of the network: weights, and numbers."""

_Place: TypeAlias = tuple[dict[str, Any] | None, str]  # where a tensor is looked up; None: in what the caller knows


@dataclass(slots=True)
class _State:
    """Networks made of the weights of one moment."""

    marks: list[tuple[Mark, list[_Place]]] = field(default_factory=list)
    ready: dict[Any, Ready | str] = field(default_factory=dict)

    def holds(self, known: Known) -> bool:
        """Whether all that the networks were made of is as it was."""
        for mark, places in self.marks:
            for owner, name in places:
                tensor = (known if owner is None else owner).get(name)
                if tensor is None or not mark.holds(tensor):
                    return False
        return True


class Whole:
    """The networks of one model, by kind of inputs."""

    def __init__(self, recipe: Recipe, model: nn.Module, options: LayerOptions) -> None:
        """`recipe`: of the model in evaluation."""
        self.recipe, self.model, self.options = recipe, model, options
        self.inputs = [step.name for step in recipe if step.kind == "placeholder"]
        self.names = [str(step.target) for step in recipe if step.kind == "placeholder"]
        self._start()

    def _start(self) -> None:
        self._lock = new_lock()
        self._state = _State()
        self._restless = 0
        self.parked: Parked | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("recipe", "model", "options", "inputs", "names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor] | None:
        """The inputs by instruction; None if they are not just tensors that the engine reads."""
        given = [*args, *(kwargs[name] for name in self.names[len(args) :] if name in kwargs)]
        if len(given) != len(self.inputs) or len(args) + len(kwargs) != len(given):
            return None
        if not all(readable(tensor) and tensor.dtype in DTYPES for tensor in given):
            return None
        return dict(zip(self.inputs, given, strict=True))

    def ready(
        self, tensors: Mapping[str, Tensor], threads: int, limit: int | None, known: Mapping[str, Any] = {}
    ) -> Ready | str:
        """The network for such inputs and the weights as they are, or why there is none.

        Args:
            tensors: the inputs by instruction.
            threads: it is planned for.
            limit: in bytes, or None.
            known: the other placeholders' tensors and numbers by instruction.
        """
        state = self._state
        if not state.holds(known):
            with self._lock:
                state = self._state
                if not state.holds(known):
                    state = self._state = _State()
                    self._restless += 1
        elif state.marks:
            self._restless = 0
        if self._restless > RESTLESS:
            return "its weights change at every call"
        numbers = (value for value in known.values() if not isinstance(value, Tensor))
        key = (threads, limit, *numbers, *((tuple(t.shape), t.dtype, _is_last(t)) for t in tensors.values()))
        found = state.ready.get(key)
        if found is None:
            with self._lock:
                found = state.ready.get(key)
                if found is None:
                    found = self._build(state, tensors, threads, limit, known)
                    if len(state.ready) >= SIGNATURES_KEPT:
                        state.ready.clear()
                    state.ready[key] = found
        return found

    def types(self, args: tuple[Any, ...]) -> dict[str, ValueType] | None:
        """Types of the results of the trace's instructions; None where the model cannot be one network."""
        tensors = self.tensors(args, {})
        if tensors is None:
            return None
        with contextlib.suppress(NotLoweredError):
            return lower(self.recipe, self.model, _types(tensors), self._held).types
        return None

    def _build(
        self, state: _State, tensors: Mapping[str, Tensor], threads: int, limit: int | None, known: Known
    ) -> Ready | str:
        if callable(self.options.algorithm):
            return "the algorithm is a function"
        try:
            lowered = lower(self.recipe, self.model, _types(tensors), self._held, known)
            marks = self._marked(lowered.sources, known)
            turned = {name: _is_last(tensor) for name, tensor in tensors.items()}
            with contextlib.nullcontext() if self.parked is None else self.parked.reading():
                found = Ready(lowered, turned, self.options, threads, limit)
        except (NotLoweredError, LeanconvError) as error:
            return str(error)
        state.marks = state.marks or marks  # the trace reads the same ones whatever its inputs
        return found

    def _held(self, tensor: Tensor) -> Array | Constant:
        """A tensor of the model as a constant; of one in a file only what is looked at is read."""
        parked = self.parked
        return parked.constant(tensor) if parked is not None and tensor in parked else as_array(tensor)

    def _marked(self, sources: list[Tensor], known: Known) -> list[tuple[Mark, list[_Place]]]:
        """Marks of the tensors, and where they are kept."""
        owners: dict[int, list[_Place]] = {}
        for module in self.model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    owners.setdefault(id(tensor), []).append((kept, name))
        for name, value in known.items():
            owners.setdefault(id(value), []).append((None, name))
        if any(id(tensor) not in owners for tensor in sources):
            raise NotLoweredError("a tensor that is neither a parameter nor a buffer")
        if any(tensor.is_inference() for tensor in sources):
            raise NotLoweredError("weights made in inference mode, whose changes are not counted")
        parked = self.parked
        few = set() if parked is None else {id(tensor) for tensor in sources if tensor in parked}
        counts = [FEW_SAMPLES if id(tensor) in few else SAMPLES for tensor in sources]
        return [(Mark(tensor, n), owners[id(tensor)]) for tensor, n in zip(sources, counts, strict=True)]


def _types(tensors: Mapping[str, Tensor]) -> dict[str, ValueType]:
    return {name: ValueType(tuple(tensor.shape), DTYPES[tensor.dtype]) for name, tensor in tensors.items()}


def _is_last(tensor: Tensor) -> bool:
    return tensor.dim() in (4, 5) and is_channels_last(tuple(tensor.shape), tensor.stride())
