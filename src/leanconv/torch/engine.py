"""From tensors to the native code and back, without a copy: what every door of this package goes through.

A call looks at shapes, strides and element types, finds the plan that was made for them, and runs it on the tensors'
addresses. Nothing here knows about gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError
from leanconv.options import make_problem
from leanconv.plan import Plan
from leanconv.planning.choice import choose
from leanconv.planning.limits import get_memory_limit
from leanconv.problem import Problem, to_canonical, to_user
from leanconv.torch.options import NO_LIMIT, LayerOptions
from leanconv.torch.tensors import DTYPES, PLAIN, STRIDED, check_tensors, dense_strides, is_channels_last
from leanconv.torch.threads import num_threads
from leanconv.transposed_options import make_transposed_problem

CALLS_KEPT = 256  # kinds of tensors that one set of options remembers
_ARGUMENTS = {"x_shape": "input", "x_strides": "input", "w_shape": "weight", "w_strides": "weight"}


class Call:
    """A plan for tensors of one kind, and how to make its output."""

    __slots__ = ("bias_shape", "out_full", "out_shape", "out_strides", "plan", "runner")

    def __init__(self, plan: Plan, out_shape: tuple[int, ...], out_strides: tuple[int, ...]) -> None:
        """`out_shape`, `out_strides`: of the output tensor, without the batch axis for a single image."""
        self.plan = plan
        self.out_shape, self.out_strides = out_shape, out_strides
        self.bias_shape = (plan.problem.out_channels,)
        self.out_full = 0 not in out_shape
        self.runner = plan.unbound_runner()

    def output(self, dtype: torch.dtype) -> Tensor:
        """A new tensor for the result."""
        return torch.empty_strided(self.out_shape, self.out_strides, dtype=dtype)


def limit_of(options: LayerOptions) -> int | None:
    """The bytes that a layer may take now."""
    limit = options.memory_limit
    if limit is None:
        return get_memory_limit()
    return None if limit == NO_LIMIT else limit


def readable(tensor: Any) -> bool:
    """Whether the engine may read a tensor's memory as it is."""
    return type(tensor) in PLAIN and tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_neg()


def forward(options: LayerOptions, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """A layer of any tensors in the CPU's memory; gradients are not recorded."""
    if all(tensor is None or readable(tensor) for tensor in (x, weight, bias, residual)):
        return run(options, x, weight, bias, residual)
    check_tensors(options.ndim, x, weight, bias, residual, options.output_padding is not None)
    return run(
        options,
        x.resolve_neg(),
        weight.resolve_neg(),
        None if bias is None else bias.resolve_neg(),
        None if residual is None else residual.resolve_neg(),
    )


def run(options: LayerOptions, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """A layer of tensors that are `readable`, weights packed for this call; gradients are not recorded."""
    threads = options.threads or num_threads()
    limit = limit_of(options)
    key = (
        x.dtype,
        x.shape,
        x.stride(),
        weight.dtype,
        weight.shape,
        weight.stride(),
        None if bias is None else (bias.dtype, bias.shape),
        None if residual is None else (residual.dtype, residual.shape, residual.stride()),
        threads,
        limit,
    )
    call = options.calls.get(key)
    if call is None:
        check_tensors(options.ndim, x, weight, bias, residual, options.output_padding is not None)
        problem = problem_of(options, x, weight, bias, residual)
        plan = plan_of(options, problem, threads, limit, bound=False)
        call = remember(options, key, Call(plan, *output_of(problem, x.dim() == options.ndim + 1)))
    out = call.output(x.dtype)
    if call.out_full:
        if bias is not None and bias.stride(0) != 1:
            bias = bias.contiguous()
        call.runner.run(
            x.data_ptr(),
            out.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
        )
    return out


def remember(options: LayerOptions, key: Any, call: Call) -> Call:
    """Keep a call for tensors of the same kind."""
    if len(options.calls) >= CALLS_KEPT:
        options.calls.clear()
    options.calls[key] = call
    return call


def plan_of(options: LayerOptions, problem: Problem, threads: int, limit: int | None, *, bound: bool) -> Plan:
    """The plan that the options choose for a problem."""
    return choose(
        problem,
        options.algorithm,
        threads,
        limit,
        bound=bound,
        accuracy=options.accuracy,
        deterministic=options.deterministic,
        how=options.choose,
    )


def problem_of(
    options: LayerOptions, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Problem:
    """What is to be computed for checked tensors.

    Raises:
        ArgumentError: shapes that do not fit, by the names that the tensors have here.
    """
    single = x.dim() == options.ndim + 1
    shape, strides = batched(x, single)
    last = is_channels_last(shape, strides) if options.channels_last is None else options.channels_last
    layout = "NHWC" if last else "NCHW"
    outputs = weight.shape[0] if options.output_padding is None else weight.shape[1] * options.groups
    out = (shape[0], outputs, *options.output_size(shape[2:], weight.shape[2:]))
    extra = None
    if residual is not None:
        extra_shape, extra_strides = batched(residual, residual.dim() == options.ndim + 1)
        if extra_shape != out and min(out) > 0:
            raise ArgumentValueError("residual", residual, f"must have the output's shape {out[1:] if single else out}")
        extra = to_user(extra_strides, layout)
    try:
        problem = (make_problem if options.output_padding is None else make_transposed_problem)(
            options.ndim,
            to_user(shape, layout),
            tuple(weight.shape),
            dtype=DTYPES[x.dtype],
            bias=bias is not None,
            stride=options.stride,
            padding=options.pads,
            dilation=options.dilation,
            groups=options.groups,
            layout=layout,
            **_only_of(options),
            activation=options.activation,
            residual=residual is not None,
            residual_order=options.residual_order,
            x_strides=to_user(strides, layout),
            w_strides=tuple(weight.stride()),
            residual_strides=extra,
        )
    except ArgumentError as error:
        raise _in_our_names(error, x, weight) from None
    if bias is not None and bias.shape != (problem.out_channels,):
        raise ArgumentValueError(
            "bias", bias, f"must have shape ({problem.out_channels},), one for each output channel"
        )
    return problem


def _only_of(options: LayerOptions) -> dict[str, Any]:
    """The option that only the one or the other kind of convolution has."""
    if options.output_padding is None:
        return {"pad_mode": options.pad_mode}
    return {"output_padding": options.output_padding}


def batched(tensor: Tensor, single: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides with a batch axis."""
    if not single:
        return tuple(tensor.shape), tuple(tensor.stride())
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    last = is_channels_last((1, *shape), (0, *strides))
    return (1, *shape), (dense_strides((1, *shape), last)[0], *strides)


def output_of(problem: Problem, single: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the output tensor of a problem."""
    shape = to_canonical(problem.out_shape, problem.layout)
    strides = problem.out_strides
    if 0 in shape or any(n == 1 for n in shape):  # strides that mean nothing, as PyTorch has them
        strides = dense_strides(shape, problem.layout == "NHWC")
    return (shape[1:], strides[1:]) if single else (shape, strides)


def _in_our_names(error: ArgumentError, x: Tensor, weight: Tensor) -> ArgumentError:
    """The same error about tensors as the caller knows them."""
    kind = ArgumentTypeError if isinstance(error, ArgumentTypeError) else ArgumentValueError
    name = _ARGUMENTS.get(error.argument, error.argument)
    value = {"input": x, "weight": weight}.get(name, error.value)
    rule = error.rule
    if error.argument == "w_shape" and "channels, has" in rule:
        rule += f"; input has {x.shape[-1 - (weight.dim() - 2)]} channels"
    return kind(name, value, rule)
