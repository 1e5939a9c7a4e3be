"""The directions of a convolution: what a problem is, from the arguments that plans of a direction take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.backward.api import list_weight_algorithms, weights_problem
from leanconv.checks import one_of
from leanconv.keywords import AnyProblemOptions, ProblemOptions, refuse
from leanconv.options import make_problem
from leanconv.problem import Problem
from leanconv.select import AlgorithmInfo, list_algorithms
from leanconv.transposed_options import backward_data_of, make_transposed_problem

_MAKERS: dict[str, tuple[Callable[..., Problem], type]] = {
    "forward": (make_problem, ProblemOptions),
    "transposed": (make_transposed_problem, AnyProblemOptions),
    "backward_data": (backward_data_of, ProblemOptions),
}


def problem_of(
    direction: str,
    ndim: int,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    dtype: DTypeLike,
    options: Mapping[str, Any],
) -> Problem:
    """The problem of a direction, from what `plan`, `plan_transpose` or `plan_backward_data` take.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
    """
    one_of("direction", direction, tuple(_MAKERS))
    make, known = _MAKERS[direction]
    if not options.keys() <= known.__annotations__.keys():
        refuse(options, known.__annotations__)
    return make(ndim, x_shape, w_shape, dtype=dtype, **options)


def algorithms_of(
    direction: str,
    ndim: int,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    dtype: DTypeLike,
    options: Mapping[str, Any],
    threads: int,
) -> list[AlgorithmInfo]:
    """What each algorithm for a direction says of a problem; those for weights' gradients too.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
    """
    one_of("direction", direction, (*_MAKERS, "backward_weights"))
    if direction == "backward_weights":
        return list_weight_algorithms(weights_problem(ndim, x_shape, w_shape, dtype, options), threads)
    return list_algorithms(problem_of(direction, ndim, x_shape, w_shape, dtype, options), threads)
