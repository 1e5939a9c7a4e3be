"""A plan bound to its weights: what is called again and again, and how little a call does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv.arrays import Array, address_of, as_array, check_out, check_overlap, check_residual
from leanconv.classes import replace
from leanconv.errors import ArgumentTypeError, ArgumentValueError, LeanconvError
from leanconv.host import Host, this_host
from leanconv.locks import new_lock
from leanconv.memory import Arena, Block
from leanconv.outputs import new_output
from leanconv.problem import Problem, to_canonical, to_user
from leanconv.program import ARGUMENTS, Compiled, Job
from leanconv.threads import Pool, pool

if TYPE_CHECKING:
    from leanconv.entry import Entry, Expected
    from leanconv.plan import Plan

_X, _W, _OUT, _RESIDUAL, _WEIGHTS, _BIAS, _MAP = range(len(ARGUMENTS))


class Runner:
    """Calls one compiled program: jobs and workspace are kept between calls, one of each per concurrent caller."""

    def __init__(self, compiled: Compiled, threads: int, arena: Arena, fixed: Mapping[int, int]) -> None:
        """`fixed`: addresses that are the same in every call, by their slot."""
        self._compiled, self._arena, self._fixed = compiled, arena, fixed
        self._jobs: list[Job] = []
        self._threads = max(1, min(threads, max((p.chunks for p in compiled.program.phases), default=1)))
        self._layout = compiled.layout if compiled.layout.nbytes else None
        self._entries: list[Entry] = []
        self.expected: Expected | None = None  # what plain arrays of the usual call are like, if there are entries

    def run(self, x: int, out: int, residual: int = 0, weights: int = 0, bias: int = 0, map_: int = 0) -> None:
        """Run on arrays at these addresses; weights and bias only where they are not fixed, `map_` only if sampled."""
        try:
            job = self._jobs.pop()
        except IndexError:
            job = self._new_job()
        table = job.table
        table[_X], table[_OUT] = x, out
        if residual:
            table[_RESIDUAL] = residual
        if weights:
            table[_WEIGHTS], table[_BIAS], table[_MAP] = weights, bias, map_
        if self._layout is not None:
            with self._arena.acquire(self._layout) as lease:
                job.place_workspace(lease.addresses)
                pool().run(job.address, self._threads)
        else:
            pool().run(job.address, self._threads)
        self._jobs.append(job)

    def try_run(self, arrays: tuple[Any, ...], expected: Expected) -> Any:
        """Run on plain arrays as expected (image, output, and residual if that is) and return the output.

        None, and nothing is done, if they are not so.
        """
        try:
            entry = self._entries.pop()
        except IndexError:
            entry = None
        if entry is None or entry.pool is not pool():
            entry = self._new_entry(expected)
            if entry is None:
                return None
        if self._layout is None:
            done = entry.call(*arrays)
        else:
            lease = self._arena.acquire(self._layout)
            try:
                entry.place(lease.addresses)
                done = entry.call(*arrays)
            finally:
                lease.release()
        self._entries.append(entry)
        return done

    def expect(self, first: Problem, last: Problem, *, residual: bool) -> None:
        """Let calls with the image of one problem and the output of another in by native code, where there is such.

        A residual, which is like the output, may come with them.
        """
        from leanconv import entry

        if not entry.available:
            return
        item = np.dtype(first.dtype).itemsize
        x, out = (
            (shape, tuple(s * item for s in to_user(strides, problem.layout)))
            for problem, shape, strides in (
                (first, first.x_shape, first.x_strides),
                (last, last.out_shape, last.out_strides),
            )
        )
        reach = (*_reach(*x, item), _reach(*out, item)[1])
        slots = (_X, _OUT, _RESIDUAL) if residual else (_X, _OUT)
        self.expected = entry.Expected(x, out, np.dtype(first.dtype), reach, slots)

    def _new_job(self) -> Job:
        job = Job(self._compiled)
        for slot, address in self._fixed.items():
            job.table[slot] = address
        return job

    def _new_entry(self, expected: Expected) -> Entry | None:
        """A way in that no other caller has; None if helpers are not threads of our own, and called otherwise."""
        from leanconv.entry import Entry

        current, helpers = pool(), self._threads - 1
        if helpers and type(current) is not Pool:
            return None
        current.provide(helpers)
        return Entry(current, self._new_job(), helpers, expected)


class BoundPlan:
    """A plan with its weights: call it with images. Safe to call from several threads at once.

    Can be copied, and pickled for a process of the same version on such a CPU: packed weights go along.
    """

    def __init__(self, plan: Plan, weights: Array, bias: Array | None) -> None:
        self.plan = plan
        self._packed = plan.pack(weights, bias)
        packing = plan.packing
        # What is read as it is, is kept in arrays of our own, dense as planned.
        self._kept_weights = np.array(weights, order="C") if packing is None else None
        self._kept_bias = None if bias is None or (packing and not packing.bias_apart) else np.array(bias)
        self._siblings: dict[Any, BoundPlan | None] = {}  # by strides; None: this plan
        self._lock = new_lock()
        self._prepare()

    def _prepare(self) -> None:
        problem = self.plan.problem
        item = problem.itemsize
        self._dtype = np.dtype(problem.dtype)
        self._x_shape, self._out_shape = problem.x_shape, problem.out_shape
        self._x_strides = tuple(s * item for s in to_user(problem.x_strides, problem.layout))
        self._out_strides = tuple(s * item for s in to_user(problem.out_strides, problem.layout))
        strides = problem.residual_strides
        self._residual_strides = strides and tuple(s * item for s in to_user(strides, problem.layout))
        self._fixed = {_W: self._packed.address} if self._packed is not None else {}
        if self._kept_weights is not None:
            self._fixed[_WEIGHTS] = address_of(self._kept_weights)
        if self._kept_bias is not None:
            self._fixed[_BIAS] = address_of(self._kept_bias)
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
        # The usual call: native code compares plain arrays with the plan's, and runs the job.
        runner = self._runner
        if runner is not None and runner.expected is not None and type(x) is np.ndarray:
            result = new_output(self._out_shape, self._dtype) if out is None else out
            arrays = (x, result) if residual is None else (x, result, residual)
            if runner.try_run(arrays, runner.expected) is not None:
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
                rule = (
                    "must be None, the plan has no residual"
                    if residual is not None
                    else "must be given, the plan has one"
                )
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
        runner, problem = Runner(self.plan.compiled, self.plan.threads, self.plan.arena, self._fixed), self.plan.problem
        if not self._empty and (problem.residual is None or problem.residual_strides == problem.out_strides):
            runner.expect(problem, problem, residual=problem.residual is not None)
        self._runner = runner
        return runner

    def _run(self, image: Array, result: Array, extra: Array | None) -> None:
        r = address_of(extra) if extra is not None else 0
        (self._runner or self._first_runner()).run(address_of(image), address_of(result), r)

    def _fitting(self, image: Array, result: Array, extra: Array | None) -> BoundPlan:
        """This plan, or one with the same packed weights for arrays that lie otherwise in memory."""
        as_planned = image.strides == self._x_strides and result.strides == self._out_strides
        if as_planned and (extra is None or extra.strides == self._residual_strides):
            return self
        key = image.strides, result.strides, extra is not None and extra.strides
        known = self._siblings
        if key in known:
            return known[key] or self
        problem = self.plan.problem
        wanted = replace(
            problem,
            x_strides=_strides_like(image, problem.x_strides, problem),
            out_strides=_strides_like(result, problem.out_strides, problem),
            residual_strides=None if extra is None else _strides_like(extra, problem.out_strides, problem),
        )
        with self._lock:
            if len(self._siblings) >= 16:
                self._siblings = {}  # another one: a call without the lock may be reading this one
            if key not in self._siblings:
                self._siblings[key] = self.with_plan(self.plan.for_problem(wanted)) if wanted != problem else None
            return self._siblings[key] or self

    def with_plan(self, plan: Plan) -> BoundPlan:
        """Another plan, which packs weights as this one does, on the same packed weights."""
        return _holding(plan, self._packed, self._kept_weights, self._kept_bias)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.plan, _made_for(), self._packed, self._kept_weights, self._kept_bias)

    def __repr__(self) -> str:
        """The plan's line."""
        return f"<BoundPlan of {self.plan!r}>"

    @property
    def packed_block(self) -> object:
        """What holds the packed weights; plans that share it have the same."""
        return self._packed

    def run_at(self, x: int, out: int, residual: int = 0) -> None:
        """Run on arrays at these addresses, which lie in memory as planned; nothing is checked."""
        (self._runner or self._first_runner()).run(x, out, residual)


def _holding(plan: Plan, packed: Block | None, weights: Array | None, bias: Array | None) -> BoundPlan:
    """A plan on weights that are packed already, or kept as they are."""
    bound = object.__new__(BoundPlan)
    bound.plan, bound._packed, bound._kept_weights, bound._kept_bias = plan, packed, weights, bias
    bound._siblings, bound._lock = {}, new_lock()
    bound._prepare()
    return bound


def _made_for() -> tuple[str, Host]:
    """What the order of packed weights follows from."""
    import leanconv

    return leanconv.__version__, this_host()


def _unpickled(
    plan: Plan, made_for: tuple[str, Host], packed: Block | None, weights: Array | None, bias: Array | None
) -> BoundPlan:
    here = _made_for()
    if made_for != here:
        raise LeanconvError(
            f"the weights were packed by leanconv {made_for[0]} for {made_for[1]}, this is {here[0]} on {here[1]}: "
            "send the plan and the plain weights, and bind them here"
        )
    return _holding(plan, packed, weights, bias)


def _reach(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> tuple[int, int]:
    """First and last byte (exclusive) of an array's elements, from its address."""
    ends = [s * (n - 1) for s, n in zip(strides, shape, strict=True)]
    return sum(e for e in ends if e < 0), sum(e for e in ends if e > 0) + item


def _strides_like(array: Array, planned: tuple[int, ...], problem: Problem) -> tuple[int, ...]:
    """An array's strides in elements and canonical order; those of axes of one element as planned."""
    strides = to_canonical(tuple(s // array.itemsize for s in array.strides), problem.layout)
    shape = to_canonical(array.shape, problem.layout)
    return tuple(s if n > 1 else p for s, n, p in zip(strides, shape, planned, strict=True))
