"""Gradients with respect to weights, as users call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from numpy.typing import DTypeLike

from leanconv.arrays import as_array, check_same_dtype, element_strides
from leanconv.backward.choice import choose_gradient
from leanconv.backward.plan import BackwardWeightsPlan, result_array
from leanconv.backward.registry import WEIGHTS
from leanconv.checks import canonical_strides, flag, integer
from leanconv.classes import replace
from leanconv.errors import ArgumentValueError
from leanconv.keywords import ProblemOptions, WeightOptions, refuse, takes
from leanconv.locks import new_lock
from leanconv.options import Ints, Padding, make_problem
from leanconv.planning.limits import get_memory_limit, resolve_limit
from leanconv.planning.wanted import AlgorithmLike
from leanconv.problem import Problem, to_canonical
from leanconv.select import AlgorithmInfo
from leanconv.threads import get_num_threads
from leanconv.transposed_options import one_image_layout

KEPT = 512  # plans of recent calls
_plans: dict[Any, BackwardWeightsPlan] = {}
_lock = new_lock()
_DESCRIBING = ProblemOptions.__annotations__.keys() - {"activation", "residual", "residual_order"}


@takes(WeightOptions)
def conv1d_backward_weights(
    x: Any,
    grad_out: Any,
    w_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[WeightOptions],
) -> Any:
    """Gradient of `conv1d` with respect to its weights; as `conv2d_backward_weights`."""
    return _gradient(1, x, grad_out, w_shape, stride, padding, dilation, groups, **options)


@takes(WeightOptions)
def conv2d_backward_weights(
    x: Any,
    grad_out: Any,
    w_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[WeightOptions],
) -> Any:
    """Gradient of `conv2d` with respect to its weights (and its bias).

    Args:
        x: the image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; any strides.
        grad_out: gradient of the output, (N, K, P, Q) or (N, P, Q, K); any strides, broadcast ones too.
        w_shape: (K, C/groups, R, S), of the weights and of the result.
        stride: that of the convolution; so are padding ("same" and pairs too), dilation and groups.
        padding: see there.
        dilation: see there.
        groups: see there.
        **options: layout; bias (whether to return the gradient of the bias too); algorithm ("auto", a name, several, or
            exclusions such as "!winograd"); accuracy ("exact": plain sums only, "standard", or "fast"); memory_limit
            (bytes, or "256KiB": most that the workspace may take); threads; out and bias_out (arrays for the results).

    Returns:
        The gradient, of `w_shape`, in the kind of array that x is (`out` if given); with bias=True a pair of it and the
        gradient of the bias, (K,). Its bits do not depend on the number of threads.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
        AllocationError: no memory for workspace or result.
    """
    return _gradient(2, x, grad_out, w_shape, stride, padding, dilation, groups, **options)


@takes(WeightOptions)
def conv3d_backward_weights(
    x: Any,
    grad_out: Any,
    w_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    **options: Unpack[WeightOptions],
) -> Any:
    """Gradient of `conv3d` with respect to its weights; as `conv2d_backward_weights`."""
    return _gradient(3, x, grad_out, w_shape, stride, padding, dilation, groups, **options)


@takes(ProblemOptions, without=("activation", "residual", "residual_order"))
def plan_backward_weights(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: DTypeLike = "float32",
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    **options: Unpack[ProblemOptions],
) -> BackwardWeightsPlan:
    """Decide how the gradient of a convolution with respect to its weights will be computed, for dense arrays.

    Args:
        x_shape: shape of the image; 1, 2 or 3 spatial axes.
        w_shape: (K, C/groups, *kernel).
        dtype: "float32" or "float64".
        algorithm: "auto", a name, several, or exclusions such as "!winograd".
        accuracy: "exact" (plain sums only), "standard" (error bounds of at most four times theirs) or "fast".
        memory_limit: most bytes of workspace.
        threads: most threads a call uses; `get_num_threads()` if None.
        **options: of the convolution: stride, padding, dilation, groups, layout, and bias for the gradient of the bias
            too.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    if not isinstance(x_shape, tuple | list) or not 3 <= len(x_shape) <= 5:
        raise ArgumentValueError("x_shape", x_shape, "must have a batch, a channel and 1 to 3 spatial axes")
    problem = weights_problem(len(x_shape) - 2, x_shape, w_shape, dtype, options)
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    return choose_gradient(problem, algorithm, count, resolve_limit(memory_limit), accuracy)


def weights_problem(
    ndim: int, x_shape: Sequence[int], w_shape: Sequence[int], dtype: DTypeLike, options: Mapping[str, Any]
) -> Problem:
    """The problem for dense arrays."""
    if not options.keys() <= _DESCRIBING:
        refuse(options, _DESCRIBING)
    one_image_layout(options.get("layout", "NCHW"), ndim)
    return replace(make_problem(ndim, x_shape, w_shape, dtype=dtype, **options), direction="backward_weights")


def list_weight_algorithms(problem: Problem, threads: int) -> list[AlgorithmInfo]:
    """One entry for each algorithm for gradients with respect to weights."""
    result = []
    for entry in WEIGHTS:
        reason = entry.refusal(problem)
        plan = None if reason else BackwardWeightsPlan(problem, entry, threads)
        result.append(
            AlgorithmInfo(
                name=entry.name,
                applies=plan is not None,
                reason=reason,
                workspace_bytes=plan.workspace_bytes if plan else None,
                packed_weight_bytes=0 if plan else None,
                title=entry.title,
                paper=entry.paper,
                error_class=entry.error_class,
                error_bound=plan.error_bound if plan else None,
            )
        )
    return result


def _gradient(
    ndim: int,
    x: Any,
    grad_out: Any,
    w_shape: Sequence[int],
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    *,
    layout: str = "NCHW",
    bias: bool = False,
    algorithm: AlgorithmLike = "auto",
    accuracy: str = "standard",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    out: Any = None,
    bias_out: Any = None,
    **unknown: Any,
) -> Any:
    if unknown:
        refuse(unknown, ("stride", "padding", "dilation", "groups", *WeightOptions.__annotations__))
    image, restore = as_array(x, "x")
    grad, _ = as_array(grad_out, "grad_out")
    if image.ndim == grad.ndim == ndim + 1:  # one image, without a batch axis
        image, grad = image[None], grad[None]
    result = None if out is None else as_array(out, "out")[0]
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    limit = get_memory_limit() if memory_limit is None else resolve_limit(memory_limit)
    wants_bias = flag("bias", bias)
    check_same_dtype(image, grad_out=grad, out=result)
    arrays = (
        image.shape,
        image.strides,
        image.dtype,
        grad.shape,
        grad.strides,
        result.strides if result is not None else None,
    )
    key = (
        ndim,
        arrays,
        tuple(w_shape),
        repr((stride, padding, dilation, groups, layout, algorithm, accuracy)),
        wants_bias,
        limit,
        count,
    )
    plan = _plans.get(key)
    if plan is None:
        options = {"bias": wants_bias, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        problem = weights_problem(ndim, image.shape, w_shape, image.dtype, {**options, "layout": layout})
        if grad.shape != problem.out_shape:
            raise ArgumentValueError("grad_out", grad, f"must have shape {problem.out_shape}")
        if result is not None and result.shape != problem.w_shape:
            raise ArgumentValueError("out", result, f"must have shape {problem.w_shape}")
        y = to_canonical(problem.out_shape, problem.layout)
        x_canonical = to_canonical(problem.x_shape, problem.layout)
        problem = replace(
            problem,
            x_strides=canonical_strides("x", element_strides(image), x_canonical, problem.layout),
            out_strides=canonical_strides("grad_out", element_strides(grad), y, problem.layout),
            w_strides=problem.w_strides
            if result is None
            else canonical_strides("out", element_strides(result), problem.w_shape, "NCHW", written=True),
        )
        plan = choose_gradient(problem, algorithm, count, limit, accuracy)
        with _lock:
            if len(_plans) >= KEPT:
                _plans.clear()
            _plans[key] = plan
    problem = plan.problem
    target = result_array("out", result, problem.w_shape, problem)
    if bias_out is not None and not wants_bias:
        raise ArgumentValueError("bias_out", bias_out, "must be None without bias=True")
    shift = result_array("bias_out", bias_out, (problem.out_channels,), problem) if wants_bias else None
    plan.run(image, grad, target, shift)
    weights = restore(target) if out is None else out
    if shift is None:
        return weights
    return weights, restore(shift) if bias_out is None else bias_out
