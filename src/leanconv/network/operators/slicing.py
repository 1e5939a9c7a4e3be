"""Operators that cut tensors, put them together, or add to their edges."""

from __future__ import annotations

from collections.abc import Sequence

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
)

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def slices(node: Node, rank: int, inputs: Sequence[tuple[int, ...] | None]) -> tuple[slice, ...]:
    """What a Slice takes along each axis.

    Args:
        node: the Slice; before version 10 it has attributes in place of inputs.
        rank: number of axes.
        inputs: values of its inputs after the first: starts, ends, axes, steps.
    """
    names = ("starts", "ends", "axes", "steps")
    if node.version < 10:
        inputs = [ints(node.attributes[name]) if name in node.attributes else None for name in names]
    starts, ends, axes, steps = (*inputs, None, None, None, None)[:4]
    if starts is None or ends is None:
        raise ValueError("starts and ends are missing")
    places = axes_of(axes if axes is not None else tuple(range(len(starts))), rank)
    steps = steps if steps is not None else (1,) * len(starts)
    if not len(starts) == len(ends) == len(places) == len(steps) or 0 in steps:
        raise ValueError(f"starts={starts}, ends={ends}, axes={axes}, steps={steps} do not fit")
    found = [slice(None)] * rank
    for axis, start, end, step in zip(places, starts, ends, steps, strict=True):
        # Going backwards, an end before the first element is written as a large negative number.
        found[axis] = slice(start, end, step)
    return tuple(found)


def _slice_ranges(shape: tuple[int, ...], cut: tuple[slice, ...]) -> list[range]:
    return [range(n)[part] for n, part in zip(shape, cut, strict=True)]


def _slice_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    values = [known_ints(node, types, constants, position) for position in range(1, len(types))]
    cut = slices(node, len(x.shape), values)
    return (ValueType(tuple(len(r) for r in _slice_ranges(x.shape, cut)), x.dtype),)


def _slice(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    values = [None if array is None else ints(array) for array in arrays[1:]]
    return (x[slices(node, x.ndim, values)],)


def split_sizes(node: Node, extent: int, sizes: tuple[int, ...] | None) -> tuple[int, ...]:
    """Extents that a Split makes of one."""
    if sizes is None and "split" in node.attributes:
        sizes = ints(node.attributes["split"])
    if sizes is None:
        count = int(node.attributes.get("num_outputs", len(node.outputs)))
        each = -(-extent // count)
        sizes = tuple(min(each, max(extent - i * each, 0)) for i in range(count))
    if sum(sizes) != extent or any(size < 0 for size in sizes):
        raise ValueError(f"parts of {sizes} elements are not the {extent} there are")
    return sizes


def _split_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    axis = axis_of(int(node.attributes.get("axis", 0)), len(x.shape))
    sizes = split_sizes(node, x.shape[axis], known_ints(node, types, constants, 1))
    return tuple(ValueType((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for size in sizes)


def _split(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, wanted = given(arrays, 0), maybe(arrays, 1)
    axis = axis_of(int(node.attributes.get("axis", 0)), x.ndim)
    sizes = split_sizes(node, x.shape[axis], None if wanted is None else ints(wanted))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _concat_axis(node: Node, rank: int) -> int:
    return axis_of(int(node.attributes.get("axis", 1 if node.version < 4 else 0)), rank)


def _concat_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    first = present(types, 0)
    axis = _concat_axis(node, len(first.shape))
    total = 0
    for position in range(len(types)):
        part = present(types, position).shape
        if len(part) != len(first.shape) or (*part[:axis], *part[axis + 1 :]) != (
            *first.shape[:axis],
            *first.shape[axis + 1 :],
        ):
            raise ValueError(f"shapes {first.shape} and {part} cannot be joined along axis {axis}")
        total += part[axis]
    return (ValueType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype),)


def _concat(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    parts = [given(arrays, position) for position in range(len(arrays))]
    return (np.concatenate(parts, axis=_concat_axis(node, parts[0].ndim)),)


def pad_widths(
    node: Node, rank: int, pads: tuple[int, ...] | None, axes: tuple[int, ...] | None
) -> list[tuple[int, int]]:
    """Elements that a Pad adds before and after along each axis; negative ones are cut off."""
    if pads is None:
        pads = ints(node.attributes["pads"] if "pads" in node.attributes else node.attributes["paddings"])
    places = axes_of(axes, rank) if axes is not None else tuple(range(rank))
    if len(pads) != 2 * len(places):
        raise ValueError(f"pads={pads} must be {2 * len(places)} ints")
    widths = [(0, 0)] * rank
    for axis, low, high in zip(places, pads[: len(places)], pads[len(places) :], strict=True):
        widths[axis] = (low, high)
    return widths


def pad_mode(node: Node) -> str:
    """The mode of a Pad."""
    mode = node.attributes.get("mode", "constant")
    return mode.decode(errors="replace") if isinstance(mode, bytes) else str(mode)


def _pad_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x = present(types, 0)
    pads, axes = known_ints(node, types, constants, 1), known_ints(node, types, constants, 3)
    widths = pad_widths(node, len(x.shape), pads, axes)
    shape = tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True))
    if pad_mode(node) != "constant":
        for n, (a, b) in zip(x.shape, widths, strict=True):
            if n == 0 and (a > 0 or b > 0):
                raise ValueError(f"an empty axis of shape {x.shape} has nothing to pad with")
    return (ValueType(shape, x.dtype),)


def _pad(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x, pads, fill, axes = given(arrays, 0), maybe(arrays, 1), maybe(arrays, 2), maybe(arrays, 3)
    widths = pad_widths(node, x.ndim, None if pads is None else ints(pads), None if axes is None else ints(axes))
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, widths, strict=True))
    grow = [(max(a, 0), max(b, 0)) for a, b in widths]
    if pad_mode(node) == "constant":
        value = node.attributes.get("value", 0) if fill is None else fill.reshape(())[()]
        return (np.pad(x[cut], grow, constant_values=value),)
    return (np.pad(x[cut], grow, mode=_PAD_MODES[pad_mode(node)]),)  # type: ignore[call-overload]


def _check_pad(node: Node) -> str | None:
    return None if pad_mode(node) in _PAD_MODES else f"mode={pad_mode(node)!r} is unknown"


def _crop_pad_shape(node: Node, shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    axes = axes_of(ints(node.attributes.get("axes", range(len(shape)))), len(shape))
    found = list(shape)
    for axis, extent in zip(axes, wanted, strict=True):
        found[axis] = extent
    return tuple(found)


def _crop_pad_infer(node: Node, types: Types, constants: Arrays) -> tuple[ValueType, ...]:
    x, wanted = present(types, 0), known_ints(node, types, constants, 1) or ()
    return (ValueType(_crop_pad_shape(node, x.shape, wanted), x.dtype),)


def _crop_pad(node: Node, arrays: Arrays) -> tuple[Array, ...]:
    x = given(arrays, 0)
    out = np.zeros(_crop_pad_shape(node, x.shape, ints(given(arrays, 1))), x.dtype)
    source, target = [], []
    for n, m in zip(x.shape, out.shape, strict=True):
        more, less = max(m - n, 0) // 2, max(n - m, 0) // 2
        target.append(slice(more, more + min(n, m)))
        source.append(slice(less, less + min(n, m)))
    out[tuple(target)] = x[tuple(source)]
    return (out,)


OPERATORS = (
    Operator("Slice", _slice_infer, _slice, since=(1, 10, 11)),
    Operator("Split", _split_infer, _split, since=(1, 2, 11, 13, 18)),
    Operator("Concat", _concat_infer, _concat, since=(1, 4, 11)),
    Operator("Pad", _pad_infer, _pad, since=(1, 2, 11, 18, 19), check=_check_pad),
    Operator("CenterCropPad", _crop_pad_infer, _crop_pad, since=(18,)),
)
