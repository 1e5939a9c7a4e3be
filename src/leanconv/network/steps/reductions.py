"""Sums, means, extrema, products and norms along any axes."""

from __future__ import annotations

import math

from leanconv.classes import replace
from leanconv.kernels.net_reduce import ReduceSpec
from leanconv.network.graph import Node
from leanconv.network.operators.base import ints
from leanconv.network.operators.reductions import reduced_axes
from leanconv.network.places import Place, channels_last, order_of, row_major
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Option, Registry, Setting, Types
from leanconv.network.steps.maps import merged_axes
from leanconv.network.steps.pooling import Reduction
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase

_HOW = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "product",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceSumSquare": "squares",
    "ReduceLogSum": "log_sum",
}
_POOLED = ("ReduceSum", "ReduceMean", "ReduceMax")
_POOLING = Reduction()


class Reduce(Lowerer):
    """Reductions; over all pixels of an image as pooling is done."""

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Known axes, and something along each of them."""
        x = types[0]
        if x is None or x.dtype not in FLOATS:
            return "kernels compute in float32 and float64"
        if len(types) > 1 and types[1] is not None and constants[1] is None:
            return "axes that are not constant"
        if not x.size or not _axes(node, constants, len(x.shape)):
            return "nothing to be joined"
        return None

    def order(self, node: Node, first: Place | None, rank: int) -> tuple[int, ...]:
        """As the operand lies, if all axes are kept."""
        if first is None or len(first.shape) != rank:
            return row_major(rank)
        return channels_last(rank) if order_of(first) == channels_last(rank) else order_of(first)

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        constants = [None if o is None else o.constant for o in call.inputs]
        x, out, node = call.given(0), call.output, call.node
        axes = _axes(node, constants, len(x.shape))
        if node.op in _POOLED and 3 <= len(x.shape) <= 5 and sorted(axes) == list(range(2, len(x.shape))):
            return _POOLING.options(call, setting)
        phase = _phase(node, x, out, axes, setting)
        roles = {"in0": x, "out": out}
        return [Option(_HOW[node.op], phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles))]


def _axes(node: Node, constants: Arrays, rank: int) -> tuple[int, ...]:
    given = constants[1] if len(constants) > 1 else None
    return reduced_axes(node, rank, None if given is None else ints(given))


def _phase(node: Node, x: Place, out: Place, axes: tuple[int, ...], setting: Setting) -> Phase:
    item, kept = x.item, [axis for axis in range(len(x.shape)) if axis not in axes]
    there = kept if len(out.shape) == len(x.shape) else range(len(kept))
    source = replace(x, shape=tuple(x.shape[a] for a in kept), strides=tuple(x.strides[a] for a in kept))
    target = replace(out, shape=source.shape, strides=tuple(out.strides[a] for a in there))
    inside = replace(x, shape=tuple(x.shape[a] for a in axes), strides=tuple(x.strides[a] for a in axes))
    joined = merged_axes(inside, []) or [(1, (0,))]
    dims = merged_axes(target, [source])
    along = joined[-1][1][0] == item and joined[-1][0] > 1
    width, beside = 1, False
    if not along:
        unit = [d for d, (_, steps) in enumerate(dims) if steps == (item, item)]
        if unit:
            width, beside = dims.pop(unit[0])[0], True
    count = math.prod(n for n, _ in dims)
    rows = -(-count // max(1, min(count, 8 * setting.threads)))
    fields = {
        "r_div": 1,
        "r_count": -(-count // rows),
        "rows": rows,
        "row_count": count,
        "width": width,
        "total": inside.size,
    }
    for d, (n, (s, t)) in enumerate(dims):
        fields |= {f"size{d}": n, f"in0_{d}": s, f"out_{d}": t}
    for d, (n, (step,)) in enumerate(joined):
        fields |= {f"count{d}": n, f"step{d}": step}
    spec = ReduceSpec(setting.host.target, x.dtype, _HOW[node.op], len(dims), len(joined), along, beside)
    return Phase(node.name, spec, fields, fields["r_count"])


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Reduce(), *_HOW)
