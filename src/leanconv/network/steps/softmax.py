"""Softmax and LogSoftmax."""

from __future__ import annotations

import math
from typing import ClassVar

from leanconv.kernels.net_softmax import SoftmaxSpec
from leanconv.network.graph import Node
from leanconv.network.operators.base import axis_of
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Option, Registry, Setting, Types
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase


class Softmax(Lowerer):
    """Along one axis (before version 13: along the last axes, if those but one have one element)."""

    follows: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """One axis."""
        x = types[0]
        if x is None or x.dtype not in FLOATS:
            return "kernels compute in float32 and float64"
        if _axis(node, x.shape) is None:
            return "several axes that count as one"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        x, out, item = call.given(0), call.output, call.output.item
        axis = _axis(call.node, x.shape)
        assert axis is not None
        along = x.strides[axis] == out.strides[axis] == 1 or x.shape[axis] == 1
        rest = [
            (n, s * item, t * item)
            for i, (n, s, t) in enumerate(zip(x.shape, x.strides, out.strides, strict=True))
            if i != axis and n > 1
        ]
        rest.sort(key=lambda dim: -abs(dim[2]))
        width, beside = 1, False
        if not along and rest and rest[-1][1] == rest[-1][2] == item:
            width, beside = rest.pop()[0], True
        count = math.prod(n for n, _, _ in rest)
        rows = -(-count // max(1, min(count, 8 * setting.threads)))
        fields = {
            "r_div": 1,
            "r_count": -(-count // rows),
            "rows": rows,
            "row_count": count,
            "length": x.shape[axis],
            "width": width,
            "in0_at": x.strides[axis] * item,
            "out_at": out.strides[axis] * item,
        }
        for d, (n, s, t) in enumerate(rest):
            fields |= {f"size{d}": n, f"in0_{d}": s, f"out_{d}": t}
        log = call.node.op == "LogSoftmax"
        spec = SoftmaxSpec(setting.host.target, x.dtype, len(rest), along, beside, log)
        phase = Phase(call.node.name, spec, fields, fields["r_count"])
        roles = {"in0": x, "out": out}
        return [Option("softmax", phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles))]


def _axis(node: Node, shape: tuple[int, ...]) -> int | None:
    if not shape:
        return None
    if node.version >= 13:
        return axis_of(int(node.attributes.get("axis", -1)), len(shape))
    first = axis_of(int(node.attributes.get("axis", 1)), len(shape), beyond=1)
    wide = [i for i in range(first, len(shape)) if shape[i] > 1]
    if len(wide) > 1 or first == len(shape):
        return None
    return wide[0] if wide else first


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Softmax(), "Softmax", "LogSoftmax")
