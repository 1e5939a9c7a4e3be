"""Gradients of a convolution with respect to its image and its weights, by the engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.backward import conv1d_backward_weights, conv2d_backward_weights, conv3d_backward_weights
from leanconv.backward.registry import WEIGHTS
from leanconv.errors import ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.planning.limits import UNLIMITED
from leanconv.problem import to_user
from leanconv.torch import engine
from leanconv.torch.options import LayerOptions
from leanconv.torch.tensors import DTYPES, as_array, check_tensor, dense_strides, is_channels_last
from leanconv.torch.threads import num_threads
from leanconv.transposed_options import make_backward_data_problem

_WEIGHTS = (conv1d_backward_weights, conv2d_backward_weights, conv3d_backward_weights)


def data_gradient(options: LayerOptions, grad: Tensor, weight: Tensor, in_size: Sequence[int]) -> Tensor:
    """The gradient with respect to an image of extents `in_size`, padded by zeros; in the gradient's memory format.

    It is a transposed convolution. The algorithm asked for computes it where it can, else the fastest that can.

    Raises:
        ArgumentTypeError: a tensor that the engine does not read.
        ArgumentValueError: shapes that do not fit.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    check_tensor("grad", grad)
    check_tensor("weight", weight)
    grad, weight = grad.resolve_neg(), weight.resolve_neg()
    size = tuple(in_size)
    threads, limit = options.threads or num_threads(), engine.limit_of(options)
    key: Any = (
        *("data", grad.dtype, grad.shape, grad.stride(), weight.dtype, weight.shape, weight.stride()),
        *(size, threads, limit),
    )
    call = options.calls.get(key)
    if call is None:
        last = is_channels_last(tuple(grad.shape), tuple(grad.stride()))
        layout = "NHWC" if last else "NCHW"
        image = (grad.shape[0], weight.shape[1] * options.groups, *size)
        problem = make_backward_data_problem(
            options.ndim,
            to_user(tuple(grad.shape), layout),
            tuple(weight.shape),
            x_shape=to_user(image, layout),
            dtype=DTYPES[grad.dtype],
            stride=options.stride,
            padding=options.pads,
            dilation=options.dilation,
            groups=options.groups,
            layout=layout,
            x_strides=to_user(tuple(grad.stride()), layout),
            w_strides=tuple(weight.stride()),
        )
        if grad.dtype != weight.dtype:
            raise ArgumentValueError("weight", weight, f"must have the element type of grad, {grad.dtype}")
        try:
            plan = engine.plan_of(options, problem, threads, limit, bound=False)
        except NotApplicableError:
            plan = engine.plan_of(options.with_(algorithm="auto"), problem, threads, limit, bound=False)
        call = engine.remember(options, key, engine.Call(plan, *engine.output_of(problem, False)))
    out = call.output(grad.dtype)
    if call.out_full:
        call.runner.run(grad.data_ptr(), out.data_ptr(), 0, weight.data_ptr(), 0)
    return out


def weight_gradient(
    options: LayerOptions, x: Tensor, grad: Tensor, kernel: Sequence[int], last: bool = False
) -> Tensor:
    """The gradient with respect to weights of extents `kernel`; its bits do not depend on the number of threads.

    The algorithm asked for computes it where there is one of that name and it can within the limit, else the fastest
    that can.

    `last`: whether it is to be channels last.

    Raises:
        ArgumentTypeError: a tensor that the engine does not read.
        ArgumentValueError: shapes that do not fit.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    check_tensor("input", x)
    check_tensor("grad", grad)
    shape = (grad.shape[1], x.shape[1] // options.groups, *kernel)
    out = torch.empty_strided(shape, dense_strides(shape, last), dtype=x.dtype)
    if not x.numel() or not grad.numel():
        return out.zero_()
    layout = "NHWC" if is_channels_last(tuple(x.shape), tuple(x.stride())) else "NCHW"
    order = to_user(range(x.dim()), layout)
    limit = engine.limit_of(options)
    algorithm = _algorithm_for_weights(options.algorithm)
    arguments: dict[str, Any] = {
        "layout": layout,
        "accuracy": "exact" if options.deterministic else options.accuracy,
        "memory_limit": UNLIMITED if limit is None else limit,
        "threads": options.threads or num_threads(),
        "out": as_array(out),
    }
    call = functools.partial(
        _WEIGHTS[options.ndim - 1],
        as_array(x).transpose(order),
        as_array(grad).transpose(order),
        shape,
        options.stride,
        options.pads,
        options.dilation,
        options.groups,
        **arguments,
    )
    try:
        call(algorithm=algorithm)
    except (MemoryLimitError, NotApplicableError):
        call()
    return out


@functools.lru_cache
def _algorithm_for_weights(asked: Any) -> str | tuple[str, ...]:
    """What was asked for, as far as there are such algorithms for gradients with respect to weights; else "auto"."""
    if callable(asked):
        return "auto"
    words = (asked,) if isinstance(asked, str) else tuple(asked)
    known = [entry.name for entry in WEIGHTS]
    kept = tuple(
        word
        for word in words
        if word in ("auto", *known)
        or (word[:1] == "!" and any(f"{name}_".startswith(f"{word[1:]}_") for name in known))
    )
    return kept[0] if len(kept) == 1 else kept or "auto"
