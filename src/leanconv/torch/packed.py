"""Weights packed once for many calls, and packed again when they have changed: nothing stale, whatever changed them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leanconv.bound import BoundPlan
from leanconv.torch import engine
from leanconv.torch.options import LayerOptions
from leanconv.torch.tensors import as_array, check_tensors
from leanconv.torch.threads import num_threads

SHAPES_KEPT = 8  # kinds of images that one set of packed weights remembers
SAMPLES = 16  # elements that are compared at each call
RESTLESS = 2  # times in a row that weights were found changed before they are packed for each call alone


class Mark:
    """What tells whether a tensor is still the one it was, with the elements that it had.

    PyTorch counts changes in place (`_version`), but not those made through `.data` or through a NumPy view. A few
    elements spread over the tensor are compared as well, which shows any change of the whole: an optimizer's step, an
    initialisation, a loaded checkpoint.
    """

    __slots__ = ("_address", "_kept", "_sample", "_shape", "_strides", "_version")

    def __init__(self, tensor: Tensor) -> None:
        """Remember a tensor; its memory stays alive, so that no other can have its address."""
        self._address, self._version = tensor.data_ptr(), tensor._version
        self._shape, self._strides = tensor.shape, tensor.stride()
        span = sum((n - 1) * s for n, s in zip(self._shape, self._strides, strict=True)) + 1
        count = min(span, SAMPLES)
        view = tensor.detach().as_strided((count,), ((span - 1) // max(count - 1, 1),))
        self._sample = view.numpy()
        self._kept = self._sample.tobytes()

    def holds(self, tensor: Tensor) -> bool:
        """Whether nothing has changed."""
        same: bool = (
            tensor.data_ptr() == self._address
            and tensor._version == self._version
            and self._sample.tobytes() == self._kept
            and tensor.shape == self._shape
            and tensor.stride() == self._strides
        )
        return same


class _State:
    """Plans bound to the weights of one moment; those that read them in the same order share one packed block."""

    __slots__ = ("calls", "marks")

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.marks = tuple(map(Mark, tensors))
        self.calls: dict[Any, _BoundCall] = {}


class _BoundCall:
    __slots__ = ("bound", "out_full", "out_shape", "out_strides")

    def __init__(self, bound: BoundPlan, out_shape: tuple[int, ...], out_strides: tuple[int, ...]) -> None:
        self.bound = bound
        self.out_shape, self.out_strides = out_shape, out_strides
        self.out_full = 0 not in out_shape


class PackedWeights:
    """The packed weights of one layer. Safe to call from several threads at once."""

    def __init__(self) -> None:
        self._state: _State | None = None
        self._restless = 0

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
        self, options: LayerOptions, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        """The layer on tensors that are `engine.readable`; gradients are not recorded."""
        state = self._current(weight, bias)
        if state is None:
            return engine.run(options, x, weight, bias, residual)
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
            call = self._bind(state, key, x, weight, bias, residual)
        out = torch.empty_strided(call.out_shape, call.out_strides, dtype=x.dtype)
        if call.out_full:
            call.bound.run_at(x.data_ptr(), out.data_ptr(), 0 if residual is None else residual.data_ptr())
        return out

    def _current(self, weight: Tensor, bias: Tensor | None) -> _State | None:
        """The state for weights as they are now; None if they change too often, or unseen, to be packed beforehand."""
        state = self._state
        if state is not None:
            marks = state.marks
            if marks[0].holds(weight) and (marks[1].holds(bias) if bias is not None else len(marks) == 1):
                self._restless = 0
                return state
            self._restless += 1
        if weight.is_inference() or (bias is not None and bias.is_inference()):  # their changes are not counted
            return None
        fresh = _State((weight,) if bias is None else (weight, bias))
        self._state = fresh
        return fresh if self._restless <= RESTLESS else None

    def _bind(
        self, state: _State, key: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> _BoundCall:
        options, threads, limit = key[0], key[-2], key[-1]
        check_tensors(options.ndim, x, weight, bias, residual)
        problem = engine.problem_of(options, x, weight, bias, residual)
        plan = engine.plan_of(options, problem, threads, limit, bound=True)
        others = (other.bound for other in list(state.calls.values()))
        bound = next((found for other in others if (found := plan.bind_like(other)) is not None), None)
        if bound is None:
            bound = plan.bind(as_array(weight), None if bias is None else as_array(bias))
        if len(state.calls) >= SHAPES_KEPT:
            state.calls.pop(next(iter(state.calls)), None)
        call = _BoundCall(bound, *engine.output_of(problem, x.dim() == options.ndim + 1))
        state.calls[key] = call
        return call
