"""A plan: a problem, the algorithm chosen for it, and its program; bound to weights it is something to call."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.arrays import Array, address_of, as_array, check_bias, check_out, check_overlap, check_residual
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.host import this_host
from leanconv.memory import Arena, Buffer, allocate, arena_bytes
from leanconv.outputs import new_output
from leanconv.problem import Problem, to_canonical, to_user
from leanconv.program import ARGUMENTS, Compiled, Job, Phase, Program
from leanconv.staging import around_copies
from leanconv.threads import pool

PACKED = "packed weights"
_X, _W, _OUT, _RESIDUAL, _WEIGHTS, _BIAS = range(len(ARGUMENTS))
_shared_arena = Arena()


class Plan:
    """One convolution, decided: which algorithm, with which settings, on how many threads, in how many bytes.

    Attributes:
        problem: what is computed.
        threads: how many threads a call uses at most.
        memory_limit: bytes that workspace and packed weights beyond the plain ones may take together, or None.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm,
        threads: int,
        memory_limit: int | None = None,
        tunables: Mapping[str, int] | None = None,
    ) -> None:
        self.problem = problem
        self.threads = threads
        self.memory_limit = memory_limit
        self.tunables = dict(tunables or {})
        self._algorithm = algorithm
        self._lowering: Lowering = around_copies(problem, algorithm, this_host(), threads, memory_limit, self.tunables)
        self.arena = _shared_arena if memory_limit is None else Arena(memory_limit)

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return self._algorithm.name

    @property
    def parameters(self) -> Mapping[str, int | str]:
        """The settings chosen: tile, block of pixels, panels of output channels, chunks."""
        return dict(self._lowering.parameters)

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""
        return list(self._lowering.steps)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call of the bound plan needs beyond its arrays and the packed weights; exact."""
        return arena_bytes(self._lowering.workspace, self.threads)

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of the weights (and bias) in the order the kernels read them; 0 if they are read as they are."""
        packing = self._lowering.packing
        if packing is None:
            return 0
        return packing.nbytes + (self.problem.out_channels * self.problem.itemsize if packing.bias_apart else 0)

    @property
    def extra_bytes(self) -> int:
        """What counts against a memory limit: workspace, and packed weights beyond the plain weights and bias."""
        plain = self.problem.w_bytes + (self.problem.out_channels * self.problem.itemsize if self.problem.has_bias else 0)
        return self.workspace_bytes + max(0, self.packed_weight_bytes - plain)

    def __repr__(self) -> str:
        """One line: problem, algorithm, threads, bytes."""
        return (
            f"<Plan {self.problem.describe()}: {self.algorithm}, {self.threads} threads, workspace "
            f"{self.workspace_bytes} B, packed weights {self.packed_weight_bytes} B>"
        )

    @functools.cached_property
    def compiled(self) -> Compiled:
        """The program of a bound call, compiled."""
        low = self._lowering
        return Compiled(Program(low.phases, low.workspace, self.threads, low.addresses))

    @functools.cached_property
    def compiled_unbound(self) -> Compiled:
        """The program of a call whose weights may have changed: they are packed into workspace first."""
        low = self._lowering
        if low.packing is None:
            return self.compiled
        phases = tuple(_packed_into_workspace(phase) for phase in (low.packing.phase, *low.phases))
        buffers = (*low.workspace, Buffer(PACKED, low.packing.nbytes))
        return Compiled(Program(phases, buffers, self.threads, low.addresses))

    def bind(self, w: Any, bias: Any = None) -> BoundPlan:
        """Pack weights once, for many calls.

        Args:
            w: (K, C/groups, *kernel), of the problem's element type; later changes to it are not seen.
            bias: (K,), if the plan has a bias.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape that is not the plan's; a bias the plan does not have, or none where it has.
            AllocationError: no memory for the packed weights.
        """
        weights, _ = as_array(w, "w")
        problem = self.problem
        if weights.shape != problem.w_shape:
            raise ArgumentValueError("w", weights, f"must have shape {problem.w_shape}")
        _need_dtype(weights, "w", problem)
        if (bias is not None) != problem.has_bias:
            rule = "must be given, the plan has one" if problem.has_bias else "must be None, the plan has no bias"
            raise ArgumentValueError("bias", bias, rule)
        shift = None
        if bias is not None:
            shift, _ = as_array(bias, "bias")
            check_bias(shift, problem)
        return BoundPlan(self, weights, shift)

    def pack(self, weights: Array, bias: Array | None) -> Any:
        """The block of packed weights of checked arrays, or None if the algorithm packs nothing."""
        packing = self._lowering.packing
        if packing is None:
            return None
        block = allocate(packing.nbytes)
        phase = _with_weight_strides(packing.phase, weights)
        job = Job(Compiled(Program((phase,), (), self.threads)))
        keep = np.ascontiguousarray(bias) if bias is not None else None
        job.table[_W], job.table[_WEIGHTS] = block.address, address_of(weights)
        if keep is not None:
            job.table[_BIAS] = address_of(keep)
        pool().run(job.address, min(self.threads, phase.chunks))
        return block


def _with_weight_strides(phase: Phase, weights: Array) -> Phase:
    """The packing phase for weights that lie in memory in another way than planned."""
    strides = weights.strides
    axes = range(len(strides) - 2)
    if "w_k" in phase.fields:
        fields = {"w_k": strides[0], "w_c": strides[1], "w_g": phase.fields["group_out"] * strides[0]}
        fields |= {f"w_{d}": strides[2 + d] for d in axes}
    else:
        fields = {"s_n": strides[0], "s_c": strides[1]} | {f"s_{d}": strides[2 + d] for d in axes}
    return replace(phase, fields={**phase.fields, **fields})


def _packed_into_workspace(phase: Phase) -> Phase:
    """The phase with packed weights in a workspace buffer instead of a bound plan's."""
    roles = {role: PACKED if name == "w" else name for role, name in phase.roles.items()}
    return replace(phase, roles={"w": PACKED, **roles})


def _need_dtype(array: Array, argument: str, problem: Problem) -> None:
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(argument, array, f"must have element type {problem.dtype}")


class Runner:
    """Calls one compiled program: jobs and workspace are kept between calls, one of each per concurrent caller."""

    def __init__(self, compiled: Compiled, threads: int, arena: Arena, fixed: Mapping[int, int]) -> None:
        """`fixed`: addresses that are the same in every call, by their slot."""
        self._compiled, self._arena, self._fixed = compiled, arena, fixed
        self._jobs: list[Job] = []
        self._threads = max(1, min(threads, max((p.chunks for p in compiled.program.phases), default=1)))
        self._workspace = compiled.layout.nbytes > 0

    def run(self, x: int, out: int, residual: int = 0, weights: int = 0, bias: int = 0) -> None:
        """Run on arrays at these addresses; weights and bias only where they are not fixed."""
        try:
            job = self._jobs.pop()
        except IndexError:
            job = Job(self._compiled)
            for slot, address in self._fixed.items():
                job.table[slot] = address
        table = job.table
        table[_X], table[_OUT] = x, out
        if residual:
            table[_RESIDUAL] = residual
        if weights:
            table[_WEIGHTS], table[_BIAS] = weights, bias
        if self._workspace:
            with self._arena.acquire(self._compiled.layout) as lease:
                job.place_workspace(lease.addresses)
                pool().run(job.address, self._threads)
        else:
            pool().run(job.address, self._threads)
        self._jobs.append(job)


class BoundPlan:
    """A plan with its weights: call it with images. Safe to call from several threads at once."""

    def __init__(self, plan: Plan, weights: Array, bias: Array | None) -> None:
        self.plan = plan
        self._packed = plan.pack(weights, bias)
        packing = plan._lowering.packing
        # What is read as it is, is kept in arrays of our own, dense as planned.
        self._kept_weights = np.array(weights, order="C") if packing is None else None
        self._kept_bias = None if bias is None or (packing and not packing.bias_apart) else np.array(bias)
        self._siblings: dict[Any, BoundPlan] = {}
        self._lock = threading.Lock()
        self._prepare()

    def _prepare(self) -> None:
        problem = self.plan.problem
        item = problem.itemsize
        self._dtype = np.dtype(problem.dtype)
        self._x_shape, self._out_shape = problem.x_shape, problem.out_shape
        self._x_strides = tuple(s * item for s in to_user(problem.x_strides, problem.layout))
        self._out_strides = tuple(s * item for s in to_user(problem.out_strides, problem.layout))
        self._fixed = {_W: self._packed.address} if self._packed is not None else {}
        if self._kept_weights is not None:
            self._fixed[_WEIGHTS] = address_of(self._kept_weights)
        if self._kept_bias is not None:
            self._fixed[_BIAS] = address_of(self._kept_bias)
        self._x_span = _reach(problem.x_shape, self._x_strides, item)
        self._out_span = _reach(problem.out_shape, self._out_strides, item)[1]
        self._quick = problem.batch > 0 and problem.residual is None
        self._empty = problem.batch == 0
        self._runner: Runner | None = None

    def __call__(self, x: Any, out: Any = None, residual: Any = None) -> Any:
        """Convolve an image.

        Args:
            x: of the plan's shape and element type; other strides than planned are taken as they are too.
            out: array for the result, or None for a new one.
            residual: array of the output's shape, if the plan has one.

        Returns:
            The result, in the kind of array that x is; `out` itself if given.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape that is not the plan's; out not writable or overlapping an input; a residual
                the plan does not have, or none where it has one.
            MemoryLimitError: concurrent calls together would pass the plan's memory limit.
            AllocationError: no memory for workspace or result.
        """
        # The usual call in a few comparisons: plain arrays as planned, far from each other in memory.
        if self._quick and residual is None and _is_like(x, self._x_shape, self._x_strides, self._dtype):
            result = out
            if out is None:
                result = new_output(self._out_shape, self._dtype)
            if _is_like(result, self._out_shape, self._out_strides, self._dtype) and result.flags.writeable:
                source, target = address_of(x), address_of(result)
                apart = target + self._out_span <= source + self._x_span[0] or source + self._x_span[1] <= target
                if apart and not (source | target) % self._dtype.itemsize:
                    (self._runner or self._first_runner()).run(source, target)
                    return result
        return self._checked_call(x, out, residual)

    def _checked_call(self, x: Any, out: Any, residual: Any) -> Any:
        """A call with every check, on any kind of array."""
        image, restore = as_array(x, "x")
        if image.shape != self._x_shape:
            raise ArgumentValueError("x", image, f"must have shape {self._x_shape}")
        if image.dtype != self._dtype:
            raise ArgumentTypeError("x", image, f"must have element type {self._dtype}")
        problem = self.plan.problem
        extra = None
        if residual is not None or problem.residual is not None:
            if residual is None or problem.residual is None:
                rule = "must be None, the plan has no residual" if residual is not None else "must be given, the plan has one"
                raise ArgumentValueError("residual", residual, rule)
            extra, _ = as_array(residual, "residual")
            check_residual(extra, problem)
        if out is None:
            result = new_output(self._out_shape, self._dtype)
        else:
            result, _ = as_array(out, "out")
            check_out(result, problem)
            check_overlap(result, image, image, None, extra)
        if self._empty:
            return restore(result) if out is None else out
        self._fitting(image, result, extra)._run(image, result, extra)
        return restore(result) if out is None else out

    def _first_runner(self) -> Runner:
        self._runner = Runner(self.plan.compiled, self.plan.threads, self.plan.arena, self._fixed)
        return self._runner

    def _run(self, image: Array, result: Array, extra: Array | None) -> None:
        r = address_of(extra) if extra is not None else 0
        (self._runner or self._first_runner()).run(address_of(image), address_of(result), r)

    def _fitting(self, image: Array, result: Array, extra: Array | None) -> BoundPlan:
        """This plan, or one with the same packed weights for arrays that lie otherwise in memory."""
        if image.strides == self._x_strides and result.strides == self._out_strides and extra is None:
            return self
        problem = self.plan.problem
        wanted = replace(
            problem,
            x_strides=_strides_like(image, problem.x_strides, problem),
            out_strides=_strides_like(result, problem.out_strides, problem),
            residual_strides=None if extra is None else _strides_like(extra, problem.out_strides, problem),
        )
        if wanted == problem:
            return self
        with self._lock:
            sibling = self._siblings.get(wanted)
            if sibling is None:
                if len(self._siblings) >= 16:
                    self._siblings.clear()
                sibling = object.__new__(BoundPlan)
                sibling.plan = Plan(wanted, self.plan._algorithm, self.plan.threads, self.plan.memory_limit, self.plan.tunables)
                sibling._packed = self._packed
                sibling._kept_weights, sibling._kept_bias = self._kept_weights, self._kept_bias
                sibling._prepare()
                self._siblings[wanted] = sibling
        return sibling


def _is_like(array: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether something is a plain array of exactly this shape, these strides (bytes) and element type."""
    return type(array) is np.ndarray and array.shape == shape and array.strides == strides and array.dtype == dtype


def _reach(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> tuple[int, int]:
    """First and last byte (exclusive) of an array's elements, from its address."""
    ends = [s * (n - 1) for s, n in zip(strides, shape, strict=True)]
    return sum(e for e in ends if e < 0), sum(e for e in ends if e > 0) + item


def _strides_like(array: Array, planned: tuple[int, ...], problem: Problem) -> tuple[int, ...]:
    """An array's strides in elements and canonical order; those of axes of one element as planned."""
    strides = to_canonical(tuple(s // array.itemsize for s in array.strides), problem.layout)
    shape = to_canonical(array.shape, problem.layout)
    return tuple(s if n > 1 else p for s, n, p in zip(strides, shape, planned, strict=True))
