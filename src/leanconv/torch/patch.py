"""`with patch(...)`: convolutions of code that knows nothing of leanconv, computed by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from leanconv.torch import functional
from leanconv.torch.engine import readable
from leanconv.torch.options import options
from leanconv.torch.packed import PackedWeights
from leanconv.torch.tensors import DTYPES, STRIDED

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_NDIM = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED_NAMES = (*_NAMES[:5], "output_padding", "groups", "dilation")
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}


class patch(TorchFunctionMode):  # type: ignore[misc]
    """Within this block `F.conv2d`, `F.conv_transpose2d` and their kin are computed by leanconv, in modules too.

    Weights are packed once, and again when they have changed, as long as the block lasts. What leanconv does not
    compute (half precision, other devices, complex numbers) goes to PyTorch, and is counted with its reason.

    Args:
        **settings: algorithm, accuracy, deterministic, choose, memory_limit and threads, as in `leanconv.plan`.

    Attributes:
        computed: how many calls leanconv has computed.
        passed_on: reason -> how many calls went to PyTorch for it.

    Raises:
        ArgumentTypeError: a setting of the wrong type.
        ArgumentValueError: a setting's value that is not allowed.
    """

    def __init__(self, **settings: Any) -> None:
        options(2, **settings)
        super().__init__()
        self.settings = settings
        self.computed = 0
        self.passed_on: Counter[str] = Counter()
        self._packed = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch for every function within the block."""
        kwargs = kwargs or {}
        ndim = _NDIM.get(func) or _TRANSPOSED.get(func)
        if ndim is None:
            return func(*args, **kwargs)
        transposed = func in _TRANSPOSED
        names = _TRANSPOSED_NAMES if transposed else _NAMES
        given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
        if transposed:
            given.setdefault("output_padding", 0)
        reason = _refusal(given)
        if reason is not None:
            self.passed_on[reason] += 1
            return func(*args, **kwargs)
        self.computed += 1
        return self._convolve(ndim, **given)

    def __exit__(self, *exception: Any) -> None:
        """Free the packed weights."""
        super().__exit__(*exception)
        self._packed.clear()

    def _convolve(self, ndim: int, input: Tensor, weight: Tensor, bias: Any, **geometry: Any) -> Tensor:
        kernel = tuple(weight.shape[2:])
        chosen = options(ndim, kernel=kernel, **geometry, **self.settings)
        if (
            not functional.plain(input, weight, bias, None)
            or functional.recorded(input, weight, bias, None)
            or not functional.unobserved()
        ):
            return functional.apply(chosen, input, weight, bias, None)
        packed = self._packed.get(weight)
        if packed is None:
            packed = self._packed[weight] = PackedWeights()
        result: Tensor = packed.run(chosen, input, (weight, bias))
        return result


def _refusal(given: dict[str, Any]) -> str | None:
    """Why PyTorch is to compute a call, or None. Mistakes are not refused: they get leanconv's errors."""
    for name in ("input", "weight"):
        tensor = given.get(name)
        if not isinstance(tensor, Tensor):
            return f"{name} is not a tensor"
        if tensor.dtype not in DTYPES:
            return f"element type {tensor.dtype}"
        if tensor.layout is not STRIDED:
            return f"layout {tensor.layout}"
        if not tensor.is_cpu and not tensor.is_meta:
            return f"device {tensor.device.type}"
        if not readable(tensor) and type(tensor).__torch_function__ is not Tensor.__torch_function__:
            return f"class {type(tensor).__name__}"
    return None
