"""`conv1d`, `conv2d`, `conv3d` with the signatures of `torch.nn.functional`, and what leanconv adds to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from leanconv.torch import engine
from leanconv.torch.engine import readable
from leanconv.torch.maps import convolve, transpose
from leanconv.torch.operators import convolution
from leanconv.torch.options import LayerOptions, options
from leanconv.torch.tensors import PLAIN, check_tensor, check_tensors, check_transposed

_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state


def _forward_level() -> int:
    level: int = torch.autograd.forward_ad._current_level
    return level


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **settings: Any,
) -> Tensor:
    """One-dimensional convolution; as `conv2d`, with input (N, C, L) and weight (K, C/groups, S)."""
    return _convolve(conv1d, 1, input, weight, bias, stride, padding, dilation, groups, settings)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **settings: Any,
) -> Tensor:
    """Two-dimensional convolution, as `torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W), or (C, H, W) for a single image; on the CPU, float32 or float64; contiguous, channels_last
            or with any other strides, read where it lies.
        weight: (K, C/groups, R, S), with any strides. It is packed at each call, as it may have changed; the modules
            (`leanconv.torch.Conv2d`) pack once.
        bias: (K,), or None.
        stride: an int, or one for each spatial axis.
        padding: an int; one for each axis; (low, high) pairs; "same" (stride 1 only) or "valid".
        dilation: an int, or one for each spatial axis.
        groups: groups of channels that do not mix.
        **settings: pad_mode ("zeros", "reflect", "replicate", "circular"), activation (a name, or ("clip", low, high),
            ("leaky_relu", slope)), residual (a tensor of the output's shape to be added), residual_order ("before" or
            "after" the activation), algorithm, accuracy, deterministic, choose, memory_limit and threads as in
            `leanconv.plan`.

    Returns:
        The output in the input's memory format. Gradients of any order are recorded where PyTorch would record them;
        the gradients' own computation keeps to algorithm and memory_limit where these apply to it.

    Raises:
        ArgumentTypeError: an argument of the wrong type; a tensor of another element type or device.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    return _convolve(conv2d, 2, input, weight, bias, stride, padding, dilation, groups, settings)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **settings: Any,
) -> Tensor:
    """Three-dimensional convolution; as `conv2d`, with input (N, C, D, H, W) and weight (K, C/groups, T, R, S)."""
    return _convolve(conv3d, 3, input, weight, bias, stride, padding, dilation, groups, settings)


def _convolve(
    function: Any,
    ndim: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    settings: dict[str, Any],
) -> Tensor:
    residual = settings.get("residual") if settings else None
    if overrides(x, weight, bias, residual):
        whole = (x, weight, bias, stride, padding, dilation, groups)
        return handle_torch_function(function, (x, weight, bias, residual), *whole, **settings)
    if settings:
        settings = {name: value for name, value in settings.items() if name != "residual"}
    kernel = None
    if type(padding) is str:
        check_tensor("weight", weight)
        kernel = tuple(weight.shape[2:])
        if len(kernel) != ndim:
            check_tensors(ndim, x, weight, bias, residual)
    given = (ndim, stride, padding, dilation, groups, kernel)
    if torch.compiler.is_compiling():
        return convolution(x, weight, bias, residual, *_arguments(given, tuple(settings.items())))
    return apply(options(*given, **settings), x, weight, bias, residual)


def _arguments(given: tuple[Any, ...], settings: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """The options as arguments of the operator."""
    return options(*given, **dict(settings)).arguments()


# Evaluated while a function is compiled, not traced: what `torch._dynamo.assume_constant_result` sets, without loading
# all of torch._dynamo when this package is imported (a second).
_arguments._dynamo_marked_constant = True  # type: ignore[attr-defined]


def apply(chosen: LayerOptions, x: Any, weight: Any, bias: Any, residual: Any) -> Tensor:
    """A layer on tensors: at once where nothing needs to know of it, else as PyTorch records it."""
    transposed = chosen.output_padding is not None
    if not plain(x, weight, bias, residual):
        check_tensors(chosen.ndim, x, weight, bias, residual, transposed)
    elif not recorded(x, weight, bias, residual) and unobserved():
        return engine.run(chosen, x, weight, bias, residual)
    if transposed:
        check_transposed(chosen, x, weight, bias, residual)
        return transpose(chosen, x, weight, bias, residual)
    return convolve(chosen, x, weight, bias, residual)


def plain(x: Any, weight: Any, bias: Any, residual: Any) -> bool:
    """Whether the engine may read all tensors where they are."""
    return (
        readable(x)
        and readable(weight)
        and (bias is None or readable(bias))
        and (residual is None or readable(residual))
    )


def recorded(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def unobserved() -> bool:
    """Whether no mode, transform or tracer is to see this call."""
    return (
        not _dispatch_modes()
        and _functorch_level() is None
        and _tracing() is None
        and _forward_level() < 0
        and not torch.is_autocast_enabled("cpu")
    )


def overrides(x: Any, weight: Any, bias: Any, residual: Any) -> bool:
    """Whether an argument is of a class that wants to handle the call itself, such as a tracer's stand-in."""
    return (
        type(x) not in PLAIN
        or type(weight) not in PLAIN
        or (bias is not None and type(bias) not in PLAIN)
        or (residual is not None and type(residual) not in PLAIN)
    ) and torch.overrides.has_torch_function((x, weight, bias, residual))
