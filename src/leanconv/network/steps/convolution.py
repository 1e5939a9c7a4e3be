"""Convolutions, and products with constant matrices, by the plans of single layers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node
from leanconv.network.operators.base import ints
from leanconv.network.operators.convolution import conv_groups, conv_windows
from leanconv.network.operators.transposed import scatter
from leanconv.network.places import Place, reshaped
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.options import make_problem
from leanconv.plan import Plan
from leanconv.planning.network import layer_options
from leanconv.problem import Problem
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
        if constants[1] is None or (len(types) > 2 and types[2] is not None and constants[2] is None):
            return "weights or bias that are not constant"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The plans of which none is both slower and larger than another."""
        w, bias = _constant(call, 1), _constant(call, 2)
        assert w is not None
        residual = call.input(3)
        problem = conv_problem(call.node, call.given(0), w, bias, call.output, residual.place if residual else None)
        roles = {"x": call.given(0), "out": call.output} | ({"residual": residual.place} if residual else {})
        return plan_options(problem, w, bias, roles, setting)


def _constant(call: Call, position: int) -> Array | None:
    found = call.input(position)
    return None if found is None else found.constant


def conv_problem(node: Node, x: Place, w: Array, bias: Array | None, out: Place, residual: Place | None) -> Problem:
    """The problem of a convolution on values where they lie."""
    window = conv_windows(node, x.shape, w.shape)
    # Which axis is adjacent says what the layout is called; the strides say all.
    last = x.strides[1] == 1 and x.shape[1] > 1

    def user(values: tuple[int, ...]) -> tuple[int, ...]:
        return (values[0], *values[2:], values[1]) if last else values

    order = node.attributes.get("residual")
    return make_problem(
        len(x.shape) - 2,
        user(x.shape),
        w.shape,
        dtype=x.dtype,
        bias=bias is not None,
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


def plan_options(
    problem: Problem, w: Array, bias: Array | None, roles: dict[str, Place], setting: Setting
) -> list[Option]:
    """The plans of a problem, as ways to compute a step."""
    requirements = (setting.algorithm, setting.accuracy, setting.deterministic)
    found = layer_options(problem, setting.threads, 0 if setting.limited else None, requirements)
    plain = problem.w_bytes + (problem.out_channels * problem.itemsize if problem.has_bias else 0)
    result = []
    for option in sorted(found, key=lambda option: option.seconds):
        plan = option.candidate.plan
        kept = (plan.packed_weight_bytes or plain) + plan.table_bytes
        extra = max(0, kept - plain)
        result.append(
            Option(
                plan.algorithm,
                option.seconds,
                lambda plan=plan: _built(plan, w, bias, roles),  # type: ignore[misc]
                plan.lowering.workspace,
                kept,
                extra,
            )
        )
    return result


def _built(plan: Plan, w: Array, bias: Array | None, places: dict[str, Place]) -> Built:
    packing = plan.packing
    packed = plan.pack(w, bias)
    memory: dict[str, Place | Memory | int] = dict(places)
    if packed is not None:
        memory["w"] = packed
    else:
        memory["weights"] = np.ascontiguousarray(w)
    if bias is not None and (packing is None or packing.bias_apart):
        memory["bias"] = np.ascontiguousarray(bias)
    # A bound program has the addresses of its tables, which the plan keeps.
    return Built(plan.lowering.phases, memory | dict(plan.compiled.program.addresses), (plan,))


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
        node, x, out, w, bias = call.node, call.given(0), call.output, _constant(call, 1), _constant(call, 2)
        assert w is not None
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
        return plan_options(problem, w, bias, roles, setting)


def _output_padding(node: Node, ndim: int) -> tuple[int, ...]:
    return ints(node.attributes.get("output_padding", (0,) * ndim))


class Product(Lowerer):
    """Gemm and MatMul with a constant matrix on the right: a pointwise convolution, a row being a pixel."""

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """A constant matrix, and a summand that is a constant row or nothing."""
        a, b = types[0], types[1]
        if a is None or b is None or a.dtype not in FLOATS:
            return "kernels compute in float32 and float64"
        if constants[1] is None or len(b.shape) != 2:
            return "the matrix on the right is not a constant"
        if len(a.shape) < 2:
            return "a vector on the left"
        if node.op == "Gemm" and len(types) > 2 and types[2] is not None:
            c = constants[2]
            if c is None or c.size not in (1, _columns(node, b.shape)) or any(n != 1 for n in c.shape[:-1]):
                return "a summand that is not a constant row"
        if 0 in a.shape or 0 in b.shape:
            return "an empty matrix"
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Rows that are evenly spaced."""
        return position > 0 or _rows(place, bool(node.op == "Gemm" and node.attributes.get("transA", 0))) is not None

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Rows that are evenly spaced."""
        return _rows(place, False) is not None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The plans of a one-dimensional layer."""
        node, a, out = call.node, call.given(0), call.output
        gemm = node.op == "Gemm"
        b = _constant(call, 1)
        assert b is not None
        w = b if gemm and node.attributes.get("transB", 0) else b.T
        alpha, beta = (float(node.attributes.get(key, 1.0)) if gemm else 1.0 for key in ("alpha", "beta"))
        if alpha != 1.0:
            w = w * w.dtype.type(alpha)
        c = _constant(call, 2) if gemm else None
        bias = None
        if c is not None:
            bias = np.ascontiguousarray(np.broadcast_to(c.reshape(-1), (w.shape[0],)) * c.dtype.type(beta))
        rows = _rows(a, bool(gemm and node.attributes.get("transA", 0)))
        target = _rows(out, False)
        assert rows is not None and target is not None, "see accepts"
        (count, step, depth, inner), (_, to, _, across) = rows, target
        problem = make_problem(
            1,
            (1, count, depth),
            (w.shape[0], depth, 1),
            dtype=a.dtype,
            bias=bias is not None,
            layout="NHWC",
            activation=node.attributes.get("activation"),
            x_strides=(count * max(step, 1), step, inner),
            out_strides=(count * max(to, 1), to, across),
        )
        weights = w[:, :, None]
        roles = {"x": a, "out": out}
        return plan_options(problem, weights, bias, roles, setting)


def _columns(node: Node, shape: tuple[int, ...]) -> int:
    return shape[0] if node.op == "Gemm" and node.attributes.get("transB", 0) else shape[1]


def _rows(place: Place, turned: bool) -> tuple[int, int, int, int] | None:
    """A value as a matrix: rows, elements between them, columns, elements between them; None if it is no such."""
    if turned:
        return place.shape[1], place.strides[1], place.shape[0], place.strides[0]
    flat = reshaped(place, (int(np.prod(place.shape[:-1])), place.shape[-1]))
    if flat is None:
        return None
    return flat.shape[0], flat.strides[0], flat.shape[1], flat.strides[1]


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Convolution(), "Conv", "leanconv.Conv")
    registry.add(TransposedConvolution(), "ConvTranspose", "leanconv.ConvTranspose")
    registry.add(Product(), "Gemm", "MatMul")
