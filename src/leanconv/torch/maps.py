"""Convolution and its two gradients as PyTorch may differentiate, batch and trace them.

Convolution C(x, w), gradient of the image D(g, w) and gradient of the weights W(x, g) are bilinear, and the gradients
of each are the other two, so gradients of any order stay among them:

    C(x, w):  dx = D(dy, w)   dw = W(x, dy)
    D(g, w):  dg = C(dx, w)   dw = W(dx, g)
    W(x, g):  dx = D(g, dw)   dg = C(x, dw)

Each is an `autograd.Function` with rules for vmap (`batching.py`) and for forward mode. Where something traces, the
operators of `operators.py` stand in for them, with the same rules for gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from leanconv.torch import batching, engine, gradients, operators
from leanconv.torch.activations import by_name, slope, slope_from_output
from leanconv.torch.options import LayerOptions, from_arguments
from leanconv.torch.padding import fold, padded
from leanconv.torch.tensors import PLAIN, is_channels_last

_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state


def _observed(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher must see a call: a mode or a tracer is active, or a tensor has no memory to read."""
    return (
        torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _tracing() is not None
        or torch.is_autocast_enabled("cpu")
        or any(t is not None and (type(t) not in PLAIN or t.is_meta) for t in tensors)
    )


def _applied(function: Any, *args: Any) -> Tensor:
    transformed = _functorch_level() is not None
    result: Tensor = (function if transformed else _eager(function)).apply(*args)
    return result


@functools.cache
def _eager(function: Any) -> Any:
    """The same function in the older form, which functorch's transforms refuse and which costs 80 us less a call."""

    def forward(ctx: Any, *args: Any) -> Tensor:
        output: Tensor = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "setup_context": Function.setup_context, "vmap": Function.vmap}
    return type(function.__name__, (function,), members)


def convolve(options: LayerOptions, x: Tensor, weight: Tensor, bias: Any = None, residual: Any = None) -> Tensor:
    """C(x, w), with bias, residual and activation."""
    if _observed(x, weight, bias, residual):
        return operators.convolution(x, weight, bias, residual, *options.arguments())
    return _applied(_Convolution, x, weight, bias, residual, options)


def transpose(options: LayerOptions, x: Tensor, weight: Tensor, bias: Any = None, residual: Any = None) -> Tensor:
    """A transposed convolution, with bias, residual and activation."""
    adjoint = options.adjoint()

    def gradient(image: Tensor, size: Sequence[int]) -> Tensor:
        return image_gradient(adjoint, image, weight, size)

    return assembled(gradient, described(options), x, weight.shape[2:], bias, residual)


def described(options: LayerOptions) -> tuple[Any, ...]:
    """What `assembled` has to know of the options of a transposed convolution: numbers and texts only."""
    function = options.activation
    activation = ("", ()) if function is None else (function.name, function.params)
    return (
        *(options.stride, options.pads, options.dilation, options.output_padding),
        *(options.residual_order, *activation),
    )


def assembled(
    gradient: Callable[[Tensor, Sequence[int]], Tensor],
    description: tuple[Any, ...],
    x: Tensor,
    kernel: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """A transposed convolution as D(x, w) for images of its output's extents, and what is done to it afterwards."""
    stride, pads, dilation, more, order, activation, numbers = description
    ndim = len(stride)
    single = x.dim() == ndim + 1
    image = x.unsqueeze(0) if single else x
    reached, beyond = [], []
    for n, k, s, d, (low, high), extra in zip(image.shape[2:], kernel, stride, dilation, pads, more, strict=True):
        # What is added at the end takes back what padding cuts off there; beyond that there is nothing but bias.
        beyond.append((0, max(0, extra - high)))
        reached.append((n - 1) * s + d * (k - 1) + 1 - low - max(0, high - extra))
    y = padded(gradient(image, reached), beyond, "zeros")
    if bias is not None:
        y = y + bias.view(-1, *[1] * ndim)
    y = y.squeeze(0) if single else y
    if residual is not None and order == "before":
        y = y + residual
    if activation:
        y = by_name(activation, numbers, y)
    return y + residual if residual is not None and order == "after" else y


def image_gradient(options: LayerOptions, grad: Tensor, weight: Tensor, in_size: Sequence[int]) -> Tensor:
    """D(g, w), for images of extents `in_size`."""
    if _observed(grad, weight):
        return operators.convolution_data(grad, weight, in_size, *options.arguments())
    return _applied(_DataGradient, grad, weight, tuple(in_size), options)


def kernel_gradient(
    options: LayerOptions, x: Tensor, grad: Tensor, kernel: Sequence[int], last: bool = False
) -> Tensor:
    """W(x, g), for kernels of extents `kernel`; `last`: channels last, if nothing traces."""
    if _observed(x, grad):
        return operators.convolution_weights(x, grad, kernel, *options.arguments())
    return _applied(_WeightGradient, x, grad, tuple(kernel), options, last)


def _gradient_of(weight: Tensor, options: LayerOptions, x: Tensor, grad: Tensor) -> Tensor:
    """W(x, g) in the memory format of weights; in another one PyTorch would copy it."""
    return kernel_gradient(options, x, grad, weight.shape[2:], is_channels_last(tuple(weight.shape), weight.stride()))


# -- what the functions and the operators have in common -----------------------------------------------------


def _save_convolution(ctx: Any, options: LayerOptions, tensors: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual = tensors
    ctx.options = options
    # Where the activation's slope follows from its result, what went into it need not be computed again.
    by_output = slope_from_output(options.activation) and (residual is None or options.residual_order == "before")
    again = options.activation is not None and not by_output
    ctx.by_output, ctx.has = by_output, (bias is not None, residual is not None)
    ctx.save_for_backward(
        x,
        weight,
        bias if again else None,
        residual if again and options.residual_order == "before" else None,
        output if by_output and options.activation is not None else None,
    )


def _convolution_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, output = ctx.saved_tensors
    options = ctx.options
    plain = options.plain()
    inner = grad
    if options.activation is not None:
        if ctx.by_output:
            inner = grad * slope(options.activation, after=output)
        else:
            inner = grad * slope(options.activation, before=convolve(plain, x, weight, bias, residual))
    single = x.dim() == options.ndim + 1
    image, outer = (x.unsqueeze(0), inner.unsqueeze(0)) if single else (x, inner)
    dx = dw = db = dr = None
    if ctx.needs_input_grad[0]:
        dx = _through_pads(plain, outer, weight, image)
        dx = dx.squeeze(0) if single else dx
    if ctx.needs_input_grad[1]:
        around = image
        if plain.pad_mode != "zeros":
            around, plain = padded(image, plain.pads, plain.pad_mode), plain.unpadded()
        dw = _gradient_of(weight, plain, around, outer)
    if ctx.has[0] and ctx.needs_input_grad[2]:
        db = outer.sum((0, *range(2, outer.dim())))
    if ctx.has[1] and ctx.needs_input_grad[3]:
        dr = grad if options.residual_order == "after" else inner
    return dx, dw, db, dr


def _through_pads(options: LayerOptions, grad: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """The image's gradient for any mode of padding."""
    if options.pad_mode == "zeros":
        return image_gradient(options, grad, weight, image.shape[2:])
    sizes = [n + low + high for n, (low, high) in zip(image.shape[2:], options.pads, strict=True)]
    return fold(image_gradient(options.unpadded(), grad, weight, sizes), options.pads, options.pad_mode)


def _data_gradients(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    dg = convolve(ctx.options, dx, weight) if ctx.needs_input_grad[0] else None
    dw = _gradient_of(weight, ctx.options, dx, grad) if ctx.needs_input_grad[1] else None
    return dg, dw


def _weight_gradients(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors
    dx = image_gradient(ctx.options, grad, dw, x.shape[2:]) if ctx.needs_input_grad[0] else None
    dg = convolve(ctx.options, x, dw) if ctx.needs_input_grad[1] else None
    return dx, dg


# -- functions ----------------------------------------------------------------------------------------------


class _Convolution(Function):  # type: ignore[misc]
    """C(x, w), with bias, residual and activation."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Any, residual: Any, options: LayerOptions) -> Tensor:
        return engine.forward(options, x, weight, bias, residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_convolution(ctx, inputs[4], inputs[:4], output)
        ctx.save_for_forward(*inputs[:4], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*_convolution_gradients(ctx, grad), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight, bias, residual, output = ctx.saved_tensors
        options, plain = ctx.options, ctx.options.plain()
        dx, dw, db, dr, _ = tangents
        change = torch.zeros_like(output)
        if dx is not None:
            change = change + convolve(plain, dx, weight)
        if dw is not None:
            change = change + convolve(plain, x, dw)
        if db is not None:
            change = change + db.reshape(-1, *[1] * options.ndim)
        after = options.residual_order == "after"
        if dr is not None and not after:
            change = change + dr
        if options.activation is not None:
            before = convolve(plain, x, weight, bias, None if after else residual)
            change = change * slope(options.activation, before=before)
        return change + dr if dr is not None and after else change

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Any, residual: Any, options: Any) -> Any:
        return batching.convolution(convolve, info.batch_size, dims, x, weight, bias, residual, options)


class _DataGradient(Function):  # type: ignore[misc]
    """D(g, w)."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, in_size: tuple[int, ...], options: LayerOptions) -> Tensor:
        return gradients.data_gradient(options, grad, weight, in_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options, ctx.size = inputs[3], inputs[2]
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
        return (*_data_gradients(ctx, dx), None, None)

    @staticmethod
    def jvp(ctx: Any, dg: Any, dw: Any, *_: Any) -> Tensor | None:
        grad, weight = ctx.saved_tensors
        one = None if dg is None else image_gradient(ctx.options, dg, weight, ctx.size)
        two = None if dw is None else image_gradient(ctx.options, grad, dw, ctx.size)
        return two if one is None else one if two is None else one + two

    @staticmethod
    def vmap(info: Any, dims: Any, grad: Tensor, weight: Tensor, in_size: Any, options: Any) -> Any:
        return batching.data_gradient(image_gradient, info.batch_size, dims, grad, weight, in_size, options)


class _WeightGradient(Function):  # type: ignore[misc]
    """W(x, g)."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, kernel: tuple[int, ...], options: LayerOptions, last: bool) -> Tensor:
        return gradients.weight_gradient(options, x, grad, kernel, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options, ctx.kernel = inputs[3], inputs[2]
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
        return (*_weight_gradients(ctx, dw), None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dg: Any, *_: Any) -> Tensor | None:
        x, grad = ctx.saved_tensors
        one = None if dx is None else kernel_gradient(ctx.options, dx, grad, ctx.kernel)
        two = None if dg is None else kernel_gradient(ctx.options, x, dg, ctx.kernel)
        return two if one is None else one if two is None else one + two

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, grad: Tensor, kernel: Any, options: Any, last: bool) -> Any:
        return batching.weight_gradient(kernel_gradient, info.batch_size, dims, x, grad, kernel, options)


# -- operators ----------------------------------------------------------------------------------------------


def _for_operator(tensors: int, save: Any, backward: Any, operator: Any) -> None:
    """Give an operator the gradients of the function that it stands for."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, arguments = inputs[:tensors], inputs[-operators.COUNT :]
        ndim = len(arguments[0])
        ctx.rest = len(inputs) - tensors
        save(ctx, from_arguments(ndim, arguments), given, output)

    def gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*backward(ctx, grad), *([None] * ctx.rest))

    operator.register_autograd(gradient, setup_context=setup_context)


def _save_pair(ctx: Any, options: LayerOptions, tensors: tuple[Any, ...], _: Tensor) -> None:
    ctx.options = options
    ctx.save_for_backward(*tensors)


_for_operator(4, _save_convolution, _convolution_gradients, operators.convolution)
_for_operator(2, _save_pair, _data_gradients, operators.convolution_data)
_for_operator(2, _save_pair, _weight_gradients, operators.convolution_weights)
