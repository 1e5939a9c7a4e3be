"""Gemm and MatMul: pointwise convolutions, a row of the left matrix being a pixel.

A constant matrix on the right is packed once, like the weights of a layer; one that is computed is packed by a phase of
its own before each product, and products of several matrices are made one after the other.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import replace
from leanconv.memory import Buffer
from leanconv.network.constants import is_known
from leanconv.network.graph import Node
from leanconv.network.places import Place, broadcast, reshaped, sliced
from leanconv.network.slabs import Rows
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.network.steps.convolution import plan_options, w_rows, weights_of
from leanconv.options import make_problem
from leanconv.plan import PACKED, Plan
from leanconv.planning.candidates import algorithm_named
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase

MOST_PRODUCTS = 64
"""Matrices of a MatMul; each takes two phases."""


class Product(Lowerer):
    """Gemm, and MatMul."""

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Matrices on both sides; a summand that is a constant row or nothing."""
        a, b = types[0], types[1]
        if a is None or b is None or a.dtype not in FLOATS:
            return "kernels compute in float32 and float64"
        if len(a.shape) < 2 or len(b.shape) < 2:
            return "a vector instead of a matrix"
        if 0 in a.shape or 0 in b.shape:
            return "an empty matrix"
        if not _constant_matrix(node, types, constants):
            if node.op == "Gemm":
                return "the matrix on the right is not a constant"
            if math.prod(_outer(types)) > MOST_PRODUCTS:
                return f"more than {MOST_PRODUCTS} matrices"
            return None
        if node.op == "Gemm" and len(types) > 2 and types[2] is not None:
            c = constants[2]
            if c is None or c.size not in (1, _columns(node, b.shape)) or any(n != 1 for n in c.shape[:-1]):
                return "a summand that is not a constant row"
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Rows that are evenly spaced, if all of them are multiplied by one matrix."""
        if position > 0 or (node.op == "MatMul" and len(place.shape) == 2):
            return True
        return _rows(place, bool(node.op == "Gemm" and node.attributes.get("transA", 0))) is not None

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Rows that are evenly spaced, side by side in one direction."""
        side = place.strides[-1] == 1 or place.strides[-2] == 1 or 1 in place.shape[-2:]
        return side and _rows(place, False) is not None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The plans of a one-dimensional layer, or products one after the other."""
        right = call.inputs[1]
        assert right is not None
        if right.handle is None or len(right.place.shape) != 2:
            return [_computed(call, setting)]
        return _known(call, right.place.shape, setting)


def _constant_matrix(node: Node, types: Types, constants: Arrays) -> bool:
    return is_known(constants, 1) and types[1] is not None and len(types[1].shape) == 2


def _outer(types: Types) -> tuple[int, ...]:
    return np.broadcast_shapes(*(t.shape[:-2] for t in types[:2] if t is not None))


def _columns(node: Node, shape: tuple[int, ...]) -> int:
    return shape[0] if node.op == "Gemm" and node.attributes.get("transB", 0) else shape[1]


def _rows(place: Place, turned: bool) -> tuple[int, int, int, int] | None:
    """A value as a matrix: rows, elements between them, columns, elements between them; None if it is no such."""
    if turned:
        return place.shape[1], place.strides[1], place.shape[0], place.strides[0]
    flat = reshaped(place, (int(np.prod(place.shape[:-1])), place.shape[-1]))
    return None if flat is None else (flat.shape[0], flat.strides[0], flat.shape[1], flat.strides[1])


def _matrices(call: Call, whole: bool) -> tuple[Array | None, Array | None]:
    """The matrix on the right as weights of a layer (None if not `whole`), and the summand as its bias."""
    node, (b, c) = call.node, weights_of(call, whole)
    gemm = node.op == "Gemm"
    alpha, beta = (float(node.attributes.get(key, 1.0)) if gemm else 1.0 for key in ("alpha", "beta"))
    if b is not None:
        b = b if gemm and node.attributes.get("transB", 0) else b.T
        b = (b if alpha == 1.0 else b * b.dtype.type(alpha))[:, :, None]
    if not gemm or c is None:
        return b, None
    columns = _columns(node, call.given(1).shape)
    return b, np.ascontiguousarray(np.broadcast_to(c.reshape(-1), (columns,)) * c.dtype.type(beta))


def _matrix_rows(call: Call) -> Rows | None:
    """How to look at some columns of the product only."""
    rows, attributes = w_rows(call), call.node.attributes
    if rows is None or call.node.op != "Gemm" or not attributes.get("transB", 0) or attributes.get("alpha", 1.0) != 1.0:
        return None
    return lambda first, last: rows(first, last)[:, :, None]


def _known(call: Call, shape: tuple[int, ...], setting: Setting) -> list[Option]:
    """All rows times one constant matrix."""
    node, a, out = call.node, call.given(0), call.output
    gemm = node.op == "Gemm"
    columns = _columns(node, shape)
    rows, target = _rows(a, bool(gemm and node.attributes.get("transA", 0))), _rows(out, False)
    assert rows is not None and target is not None, "see accepts"
    (count, step, depth, inner), (_, to, _, across) = rows, target
    problem = make_problem(
        1,
        (1, count, depth),
        (columns, depth, 1),
        dtype=a.dtype,
        bias=gemm and call.input(2) is not None,
        layout="NHWC",
        activation=node.attributes.get("activation"),
        x_strides=(count * max(step, 1), step, inner),
        out_strides=(count * max(to, 1), to, across),
    )
    factors = (node.attributes.get(key) for key in ("alpha", "beta", "transB")) if gemm else ()
    share = setting.share(call.inputs[1:3], "Gemm" if gemm else "MatMul", *factors)
    return plan_options(problem, partial(_matrices, call), {"x": a, "out": out}, setting, share, _matrix_rows(call))


def _computed(call: Call, setting: Setting) -> Option:
    """Each matrix on the right is packed, then multiplied."""
    out = call.output
    outer, (m, n) = out.shape[:-2], out.shape[-2:]
    a, b = call.given(0), call.given(1)
    depth = a.shape[-1]
    a, b = broadcast(a, (*outer, m, depth)), broadcast(b, (*outer, depth, n))
    problem = make_problem(
        1,
        (1, m, depth),
        (n, depth, 1),
        dtype=out.dtype,
        layout="NHWC",
        x_strides=(0, a.strides[-2], a.strides[-1]),
        w_strides=(b.strides[-1], b.strides[-2], 1),
        out_strides=(0, out.strides[-2], out.strides[-1]),
    )
    low = Plan(problem, algorithm_named("pointwise"), setting.threads).lowering
    assert low.packing is not None
    phases: list[Phase] = []
    roles: dict[str, Place | Memory | int] = {}
    for number, index in enumerate(itertools.product(*map(range, outer))):
        names = {"w": PACKED}
        for role, place in (("x", a), ("weights", b), ("out", out)):
            whole = (*(1,) * len(outer), *place.shape[-2:])
            names[role] = f"{role} {number}"
            roles[names[role]] = sliced(place, (*index, 0, 0), (1,) * len(whole), whole)
        phases += [phase.renamed(names) for phase in (*low.packing.phases, *low.phases)]
    renamed = tuple(replace(phase, name=call.node.name) for phase in phases)
    workspace = (*low.workspace, Buffer(PACKED, low.packing.nbytes))
    seconds = phases_seconds(renamed, setting.threads)
    return Option("packed pointwise", seconds, lambda: Built(renamed, roles), workspace)


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Product(), "Gemm", "MatMul")
