"""How a Winograd kernel walks over its tiles, and over the products inside one.

A tile is `outputs` output pixels along each axis.  Where the output is no multiple of that, the last tile of an axis
is smaller: it leaves out points of the transform, the last ones, so that no product is computed for pixels that do not
exist.  A point of the transform then belongs to all tiles or to the whole ones only; points are sorted into *classes*
by that (one bit an axis: 1 if small tiles leave it out), and the tiles of a class are counted apart.

With a dilation of d an axis falls into d interleaved problems without one; its tiles are those of the first, second,
... pixel of every d in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import PTR, Function, Index, Value
from leanconv.kernels.fields import Fields
from leanconv.kernels.polyphase import Transform

Bits = tuple[int, ...]
Counters = dict[Bits, Value]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the image: the transform along it, outputs of its last tile, and where its windows lie.

    `clipped`: all tiles are whole, but not all outputs of the last one exist.
    """

    transform: Transform
    edge: int
    stride: int
    dilation: int
    pad_low: int
    clipped: bool = False

    @property
    def ragged(self) -> bool:
        """Whether the last tile is smaller than the others."""
        return self.edge < self.transform.outputs

    @property
    def kept(self) -> int:
        """Points that small tiles have too."""
        return self.transform.span(self.edge)

    def split(self, points: int) -> list[tuple[int, int]]:
        """The first `points` points as (number of points, class bit), in order."""
        kept = min(points, self.kept)
        return [(kept, 0), *([(points - kept, 1)] if points > kept else [])]

    def bit(self, point: int) -> int:
        """The class bit of a point."""
        return int(point >= self.kept)


@dataclass(frozen=True, slots=True)
class Place:
    """A tile: its image, the output position of its first pixel, and how many outputs it has along each axis.

    `valid` are those that exist: fewer than `outputs`, perhaps, with a dilation or where tiles are clipped.
    """

    image: Value
    origin: tuple[Value, ...]
    outputs: tuple[int, ...]
    valid: tuple[Index, ...]


@dataclass(frozen=True)  # without slots, so that what planning asks for again and again is kept
class Tiling:
    """The tiles of all images, counted along the last axis first; fields `tiles{d} last{d} out{d}`.

    `tiles{d}` along an axis (of all interleaved problems), `last{d}` the number of the last one of a problem.
    """

    axes: tuple[Axis, ...]

    @cached_property
    def whole(self) -> Tiling:
        """The transforms alone, which are all that weights depend on."""
        return Tiling(tuple(replace(axis, edge=axis.transform.outputs, dilation=1, pad_low=0) for axis in self.axes))

    @cached_property
    def clipped(self) -> Tiling:
        """The same for any extents: all tiles are whole, and what lies behind the image is left out."""
        return Tiling(tuple(replace(axis, edge=axis.transform.outputs, clipped=True) for axis in self.axes))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Points of a whole tile along each axis."""
        return tuple(axis.transform.size for axis in self.axes)

    @cached_property
    def points(self) -> int:
        """Products of a whole tile."""
        return math.prod(self.sizes)

    @cached_property
    def active(self) -> list[int]:
        """The axes that have a transform."""
        return [d for d, size in enumerate(self.sizes) if size > 1]

    @cached_property
    def classes(self) -> list[Bits]:
        """The classes of points."""
        return list(itertools.product(*((0, 1) if axis.ragged else (0,) for axis in self.axes)))

    def counted(self, fields: Mapping[str, int]) -> list[tuple[int, float]]:
        """Of each class how many points it has, and which part of all tiles has them."""
        result = []
        for bits in self.classes:
            points, part = 1, 1.0
            for d, (axis, bit) in enumerate(zip(self.axes, bits, strict=True)):
                tiles = fields[f"tiles{d}"]
                points *= axis.transform.size - axis.kept if bit else axis.kept if axis.ragged else axis.transform.size
                if bit:  # the last of each of the interleaved problems leaves them out
                    part *= fields[f"last{d}"] * axis.dilation / tiles
            result.append((points, part))
        return result

    def start(self, fn: Function, fields: Fields, tile: Index) -> list[Value]:
        """What is carried from tile to tile: image and number along each axis."""
        position: list[Value] = []
        for d in reversed(range(len(self.axes))):
            position.insert(0, fn.i64(fn.urem(tile, fields[f"tiles{d}"])))
            tile = fn.udiv(tile, fields[f"tiles{d}"])
        return [fn.i64(tile), *position]

    def each(
        self,
        fn: Function,
        fields: Fields,
        first: Value,
        end: Value,
        start: list[Value],
        body: Callable[[Place, Counters], None],
        before: Counters | None = None,
    ) -> Counters:
        """Run `body` for the tiles [first, end); it gets the tile's place in each class that it belongs to.

        Places are counted from those `before` on. Returns how many tiles there are of each class then.
        """
        classes = self.classes

        def turn(_: Value, state: list[Value]) -> list[Value]:
            at, counts = state[: len(start)], dict(zip(classes, state[len(start) :], strict=True))
            counts = self._variants(fn, fields, at, counts, (), body)
            return [*self._next(fn, fields, at), *(counts[bits] for bits in classes)]

        counts = [fn.i64(0) if before is None else before[bits] for bits in classes]
        state = fn.loop(first, end, 1, [*start, *counts], turn, hint="tile")
        return dict(zip(classes, state[len(start) :], strict=True))

    def whole_tiles(self, fields: Fields, fn: Function, d: int) -> Index:
        """How many tiles along an axis are not small."""
        axis = self.axes[d]
        return fn.mul(fields[f"last{d}"], axis.dilation) if axis.ragged else fields[f"tiles{d}"]

    def before(self, fn: Function, fields: Fields, tile: Index, kept: Sequence[Index]) -> Value:
        """How many of the tiles before one are among the first `kept` along each axis: those of a class."""
        at = self.start(fn, fields, tile)
        count: Index = 0
        size: Index = 1
        for d in reversed(range(len(self.axes))):
            whole = fn.mul(kept[d], size)
            inside = fn.add(fn.mul(at[d + 1], size), count)
            count = fn.select(fn.cmp("slt", at[d + 1], kept[d]), inside, whole)
            size = whole
        return fn.i64(fn.add(fn.mul(at[0], size), count))

    def _next(self, fn: Function, fields: Fields, at: list[Value]) -> list[Value]:
        after = list(at)
        grown = fn.i64(fn.add(at[-1], 1))
        for d in reversed(range(len(self.axes))):
            carry = fn.cmp("eq", grown, fields[f"tiles{d}"])
            after[d + 1] = fn.select(carry, 0, grown)
            grown = fn.select(carry, fn.add(at[d], 1), at[d])
        after[0] = grown
        return after

    def _variants(
        self,
        fn: Function,
        fields: Fields,
        at: list[Value],
        counts: Counters,
        small: Bits,
        body: Callable[[Place, Counters], None],
    ) -> Counters:
        """One branch for each axis with small tiles, then the body for each kind of tile."""
        d = len(small)
        if d == len(self.axes):
            mine = {bits: row for bits, row in counts.items() if not any(map(int.__and__, bits, small))}
            body(self._place(fn, fields, at, small), mine)
            return {bits: fn.i64(fn.add(row, 1)) if bits in mine else row for bits, row in counts.items()}
        axis = self.axes[d]
        if not axis.ragged:
            return self._variants(fn, fields, at, counts, (*small, 0), body)

        def arm(bit: int) -> list[Value]:
            return list(self._variants(fn, fields, at, counts, (*small, bit), body).values())

        last = fn.cmp("eq", fn.udiv(at[d + 1], axis.dilation), fields[f"last{d}"])
        return dict(zip(counts, fn.if_(last, lambda: arm(1), lambda: arm(0), hint="small"), strict=True))

    def _place(self, fn: Function, fields: Fields, at: list[Value], small: Bits) -> Place:
        origin, outputs, valid = [], [], []
        for d, (axis, bit, number) in enumerate(zip(self.axes, small, at[1:], strict=True)):
            count = axis.edge if bit else axis.transform.outputs
            step = axis.dilation
            first = fn.mul(fn.udiv(number, step), axis.transform.outputs * step)
            first = fn.add(first, fn.urem(number, step))
            exist: Index = count
            if step > 1 or axis.clipped:
                left = fn.udiv(fn.add(fn.smax(fn.sub(fields[f"out{d}"], first), 0), step - 1), step)
                exist = fn.smin(left, count)
            origin.append(fn.i64(first))
            outputs.append(count)
            valid.append(exist)
        return Place(at[0], tuple(origin), tuple(outputs), tuple(valid))


@dataclass(frozen=True, slots=True)
class Turns:
    """A loop over one axis of a grid: (count, class bit) one after another, and what each pointer moves by."""

    spans: Sequence[tuple[Index, int]]
    steps: Sequence[Index]


def over(
    fn: Function, loops: Sequence[Turns], state: list[Value], body: Callable[[list[Value], Bits], None], bits: Bits = ()
) -> None:
    """Nested loops that carry addresses (or offsets) along; a count known only at run time may be 0."""
    if not loops:
        body(state, bits)
        return
    here = loops[0]
    for count, bit in here.spans:

        def turn(_: Value, state: list[Value], bit: int = bit) -> list[Value]:
            over(fn, loops[1:], state, body, (*bits, bit))
            return [moved(fn, value, step) for value, step in zip(state, here.steps, strict=True)]

        if count == 1:
            state = turn(state[0], state)
        else:
            state = fn.loop(0, count, 1, state, turn, guard=isinstance(count, Value), hint="line")


def moved(fn: Function, value: Value, step: Index) -> Value:
    """An address or an offset, `step` bytes further on."""
    return fn.gep(value, step) if value.type == PTR else fn.i64(fn.add(value, step))


def row_major(sizes: Sequence[int]) -> list[int]:
    """Distance between neighbours along each axis, in elements."""
    return [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
