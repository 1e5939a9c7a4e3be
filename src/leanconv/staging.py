"""Copies around an algorithm that cannot reach an array as it lies: named steps, counted in the workspace."""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.copy import CopySpec
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase
from leanconv.transposed import by_stride_phases, stride_phases


def reachable(problem: Problem, algorithm: Algorithm) -> Problem | None:
    """The problem, with as few arrays made dense as the algorithm needs to accept it; None if it accepts none.

    First the output and the residual, which most algorithms want evenly spaced, then the image as well.
    """
    return _reachable(problem, algorithm)[0]


def _reachable(problem: Problem, algorithm: Algorithm) -> tuple[Problem | None, str | None]:
    """What `reachable` returns, and the reason against the last of its tries."""
    reason = algorithm.refusal(problem)
    if reason is None:
        return problem, None
    output, image = dense_output(problem), dense_image(problem)
    tries = [output] if output is not problem else []
    if image is not problem:
        tries += [image, dense_image(output)] if tries else [image]
    for candidate in tries:
        reason = algorithm.refusal(candidate)
        if reason is None:
            return candidate, None
    return None, reason


def dense_output(problem: Problem) -> Problem:
    """The same problem with a dense output and residual."""
    shape = (problem.batch, problem.out_channels, *problem.out_size)
    dense = dense_strides(shape, problem.layout)
    residual = dense if problem.residual else None
    if (problem.out_strides, problem.residual_strides) == (dense, residual):
        return problem
    return replace(problem, out_strides=dense, residual_strides=residual)


def dense_image(problem: Problem) -> Problem:
    """The same problem with a dense image."""
    shape = (problem.batch, problem.in_channels, *problem.in_size)
    dense = dense_strides(shape, problem.layout)
    return problem if problem.x_strides == dense else replace(problem, x_strides=dense)


def refusal(algorithm: Algorithm, problem: Problem) -> str | None:
    """Why an algorithm cannot compute a problem even with copies around it, or None."""
    if problem.direction == "transposed":
        reasons = (refusal(algorithm, part.problem) for part in stride_phases(problem))
        return next((reason for reason in reasons if reason is not None), None)
    return _reachable(problem, algorithm)[1]


def error_bound(algorithm: Algorithm, problem: Problem) -> float:
    """The error bound that an algorithm states for a problem, or the largest of those for the parts of one."""
    if problem.direction == "transposed":
        bounds = [algorithm.error_bound(part.problem) for part in stride_phases(problem)]
        return max(bounds, default=Algorithm.error_bound(algorithm, problem))
    return algorithm.error_bound(problem)


def around_copies(
    problem: Problem,
    algorithm: Algorithm,
    host: Host,
    threads: int,
    workspace: int | None,
    tunables: Mapping[str, int],
    inner: Problem | None = None,
) -> Lowering:
    """The lowering of a problem by an algorithm, with copies around it where arrays do not lie as it needs them.

    `inner` is the same problem on dense arrays if the caller wants that one computed; otherwise copies are made only
    where the algorithm refuses the strides of an array.
    """
    if problem.direction == "transposed" and inner in (None, problem):
        return by_stride_phases(
            problem,
            host,
            lambda part: around_copies(part, algorithm, host, threads, workspace, tunables),
            least=workspace == 0,
        )
    inner = inner or reachable(problem, algorithm) or problem
    if inner == problem:
        return algorithm.lower(problem, host, threads, workspace, tunables)
    p = problem
    image = ((p.batch, p.in_channels, *p.in_size), p.x_strides, inner.x_strides)
    shape = (p.batch, p.out_channels, *p.out_size)
    wanted = {
        "x": image,
        "residual": (shape, p.residual_strides, inner.residual_strides),
        "out": (shape, p.out_strides, inner.out_strides),
    }
    moved = {name: entry for name, entry in wanted.items() if entry[1] != entry[2]}
    buffers = tuple(Buffer(f"dense {name}", math.prod(entry[0]) * p.itemsize) for name, entry in moved.items())
    rest = None if workspace is None else max(0, workspace - arena_bytes(buffers))
    low = around_copies(inner, algorithm, host, threads, rest, tunables)
    before: list[Phase] = []
    after: list[Phase] = []
    for name, (shape, outside, inside) in moved.items():
        assert outside is not None and inside is not None
        if name == "out":
            roles = {"source": "dense out", "target": "out"}
            after.append(copy_phase(p, host, shape, inside, outside, roles))
        else:
            roles = {"source": name, "target": f"dense {name}"}
            before.append(copy_phase(p, host, shape, outside, inside, roles))
    names = {name: f"dense {name}" for name in moved}
    return replace(
        low,
        phases=(*before, *(phase.renamed(names) for phase in low.phases), *after),
        workspace=(*low.workspace, *buffers),
        steps=(
            *(f"copy {name} into a dense array" for name in moved if name != "out"),
            *low.steps,
            *(["copy the dense output to where it was asked for"] if "out" in moved else []),
        ),
    )


def copy_phase(
    problem: Problem,
    host: Host,
    shape: tuple[int, ...],
    source: tuple[int, ...],
    target: tuple[int, ...],
    roles: Mapping[str, str],
) -> Phase:
    """A phase that copies an array of a shape (N, C, *spatial) from one set of strides to another."""
    item = problem.itemsize
    fields = {"c_div": 1, "c_count": shape[1], "n_div": shape[1], "n_count": shape[0]}
    for letter, strides in (("s", source), ("t", target)):
        for axis, stride in zip(["n", "c", *range(problem.ndim)], strides, strict=True):
            fields[f"{letter}_{axis}"] = stride * item
    fields |= {f"size{d}": size for d, size in enumerate(shape[2:])}
    spec = CopySpec(host.target, problem.dtype, problem.ndim)
    return Phase("copy", spec, fields, shape[0] * shape[1], roles)
