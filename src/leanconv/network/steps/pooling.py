"""Pooling over windows, and means and sums over whole axes of an image."""

from __future__ import annotations

import math
from typing import ClassVar

from leanconv.kernels.net_pool import MAX, MEAN, SUM, WRITTEN_OUT, PoolSpec
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.pooling import pool_windows
from leanconv.network.places import Place, channels_last, strides_in
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Option, Registry, Setting, Types
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase

CHUNKS = 4  # for each thread


class Pooling(Lowerer):
    """MaxPool and AveragePool."""

    image: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Images of one to three spatial axes; without indices."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not 3 <= len(x.shape) <= 5:
            return "kernels take images of float32 and float64 with one to three spatial axes"
        if any(node.outputs[1:]):
            return "indices are an output"
        return None

    def overwrites(self, node: Node, place: Place, out: ValueType) -> bool:
        """One image, channels last, where no output reads what those before it, in their order in memory, take."""
        rank = len(place.shape)
        if place.shape[0] != 1 or place.offset or place.strides != strides_in(place.shape, channels_last(rank)):
            return False
        w = pool_windows(node, place.shape)
        # How far the first pixel that later outputs read is ahead of an output, at least; of ever more axes together.
        ahead, first, outputs, pixels = math.inf, 0, 1, 1
        for d in reversed(range(rank - 2)):
            corners = [i * w.stride[d] - w.low[d] for i in range(w.out[d])]
            starts = [corner - min(corner, 0) // w.dilation[d] * w.dilation[d] for corner in corners]
            here = [start * pixels - i * outputs + ahead for i, start in enumerate(starts)]
            after = [start * pixels + first - ((i + 1) * outputs - 1) for i, start in enumerate(starts[1:])]
            ahead = min([*here, *after])
            first, outputs, pixels = first + starts[0] * pixels, outputs * w.out[d], pixels * place.shape[2 + d]
        return ahead > 0

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        node, x = call.node, call.given(0)
        w = pool_windows(node, x.shape)
        ends = [n + b for n, b in zip(x.shape[2:], w.high, strict=True)]
        how = MAX if node.op == "MaxPool" else MEAN
        padded = how == MEAN and bool(node.attributes.get("count_include_pad", 0))
        window = [*zip(w.kernel, w.stride, w.dilation, w.low, ends, strict=True)]
        return _option(call, x, call.output, window, how, padded, setting)


class Reduction(Lowerer):
    """GlobalAveragePool, GlobalMaxPool; `reductions.py` uses it for others over all spatial axes of an image."""

    image: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Images of one to three spatial axes."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not 3 <= len(x.shape) <= 5:
            return "kernels take images of float32 and float64 with one to three spatial axes"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """A window as large as the image."""
        x, out, op = call.given(0), call.output, call.node.op
        if len(out.shape) != len(x.shape):  # the axes are dropped
            strides = (*out.strides, *(0,) * (len(x.shape) - 2))
            out = Place(out.storage, out.offset, (*x.shape[:2], *(1,) * (len(x.shape) - 2)), strides, out.dtype)
        how = MAX if "Max" in op else SUM if "Sum" in op else MEAN
        window = [(n, 1, 1, 0, n) for n in x.shape[2:]]
        return _option(call, x, out, window, how, False, setting)


def _option(
    call: Call,
    x: Place,
    out: Place,
    window: list[tuple[int, int, int, int, int]],
    how: str,
    padded: bool,
    setting: Setting,
) -> list[Option]:
    phase = pool_phase(call.node.name, x, out, window, how, padded, setting)
    roles = {"x": x, "out": call.output}
    return [Option(how, phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles))]


def pool_phase(
    name: str,
    x: Place,
    out: Place,
    window: list[tuple[int, int, int, int, int]],
    how: str,
    padded: bool,
    setting: Setting,
) -> Phase:
    """Windows of an image reduced; for each spatial axis taps, stride, dilation, padding before, end of that after."""
    dims, item = len(window), x.item
    batch, channels = x.shape[:2]
    unit = all(p.strides[1] == 1 or channels == 1 for p in (x, out))
    sizes = tuple(size for size, *_ in window)
    known = sizes if math.prod(sizes) <= WRITTEN_OUT else ()
    spec = PoolSpec(setting.host.target, x.dtype, dims, how, padded, unit, known)
    rows = out.shape[2]
    wanted = CHUNKS * setting.threads
    per_row = -(-rows // max(1, min(rows, -(-wanted // batch))))
    # Over the image (not beside it, in what will be concatenated) a channel is computed from its first row to its last.
    if (x.storage, x.offset) == (out.storage, out.offset):
        assert batch == 1, "see overwrites"
        per_row = rows
    parts = -(-rows // per_row)
    line = 4 * setting.host.target.lanes(x.dtype)
    # Rows first; then channels, whole lines of them, where there are too few rows (over all pixels there is one).
    blocks = max(1, min(-(-wanted // (batch * parts)), -(-channels // line)))
    block = -(-channels // blocks // line) * line if blocks > 1 else channels
    blocks = -(-channels // block)
    fields = {
        "c_div": 1,
        "c_count": blocks,
        "p_div": blocks,
        "p_count": parts,
        "n_div": blocks * parts,
        "n_count": batch,
        "channels": channels,
        "c_block": block,
        "p_block": per_row,
        "x_n": x.strides[0] * item,
        "x_c": x.strides[1] * item,
        "o_n": out.strides[0] * item,
        "o_c": out.strides[1] * item,
    }
    for d, (taps, stride, dilation, pad, end) in enumerate(window):
        fields |= {
            f"in{d}": x.shape[2 + d],
            f"out{d}": out.shape[2 + d],
            f"at{d}": x.strides[2 + d] * item,
            f"to{d}": out.strides[2 + d] * item,
            f"taps{d}": taps,
            f"stride{d}": stride,
            f"dilation{d}": dilation,
            f"pad{d}": pad,
            f"end{d}": end,
        }
    return Phase(name, spec, fields, math.prod((blocks, parts, batch)))


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Pooling(), "MaxPool", "AveragePool")
    registry.add(Reduction(), "GlobalAveragePool", "GlobalMaxPool")
