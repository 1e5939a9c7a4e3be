"""Convolutions, by the plans of single layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, TypeAlias

import numpy as np

from leanconv.algorithms.base import WeightPacking
from leanconv.arrays import Array
from leanconv.memory import Block
from leanconv.network.constants import Derived, Held, is_known
from leanconv.network.graph import Node
from leanconv.network.operators.base import ints
from leanconv.network.operators.convolution import conv_groups, conv_windows
from leanconv.network.operators.transposed import scatter
from leanconv.network.places import Place
from leanconv.network.shared import Share, apart
from leanconv.network.slabs import Rows, can_be_packed_in_slabs, packed_in_slabs
from leanconv.network.steps.base import (
    FLOATS,
    Arrays,
    Built,
    Call,
    Decided,
    Lowerer,
    Memory,
    Option,
    Registry,
    Setting,
    Types,
)
from leanconv.options import make_problem
from leanconv.plan import Plan
from leanconv.planning.candidates import algorithm_named
from leanconv.planning.layer_options import layer_options
from leanconv.problem import Problem
from leanconv.program import Phase
from leanconv.staging import refusal
from leanconv.transposed_options import make_transposed_problem


class Convolution(Lowerer):
    """Conv, and `leanconv.Conv` with all that is fused into it."""

    image: ClassVar[bool] = True
    in_place: ClassVar[tuple[int, ...]] = (3,)  # a residual is read just before the element is written

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Weights and bias are constants."""
        x = types[0]
        if x is None or x.dtype not in FLOATS:
            return "kernels compute in float32 and float64"
        if not is_known(constants, 1) or (len(types) > 2 and types[2] is not None and not is_known(constants, 2)):
            return "weights or bias that are not constant"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The plans of which none is both slower and larger than another."""
        w, bias = call.given(1), call.input(2)
        residual = call.input(3)
        place = residual.place if residual else None
        problem = conv_problem(call.node, call.given(0), w.shape, bias is not None, call.output, place)
        roles = {"x": call.given(0), "out": call.output} | ({"residual": place} if place else {})
        share = setting.share([call.input(1), bias])
        return plan_options(problem, partial(weights_of, call), roles, setting, share, w_rows(call))


def w_rows(call: Call) -> Rows | None:
    """How to look at some output channels of the weights only; None if they are in memory, or would be made whole."""
    w = call.input(1)
    handle = None if w is None else w.handle
    return None if handle is None or isinstance(handle, Held | Derived) else handle.rows


def weights_of(call: Call, whole: bool = True) -> tuple[Array | None, Array | None]:
    """Weights (None if not `whole`) and bias of a convolution, brought into memory."""
    w, bias = call.input(1), call.input(2)
    found = w.constant if w is not None and whole else None
    return found, None if bias is None else bias.constant


def conv_problem(
    node: Node, x: Place, w_shape: tuple[int, ...], bias: bool, out: Place, residual: Place | None
) -> Problem:
    """The problem of a convolution on values where they lie."""
    window = conv_windows(node, x.shape, w_shape)
    # Which axis is adjacent says what the layout is called; the strides say all.
    last = x.strides[1] == 1 and x.shape[1] > 1

    def user(values: tuple[int, ...]) -> tuple[int, ...]:
        return (values[0], *values[2:], values[1]) if last else values

    order = node.attributes.get("residual")
    return make_problem(
        len(x.shape) - 2,
        user(x.shape),
        w_shape,
        dtype=x.dtype,
        bias=bias,
        stride=window.stride,
        padding=tuple(zip(window.low, window.high, strict=True)),
        dilation=window.dilation,
        groups=conv_groups(node),
        layout="NHWC" if last else "NCHW",
        pad_mode=node.attributes.get("pad_mode", "zeros"),
        activation=node.attributes.get("activation"),
        residual=residual is not None,
        residual_order=order or "before",
        x_strides=user(x.strides),
        out_strides=user(out.strides),
        residual_strides=None if residual is None else user(residual.strides),
    )


Weights: TypeAlias = Callable[[bool], tuple["Array | None", "Array | None"]]


def plan_options(
    problem: Problem,
    weights: Weights,
    roles: dict[str, Place],
    setting: Setting,
    share: Share = apart,
    rows: Rows | None = None,
) -> list[Option]:
    """The plans of a problem, as ways to compute a step; `weights` and bias are asked for by the way that is chosen.

    `share`: how packed weights are come by; `rows`: looks at some output channels of the weights, for packing them in
    slabs.
    """
    requirements = (setting.algorithm, setting.accuracy, setting.deterministic)
    plain = problem.w_bytes + (problem.out_channels * problem.itemsize if problem.has_bias else 0)

    def made(plan: Plan, seconds: float) -> Option:
        kept = (plan.packed_weight_bytes or plain) + plan.table_bytes
        phases = setting.serving(plan.lowering.phases)
        before = len(plan.specs) - len(phases)
        return Option(
            plan.algorithm,
            seconds,
            lambda: _built(plan, phases, weights, roles, share, rows),
            plan.lowering.workspace,
            kept,
            max(0, kept - plain),
            plan,
            lambda other: made(other, seconds),
            (*plan.specs[:before], *(phase.spec for phase in phases), *setting.spare(phases)),
            Decided(plan.algorithm, plan.threads, plan.tunables, plan.memory_limit, plan.staging, seconds),
        )

    known = setting.decided
    if known is not None and known.restore is not None:
        return [made(known.restore(problem), known.seconds)]
    algorithm = None if known is None else algorithm_named(known.algorithm)
    if known is not None and algorithm is not None and refusal(algorithm, problem) is None:
        plan = Plan(problem, algorithm, known.threads, known.limit, known.settings, staging=known.staging)
        return [made(plan, known.seconds)]
    found = layer_options(problem, setting.threads, 0 if setting.limited else None, requirements)
    return [made(option.candidate.plan, option.seconds) for option in sorted(found, key=lambda option: option.seconds)]


def _built(
    plan: Plan,
    phases: tuple[Phase, ...],
    weights: Weights,
    places: dict[str, Place],
    share: Share,
    rows: Rows | None,
) -> Built:
    packing, problem = plan.packing, plan.problem
    memory: dict[str, Place | Memory | int] = dict(places)

    if packing is not None:
        memory["w"] = share(packing, partial(_packed, plan, packing, weights, rows))
    else:
        w, _ = weights(True)
        assert w is not None
        memory["weights"] = np.ascontiguousarray(w)
    if problem.has_bias and (packing is None or packing.bias_apart):
        _, bias = weights(False)
        assert bias is not None
        memory["bias"] = np.ascontiguousarray(bias)
    # A bound program has the addresses of its tables, which the plan keeps.
    return Built(phases, memory | plan.addresses, (plan,))


def _packed(plan: Plan, packing: WeightPacking, weights: Weights, rows: Rows | None) -> Block:
    if rows is not None and plan.problem.groups == 1 and can_be_packed_in_slabs(packing):
        return packed_in_slabs(packing, rows, plan.problem.out_channels, weights(False)[1], plan.threads)
    w, bias = weights(True)
    block = None if w is None else plan.pack(w, bias)
    assert block is not None
    return block


class TransposedConvolution(Convolution):
    """ConvTranspose, and `leanconv.ConvTranspose`."""

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """As a convolution; the output must not reach beyond all products."""
        reason = super().refusal(node, types, constants)
        x, w = types[0], types[1]
        if reason is not None or x is None or w is None:
            return reason
        if len(x.shape) > 5:
            return "more than three spatial axes"
        place, extra = scatter(node, x.shape, w.shape), _output_padding(node, len(x.shape) - 2)
        highs = [high + e for high, e in zip(place.high, extra, strict=True)]
        if min((*place.low, *highs)) < 0 or any(
            e >= max(s, d) for e, s, d in zip(extra, place.stride, place.dilation, strict=True)
        ):
            return "an output that reaches beyond all products"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The plans of which none is both slower and larger than another."""
        node, x, out, w, bias = call.node, call.given(0), call.output, call.given(1), call.input(2)
        residual = call.input(3)
        place, extra = scatter(node, x.shape, w.shape), _output_padding(node, len(x.shape) - 2)
        last = x.strides[1] == 1 and x.shape[1] > 1

        def user(values: tuple[int, ...]) -> tuple[int, ...]:
            return (values[0], *values[2:], values[1]) if last else values

        problem = make_transposed_problem(
            len(x.shape) - 2,
            user(x.shape),
            w.shape,
            dtype=x.dtype,
            bias=bias is not None,
            stride=place.stride,
            padding=tuple((a, b + e) for a, b, e in zip(place.low, place.high, extra, strict=True)),
            output_padding=extra,
            dilation=place.dilation,
            groups=conv_groups(node),
            layout="NHWC" if last else "NCHW",
            activation=node.attributes.get("activation"),
            residual=residual is not None,
            residual_order=node.attributes.get("residual") or "before",
            x_strides=user(x.strides),
            out_strides=user(out.strides),
            residual_strides=None if residual is None else user(residual.place.strides),
        )
        roles = {"x": x, "out": out} | ({"residual": residual.place} if residual else {})
        share = setting.share([call.input(1), bias])
        return plan_options(problem, partial(weights_of, call), roles, setting, share)


def _output_padding(node: Node, ndim: int) -> tuple[int, ...]:
    return ints(node.attributes.get("output_padding", (0,) * ndim))


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Convolution(), "Conv", "leanconv.Conv")
    registry.add(TransposedConvolution(), "ConvTranspose", "leanconv.ConvTranspose")
