"""Weights packed once for many calls, and packed again when they have changed: nothing stale, whatever changed them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from leanconv.bound import BoundPlan
from leanconv.locks import new_lock
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.torch import engine
from leanconv.torch.options import LayerOptions
from leanconv.torch.tensors import as_array, check_tensors
from leanconv.torch.threads import num_threads

SHAPES_KEPT = 8  # kinds of images that one set of packed weights remembers
SAMPLES = 16  # elements that are compared at each call
RESTLESS = 2  # times in a row that weights were found changed before they are packed for each call alone

Sources: TypeAlias = Sequence[Tensor | None]
Fold: TypeAlias = Callable[[Sources], tuple[Tensor, Tensor | None]]
"""From the tensors that a layer is made of to its weights and bias."""


class Mark:
    """What tells whether a tensor is still the one it was, with the elements that it had.

    PyTorch counts changes in place (`_version`), but not those made through `.data` or through a NumPy view. A few
    elements spread over the tensor are compared as well, which shows any change of the whole: an optimizer's step, an
    initialisation, a loaded checkpoint.
    """

    __slots__ = ("_address", "_kept", "_sample", "_shape", "_strides", "_tensor", "_version")

    def __init__(self, tensor: Tensor, samples: int = SAMPLES) -> None:
        """Remember a tensor; its memory stays alive, so that no other can have its address."""
        self._tensor = tensor
        self._address, self._version = tensor.data_ptr(), tensor._version
        self._shape, self._strides = tensor.shape, tensor.stride()
        span = sum((n - 1) * s for n, s in zip(self._shape, self._strides, strict=True)) + 1
        count = min(span, samples)
        view = tensor.detach().as_strided((count,), ((span - 1) // max(count - 1, 1),))
        self._sample = view.numpy()
        self._kept = self._sample.tobytes()

    def holds(self, tensor: Tensor) -> bool:
        """Whether nothing has changed."""
        if tensor is not self._tensor and (tensor.shape != self._shape or tensor.stride() != self._strides):
            return False
        same: bool = (
            tensor._version == self._version
            and tensor.data_ptr() == self._address
            and self._sample.tobytes() == self._kept
        )
        return same


class _BoundCall:
    __slots__ = ("bound", "out_full", "out_shape", "out_strides")

    def __init__(self, bound: BoundPlan, out_shape: tuple[int, ...], out_strides: tuple[int, ...]) -> None:
        self.bound = bound
        self.out_shape, self.out_strides = out_shape, out_strides
        self.out_full = 0 not in out_shape


class _State:
    """Plans bound to the weights of one moment; those that read them in the same order share one packed block."""

    __slots__ = ("calls", "marks")

    def __init__(self, sources: Sources) -> None:
        self.marks = tuple([None if tensor is None else Mark(tensor) for tensor in sources])
        self.calls: dict[Any, _BoundCall] = {}

    def holds(self, sources: Sources) -> bool:
        for mark, tensor in zip(self.marks, sources, strict=True):
            if tensor is None or mark is None:
                if tensor is not mark:
                    return False
            elif not mark.holds(tensor):
                return False
        return True


def as_they_are(sources: Sources) -> tuple[Tensor, Tensor | None]:
    """Weights and bias that are no more than that."""
    weight, bias = sources
    assert weight is not None
    return weight, bias


class PackedWeights:
    """The packed weights of one layer. Safe to call from several threads at once; copies pack their own."""

    def __init__(self, fold: Fold = as_they_are) -> None:
        """`fold`: makes weights and bias of the tensors that `run` is given."""
        self.fold = fold
        self._state: _State | None = None
        self._restless = 0
        self._lock = new_lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, (self.fold,)

    def forget(self) -> None:
        """Free the packed weights; the next call packs them again."""
        self._state = None
        self._restless = 0

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights that are kept now."""
        state = self._state
        bounds = [] if state is None else [call.bound for call in list(state.calls.values())]
        return sum({id(bound.packed_block): bound.plan.packed_weight_bytes for bound in bounds}.values())

    def run(
        self,
        options: LayerOptions,
        x: Tensor,
        sources: Sources,
        residual: Tensor | None = None,
        choose: Callable[[Problem], Plan | None] | None = None,
        guard: contextlib.AbstractContextManager[bool] | None = None,
    ) -> Tensor:
        """The layer on tensors that are `engine.readable`; gradients are not recorded.

        Args:
            options: of the layer.
            x: image.
            sources: what `fold` takes.
            residual: or None.
            choose: asked for a plan that somebody else has made for a problem.
            guard: held while the layer runs, if its memory is shared with others and limited.
        """
        state = self._current(sources)
        if state is None:
            with torch.no_grad():
                return engine.run(options, x, *self.fold(sources), residual)
        threads = options.threads or num_threads()
        limit = engine.limit_of(options)
        key = (
            options,
            x.dtype,
            x.shape,
            x.stride(),
            None if residual is None else (residual.dtype, residual.shape, residual.stride()),
            threads,
            limit,
        )
        call = state.calls.get(key)
        if call is None:
            with self._lock:
                call = state.calls.get(key) or self._bind(state, key, x, sources, residual, choose)
        out = torch.empty_strided(call.out_shape, call.out_strides, dtype=x.dtype)
        if call.out_full:
            extra = 0 if residual is None else residual.data_ptr()
            if guard is None:
                call.bound.run_at(x.data_ptr(), out.data_ptr(), extra)
            else:
                with guard:
                    call.bound.run_at(x.data_ptr(), out.data_ptr(), extra)
        return out

    def _current(self, sources: Sources) -> _State | None:
        """The state for weights as they are now; None if they change too often, or unseen, to be packed beforehand."""
        state = self._state
        if state is not None:
            if state.holds(sources):
                self._restless = 0
                return state
            self._restless += 1
        if any(tensor is not None and tensor.is_inference() for tensor in sources):  # their changes are not counted
            return None
        fresh = self._state = _State(sources)
        return fresh if self._restless <= RESTLESS else None

    def _bind(
        self, state: _State, key: Any, x: Tensor, sources: Sources, residual: Tensor | None, choose: Any
    ) -> _BoundCall:
        options, threads, limit = key[0], key[-2], key[-1]
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = self.fold(sources)
            check_tensors(options.ndim, x, weight, bias, residual, options.output_padding is not None)
            problem = engine.problem_of(options, x, weight, bias, residual)
            plan = None if choose is None else choose(problem)
            plan = plan or engine.plan_of(options, problem, threads, limit, bound=True)
            others = (other.bound for other_key, other in list(state.calls.items()) if other_key[0] is options)
            bound = next((found for other in others if (found := plan.bind_like(other)) is not None), None)
            if bound is None:
                bound = plan.bind(as_array(weight), None if bias is None else as_array(bias))
        if len(state.calls) >= SHAPES_KEPT:
            state.calls.pop(next(iter(state.calls)), None)
        call = state.calls[key] = _BoundCall(bound, *engine.output_of(problem, x.dim() == options.ndim + 1))
        return call
