"""Boxes of output pixels: the parts in which a long sum over pixels is taken, and which of them a tap reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.fields import Fields


@dataclass(frozen=True, slots=True)
class Box:
    """Images [first, end), and [first, end) along each spatial dimension, with how many that are."""

    images: tuple[Value, Value]
    ranges: list[tuple[Value, Value]]
    extents: list[Value]


def each_box(fn: Function, fields: Fields, dims: int, body: Callable[[Box], None]) -> None:
    """Emit `body` for all boxes, images outermost.

    Fields: `batch`, `out{d}` sizes; `b_n`, `b_{d}` those of a box.
    """

    def level(dim: int, images: tuple[Value, Value] | None, ranges: list[tuple[Value, Value]]) -> None:
        if dim == dims:
            assert images is not None
            body(Box(images, ranges, [fn.i64(fn.sub(end, start)) for start, end in ranges]))
            return
        size, step = (fields["batch"], fields["b_n"]) if dim < 0 else (fields[f"out{dim}"], fields[f"b_{dim}"])

        def part(start: Value, _: list[Value]) -> list[Value]:
            span = (start, fn.i64(fn.smin(fn.add(start, step), size)))
            level(dim + 1, span if dim < 0 else images, ranges if dim < 0 else [*ranges, span])
            return []

        fn.loop(0, size, step, [], part, guard=dim < 0, hint="box")

    level(-1, None, [])


def inside(
    fn: Function, fields: Fields, stride: int, dilation: int, pad: int, dim: int, tap: Index
) -> tuple[Index, Index]:
    """The output positions [first, end) whose window reads inside the image under a tap, along one dimension.

    Fields: `in{d} out{d}` sizes. The end may be before the first position.
    """
    offset = fn.sub(fn.mul(tap, dilation), pad)  # position q reads q * stride + offset
    first = fn.udiv(fn.add(fn.smax(fn.sub(0, offset), 0), stride - 1), stride)
    reach = fn.smax(fn.add(fn.sub(fields[f"in{dim}"], offset), stride - 1), 0)
    return first, fn.smin(fn.udiv(reach, stride), fields[f"out{dim}"])
