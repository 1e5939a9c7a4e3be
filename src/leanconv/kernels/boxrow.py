"""Sums along a row of sums over boxes: of 4, 16, 64 ... pixels, and from those of any number (see `box`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.copy import copy_run
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position

RADIX = 4


@dataclass(frozen=True, slots=True)
class BoxRow:
    """What the sums along a row are specialised for.

    Boxes are `width` pixels of `elements` adjacent numbers (channels last: all channels) wide; results are written in
    vectors of `out_piece`; `apart`: output pixels lie more than a pixel apart.
    """

    target: Target
    dtype: str
    width: int
    elements: int
    out_piece: int
    apart: bool
    pad_mode: str
    epilogue: Epilogue

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return 8 if self.dtype == "float64" else 4

    @property
    def pixel(self) -> int:
        """Bytes of a pixel."""
        return self.elements * self.item


def digits(width: int) -> list[int]:
    """The digits of a number in base `RADIX`, the least one first."""
    found = [width % RADIX]
    while width >= RADIX:
        width //= RADIX
        found.append(width % RADIX)
    return found


def cover(fn: Function, item: int, size: Index, piece: int, body: Callable[[Index], None]) -> None:
    """Call `body(byte)` for vectors of `piece` numbers that cover a row; the last may overlap the one before."""
    last = fn.sub(size, piece)

    def one(at: Value, _: list[Value]) -> list[Value]:
        body(fn.mul(at, item))
        return []

    fn.loop(0, last, piece, [], one, guard=True, hint="row")
    body(fn.mul(last, item))


def kind_of(dtype: str, lanes: int) -> str:
    """LLVM's vector of so many numbers."""
    return vector(SCALARS[dtype], lanes)


@dataclass(slots=True)
class RowSums:
    """Emits the sums along one row.

    Of `scratch`, middle has the column sums; sums and total are written.  `count` output pixels read `reach` padded
    ones.
    """

    fn: Function
    fields: Fields
    spec: BoxRow
    scratch: Mapping[str, Value]
    count: Index
    reach: Index

    def pads(self) -> None:
        """Fill the pads of a whole row with the pixels that they stand for."""
        fn, fields, middle = self.fn, self.fields, self.scratch["middle"]
        lanes = kind_of(self.spec.dtype, self.spec.target.lanes(self.spec.dtype))
        right = fn.add(fields["in1"], fields["pad_x"])

        def fill(at: Value, _: list[Value]) -> list[Value]:
            column = mapped_position(fn, fn.i64(fn.sub(at, fields["pad_x"])), fields["in1"], self.spec.pad_mode)
            source = fn.gep(middle, fn.mul(fn.add(column, fields["pad_x"]), self.spec.pixel))
            target = fn.gep(middle, fn.mul(at, self.spec.pixel))
            copy_run(fn, lanes, self.spec.elements, source, target, (self.spec.item, self.spec.item), True)
            return []

        fn.loop(0, fn.smin(fields["pad_x"], self.reach), 1, [], fill, guard=True, hint="pad")
        fn.loop(fn.i64(right), self.reach, 1, [], fill, guard=True, hint="pad")

    def emit(self, out: Value, scale: Value) -> None:
        """One output row: sums of `width` pixels of the column sums."""
        fn, spec, width = self.fn, self.spec, self.spec.width
        lanes = spec.target.lanes(spec.dtype)
        scratch, reach = self.scratch, self.reach
        source, total, have, offset = scratch["middle"], scratch["total"], False, 0
        span = fn.mul(fn.sub(reach, width - 1), spec.elements)  # numbers of output, at stride 1
        places = digits(width)
        for level, digit in enumerate(places):
            length = RADIX**level
            last = level == len(places) - 1

            def terms(
                base: Value,
                at: Index,
                kind: str,
                digit: int = digit,
                length: int = length,
                offset: int = offset,
                have: bool = have,
            ) -> Value | None:
                value = fn.load(kind, total, at) if have else None
                for k in range(digit):
                    term = fn.load(kind, fn.gep(base, (offset + k * length) * self.spec.pixel), at)
                    value = term if value is None else fn.binary("fadd", value, term)
                return value

            if last:
                self._finish(out, source, span, scale, terms)
                return
            left = fn.mul(fn.sub(reach, RADIX * length - 1), spec.elements)
            grown = scratch["sums"]

            def one(
                at: Value,
                _: list[Value],
                source: Value = source,
                terms: Callable[..., Value | None] = terms,
                digit: int = digit,
                length: int = length,
                grown: Value = grown,
            ) -> list[Value]:
                kind, place = kind_of(self.spec.dtype, lanes), fn.mul(at, self.spec.item)
                value = terms(source, place, kind) if digit else None
                four = fn.load(kind, source, place)
                for k in range(1, RADIX):
                    four = fn.binary("fadd", four, fn.load(kind, fn.gep(source, k * length * self.spec.pixel), place))
                if value is not None:
                    fn.store(value, total, place)
                fn.store(four, grown, place)
                return []

            # Ascending, so that what is overwritten in place has been read; lanes behind the end are never used.
            fn.loop(0, left, lanes, [], one, hint="four")
            have = have or digit > 0
            offset += digit * length
            source = grown

    def _finish(
        self,
        out: Value,
        source: Value,
        span: Index,
        scale: Value,
        terms: Callable[[Value, Index, str], Value | None],
    ) -> None:
        """The last sums of a row, scaled: to the output, or to be picked from."""
        fn, spec, total = self.fn, self.spec, self.scratch["total"]

        def value(at: Index, lanes: int) -> Value:
            found = terms(source, at, kind_of(self.spec.dtype, lanes))
            assert found is not None, "the highest digit is not zero"
            return spec.epilogue.apply(fn, fn.binary("fmul", found, fn.splat(scale, lanes)), None)

        if not spec.apart:
            cover(fn, self.spec.item, span, spec.out_piece, lambda at: fn.store(value(at, spec.out_piece), out, at))
            return
        lanes = spec.target.lanes(spec.dtype)

        def one(at: Value, _: list[Value]) -> list[Value]:
            place = fn.mul(at, self.spec.item)
            fn.store(value(place, lanes), total, place)
            return []

        fn.loop(0, span, lanes, [], one, hint="last")
        step = fn.mul(self.fields["step_x"], self.spec.pixel)

        def pick(_: Value, state: list[Value]) -> list[Value]:
            kind = kind_of(self.spec.dtype, lanes)
            copy_run(fn, kind, spec.elements, state[0], state[1], (self.spec.item, self.spec.item), True)
            return [fn.gep(state[0], step), fn.gep(state[1], self.spec.pixel)]

        fn.loop(0, self.count, 1, [total, out], pick, hint="pick")
