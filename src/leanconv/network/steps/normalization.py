"""Local response normalisation."""

from __future__ import annotations

import math
from typing import ClassVar

from leanconv.algorithms.dense import even_stride
from leanconv.kernels.net_lrn import LrnSpec
from leanconv.network.graph import Node
from leanconv.network.places import Place
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Option, Registry, Setting, Types
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase


class Lrn(Lowerer):
    """LRN over adjacent channels."""

    image: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Images."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not 3 <= len(x.shape) <= 5:
            return "kernels take images of float32 and float64 with one to three spatial axes"
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Channels side by side, pixels evenly spaced."""
        return _even(place)

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Channels side by side, pixels evenly spaced."""
        return _even(place)

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        node, x, out, item = call.node, call.given(0), call.output, call.output.item
        size = int(node.attributes["size"])
        before, after = (size - 1) // 2, size // 2
        factor = float(node.attributes.get("alpha", 1e-4)) / size
        bias, beta = float(node.attributes.get("bias", 1.0)), float(node.attributes.get("beta", 0.75))
        spec = LrnSpec(setting.host.target, x.dtype, before, after, factor, bias, beta)
        count = math.prod(x.shape[2:])
        rows = -(-count // max(1, min(count, 8 * setting.threads)))
        parts = -(-count // rows)
        fields = {
            "r_div": 1,
            "r_count": parts,
            "n_div": parts,
            "n_count": x.shape[0],
            "rows": rows,
            "row_count": count,
            "channels": x.shape[1],
        }
        for role, place in (("in0", x), ("out", out)):
            step = even_stride(place.strides[2:], place.shape[2:])
            assert step is not None, "see accepts"
            fields |= {f"{role}_n": place.strides[0] * item, f"{role}_row": step * item}
        phase = Phase(node.name, spec, fields, parts * x.shape[0])
        roles = {"in0": x, "out": out}
        return [Option("lrn", phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles))]


def _even(place: Place) -> bool:
    unit = place.strides[1] == 1 or place.shape[1] == 1
    return unit and even_stride(place.strides[2:], place.shape[2:]) is not None


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Lrn(), "LRN")
