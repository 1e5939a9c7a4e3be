"""A plan: a problem, the algorithm chosen for it, and its program; bound to weights it is something to call."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm, Lowering, WeightPacking
from leanconv.arrays import Array, address_of, as_array, check_bias
from leanconv.bound import BoundPlan, Runner
from leanconv.classes import replace
from leanconv.compiled import KernelSpec
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.host import this_host
from leanconv.locks import new_lock
from leanconv.memory import Arena, Block, Buffer, Lease, allocate, arena_bytes
from leanconv.problem import Problem
from leanconv.program import ARGUMENTS, Compiled, Job, Phase, Program
from leanconv.staging import around_copies, refusal
from leanconv.threads import pool

PACKED = "packed weights"
_, _W, _, _, _WEIGHTS, _BIAS, _ = range(len(ARGUMENTS))
_shared_arena = Arena()


def arena_for(limit: int | None) -> Arena:
    """The arena that all calls without a limit share, or one of its own for a limit."""
    return _shared_arena if limit is None else Arena(limit)


class Plan:
    """One convolution, decided: which algorithm, with which settings, on how many threads, in how many bytes.

    Attributes:
        problem: what is computed.
        threads: how many threads a call uses at most.
        memory_limit: bytes that workspace and packed weights beyond the plain ones may take together, or None.
        staging: bytes of workspace that the algorithm was to keep to, if other than the limit.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm | str,
        threads: int,
        memory_limit: int | None = None,
        tunables: Mapping[str, int] | None = None,
        inner: Problem | None = None,
        staging: int | None = None,
        lowering: Lowering | None = None,
    ) -> None:
        """`staging`: bytes of workspace that the algorithm should keep to, if other than the limit.

        `lowering`: what the algorithm makes of all that, if somebody knows; the algorithm's name does then.
        """
        self.problem = problem
        self.threads = threads
        self.memory_limit = memory_limit
        self.tunables = dict(tunables or {})
        self._algorithm = algorithm
        self._inner = inner
        self.staging = staging
        if lowering is None:
            most = memory_limit if staging is None else staging
            lowering = around_copies(problem, self.chosen, this_host(), threads, most, self.tunables, inner)
        self._lowering: Lowering = lowering
        # A limit counts packed weights and tables too; what they leave all concurrent calls may use together.
        left = memory_limit
        if left is not None:
            left = max(0, left - (self.extra_bytes - self.workspace_bytes + self.table_bytes))
        self.arena = arena_for(left)
        self._lock = new_lock()
        self._tables: Lease | None = None

    def for_problem(self, problem: Problem) -> Plan:
        """The same choice, on the same packed weights, for arrays that lie otherwise in memory.

        Where such arrays would want weights in another order they are copied instead, a step counted in the workspace.
        """
        options = (self.chosen, self.threads, self.memory_limit, self.tunables)
        if refusal(self.chosen, problem) is None:
            plan = Plan(problem, *options, staging=self.staging)
            if _same_packing(plan.packing, self.packing):
                return plan
        inner = replace(self.problem, residual_strides=_dense_residual(problem, self))
        return Plan(problem, *options, inner=inner, staging=self.staging)

    @property
    def chosen(self) -> Algorithm:
        """The algorithm."""
        return REGISTRY[self._algorithm] if isinstance(self._algorithm, str) else self._algorithm

    @property
    def lowering(self) -> Lowering:
        """The program as phases, and what they need."""
        return self._lowering

    @property
    def packing(self) -> WeightPacking | None:
        """How weights are packed; None if they are read as they are."""
        return self._lowering.packing

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return self._algorithm if isinstance(self._algorithm, str) else self._algorithm.name

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
        """Bytes that a call of the bound plan needs beyond its arrays and the packed weights, tables too; exact."""
        return arena_bytes(self._lowering.workspace, self.threads) + self.table_bytes

    @property
    def table_bytes(self) -> int:
        """Those bytes of the workspace that the plan, once bound, keeps between calls; the rest is only lent."""
        tables = self._lowering.tables
        return arena_bytes(tables.buffers) if tables else 0

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of the weights (and bias) in the order the kernels read them; 0 if they are read as they are."""
        packing = self._lowering.packing
        if packing is None:
            return 0
        return packing.nbytes + (self._bias_bytes if packing.bias_apart else 0)

    @property
    def _bias_bytes(self) -> int:
        return self.problem.out_channels * self.problem.itemsize

    @property
    def extra_bytes(self) -> int:
        """What counts against a memory limit: workspace, and packed weights beyond the plain weights and bias."""
        plain = self.problem.w_bytes + (self._bias_bytes if self.problem.has_bias else 0)
        return self.workspace_bytes + max(0, self.packed_weight_bytes - plain)

    @property
    def unbound_bytes(self) -> int:
        """Workspace of a call that packs its weights itself: that of a bound call, and all packed weights."""
        return arena_bytes(self._unbound_workspace, self.threads)

    @property
    def unbound_extra_bytes(self) -> int:
        """What counts of that against a memory limit: all but packed weights up to the size of the plain ones."""
        return self.unbound_bytes - self._uncounted_bytes

    @property
    def _uncounted_bytes(self) -> int:
        packing, p = self._lowering.packing, self.problem
        if packing is None:
            return 0
        plain = p.w_bytes + (self._bias_bytes if p.has_bias and not packing.bias_apart else 0)
        return arena_bytes((Buffer(PACKED, min(packing.nbytes, plain)),))

    def unbound_runner(self) -> Runner:
        """What runs the plan on weights that may have changed, in an arena that lends no more than the limit allows."""
        limit = self.memory_limit
        arena = arena_for(None if limit is None else limit + self._uncounted_bytes)
        return Runner(self.compiled_unbound, self.threads, arena, {})

    @property
    def _unbound_workspace(self) -> tuple[Buffer, ...]:
        low = self._lowering
        tables = low.tables.buffers if low.tables else ()
        return (*low.workspace, *tables, *([Buffer(PACKED, low.packing.nbytes)] if low.packing else []))

    def __repr__(self) -> str:
        """One line: problem, algorithm, threads, bytes."""
        return (
            f"<Plan {self.problem.describe()}: {self.algorithm}, {self.threads} threads, workspace "
            f"{self.workspace_bytes} B, packed weights {self.packed_weight_bytes} B>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """What decides the plan: a copy shares no memory with it, and another process lowers it for its own CPU."""
        decided = (self.problem, self._algorithm, self.threads, self.memory_limit, self.tunables)
        return type(self), (*decided, self._inner, self.staging)

    @functools.cached_property
    def compiled(self) -> Compiled:
        """The program of a bound call, compiled."""
        low = self._lowering
        return Compiled(Program(low.phases, low.workspace, self.threads, self.addresses))

    @property
    def addresses(self) -> dict[str, int]:
        """Where buffers and functions are that exist before a call; tables are made when this is first asked."""
        return {**self._lowering.addresses, **self._table_addresses}

    @property
    def specs(self) -> tuple[KernelSpec, ...]:
        """The kernels that binding the plan and calling it take."""
        low = self._lowering
        before = (*(low.tables.phases if low.tables else ()), *(low.packing.phases if low.packing else ()))
        return tuple(phase.spec for phase in (*before, *low.phases))

    @functools.cached_property
    def compiled_unbound(self) -> Compiled:
        """The program of a call whose weights may have changed: they are packed into workspace first."""
        low = self._lowering
        phases = (
            *(low.tables.phases if low.tables else ()),
            *(low.packing.phases if low.packing else ()),
            *low.phases,
        )
        if len(phases) == len(low.phases):
            return self.compiled
        if low.packing:
            phases = tuple(phase.renamed({"w": PACKED}) for phase in phases)
        return Compiled(Program(phases, self._unbound_workspace, self.threads, low.addresses))

    @property
    def _table_addresses(self) -> dict[str, int]:
        """Where the tables are, made when first asked for; all that is bound to the plan reads the same ones."""
        tables = self._lowering.tables
        if tables is None:
            return {}
        with self._lock:
            if self._tables is None:
                lease = Arena().acquire(tables.buffers)
                names = [buffer.name for buffer in tables.buffers]
                program = Program(tables.phases, (), self.threads, dict(zip(names, lease.addresses, strict=True)))
                job = Job(Compiled(program))
                pool().run(job.address, min(self.threads, max(phase.chunks for phase in tables.phases)))
                self._tables = lease
        return {buffer.name: self._tables.address(buffer.name) for buffer in tables.buffers}

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
        _ = self._table_addresses  # made now: a call is to allocate nothing that it keeps
        return BoundPlan(self, weights, shift)

    def bind_like(self, other: BoundPlan) -> BoundPlan | None:
        """This plan on the weights that another has packed; None if it reads them in another order."""
        if not _same_packing(self.packing, other.plan.packing):
            return None
        _ = self._table_addresses
        return other.with_plan(self)

    def pack(self, weights: Array, bias: Array | None) -> Block | None:
        """The block of packed weights of checked arrays, or None if the algorithm packs nothing."""
        packing = self._lowering.packing
        if packing is None:
            return None
        if self.problem.direction == "transposed":  # its parts read weights through strides of their own, as planned
            return packed_block(packing, np.ascontiguousarray(weights), bias, self.threads, planned=True)
        return packed_block(packing, weights, bias, self.threads)


def packed_block(
    packing: WeightPacking, weights: Array, bias: Array | None, threads: int, *, planned: bool = False
) -> Block:
    """A block with checked weights as a packing has them; `planned`: they lie in memory as the packing was made for."""
    block = allocate(packing.nbytes)
    keep = np.ascontiguousarray(bias) if bias is not None else None
    pack_into(block.address, packing, weights, 0 if keep is None else address_of(keep), threads, planned=planned)
    return block


def pack_into(
    target: int, packing: WeightPacking, weights: Array, bias: int, threads: int, *, planned: bool = False
) -> None:
    """Pack weights to an address; `bias` is the address of a dense one, 0 if there is none."""
    phases = packing.phases
    if not planned:
        phases = tuple(_with_weight_strides(phase, weights) for phase in phases)
    job = Job(Compiled(Program(phases, (), threads)))
    job.table[_W], job.table[_WEIGHTS] = target, address_of(weights)
    if bias:
        job.table[_BIAS] = bias
    pool().run(job.address, min(threads, max(phase.chunks for phase in phases)))


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


def _same_packing(a: WeightPacking | None, b: WeightPacking | None) -> bool:
    """Whether two plans read their weights in the same order."""
    if a is None or b is None:
        return a is b
    return a.nbytes == b.nbytes and [phase.spec for phase in a.phases] == [phase.spec for phase in b.phases]


def _dense_residual(problem: Problem, plan: Plan) -> tuple[int, ...] | None:
    return None if problem.residual is None else plan.problem.out_strides


def _need_dtype(array: Array, argument: str, problem: Problem) -> None:
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(argument, array, f"must have element type {problem.dtype}")
