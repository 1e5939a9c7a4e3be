"""Functions about plans: why a plan, and the plans of a network under one limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from numpy.typing import DTypeLike

from leanconv.api import spatial_axes
from leanconv.backward.api import weights_problem
from leanconv.backward.explain import explain_gradient
from leanconv.checks import flag, integer
from leanconv.directions import problem_of
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.keywords import AnyProblemOptions, takes
from leanconv.plan import Plan
from leanconv.planning.explain import Explanation, explain_problem
from leanconv.planning.frontier import Frontier
from leanconv.planning.limits import resolve_limit
from leanconv.planning.network import NetworkPlan, frontier, plan_layers
from leanconv.planning.wanted import AlgorithmLike
from leanconv.problem import Problem
from leanconv.threads import get_num_threads


@takes(AnyProblemOptions, residual=False)
def explain(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    direction: str = "forward",
    dtype: DTypeLike = "float32",
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    choose: str = "model",
    measure: bool = False,
    budget: float = 1.0,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    **options: Unpack[AnyProblemOptions],
) -> Explanation:
    """Say why `plan` chooses what it chooses: data, and as text when printed.

    Args:
        x_shape: as in `plan`; so are w_shape, dtype, algorithm, accuracy, deterministic, choose, memory_limit, threads
            and the further options that describe the problem.
        w_shape: see there.
        direction: "forward", "transposed" (shapes and options as in `plan_transpose`), "backward_data" (as in
            `plan_backward_data`) or "backward_weights" (as in `plan_backward_weights`, which has neither deterministic
            nor choose: the model decides).
        dtype: see there.
        algorithm: see there.
        accuracy: see there.
        deterministic: see there.
        choose: see there.
        measure: whether to time every algorithm that may run and fits; what was measured before is shown anyway.
        budget: seconds for measuring.
        memory_limit: see there.
        threads: see there.
        **options: bias, stride, padding, dilation, groups, layout, pad_mode, activation, residual, residual_order.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    if direction == "backward_weights":
        gradient = weights_problem(spatial_axes(x_shape, options.get("layout")), x_shape, w_shape, dtype, options)
        limit = resolve_limit(memory_limit)
        return explain_gradient(gradient, algorithm, count, limit, accuracy=accuracy, measure=measure, budget=budget)
    problem = problem_of(direction, spatial_axes(x_shape, options.get("layout")), x_shape, w_shape, dtype, options)
    return explain_problem(
        problem,
        algorithm,
        count,
        resolve_limit(memory_limit),
        accuracy=accuracy,
        deterministic=deterministic,
        how=choose,
        measure=measure,
        budget=budget,
    )


def plan_network(
    layers: Sequence[Plan | Problem],
    *,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    chain: bool = False,
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    leaner: float = 0.0,
) -> NetworkPlan:
    """Plan the layers of a network together, under one limit.

    Args:
        layers: problems, or plans whose problems count.
        memory_limit: most bytes of one workspace that all layers share, and of packed weights of all layers beyond the
            size of the plain ones.
        threads: most threads a layer uses; `get_num_threads()` if None.
        chain: whether each layer reads what the one before wrote: then the layout of every tensor but the first is
            chosen too, and conversions are counted.
        algorithm: as in `plan`; so are accuracy and deterministic.
        accuracy: see there.
        deterministic: see there.
        leaner: without a limit, the part of the shortest time predicted by which the network may take longer if that
            saves packed weights.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed.
        MemoryLimitError: no plans fit the limit; says the least that would do.
    """
    if not isinstance(leaner, int | float) or isinstance(leaner, bool):
        raise ArgumentTypeError("leaner", leaner, "must be a number")
    if not 0 <= leaner <= 1:
        raise ArgumentValueError("leaner", leaner, "must be from 0 to 1")
    return plan_layers(
        _layers(layers),
        get_num_threads() if threads is None else integer("threads", threads, 1),
        resolve_limit(memory_limit),
        chain=flag("chain", chain),
        algorithm=algorithm,
        accuracy=accuracy,
        deterministic=deterministic,
        leaner=leaner,
    )


def network_frontier(layers: Sequence[Plan | Problem], *, threads: int | None = None, chain: bool = False) -> Frontier:
    """Time of a network against its memory: a list of (bytes, predicted seconds), fewest bytes first.

    It prints as a table, and its method `plot(path)` draws it.

    Args:
        layers: as in `plan_network`; so are threads and chain.
        threads: see there.
        chain: see there.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed.
    """
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    return frontier(_layers(layers), count, chain=flag("chain", chain))


def _layers(layers: Sequence[Plan | Problem]) -> list[tuple[str, Problem]]:
    """Numbered problems."""
    if not isinstance(layers, tuple | list) or not all(isinstance(layer, Plan | Problem) for layer in layers):
        raise ArgumentTypeError("layers", layers, "must be a list of problems or plans")
    return [
        (f"{number} {problem.describe()}", problem)
        for number, problem in enumerate((e.problem if isinstance(e, Plan) else e for e in layers), 1)
    ]
