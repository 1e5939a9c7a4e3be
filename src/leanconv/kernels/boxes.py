"""Boxes of output pixels: the parts in which a long sum over pixels is taken, and which of them a tap reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.classes import dataclass
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


@dataclass(frozen=True, slots=True)
class Walker:
    """An array as it is walked through: image n and position q lie at start + n * images + sum of q[d] * steps[d]."""

    start: Value
    images: Index
    steps: Sequence[Index]


def tap_ranges(
    fn: Function,
    fields: Fields,
    box: Box,
    windows: Sequence[tuple[int, int, int]],
    tap: Sequence[Index],
) -> list[tuple[Value, Value]]:
    """Along each dimension the positions [first, end) of a box that read inside the image under a tap.

    `windows` are (stride, dilation, padding) of each dimension.
    """
    ranges: list[tuple[Value, Value]] = []
    for d, (start, end) in enumerate(box.ranges):
        low, high = inside(fn, fields, *windows[d], d, tap[d])
        ranges.append((fn.i64(fn.smax(low, start)), fn.i64(fn.smin(high, end))))
    return ranges


def each_line(
    fn: Function,
    box: Box,
    ranges: Sequence[tuple[Value, Value]],
    walkers: Sequence[Walker],
    accs: Sequence[Value],
    body: Callable[[list[Value], Value, list[Value]], list[Value]],
) -> list[Value]:
    """Carry accumulators through `body(places, count, accs)` for all lines of the last dimension.

    `places` is where each walker is at the first of the `count` positions of a line; there may be none.
    """
    last = len(ranges) - 1
    count = fn.i64(fn.smax(fn.sub(ranges[last][1], ranges[last][0]), 0))

    def moved(places: Sequence[Value], at: Value, dim: int) -> list[Value]:
        return [fn.gep(place, fn.mul(at, w.steps[dim])) for place, w in zip(places, walkers, strict=True)]

    def level(dim: int, places: list[Value], accs: list[Value]) -> list[Value]:
        if dim == last:
            return body(moved(places, ranges[dim][0], dim), count, accs)
        return fn.loop(
            *ranges[dim],
            1,
            accs,
            lambda at, accs: level(dim + 1, moved(places, at, dim), accs),
            guard=True,
            hint="line",
        )

    def image(n: Value, accs: list[Value]) -> list[Value]:
        return level(0, [fn.gep(w.start, fn.mul(n, w.images)) for w in walkers], accs)

    return fn.loop(*box.images, 1, accs, image, hint="image")


def position_of_tap(fn: Function, number: Value, kernel: Sequence[int]) -> list[Index]:
    """The taps' position along each dimension, of the tap of a number; the last dimension counts first."""
    position: list[Index] = []
    rest: Index = number
    for extent in reversed(kernel[1:]):
        position.insert(0, fn.urem(rest, extent))
        rest = fn.udiv(rest, extent)
    return [rest, *position]
