"""Networks as PyTorch modules, with random weights: to measure with, to test with, to export.

The architectures are those of the papers, in the form that became usual (ResNet's stride on the 3x3 layer, VGG without
batch normalisation, GoogLeNet with it). Weights are drawn so that activations keep their size through the layers, and
batch-norm statistics are drawn too, so that folding them is put to the test. PyTorch is imported when a model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanconv.errors import ArgumentValueError


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = None) -> list[Any]:
    from torch import nn

    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([] if act is None else [act(inplace=True)])]


# -- ResNet: He et al., Deep Residual Learning for Image Recognition, 2015 ---------------------------------------


def _resnet(depths: Sequence[int], bottleneck: bool, classes: int, width: int) -> Any:
    from torch import nn

    expansion = 4 if bottleneck else 1

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            outputs = planes * expansion
            if bottleneck:
                layers = _conv_bn(inputs, planes, 1, act=nn.ReLU)
                layers += _conv_bn(planes, planes, 3, stride, act=nn.ReLU) + _conv_bn(planes, outputs, 1)
            else:
                layers = _conv_bn(inputs, planes, 3, stride, act=nn.ReLU) + _conv_bn(planes, outputs, 3)
            self.body = nn.Sequential(*layers)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, 1, stride))
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    layers = [*_conv_bn(3, width, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, depth in enumerate(depths):
        for i in range(depth):
            layers.append(Block(inputs, width << stage, 2 if stage and not i else 1))
            inputs = (width << stage) * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def resnet18(classes: int = 1000, width: int = 64) -> Any:
    """ResNet-18; `width` channels in the first stage."""
    return _initialised(_resnet((2, 2, 2, 2), False, classes, width))


def resnet50(classes: int = 1000, width: int = 64) -> Any:
    """ResNet-50."""
    return _initialised(_resnet((3, 4, 6, 3), True, classes, width))


# -- MobileNetV2: Sandler et al., Inverted Residuals and Linear Bottlenecks, 2018 -----------------------------------


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> Any:
    """MobileNetV2; all channels are multiplied by `width`."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            layers = _conv_bn(inputs, hidden, 1, act=nn.ReLU6) if expansion != 1 else []
            layers += _conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6) + _conv_bn(hidden, outputs, 1)
            self.body = nn.Sequential(*layers)
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.residual else self.body(x)

    def channels(n: int) -> int:
        return max(8, int(n * width + 4) // 8 * 8)

    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    inputs = channels(32)
    layers = _conv_bn(3, inputs, 3, 2, act=nn.ReLU6)
    for expansion, outputs, count, stride in table:
        for i in range(count):
            layers.append(Block(inputs, channels(outputs), 1 if i else stride, expansion))
            inputs = channels(outputs)
    last = max(1280, channels(1280)) if width >= 1 else channels(1280)
    layers += _conv_bn(inputs, last, 1, act=nn.ReLU6)
    return _initialised(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes))
    )


# -- SqueezeNet 1.1: Iandola et al., 2016 ----------------------------------------------------------------------------


def squeezenet(classes: int = 1000) -> Any:
    """SqueezeNet 1.1."""
    import torch
    from torch import nn

    class Fire(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
            super().__init__()
            self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeeze, 1), nn.ReLU(inplace=True))
            self.one = nn.Sequential(nn.Conv2d(squeeze, expand, 1), nn.ReLU(inplace=True))
            self.three = nn.Sequential(nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(inplace=True))

        def forward(self, x: Any) -> Any:
            y = self.squeeze(x)
            return torch.cat([self.one(y), self.three(y)], 1)

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return _initialised(
        nn.Sequential(
            *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), pool()),
            *(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
            *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
            *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
            *(nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(inplace=True)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
    )


# -- GoogLeNet: Szegedy et al., Going Deeper with Convolutions, 2014 -------------------------------------------------


def googlenet(classes: int = 1000) -> Any:
    """GoogLeNet with batch normalisation, without the auxiliary classifiers."""
    import torch
    from torch import nn

    class Inception(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, one: int, three: Sequence[int], five: Sequence[int], pool: int) -> None:
            super().__init__()
            relu = nn.ReLU
            self.one = nn.Sequential(*_conv_bn(inputs, one, 1, act=relu))
            self.three = nn.Sequential(
                *_conv_bn(inputs, three[0], 1, act=relu), *_conv_bn(three[0], three[1], 3, act=relu)
            )
            self.five = nn.Sequential(*_conv_bn(inputs, five[0], 1, act=relu), *_conv_bn(five[0], five[1], 5, act=relu))
            self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *_conv_bn(inputs, pool, 1, act=relu))

        def forward(self, x: Any) -> Any:
            return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return _initialised(
        nn.Sequential(
            *(*_conv_bn(3, 64, 7, 2, act=nn.ReLU), pool()),
            *(*_conv_bn(64, 64, 1, act=nn.ReLU), *_conv_bn(64, 192, 3, act=nn.ReLU), pool()),
            Inception(192, 64, (96, 128), (16, 32), 32),
            *(Inception(256, 128, (128, 192), (32, 96), 64), pool()),
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            *(Inception(528, 256, (160, 320), (32, 128), 128), pool()),
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, classes)),
        )
    )


# -- VGG-16: Simonyan and Zisserman, 2014 ----------------------------------------------------------------------------


def vgg16(classes: int = 1000, width: int = 64, hidden: int = 4096) -> Any:
    """VGG-16; `width` channels in the first stage, `hidden` units in the two layers before the last."""
    from torch import nn

    layers: list[Any] = []
    inputs = 3
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        outputs = width << min(stage, 3)
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    relu_drop: list[Callable[[], Any]] = [lambda: nn.ReLU(inplace=True), lambda: nn.Dropout(0.5)]
    head = [nn.Linear(inputs * 49, hidden), *(make() for make in relu_drop)]
    head += [nn.Linear(hidden, hidden), *(make() for make in relu_drop), nn.Linear(hidden, classes)]
    return _initialised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head))


# -- U-Net: Ronneberger et al., 2015, padded so that sizes stay ------------------------------------------------------


def unet(classes: int = 2, width: int = 64, inputs: int = 3, depth: int = 4) -> Any:
    """U-Net with padding and batch normalisation; up by transposed convolutions."""
    import torch
    from torch import nn

    def twice(before: int, after: int) -> Any:
        return nn.Sequential(*_conv_bn(before, after, 3, act=nn.ReLU), *_conv_bn(after, after, 3, act=nn.ReLU))

    class UNet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            sizes = [width << i for i in range(depth + 1)]
            self.down = nn.ModuleList(twice(a, b) for a, b in zip([inputs, *sizes], sizes, strict=False))
            self.pool = nn.MaxPool2d(2)
            self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in reversed(sizes[:-1]))
            self.merge = nn.ModuleList(twice(2 * n, n) for n in reversed(sizes[:-1]))
            self.last = nn.Conv2d(width, classes, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for i, block in enumerate(self.down):
                x = block(x if not i else self.pool(x))
                kept.append(x)
            for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
                x = merge(torch.cat([skip, up(x)], 1))
            return self.last(x)

    return _initialised(UNet())


# --------------------------------------------------------------------------------------------------------------------


def _initialised(model: Any) -> Any:
    """Weights and statistics drawn from PyTorch's generator; in evaluation mode."""
    import torch
    from torch import nn

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -0.1, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.2, 0.2)
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


MODELS: dict[str, tuple[Callable[..., Any], tuple[int, int, int]]] = {
    "resnet18": (resnet18, (3, 224, 224)),
    "resnet50": (resnet50, (3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (3, 224, 224)),
    "squeezenet": (squeezenet, (3, 224, 224)),
    "googlenet": (googlenet, (3, 224, 224)),
    "vgg16": (vgg16, (3, 224, 224)),
    "unet": (unet, (3, 256, 256)),
}
"""Name -> how it is made, and the (channels, height, width) of its usual image."""


def make_model(name: str, seed: int = 0, **options: Any) -> Any:
    """A network of `MODELS`, with the same weights for the same seed.

    Raises:
        ArgumentValueError: no network of that name.
    """
    import torch

    if name not in MODELS:
        raise ArgumentValueError("name", name, f"must be one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name][0](**options)
