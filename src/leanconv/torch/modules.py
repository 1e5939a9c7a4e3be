"""`Conv1d` to `Conv3d` and `ConvTranspose1d` to `ConvTranspose3d`: PyTorch's modules, computed by leanconv.

Parameters, `state_dict`, hooks, padding modes and everything else are PyTorch's; only what runs is not. In evaluation
mode without gradients weights are packed once, and again when they have changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import ArgumentValueError
from leanconv.options import ActivationLike
from leanconv.torch import functional, transposed
from leanconv.torch.options import LayerOptions, options
from leanconv.torch.packed import PackedWeights

SETTINGS: dict[str, Any] = {
    "activation": None,
    "algorithm": "auto",
    "accuracy": "standard",
    "deterministic": False,
    "choose": "model",
    "memory_limit": None,
    "threads": None,
}


class _Lean:
    """What the modules have in common; stands before PyTorch's class among the bases.

    The settings are attributes of each module, which may be changed at any time.
    """

    activation: ActivationLike
    algorithm: Any
    accuracy: str
    deterministic: bool
    choose: str
    memory_limit: int | str | None
    threads: int | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """PyTorch's arguments, and as keywords: activation, algorithm, accuracy and others as in `leanconv.plan`."""
        settings = {name: kwargs.pop(name, default) for name, default in SETTINGS.items()}
        super().__init__(*args, **kwargs)
        for name, value in settings.items():
            setattr(self, name, value)
        self.options()

    def options(self, output_padding: Any = None) -> LayerOptions:
        """The module's options, checked; with `output_padding` those of a transposed one.

        Raises:
            ArgumentTypeError: an attribute of the wrong type.
            ArgumentValueError: a value that is not allowed.
        """
        me: Any = self
        return options(
            len(me.kernel_size),
            me.stride,
            me.padding,
            me.dilation,
            me.groups,
            me.kernel_size,
            me.padding_mode,
            me.activation,
            "before",
            me.algorithm,
            me.accuracy,
            me.deterministic,
            me.choose,
            me.memory_limit,
            me.threads,
            None,
            output_padding,
        )

    def repack(self) -> None:
        """Pack weights again at the next call.

        Changes are seen without this, but for those of single elements made behind PyTorch's back, through `.data` or
        a NumPy view.
        """
        self.__dict__.pop("_packed", None)

    def train(self, mode: bool = True) -> Any:
        """As PyTorch's; packed weights are freed."""
        if mode:
            self.repack()
        return super().train(mode)  # type: ignore[misc]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling() or functional.overrides(input, weight, bias, None):
            return self._as_function(input, weight, bias)
        return self._run(self.options(), input, weight, bias)

    def _run(self, chosen: LayerOptions, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        me: Any = self
        if (
            me.training
            or not functional.plain(input, weight, bias, None)
            or functional.recorded(input, weight, bias, None)
            or not functional.unobserved()
        ):
            return functional.apply(chosen, input, weight, bias, None)
        packed = self.__dict__.get("_packed")
        if packed is None:
            packed = self.__dict__["_packed"] = PackedWeights()
        result: Tensor = packed.run(chosen, input, (weight, bias))
        return result

    def _as_function(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        me: Any = self
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(me.kernel_size) - 1]
        geometry = (me.stride, me.padding, me.dilation, me.groups)
        settings = {name: getattr(me, name) for name in SETTINGS}
        return function(input, weight, bias, *geometry, pad_mode=me.padding_mode, **settings)

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights: a copy packs its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def extra_repr(self) -> str:
        """PyTorch's, and the settings that are not at their defaults."""
        text: str = super().extra_repr()  # type: ignore[misc]
        changed = {name: getattr(self, name) for name, default in SETTINGS.items() if getattr(self, name) != default}
        return ", ".join([text, *(f"{name}={value!r}" for name, value in changed.items())])


class Conv1d(_Lean, nn.Conv1d):  # type: ignore[misc]
    """As `torch.nn.Conv1d`; further keywords: activation, algorithm, accuracy, memory_limit and others of `plan`."""


class Conv2d(_Lean, nn.Conv2d):  # type: ignore[misc]
    """As `torch.nn.Conv2d`; further keywords: activation, algorithm, accuracy, memory_limit and others of `plan`."""


class Conv3d(_Lean, nn.Conv3d):  # type: ignore[misc]
    """As `torch.nn.Conv3d`; further keywords: activation, algorithm, accuracy, memory_limit and others of `plan`."""


class _LeanTransposed(_Lean):
    """What the transposed modules have in common."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As PyTorch's: `output_size` chooses among the extents that output_padding allows."""
        me: Any = self
        if me.padding_mode != "zeros":
            raise ArgumentValueError("padding_mode", me.padding_mode, "must be 'zeros' for transposed convolutions")
        ndim = len(me.kernel_size)
        more = me.output_padding
        if output_size is not None:
            more = me._output_padding(input, output_size, me.stride, me.padding, me.kernel_size, ndim, me.dilation)
        if torch.compiler.is_compiling() or functional.overrides(input, me.weight, me.bias, None):
            geometry = (me.stride, me.padding, more, me.groups, me.dilation)
            settings = {name: getattr(me, name) for name in SETTINGS}
            return transposed.FUNCTIONS[ndim - 1](input, me.weight, me.bias, *geometry, **settings)
        return self._run(self.options(tuple(more)), input, me.weight, me.bias)


class ConvTranspose1d(_LeanTransposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """As `torch.nn.ConvTranspose1d`; further keywords: activation, algorithm, memory_limit and others of `plan`."""


class ConvTranspose2d(_LeanTransposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """As `torch.nn.ConvTranspose2d`; further keywords: activation, algorithm, memory_limit and others of `plan`."""


class ConvTranspose3d(_LeanTransposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """As `torch.nn.ConvTranspose3d`; further keywords: activation, algorithm, memory_limit and others of `plan`."""


REPLACEMENTS: dict[Any, Any] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
}
"""PyTorch's classes and what stands in for them."""


def convert(module: nn.Module, **settings: Any) -> nn.Module:
    """Let leanconv compute a module of PyTorch, in place: parameters and hooks stay as they are.

    Args:
        module: exactly of a class that `REPLACEMENTS` names.
        **settings: as of the modules here.
    """
    values = {**SETTINGS, **settings}
    module.__class__ = REPLACEMENTS[type(module)]
    module.__dict__.update(values)
    return module


def revert(module: nn.Module) -> nn.Module:
    """Let PyTorch compute a converted module again."""
    module.__class__ = next(theirs for theirs, ours in REPLACEMENTS.items() if ours is type(module))
    for name in (*SETTINGS, "_packed"):
        module.__dict__.pop(name, None)
    return module
