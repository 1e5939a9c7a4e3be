"""LayerNormalization and RMSNormalization over the last axes."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from leanconv.classes import replace
from leanconv.kernels.net_rownorm import RowNormSpec
from leanconv.network.graph import Node
from leanconv.network.operators.base import axis_of
from leanconv.network.places import Place, reshaped
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.network.steps.maps import merged_axes
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase


class RowNorm(Lowerer):
    """Rows of adjacent elements, each by its own mean and variance."""

    follows: ClassVar[bool] = True
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Scale and bias that are known, and no statistics as outputs."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not x.shape:
            return "kernels compute in float32 and float64"
        if any(t is not None and constants[i] is None for i, t in enumerate(types) if i):
            return "a scale or bias that is not constant"
        if any(node.outputs[1:]):
            return "statistics are outputs"
        if int(node.attributes.get("stash_type", 1)) != 1 and x.dtype == "float32":
            return "statistics in another type"
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """The elements of a row side by side."""
        return position > 0 or _rows(node, place) is not None

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """The elements of a row side by side."""
        return _rows(node, place) is not None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        node, x, out = call.node, call.given(0), call.output
        axis = axis_of(int(node.attributes.get("axis", -1)), len(x.shape))
        length, count = math.prod(x.shape[axis:]), math.prod(x.shape[:axis])
        first, target = _rows(node, x), _rows(node, out)
        assert first is not None and target is not None, "see accepts"
        first, target = (replace(p, shape=p.shape[:-1], strides=p.strides[:-1]) for p in (first, target))
        dims = merged_axes(target, [first])
        rows = -(-count // max(1, min(count, 8 * setting.threads)))
        fields = {
            "r_div": 1,
            "r_count": -(-count // rows),
            "rows": rows,
            "row_count": count,
            "length": length,
        }
        for d, (n, (s, t)) in enumerate(dims):
            fields |= {f"size{d}": n, f"in0_{d}": s, f"out_{d}": t}
        roles: dict[str, Place | Memory | int] = {"in0": x, "out": out}
        kept = 0
        for role, position in (("scale", 1), ("bias", 2)):
            operand = call.input(position)
            if operand is not None and operand.constant is not None:
                whole = np.broadcast_to(operand.constant, x.shape[axis:]).astype(x.dtype)
                roles[role] = np.ascontiguousarray(whole)
                kept += whole.nbytes
        spec = RowNormSpec(
            setting.host.target,
            x.dtype,
            len(dims),
            node.op == "LayerNormalization",
            "bias" in roles,
            float(node.attributes.get("epsilon", 1e-5)),
        )
        phase = Phase(node.name, spec, fields, fields["r_count"])
        return [Option("rows", phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles), (), kept)]


def _rows(node: Node, place: Place) -> Place | None:
    """A value with the axes of a row as one; None if the elements of a row are not adjacent."""
    axis = axis_of(int(node.attributes.get("axis", -1)), len(place.shape))
    inner = replace(place, shape=place.shape[axis:], strides=place.strides[axis:])
    row = reshaped(inner, (inner.size,))
    if row is None or (row.strides[0] != 1 and row.size > 1):
        return None
    return replace(place, shape=(*place.shape[:axis], row.size), strides=(*place.strides[:axis], 1))


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(RowNorm(), "LayerNormalization", "RMSNormalization")
