"""Operators that give the same elements in another shape or order, or tell the shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from leanconv.arrays import Array
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import (
    Arrays,
    Operator,
    Types,
    axes_of,
    axis_of,
    given,
    ints,
    known_ints,
    maybe,
    present,
    product,
    same_type,
)


def reshaped(shape: tuple[int, ...], wanted: Sequence[int], *, allow_zero: bool) -> tuple[int, ...]:
    """Shape that a Reshape makes: 0 keeps an extent, -1 is what is left."""
    found = [shape[i] if n == 0 and not allow_zero else n for i, n in enumerate(wanted)]
    if found.count(-1) > 1 or any(n < -1 for n in found):
        raise ValueError(f"the wanted shape {tuple(wanted)} has negative extents")
    size = product(shape)
    if -1 in found:
        rest = product([n for n in found if n != -1])
        if not rest or size % rest:
            raise ValueError(f"{size} elements do not fit the shape {tuple(wanted)}")
        found[found.index(-1)] = size // rest
    if product(found) != size:
        raise ValueError(f"{size} elements do not fit the shape {tuple(wanted)}")
    return tuple(found)


def _shape_as(
    shape_of: Callable[[Node, tuple[int, ...], tuple[int, ...] | None], tuple[int, ...]],
) -> tuple[Callable[[Node, Types, Arrays], tuple[ValueType, ...]], Callable[[Node, Arrays], tuple[Array, ...]]]:
    """Both halves of an operator that only reshapes, from a function of its shape and its second input."""

    def infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
        x = present(types, 0)
        return (ValueType(shape_of(node, x.shape, known_ints(node, types, constants, 1)), x.dtype),)

    def evaluate(node: Node, arrays: Arrays) -> tuple[Array, ...]:
        x, second = given(arrays, 0), maybe(arrays, 1)
        return (x.reshape(shape_of(node, x.shape, None if second is None else ints(second))),)

    return infer, evaluate


def _reshape(node: Node, shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    found = wanted if wanted is not None else ints(node.attributes["shape"])
    return reshaped(shape, found, allow_zero=bool(node.attributes.get("allowzero", 0)))


def _flatten(node: Node, shape: tuple[int, ...], _: tuple[int, ...] | None) -> tuple[int, ...]:
    axis = axis_of(int(node.attributes.get("axis", 1)), len(shape), beyond=1)
    return product(shape[:axis]), product(shape[axis:])


def _squeeze(node: Node, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None and "axes" in node.attributes:
        axes = ints(node.attributes["axes"])
    dropped = axes_of(axes, len(shape)) if axes is not None else tuple(i for i, n in enumerate(shape) if n == 1)
    if any(shape[axis] != 1 for axis in dropped):
        raise ValueError(f"axes {dropped} of shape {shape} are not all of one element")
    return tuple(n for i, n in enumerate(shape) if i not in dropped)


def _unsqueeze(node: Node, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    wanted = axes if axes is not None else ints(node.attributes["axes"])
    rank = len(shape) + len(wanted)
    new = axes_of(wanted, rank)
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def _identity(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (given(arrays, 0),)


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """Order of axes that a Transpose makes."""
    order = ints(node.attributes.get("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise ValueError(f"perm={order} is no order of {rank} axes")
    return order


def _transpose_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    return (ValueType(tuple(x.shape[i] for i in permutation(node, len(x.shape))), x.dtype),)


def _transpose(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    return (x.transpose(permutation(node, x.ndim)),)


def _slice_of_shape(node: Node, rank: int) -> slice:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return slice(int(start), rank if end is None else int(end))


def _shape_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    shape = present(types, 0).shape
    return (ValueType((len(shape[_slice_of_shape(node, len(shape))]),), "int64"),)


def _shape(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    shape = given(arrays, 0).shape
    return (np.array(shape[_slice_of_shape(node, len(shape))], np.int64),)


def _size_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    return (ValueType((), "int64"),)


def _size(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (np.array(given(arrays, 0).size, np.int64),)


def _dropout_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    return x, ValueType(x.shape, "bool" if node.version >= 10 else x.dtype)


def _dropout(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, ratio, training = given(arrays, 0), maybe(arrays, 1), maybe(arrays, 2)
    if training is not None and bool(training.reshape(())) and (ratio is None or float(ratio.reshape(()))):
        raise ValueError("training is not supported: which elements are dropped is random")
    return x, np.ones(x.shape, bool if node.version >= 10 else x.dtype)


def _check_dropout(node: Node) -> str | None:
    if node.version < 7 and not node.attributes.get("is_test", 0):
        return "training (is_test=0) is not supported"
    return None


def _expand_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, wanted = present(types, 0), known_ints(node, types, constants, 1)
    return (ValueType(np.broadcast_shapes(x.shape, wanted or ()), x.dtype),)


def _expand(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    return (np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(given(arrays, 1)))),)


def _tile_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, repeats = present(types, 0), known_ints(node, types, constants, 1) or ()
    if len(repeats) != len(x.shape) or any(r < 0 for r in repeats):
        raise ValueError(f"repeats={repeats} for a shape of {len(x.shape)} axes")
    return (ValueType(tuple(n * r for n, r in zip(x.shape, repeats, strict=True)), x.dtype),)


def _tile(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    return (np.tile(given(arrays, 0), ints(given(arrays, 1))),)


def _block(node: Node) -> int:
    block = int(node.attributes["blocksize"])
    if block < 1:
        raise ValueError(f"blocksize={block} must be positive")
    return block


def _depth_to_space_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, block = present(types, 0), _block(node)
    n, c, h, w = x.shape
    if c % block**2:
        raise ValueError(f"{c} channels are no multiple of {block}**2")
    return (ValueType((n, c // block**2, h * block, w * block), x.dtype),)


def _depth_to_space(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, block = given(arrays, 0), _block(node)
    n, c, h, w = x.shape
    if node.attributes.get("mode", "DCR") in ("DCR", b"DCR"):
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (y.reshape(n, c // block**2, h * block, w * block),)


def _space_to_depth_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, block = present(types, 0), _block(node)
    n, c, h, w = x.shape
    if h % block or w % block:
        raise ValueError(f"{h} by {w} pixels are no multiple of blocks of {block}")
    return (ValueType((n, c * block**2, h // block, w // block), x.dtype),)


def _space_to_depth(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, block = given(arrays, 0), _block(node)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.attributes.get("mode", "DCR") in ("CRD", b"CRD") else (0, 3, 5, 1, 2, 4)
    return (y.transpose(order).reshape(n, c * block**2, h // block, w // block),)


OPERATORS = (
    Operator("Reshape", *_shape_as(_reshape), since=(1, 5, 14)),
    Operator("Flatten", *_shape_as(_flatten), since=(1, 11)),
    Operator("Squeeze", *_shape_as(_squeeze), since=(1, 11, 13)),
    Operator("Unsqueeze", *_shape_as(_unsqueeze), since=(1, 11, 13)),
    Operator("Identity", same_type, _identity),
    Operator("Dropout", _dropout_infer, _dropout, since=(1, 6, 7, 10, 12), check=_check_dropout),
    Operator("Transpose", _transpose_infer, _transpose),
    Operator("Shape", _shape_infer, _shape, since=(1, 15)),
    Operator("Size", _size_infer, _size),
    Operator("Expand", _expand_infer, _expand, since=(8,)),
    Operator("Tile", _tile_infer, _tile, since=(6,)),
    Operator("DepthToSpace", _depth_to_space_infer, _depth_to_space, since=(1, 11)),
    Operator("SpaceToDepth", _space_to_depth_infer, _space_to_depth),
)
