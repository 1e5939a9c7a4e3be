"""`conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d` with the signatures of `torch.nn.functional`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from leanconv.errors import ArgumentTypeError
from leanconv.torch import functional
from leanconv.torch.maps import assembled, described
from leanconv.torch.operators import convolution_data
from leanconv.torch.options import LayerOptions, options


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    **settings: Any,
) -> Tensor:
    """One-dimensional transposed convolution; as `conv_transpose2d`, with input (N, C, L), weight (C, K/groups, S)."""
    given = (stride, padding, output_padding, groups, dilation)
    return _transpose(conv_transpose1d, 1, input, weight, bias, given, settings)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    **settings: Any,
) -> Tensor:
    """Two-dimensional transposed convolution, as `torch.nn.functional.conv_transpose2d`; no zeros are inserted.

    Args:
        input: (N, C, H, W), or (C, H, W) for a single image; as in `conv2d`.
        weight: (C, K/groups, R, S), with any strides.
        bias: (K,), or None.
        stride: an int, or one for each spatial axis.
        padding: what is cut off the output at both ends: an int; one for each axis; or (low, high) pairs.
        output_padding: what is added to the output at its end; smaller than stride or dilation.
        groups: groups of channels that do not mix.
        dilation: an int, or one for each spatial axis.
        **settings: as in `conv2d`, without pad_mode.

    Returns:
        The output in the input's memory format. Gradients of any order are recorded where PyTorch would record them.

    Raises:
        ArgumentTypeError: an argument of the wrong type; a tensor of another element type or device.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        NotApplicableError: the algorithm asked for cannot compute this; carries the reason.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    given = (stride, padding, output_padding, groups, dilation)
    return _transpose(conv_transpose2d, 2, input, weight, bias, given, settings)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    **settings: Any,
) -> Tensor:
    """Three-dimensional transposed convolution; as `conv_transpose2d`, with input (N, C, D, H, W)."""
    given = (stride, padding, output_padding, groups, dilation)
    return _transpose(conv_transpose3d, 3, input, weight, bias, given, settings)


FUNCTIONS = (conv_transpose1d, conv_transpose2d, conv_transpose3d)


def _transpose(
    function: Any, ndim: int, x: Any, weight: Any, bias: Any, given: tuple[Any, ...], settings: dict[str, Any]
) -> Tensor:
    residual = settings.get("residual") if settings else None
    if functional.overrides(x, weight, bias, residual):
        result: Tensor = handle_torch_function(
            function, (x, weight, bias, residual), x, weight, bias, *given, **settings
        )
        return result
    others = {name: value for name, value in settings.items() if name != "residual"}
    if torch.compiler.is_compiling():
        description, arguments = _constants(ndim, given, tuple(others.items()))

        def gradient(image: Tensor, size: Any) -> Tensor:
            found: Tensor = convolution_data(image, weight, size, *arguments)
            return found

        return assembled(gradient, description, x, weight.shape[2:], bias, residual)
    return functional.apply(transposed_options(ndim, *given, **others), x, weight, bias, residual)


def transposed_options(
    ndim: int, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any, **settings: Any
) -> LayerOptions:
    """The options of a transposed convolution."""
    if isinstance(padding, str):
        raise ArgumentTypeError("padding", padding, "must be numbers")
    return options(ndim, stride, padding, dilation, groups, None, output_padding=output_padding, **settings)


def _constants(ndim: int, given: tuple[Any, ...], settings: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """What a graph is to keep of the options."""
    chosen = transposed_options(ndim, *given, **dict(settings))
    return described(chosen), chosen.adjoint().arguments()


_constants._dynamo_marked_constant = True  # type: ignore[attr-defined] # see functional.py
