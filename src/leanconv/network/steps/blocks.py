"""Blocks of layers in one pass: depthwise-separable, and inverted residual."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np

from leanconv import memory
from leanconv.algorithms.base import WeightPacking
from leanconv.blocks import BlockPlan, plan_inverted_residual, plan_separable
from leanconv.compiled import KernelSpec
from leanconv.errors import MemoryLimitError
from leanconv.network.fusion import INVERTED, SEPARABLE
from leanconv.network.graph import Node
from leanconv.network.operators.convolution import conv_windows
from leanconv.network.places import Place, channels_last, strides_in
from leanconv.network.steps.base import (
    Arrays,
    Built,
    Call,
    Decided,
    Lowerer,
    Memory,
    Operand,
    Option,
    Registry,
    Setting,
    Types,
)
from leanconv.network.steps.convolution import conv_problem
from leanconv.options import Padding
from leanconv.plan import packed_block

BUDGETS = (None, 1 << 20, 256 << 10, 64 << 10, 16 << 10, 0)
"""Limits of a block's workspace that are tried, in bytes."""


class Block(Lowerer):
    """One step for the layers of a block, by `leanconv.blocks`."""

    image: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """None: what is no block was not made one."""
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Dense images."""
        return len(place.shape) != 4 or _dense(place)

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Dense images."""
        return _dense(place)

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """Bands and sections of several sizes, the highest first."""
        plans: list[BlockPlan] = []
        known = setting.decided
        if known is not None:
            return [_option(call, _plan(call, setting, known.limit), known.seconds, setting)]
        for budget in BUDGETS if setting.limited else BUDGETS[:1]:
            try:
                plan = _plan(call, setting, budget)
            except MemoryLimitError as error:
                plan = _plan(call, setting, error.needed)
            if not any(plan.workspace_bytes == other.workspace_bytes for other in plans):
                plans.append(plan)
        seconds = _seconds(call, setting)
        # Lower bands fetch and expand rows twice; nobody counts how often, so that their order is all that is told.
        return [_option(call, plan, seconds * (1 + 0.05 * number), setting) for number, plan in enumerate(plans)]


def _option(call: Call, plan: BlockPlan, seconds: float, setting: Setting) -> Option:
    roles: dict[str, Place | Memory | int] = {"x": call.given(0), "out": call.output}
    if call.node.op == SEPARABLE and call.input(5) is not None:
        roles["residual"] = call.given(5)
    return Option(
        f"block of {plan.parameters.get('band', plan.parameters.get('strip'))}",
        seconds,
        lambda: _built(plan, call, roles, setting),
        plan.lowering.workspace,
        plan.packed_weight_bytes,
        max(0, plan.packed_weight_bytes - plan.plain_weight_bytes),
        specs=_specs(plan, setting),
        decided=Decided("", plan.threads, {}, plan.memory_limit, None, seconds),
    )


def _dense(place: Place) -> bool:
    wanted = strides_in(place.shape, channels_last(4))
    return all(a == b for a, b, n in zip(place.strides, wanted, place.shape, strict=True) if n > 1)


def _operands(call: Call) -> list[tuple[Operand, Operand | None]]:
    """Weights and bias of each layer."""
    count = len(call.node.attributes["nodes"])
    found = call.inputs[1 : 1 + 2 * count]
    return [(w, bias) for w, bias in zip(found[::2], found[1::2], strict=True) if w is not None]


def _plan(call: Call, setting: Setting, limit: int | None) -> BlockPlan:
    nodes: tuple[Node, ...] = call.node.attributes["nodes"]
    operands = _operands(call)
    shapes = [weights.place.shape for weights, _ in operands]
    middle = nodes[-2]
    n, c, h, w = call.given(0).shape
    channels = shapes[-2][0]
    window = conv_windows(middle, (n, channels if call.node.op == INVERTED else c, h, w), shapes[-2])
    padding: Padding = tuple(zip(window.low, window.high, strict=True))
    common: dict[str, Any] = {
        "dtype": call.output.dtype,
        "biases": tuple(bias is not None for _, bias in operands),
        "stride": window.stride,
        "padding": padding,
        "dilation": window.dilation,
        "activations": tuple(node.attributes.get("activation") for node in nodes),
        "memory_limit": limit,
        "threads": setting.threads,
    }
    order = nodes[-1].attributes.get("residual")
    if call.node.op == INVERTED:
        return plan_inverted_residual((n, h, w, c), *shapes, residual=order is not None, **common)
    more = {"residual": True, "residual_order": order} if order is not None else {}
    depthwise, pointwise = shapes
    return plan_separable((n, h, w, c), depthwise, pointwise, **common, **more)


def _seconds(call: Call, setting: Setting) -> float:
    """What the layers apart are predicted to take."""
    from leanconv.planning.layer_options import layer_options  # only here: what was chosen before is not weighed

    nodes: tuple[Node, ...] = call.node.attributes["nodes"]
    total, x = 0.0, call.given(0)
    for node, (weights, bias) in zip(nodes, _operands(call), strict=True):
        w = weights.place.shape
        window = conv_windows(node, x.shape, w)
        shape = (x.shape[0], w[0], *window.out)
        out = Place("", 0, shape, strides_in(shape, channels_last(4)), x.dtype)
        plain = Node(node.op, node.name, node.inputs, node.outputs, _without_residual(node), node.version)
        problem = conv_problem(plain, x, w, bias is not None, out, None)
        total += layer_options(problem, setting.threads, None, ("auto", "standard", False))[0].seconds
        x = out
    return total


def _without_residual(node: Node) -> dict[str, Any]:
    return {name: value for name, value in node.attributes.items() if name != "residual"}


def _specs(plan: BlockPlan, setting: Setting) -> tuple[KernelSpec, ...]:
    packings = (phase for _, packing in plan.lowering.packings for phase in packing.phases)
    return tuple(phase.spec for phase in (*packings, *setting.serving(plan.lowering.phases)))


def _built(plan: BlockPlan, call: Call, places: dict[str, Place | Memory | int], setting: Setting) -> Built:
    roles = dict(places)
    for (name, packing), (weights, bias) in zip(plan.lowering.packings, _operands(call), strict=True):
        roles[name] = setting.share([weights, bias])(packing, partial(_packed, packing, weights, bias, plan.threads))
    return Built(setting.serving(plan.lowering.phases), roles)


def _packed(packing: WeightPacking, weights: Operand, bias: Operand | None, threads: int) -> memory.Block:
    w, shift = weights.constant, None if bias is None else bias.constant
    assert w is not None
    return packed_block(packing, w, None if shift is None else np.ascontiguousarray(shift), threads)


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Block(), SEPARABLE, INVERTED)
