"""InstanceNormalization and GroupNormalization: moments of blocks of pixels, statistics, then all pixels."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from leanconv.algorithms.dense import even_stride
from leanconv.kernels.net_expression import Formula, Step
from leanconv.kernels.net_moments import MomentsSpec, StatisticsSpec
from leanconv.kernels.net_standard import StandardSpec
from leanconv.memory import Buffer
from leanconv.network.graph import Node
from leanconv.network.places import Place
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase

BLOCK_BYTES = 16 << 10  # of pixels that are read twice for their moments, the second time from the first-level cache


class ChannelNorm(Lowerer):
    """Normalisation of each channel, or group of channels, of each image by its own mean and variance."""

    image: ClassVar[bool] = True
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Images, and scales that are known."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not 3 <= len(x.shape) <= 5:
            return "kernels take images of float32 and float64 with one to three spatial axes"
        if constants[1] is None or constants[2] is None:
            return "a scale or bias that is not constant"
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Channels side by side, pixels evenly spaced."""
        return position > 0 or _even(place)

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Channels side by side, pixels evenly spaced."""
        return _even(place)

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """Three phases."""
        node, x, out, item = call.node, call.given(0), call.output, call.output.item
        batch, channels, pixels = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        # Of the shape only, so that sums have one order; not less than what a line of channels is worth.
        block = max(8, min(pixels, BLOCK_BYTES // (channels * item)))
        blocks = -(-pixels // block)
        common = {
            "p_div": 1,
            "p_count": blocks,
            "n_div": blocks,
            "n_count": batch,
            "pixels": pixels,
            "block": block,
            "channels": channels,
        }
        steps: dict[str, int] = {}
        for role, place in (("in0", x), ("out", out)):
            step = even_stride(place.strides[2:], place.shape[2:])
            assert step is not None, "see accepts"
            steps |= {f"{role}_n": place.strides[0] * item, f"{role}_row": step * item}
        groups = channels if "Instance" in node.op else int(node.attributes["num_groups"])
        members = channels // groups
        target, epsilon = setting.host.target, float(node.attributes.get("epsilon", 1e-5))
        given = node.attributes.get("activation")
        formula = Formula(1, (Step(given[0], (0,), tuple(map(float, given[1:]))),) if given else ())
        statistics = StatisticsSpec(target, x.dtype, epsilon, members > 1)
        phases = (
            Phase(
                f"{node.name} moments",
                MomentsSpec(target, x.dtype),
                {**common, "x_n": steps["in0_n"], "x_row": steps["in0_row"]},
                batch * blocks,
                {"x": "in0"},
            ),
            Phase(f"{node.name} statistics", statistics, {**common, "n_div": 1, "members": members}, batch),
            Phase(node.name, StandardSpec(target, x.dtype, formula), {**common, **steps}, batch * blocks),
        )
        scale, bias = (
            np.ascontiguousarray(np.repeat(value.reshape(-1), channels // value.size).astype(x.dtype))
            for i in (1, 2)
            if (operand := call.inputs[i]) is not None and (value := operand.constant) is not None
        )
        roles: dict[str, Place | Memory | int] = {"in0": x, "out": out, "scale": scale, "bias": bias}
        workspace = (
            Buffer("moments", batch * blocks * 2 * channels * item),
            Buffer("statistics", batch * 2 * channels * item),
        )
        seconds = phases_seconds(phases, setting.threads)
        return [Option("moments", seconds, lambda: Built(phases, roles), workspace, scale.nbytes + bias.nbytes)]


def _even(place: Place) -> bool:
    unit = place.strides[1] == 1 or place.shape[1] == 1
    return unit and even_stride(place.strides[2:], place.shape[2:]) is not None


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    ops = ("InstanceNormalization", "GroupNormalization")
    registry.add(ChannelNorm(), *ops, *(f"leanconv.{op}" for op in ops))
