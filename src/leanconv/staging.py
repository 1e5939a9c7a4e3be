"""Copies around an algorithm that cannot reach an array as it lies: named steps, counted in the workspace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import output_refusal
from leanconv.host import Host
from leanconv.kernels.copy import CopySpec
from leanconv.memory import Buffer
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase


def needs_copies(problem: Problem) -> bool:
    """Whether output or residual lie so that the core cannot reach them."""
    return output_refusal(problem) is not None


def dense_output(problem: Problem) -> Problem:
    """The same problem with a dense output and residual."""
    shape = (problem.batch, problem.out_channels, *problem.out_size)
    dense = dense_strides(shape, problem.layout)
    return replace(problem, out_strides=dense, residual_strides=dense if problem.residual else None)


def around_copies(
    problem: Problem,
    algorithm: Algorithm,
    host: Host,
    threads: int,
    workspace: int | None,
    tunables: Mapping[str, int],
) -> Lowering:
    """The lowering of a problem by an algorithm, with copies around it where it refuses the output's strides."""
    if not needs_copies(problem) or algorithm.refusal(problem) is None:
        return algorithm.lower(problem, host, threads, workspace, tunables)
    inner = dense_output(problem)
    nbytes = math.prod(inner.out_shape) * inner.itemsize
    rest = None if workspace is None else max(0, workspace - nbytes * (2 if problem.residual else 1))
    low = algorithm.lower(inner, host, threads, rest, tunables)
    before: tuple[Phase, ...] = ()
    buffers = [Buffer("dense output", nbytes)]
    roles = {"out": "dense output"}
    steps = list(low.steps)
    if problem.residual and problem.residual_strides is not None and inner.residual_strides is not None:
        buffers.append(Buffer("dense residual", nbytes))
        roles["residual"] = "dense residual"
        copy = _copy(problem, host, problem.residual_strides, inner.residual_strides)
        before = (replace(copy, name="copy residual", roles={"source": "residual", "target": "dense residual"}),)
        steps.insert(0, "copy the residual into a dense array")
    steps.append("copy the dense output to where it was asked for")
    after = replace(
        _copy(problem, host, inner.out_strides, problem.out_strides),
        name="copy output",
        roles={"source": "dense output", "target": "out"},
    )
    phases = tuple(replace(phase, roles={**phase.roles, **roles}) for phase in low.phases)
    return replace(low, phases=(*before, *phases, after), workspace=(*low.workspace, *buffers), steps=tuple(steps))


def _copy(problem: Problem, host: Host, source: tuple[int, ...], target: tuple[int, ...]) -> Phase:
    """A phase that copies an array shaped like the output."""
    item, c = problem.itemsize, problem.out_channels
    fields = {"c_div": 1, "c_count": c, "n_div": c, "n_count": problem.batch}
    for letter, strides in (("s", source), ("t", target)):
        for axis, stride in zip(["n", "c", *range(problem.ndim)], strides, strict=True):
            fields[f"{letter}_{axis}"] = stride * item
    fields |= {f"size{d}": size for d, size in enumerate(problem.out_size)}
    return Phase("copy", CopySpec(host.target, problem.dtype, problem.ndim), fields, problem.batch * c)
