"""A gradient with respect to weights, decided: its program, its exact bytes, and how it is called."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from leanconv.algorithms.base import Algorithm
from leanconv.arrays import Array, address_of, as_array, check_overlap
from leanconv.bound import Runner
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.host import this_host
from leanconv.memory import arena_bytes
from leanconv.outputs import new_output
from leanconv.plan import arena_for
from leanconv.problem import Problem, to_user
from leanconv.program import Compiled, Phase, Program


class BackwardWeightsPlan:
    """A gradient with respect to weights: which algorithm, on how many threads, in how many bytes.

    Call it with an image and the gradient of the output. Safe to call from several threads at once.

    Attributes:
        problem: the convolution; `out_strides` are those of the gradient of its output, `w_strides` of the result.
        threads: how many threads a call uses at most.
        memory_limit: bytes that the workspace may take, or None.
    """

    def __init__(self, problem: Problem, algorithm: Algorithm, threads: int, memory_limit: int | None = None) -> None:
        """Made by `plan_backward_weights`."""
        self.problem, self.threads, self.memory_limit = problem, threads, memory_limit
        self._algorithm = algorithm
        self._lowering = algorithm.lower(problem, this_host(), threads, memory_limit, {})
        self.arena = arena_for(memory_limit)

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return self._algorithm.name

    @property
    def error_bound(self) -> float:
        """The largest error to expect relative to the largest element of the result."""
        return self._algorithm.error_bound(self.problem)

    @property
    def parameters(self) -> Mapping[str, int | str]:
        """The settings chosen."""
        return dict(self._lowering.parameters)

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""
        return list(self._lowering.steps)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What a call runs."""
        return self._lowering.phases

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call needs beyond its arrays; exact."""
        return arena_bytes(self._lowering.workspace, self.threads)

    def __repr__(self) -> str:
        """One line: problem, algorithm, threads, bytes."""
        return (
            f"<BackwardWeightsPlan {self.problem.describe()}: {self.algorithm}, {self.threads} threads, workspace "
            f"{self.workspace_bytes} B>"
        )

    @functools.cached_property
    def runner(self) -> Runner:
        """What calls the compiled program."""
        low = self._lowering
        compiled = Compiled(Program(low.phases, low.workspace, self.threads, low.addresses))
        return Runner(compiled, self.threads, self.arena, {})

    def __call__(self, x: Any, grad_out: Any, out: Any = None, bias_out: Any = None) -> Any:
        """Compute the gradient.

        Args:
            x: the image, of the plan's shape, element type and strides.
            grad_out: gradient of the output, likewise.
            out: array for the gradient, or None for a new one.
            bias_out: array of K numbers for the gradient of the bias if the plan has one, or None for a new one.

        Returns:
            The gradient, in the kind of array that x is, `out` itself if given; a pair with that of the bias if the
            plan has a bias.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape or strides that are not the plan's; an output not writable or overlapping an
                input.
            MemoryLimitError: concurrent calls together would pass the plan's memory limit.
            AllocationError: no memory for workspace or result.
        """
        p = self.problem
        image, restore = as_array(x, "x")
        grad, _ = as_array(grad_out, "grad_out")
        check_planned(image, "x", p.x_shape, to_user(p.x_strides, p.layout), p)
        check_planned(grad, "grad_out", p.out_shape, to_user(p.out_strides, p.layout), p)
        if bias_out is not None and not p.has_bias:
            raise ArgumentValueError("bias_out", bias_out, "must be None, the plan has no bias")
        result = result_array("out", out, p.w_shape, p)
        check_planned(result, "out", p.w_shape, p.w_strides, p)
        shift = result_array("bias_out", bias_out, (p.out_channels,), p) if p.has_bias else None
        self.run(image, grad, result, shift)
        weights = restore(result) if out is None else out
        if shift is None:
            return weights
        return weights, restore(shift) if bias_out is None else bias_out

    def run(self, image: Array, grad: Array, result: Array, bias: Array | None) -> None:
        """Run on checked arrays.

        Raises:
            ArgumentValueError: an output that overlaps an input or the other output.
        """
        check_overlap(result, image, grad)
        if bias is not None and any(np.may_share_memory(bias, array) for array in (image, grad, result)):
            raise ArgumentValueError("bias_out", bias, "must not overlap another array")
        if not self.problem.batch:
            result[...] = 0
            if bias is not None:
                bias[...] = 0
            return
        self.runner.run(
            address_of(image),
            address_of(result),
            weights=address_of(grad),
            bias=0 if bias is None else address_of(bias),
        )


def result_array(name: str, given: Any, shape: tuple[int, ...], problem: Problem) -> Array:
    """An array for a result: the caller's, checked, or a new one."""
    if given is None:
        return new_output(shape, np.dtype(problem.dtype))
    array, _ = as_array(given, name)
    if array.shape != shape:
        raise ArgumentValueError(name, array, f"must have shape {shape}")
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(name, array, f"must have element type {problem.dtype}")
    if not array.flags.writeable:
        raise ArgumentValueError(name, array, "must be writable")
    if name == "bias_out" and not array.flags.c_contiguous:
        raise ArgumentValueError(name, array, "must have its elements side by side")
    return array


def check_planned(array: Array, name: str, shape: tuple[int, ...], strides: tuple[int, ...], problem: Problem) -> None:
    """Check that an array is what a plan was made for; `strides` count elements, in the order of `shape`."""
    if array.shape != shape:
        raise ArgumentValueError(name, array, f"must have shape {shape}")
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(name, array, f"must have element type {problem.dtype}")
    item = array.itemsize
    if array.size and any(
        step != want * item and n > 1 for step, want, n in zip(array.strides, strides, shape, strict=True)
    ):
        raise ArgumentValueError(name, array, f"must have the strides {strides} (elements) it was planned for")
