"""Products of matrices."""

from __future__ import annotations

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import Arrays, Operator, Types, given, maybe, present


def matmul_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a product, by NumPy's rule."""
    if not a or not b:
        raise ValueError(f"shapes {a} and {b} have no product: one is a single number")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise ValueError(f"shapes {a} and {b} have no product: {left[-1]} columns meet {right[-2]} rows")
    outer = np.broadcast_shapes(left[:-2], right[:-2])
    return (*outer, *left[-2:-1][: len(a) - 1], *right[-1:][: len(b) - 1])


def _matmul_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    a, b = present(types, 0), present(types, 1)
    return (ValueType(matmul_shape(a.shape, b.shape), a.dtype),)


def _matmul(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a, b = given(arrays, 0), given(arrays, 1)
    return (np.asarray(np.matmul(a, b)).astype(a.dtype, copy=False),)


def _gemm_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    a, b = present(types, 0), present(types, 1)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ValueError(f"shapes {a.shape} and {b.shape} are not those of two matrices")
    left = a.shape[::-1] if node.attributes.get("transA", 0) else a.shape
    right = b.shape[::-1] if node.attributes.get("transB", 0) else b.shape
    shape = matmul_shape(left, right)
    c = types[2] if len(types) > 2 else None
    if c is not None and np.broadcast_shapes(c.shape, shape) != shape:
        raise ValueError(f"the shape {c.shape} of C does not broadcast to {shape}")
    return (ValueType(shape, a.dtype),)


def _gemm(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    a, b, c = given(arrays, 0), given(arrays, 1), maybe(arrays, 2)
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    y = a @ b
    if alpha != 1:
        y = y * alpha
    if c is not None:
        y = y + (c if beta == 1 else c * beta)
    return (np.asarray(y).astype(a.dtype, copy=False),)


def _equation(node: Node) -> str:
    value = node.attributes["equation"]
    return (value.decode() if isinstance(value, bytes) else str(value)).replace(" ", "")


def _einsum_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    first = present(types, 0)
    # NumPy tells the shape without computing: every operand is one number seen as many.
    shapes = [np.broadcast_to(np.zeros((), np.int8), present(types, i).shape) for i in range(len(types))]
    inputs, _, output = _equation(node).partition("->")
    extents = _extents(inputs.split(","), shapes)
    if not _equation(node).count("->"):
        letters = inputs.replace(",", "").replace("...", "")
        output = ("..." if "..." in inputs else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    dots, out = extents.pop("..."), []
    for letter in output.replace("...", "."):
        out.extend(dots if letter == "." else [extents[letter][0]])
    return (ValueType(tuple(out), first.dtype),)


def _extents(terms: list[str], operands: list[Array]) -> dict[str, list[int]]:
    """Extent of each letter, and those that `...` stands for."""
    if len(terms) != len(operands):
        raise ValueError(f"an equation of {len(terms)} terms for {len(operands)} inputs")
    found: dict[str, list[int]] = {"...": []}
    for term, operand in zip(terms, operands, strict=True):
        head, dots, tail = term.partition("...")
        between = operand.ndim - len(head) - len(tail)
        if between < 0 or (between and not dots):
            raise ValueError(f"the term {term!r} for a shape of {operand.ndim} axes")
        middle = operand.shape[len(head) : len(head) + between]
        found["..."] = list(np.broadcast_shapes(tuple(found["..."]), middle))
        sizes = operand.shape[: len(head)] + operand.shape[operand.ndim - len(tail) :]
        for letter, extent in zip(head + tail, sizes, strict=True):
            known = found.setdefault(letter, [extent])
            if known[0] != extent and 1 not in (known[0], extent):
                raise ValueError(f"the letter {letter!r} stands for {known[0]} and for {extent}")
            known[0] = max(known[0], extent)
    return found


def _einsum(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    operands = [given(arrays, i) for i in range(len(arrays))]
    return (np.asarray(np.einsum(_equation(node), *operands, optimize=len(operands) > 2)).astype(operands[0].dtype),)


def _det_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"the shape {x.shape} is not that of square matrices")
    return (ValueType(x.shape[:-2], x.dtype),)


def _det(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    return (np.asarray(np.linalg.det(x)).astype(x.dtype),)


OPERATORS = (
    Operator("MatMul", _matmul_infer, _matmul),
    Operator("Gemm", _gemm_infer, _gemm, since=(1, 6, 7, 11)),
    Operator("Einsum", _einsum_infer, _einsum, since=(12,)),
    Operator("Det", _det_infer, _det, since=(11,)),
)
