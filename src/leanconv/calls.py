"""What happens between a call of `conv2d` and the native code: arrays seen, a plan found, a program run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.arrays import (
    Array,
    address_of,
    as_array,
    check_bias,
    check_out,
    check_overlap,
    check_residual,
    check_same_dtype,
    element_strides,
)
from leanconv.checks import integer
from leanconv.errors import ArgumentValueError
from leanconv.keywords import CallOptions, refuse
from leanconv.locks import new_lock
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.outputs import new_output
from leanconv.plan import Plan
from leanconv.planning.choice import choose as choose_plan
from leanconv.planning.limits import get_memory_limit, resolve_limit
from leanconv.problem import Problem
from leanconv.registry import forget_with
from leanconv.threads import get_num_threads

_BATCH_LAST = ("CHWN", "CHWN8", "CWN", "CWN8")  # layouts in which an array without a batch would be another
CALLS_KEPT = 1024  # plans of recent calls; a plan without workspace takes about 10 KB


class _Call:
    """A plan and its unbound runner, as one kind of call needs them."""

    __slots__ = ("out_dtype", "out_shape", "plan", "runner")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.runner = plan.unbound_runner()
        self.out_shape = plan.problem.out_shape
        self.out_dtype = np.dtype(plan.problem.dtype)


_calls: dict[Any, _Call] = {}
_calls_lock = new_lock()
forget_with(_calls.clear)


def _hashable(value: Any) -> Any:
    """An option as part of a key: lists as tuples, and what equals an int but is none (True, 1.0) apart from it."""
    if type(value) is int or value is None or type(value) is str:
        return value
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else (type(value), value)


def convolve(
    ndim: int,
    x: Any,
    w: Any,
    bias: Any,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    make: Callable[..., Problem] = make_problem,
    more: tuple[tuple[str, Any], ...] = (),
    name: str = "x",
    /,
    *,
    layout: str = "NCHW",
    pad_mode: str = "zeros",
    activation: ActivationLike = None,
    residual: Any = None,
    residual_order: str = "before",
    algorithm: Any = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    choose: str = "model",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    out: Any = None,
    **unknown: Any,
) -> Any:
    """`conv1d`, `conv2d` and `conv3d`; the arguments are described there.

    Others that call a problem's program pass how it is made, the arguments (`more`) that only this takes, and what they
    call x (`name`).
    """
    if unknown:
        refuse(unknown, ("stride", "padding", "dilation", "groups", *CallOptions.__annotations__))
    image, restore = as_array(x, name)
    weights, _ = as_array(w, "w")
    shift = extra = result = None
    if bias is not None:
        shift, _ = as_array(bias, "bias")
    if residual is not None:
        extra, _ = as_array(residual, "residual")
    if out is not None:
        result, _ = as_array(out, "out")
    batch_last = isinstance(layout, str) and layout in _BATCH_LAST
    single = image.ndim == ndim + 1 and not batch_last  # no batch axis
    if single:
        image = image[None]
        extra = extra[None] if extra is not None and extra.ndim == image.ndim - 1 else extra
        result = result[None] if result is not None and result.ndim == image.ndim - 1 else result
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    key = (
        ndim,
        image.shape,
        image.strides,
        image.dtype,
        weights.shape,
        weights.strides,
        weights.dtype,
        shift is not None,
        None if extra is None else extra.strides,
        None if result is None else result.strides,
        _hashable(stride),
        _hashable(padding),
        _hashable(dilation),
        _hashable(groups),
        layout,
        pad_mode,
        _hashable(activation),
        residual_order,
        _hashable(algorithm),
        accuracy,
        _hashable(deterministic),
        choose,
        get_memory_limit() if memory_limit is None else _hashable(memory_limit),
        count,
        *((key, _hashable(value)) for key, value in more),
    )
    try:
        call = _calls.get(key)
    except TypeError:  # an argument that cannot be hashed is one that the checks will refuse
        call = None
    if call is None:
        check_same_dtype(image, w=weights, bias=shift, residual=extra, out=result)
        problem = make(
            ndim,
            image.shape,
            weights.shape,
            dtype=image.dtype,
            bias=shift is not None,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            layout=layout,
            pad_mode=pad_mode,
            activation=activation,
            residual=extra is not None,
            residual_order=residual_order,
            x_strides=element_strides(image),
            w_strides=element_strides(weights),
            out_strides=_strides_of("out", result, image.ndim),
            residual_strides=_strides_of("residual", extra, image.ndim),
            **dict(more),
        )
        _check_arrays(problem, shift, extra, result)
        plan = choose_plan(
            problem,
            algorithm,
            count,
            resolve_limit(memory_limit),
            bound=False,
            accuracy=accuracy,
            deterministic=deterministic,
            how=choose,
        )
        call = _Call(plan)
        with _calls_lock, contextlib.suppress(TypeError):  # a function that cannot be hashed is asked at every call
            if len(_calls) >= CALLS_KEPT:
                for old in list(_calls)[: CALLS_KEPT // 4]:
                    del _calls[old]
            _calls[key] = call
    else:
        _check_arrays(call.plan.problem, shift, extra, result)
    if result is None:
        target = new_output(call.out_shape, call.out_dtype)
    else:
        target = result
        check_overlap(target, image, weights, shift, extra)
    if target.size:
        if shift is not None and not shift.flags.c_contiguous:
            shift = np.ascontiguousarray(shift)
        call.runner.run(
            address_of(image),
            address_of(target),
            0 if extra is None else address_of(extra),
            address_of(weights),
            0 if shift is None else address_of(shift),
        )
    if out is not None:
        return out
    return restore(target[0] if single else target)


def _strides_of(argument: str, array: Array | None, ndim: int) -> tuple[int, ...] | None:
    if array is None:
        return None
    if array.ndim != ndim:
        raise ArgumentValueError(argument, array, f"must have {ndim} axes, as x has")
    return element_strides(array)


def _check_arrays(problem: Problem, bias: Array | None, residual: Array | None, out: Array | None) -> None:
    if bias is not None:
        check_bias(bias, problem)
    if residual is not None:
        check_residual(residual, problem)
    if out is not None:
        check_out(out, problem)
