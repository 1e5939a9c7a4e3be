"""Copies rows of an image so that every tap reads adjacent pixels: pads in place, strides taken apart.

Position u of a padded row goes to *phase* u mod stride, at u // stride.  The pixels that neighbouring outputs read
under one tap are then neighbours, whatever the stride and the dilation:

    stride 2      x0 x1 x2 x3 x4 x5 ...    ->    phase 0   x0 x2 x4 ...      taps 0, 2, ...
                                                 phase 1   x1 x3 x5 ...      taps 1, 3, ...
"""

from __future__ import annotations

from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.kernels.copy import copy_run
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position


@dataclass(frozen=True, slots=True)
class RowStage:
    """How a row is copied.

    `unit`: its pixels are adjacent; `piece` of each phase are copied at a time, 0 if one by one.
    Fields: `in{d} at{d}` of the innermost dimension; `reach` padded positions that are read; `s_phase` bytes a phase.
    """

    dtype: str
    dim: int
    stride: int
    pad_low: int
    padded: bool
    pad_mode: str
    unit: bool
    piece: int

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        """Copy the row at `source`; pads stay as they are if they are zeros, and are filled otherwise."""
        if self.unit and self.piece:
            (self._adjacent if self.stride == 1 else self._together)(fn, fields, source, target)
        else:
            self._apart(fn, fields, source, target)
        if self.padded and self.pad_mode != "zeros":
            self._pads(fn, fields, source, target)

    def _place(self, fn: Function, fields: Fields, target: Value, position: Index) -> Value:
        """Where a position of the padded row is copied to."""
        phase = fn.mul(fn.urem(position, self.stride), fields["s_phase"])
        return fn.gep(target, fn.add(phase, fn.mul(fn.udiv(position, self.stride), self._item)))

    def _blocks(self, fn: Function, count: Index, block: int, copy: Callable[[Index], None]) -> None:
        """Call `copy` with the first element of blocks that cover `count` elements; the last two may overlap."""
        last = fn.sub(count, block)

        def body(at: Value, _: list[Value]) -> list[Value]:
            copy(at)
            return []

        fn.loop(0, last, block, [], body, guard=True, hint="copy")
        copy(last)

    def _adjacent(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        kind = vector(SCALARS[self.dtype], self.piece)
        to = fn.gep(target, self.pad_low * self._item)

        def copy(at: Index) -> None:
            shift = fn.mul(at, self._item)
            fn.store(fn.load(kind, fn.gep(source, shift)), fn.gep(to, shift))

        self._blocks(fn, fields[f"in{self.dim}"], self.piece, copy)

    def _together(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        """Strides that are powers of two: as many vectors as there are phases, taken apart in registers."""
        size, lanes, item, stride = fields[f"in{self.dim}"], self.piece, self._item, self.stride
        kind = vector(SCALARS[self.dtype], lanes)
        rest = fn.urem(size, stride)
        # The first pixels of a block, a multiple of the stride, go to these places.
        places = [self._place(fn, fields, target, first + self.pad_low) for first in range(stride)]

        def apart(vectors: list[Value]) -> list[Value]:
            if len(vectors) == 1:
                return vectors
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            halves = (apart([fn.shuffle(*pair, range(first, 2 * lanes, 2)) for pair in pairs]) for first in (0, 1))
            return [value for both in zip(*halves, strict=True) for value in both]

        def copy(at: Index) -> None:
            place = fn.gep(source, fn.mul(at, item))
            vectors = apart([fn.load(kind, place, i * lanes * item) for i in range(stride)])
            shift = fn.mul(fn.udiv(at, stride), item)
            for value, to in zip(vectors, places, strict=True):
                fn.store(value, fn.gep(to, shift))

        whole = fn.sub(size, rest)
        self._blocks(fn, whole, stride * lanes, copy)
        for i in range(stride - 1):

            def one(i: int = i) -> list[Value]:
                value = fn.load(SCALARS[self.dtype], fn.gep(source, fn.mul(fn.add(whole, i), item)))
                fn.store(value, fn.gep(places[i], fn.mul(fn.udiv(whole, stride), item)))
                return []

            fn.if_(fn.cmp("ugt", rest, i), one, hint="rest")

    def _apart(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        size, at = fields[f"in{self.dim}"], fields[f"at{self.dim}"]
        kind = vector(SCALARS[self.dtype], 1)
        for phase in range(self.stride):
            first = (phase - self.pad_low) % self.stride  # the first pixel of the image in this phase
            left = fn.smax(fn.sub(size, first), 0)
            count = fn.udiv(fn.add(left, self.stride - 1), self.stride)
            to = self._place(fn, fields, target, first + self.pad_low)
            steps = (fn.mul(at, self.stride), self._item)
            copy_run(fn, kind, count, fn.gep(source, fn.mul(at, first)), to, steps, False)

    def _pads(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        size, at = fields[f"in{self.dim}"], fields[f"at{self.dim}"]

        def fill(position: Value, _: list[Value]) -> list[Value]:
            from_ = mapped_position(fn, fn.i64(fn.sub(position, self.pad_low)), size, self.pad_mode)
            value = fn.load(SCALARS[self.dtype], fn.gep(source, fn.mul(from_, at)))
            fn.store(value, self._place(fn, fields, target, position))
            return []

        if self.pad_low:
            fn.loop(0, self.pad_low, 1, [], fill, hint="pad")
        fn.loop(fn.add(size, self.pad_low), fields["reach"], 1, [], fill, guard=True, hint="pad")
