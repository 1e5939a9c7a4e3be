"""Which of its own convolution back ends PyTorch would take for a problem."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from leanconv.problem import Problem


def torch_backend(problem: Problem, *, load: bool = False) -> str | None:
    """PyTorch's answer, such as "Mkldnn" or "Slow2d", with what it does before; None if it is not there to be asked.

    Args:
        problem: the convolution.
        load: import PyTorch (some seconds) if it is installed; otherwise it is asked only where it is loaded already.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None and load and importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
    select = getattr(getattr(torch, "_C", None), "_select_conv_backend", None)
    if select is None or problem.layout not in ("NCHW", "NHWC") or problem.direction != "forward":
        return None
    p = problem
    lines, pads = 2 - p.ndim if p.ndim == 1 else 0, list(p.pad_low)
    before = ""
    size = p.in_size
    if p.pad_low != p.pad_high or p.pad_mode != "zeros":
        # What torch.nn.functional.pad makes is an image of its own.
        size = tuple(n + low + high for n, low, high in zip(p.in_size, p.pad_low, p.pad_high, strict=True))
        pads, before = [0] * p.ndim, " on a padded copy"

    def spatial(values: Any, one: int) -> list[int]:
        return [one] * lines + list(values)  # PyTorch computes one dimension as two

    dtype = getattr(torch, p.dtype)
    x = torch.empty(p.batch, p.in_channels, *spatial(size, 1), dtype=dtype)
    w = torch.empty(p.out_channels, p.group_in, *spatial(p.kernel, 1), dtype=dtype)
    if p.layout == "NHWC" and p.ndim < 3:
        x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.empty(p.out_channels, dtype=dtype) if p.has_bias else None
    zeros = spatial([0] * p.ndim, 0)
    with torch.no_grad():
        found = select(
            x, w, bias, spatial(p.stride, 1), spatial(pads, 0), spatial(p.dilation, 1), False, zeros, p.groups
        )
    return f"{found.name}{before}"
