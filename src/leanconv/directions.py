"""The directions of a convolution: what a problem is, from the arguments that plans of a direction take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import DTypeLike

from leanconv.backward.api import list_weight_algorithms, weights_problem
from leanconv.checks import one_of
from leanconv.options import make_problem
from leanconv.problem import Problem
from leanconv.select import AlgorithmInfo, list_algorithms
from leanconv.transposed_options import backward_data_of, make_transposed_problem

_MAKERS: dict[str, Callable[..., Problem]] = {
    "forward": make_problem,
    "transposed": make_transposed_problem,
    "backward_data": backward_data_of,
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
    return _MAKERS[direction](ndim, x_shape, w_shape, dtype=dtype, **options)


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
