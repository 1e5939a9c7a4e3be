"""PyTorch's modules as operators of a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from leanconv.torch import lowered_functions as f
from leanconv.torch import lowered_layers as layers
from leanconv.torch import lowered_shapes as shapes
from leanconv.torch.lowering import Builder, Handler, NotLoweredError, Value
from leanconv.torch.modules import REPLACEMENTS


def _convolution(builder: Builder, x: Value, *, module: Any) -> Value:
    if getattr(module, "activation", None) is not None:
        raise NotLoweredError(f"{builder.here}: an activation of its own")
    if module.transposed:
        geometry = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        return layers.transposed(builder, x, module.weight, module.bias, *geometry)
    geometry = (module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return layers.convolution(builder, x, module.weight, module.bias, *geometry)


def _norm(builder: Builder, x: Value, *, module: Any) -> Value:
    numbers = (module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps)
    return layers.batch_norm(builder, x, *numbers)


def _called(handler: Handler, *names: str) -> Callable[..., Any]:
    """A handler of a function, given these attributes of the module by name."""

    def handle(builder: Builder, x: Value, *, module: Any) -> Any:
        return handler(builder, x, **{name: getattr(module, name) for name in names})

    return handle


def _upsampled(builder: Builder, x: Value, *, module: Any) -> Value:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return layers.interpolate(builder, x, **{name: getattr(module, name) for name in names})


_window = ("kernel_size", "stride", "padding", "ceil_mode")
MODULES: dict[type, Callable[..., Any]] = {
    **dict.fromkeys((*REPLACEMENTS, *REPLACEMENTS.values()), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    nn.Linear: _called(layers.linear, "weight", "bias"),
    nn.ReLU: _called(f.FUNCTIONS[nn.functional.relu]),
    nn.ReLU6: _called(f.FUNCTIONS[nn.functional.relu6]),
    nn.Hardtanh: _called(f.hardtanh, "min_val", "max_val"),
    nn.LeakyReLU: _called(f.leaky_relu, "negative_slope"),
    nn.ELU: _called(f.elu, "alpha"),
    nn.GELU: _called(f.gelu, "approximate"),
    nn.SiLU: _called(f.FUNCTIONS[nn.functional.silu]),
    nn.Mish: _called(f.FUNCTIONS[nn.functional.mish]),
    nn.Hardswish: _called(f.FUNCTIONS[nn.functional.hardswish]),
    nn.Hardsigmoid: _called(f.FUNCTIONS[nn.functional.hardsigmoid]),
    nn.Sigmoid: _called(f.FUNCTIONS[nn.functional.sigmoid]),
    nn.Tanh: _called(f.FUNCTIONS[nn.functional.tanh]),
    nn.PReLU: _called(f.prelu, "weight"),
    nn.Softmax: _called(f.softmax, "dim"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _called(f.same)),
    nn.Flatten: _called(shapes.flatten, "start_dim", "end_dim"),
    **{
        module: _called(layers.max_pool(n), *_window, "dilation", "return_indices")
        for n, module in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), 1)
    },
    nn.AvgPool1d: _called(layers.average_pool(1), *_window, "count_include_pad"),
    nn.AvgPool2d: _called(layers.average_pool(2), *_window, "count_include_pad", "divisor_override"),
    nn.AvgPool3d: _called(layers.average_pool(3), *_window, "count_include_pad", "divisor_override"),
    **{
        module: _called(layers.adaptive_pool(n, "AveragePool", "GlobalAveragePool"), "output_size")
        for n, module in enumerate((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), 1)
    },
    **{
        module: _called(layers.adaptive_pool(n, "MaxPool", "GlobalMaxPool"), "output_size", "return_indices")
        for n, module in enumerate((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), 1)
    },
    nn.PixelShuffle: _called(shapes.pixel_shuffle, "upscale_factor"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _upsampled),
}


def handler(module: nn.Module) -> Handler | None:
    """What adds the nodes of a module; None if there are none. Only the very classes count: a subclass may differ."""
    found = MODULES.get(type(module))
    return None if found is None else partial(found, module=module)
