"""The input step of a Winograd kernel: the windows of tiles, transformed, as a matrix a point: [point][tile][channel].

A table of addresses, one for each pixel of the tile's window, is made once a tile; padding is an address of zeros.  The
transform then takes a vector of channels through one axis after the other, over a window's worth of vectors on the
stack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanconv.codegen.ir import I1, I64, PTR, SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.cook_toom import Matrix
from leanconv.kernels.cursor import ZERO_BYTES
from leanconv.kernels.epilogue import load_lanes
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.linear import linear
from leanconv.kernels.winograd_tiles import Counters, Place, Tiling, Turns, over, row_major


@dataclass(frozen=True, slots=True)
class InputStep:
    """How windows are read and transformed.

    `padded`: some lie partly outside the image; `pad_mode` what is there.  `adjacent`: channels are; `tail` channels
    are left over by whole vectors.  Fields: `x_n x_c at{d}` bytes between images, channels and pixels; `in{d}`, and
    `reach{d}` = in + high padding; `channels_vec` channels in whole vectors; `v_point`, `v_row` bytes between points
    and tiles.
    """

    target: Target
    dtype: str
    tiling: Tiling
    padded: bool
    pad_mode: str
    adjacent: bool
    tail: int

    @property
    def lanes(self) -> int:
        """Channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, fn: Function, fields: Fields, x: Value, zeros: Value | None, target: Value) -> Emitter:
        """An emitter of the step; `zeros` a row of channels that are zero, `target` the matrices."""
        points = self.tiling.points
        return Emitter(
            self,
            fn,
            fields,
            x,
            zeros if zeros is not None else fn.module.zeros(ZERO_BYTES),
            target,
            fn.alloca(8 * points),
            fn.alloca(8 * points) if self.padded and not self.adjacent else None,
            fn.alloca(points * self.target.vector_bytes),
        )


@dataclass(frozen=True, slots=True)
class Emitter:
    """The step inside one kernel: where its arrays are. `table` addresses, `steps` bytes between channels there."""

    step: InputStep
    fn: Function
    fields: Fields
    x: Value
    zeros: Value
    target: Value
    table: Value
    steps: Value | None
    stack: Value

    def tile(self, place: Place, rows: Counters) -> None:
        """Transform one tile; `rows` are its rows in the matrices of each class."""
        fn, fields, step = self.fn, self.fields, self.step
        sizes = tuple(n + axis.transform.taps - 1 for n, axis in zip(place.outputs, step.tiling.axes, strict=True))
        self._fill_table(place, sizes)
        bases = {bits: fn.gep(self.target, fn.mul(row, fields["v_row"])) for bits, row in rows.items()}
        matrices = [axis.transform.inputs(n) for n, axis in zip(place.outputs, step.tiling.axes, strict=True)]
        whole = fields["channels_vec"]

        def channels(c: Value, _: list[Value]) -> list[Value]:
            self._vector(sizes, matrices, bases, c, step.lanes)
            return []

        fn.loop(0, whole, step.lanes, [], channels, guard=True, hint="channel")
        if step.tail:
            self._vector(sizes, matrices, bases, whole, step.tail)

    def _fill_table(self, place: Place, sizes: tuple[int, ...]) -> None:
        """The address of every pixel of the window, in row-major order."""
        fn, fields, step = self.fn, self.fields, self.step
        last = len(sizes) - 1
        image = fn.gep(self.x, fn.mul(place.image, fields["x_n"]))
        corners = [fn.i64(fn.sub(at, a.pad_low)) for at, a in zip(place.origin, step.tiling.axes, strict=True)]
        spots = [self._spot(last, corners[last], j) for j in range(sizes[last])]

        def rows(d: int, base: Value, valid: Value | None, table: Value, steps: Value) -> None:
            if d == last:
                for j, (offset, inside) in enumerate(spots):
                    pixel, ok = fn.gep(base, offset), _both(fn, valid, inside)
                    if ok is not None:
                        pixel = fn.select(ok, pixel, self.zeros)
                        if self.steps is not None:
                            fn.store(fn.select(ok, fields["x_c"], 0), steps, 8 * j)
                    fn.store(pixel, table, 8 * j)
                return

            def row(i: Value, state: list[Value]) -> list[Value]:
                offset, inside = self._spot(d, corners[d], i)
                rows(d + 1, fn.gep(base, offset), _both(fn, valid, inside), state[0], state[1])
                size = 8 * math.prod(sizes[d + 1 :])
                return [fn.gep(state[0], size), fn.gep(state[1], size)]

            fn.loop(0, sizes[d], 1, [table, steps], row, hint="window")

        rows(0, image, None, self.table, self.steps if self.steps is not None else self.table)

    def _spot(self, d: int, corner: Value, i: Index) -> tuple[Index, Value | None]:
        """The offset of the i-th pixel of a window along an axis, and whether there is one (None: always)."""
        fn, fields, step = self.fn, self.fields, self.step
        at = fn.add(corner, fn.mul(i, step.tiling.axes[d].dilation))
        if not step.padded:
            return fn.mul(at, fields[f"at{d}"]), None
        if step.pad_mode == "zeros":
            return fn.mul(at, fields[f"at{d}"]), fn.cmp("ult", at, fields[f"in{d}"])
        inside = fn.cmp("slt", at, fields[f"reach{d}"])
        at = mapped_position(fn, fn.i64(at), fields[f"in{d}"], step.pad_mode)
        return fn.mul(at, fields[f"at{d}"]), inside

    def _vector(
        self, sizes: tuple[int, ...], matrices: list[Matrix], bases: Counters, channel: Index, count: int
    ) -> None:
        """All points of `count` channels from `channel` on."""
        fn, step = self.fn, self.step
        width = step.target.vector_bytes
        active = step.tiling.active
        kind = vector(SCALARS[step.dtype], step.lanes)
        shift = fn.mul(channel, step.item)
        to = {bits: fn.gep(base, shift) for bits, base in bases.items()}
        near = [width * n for n in row_major(sizes)]
        far = [fn.mul(self.fields["v_point"], n) for n in row_major(step.tiling.sizes)]

        def along(d: int) -> None:
            first, final = d == active[0], d == active[-1]
            program = linear(matrices[d])
            others = [k for k in range(len(sizes)) if k != d]

            def line(state: list[Value], bits: tuple[int, ...]) -> None:
                if first:
                    pixels = [
                        self._load(state[0], state[1], near[d] // width * j, channel, count) for j in range(sizes[d])
                    ]
                else:
                    pixels = [fn.load(kind, state[0], near[d] * j) for j in range(sizes[d])]
                for j, value in enumerate(program.emit(fn, pixels, fused=step.target.fma)):
                    if final:
                        bit = step.tiling.axes[d].bit(j)
                        base = to[(*bits[:d], bit, *bits[d:])]
                        fn.store(value, fn.gep(fn.gep(base, state[2]), fn.mul(far[d], j)))
                    else:
                        fn.store(value, state[2], near[d] * j)

            loops = []
            for k in others:
                reading = 8 * row_major(sizes)[k] if first else near[k]
                spans = self._spans(k, sizes[k])
                loops.append(Turns(spans, [reading, reading, far[k] if final else near[k]]))
            source, second = (self.table, self.steps or self.table) if first else (self.stack, self.stack)
            over(fn, loops, [source, second, Value("0", I64) if final else self.stack], line)

        for d in active:
            along(d)

    def _spans(self, d: int, size: int) -> list[tuple[int, int]]:
        """Points of one axis by class."""
        kept = min(size, self.step.tiling.axes[d].kept)
        return [(kept, 0), *([(size - kept, 1)] if size > kept else [])]

    def _load(self, table: Value, steps: Value, entry: int, channel: Index, count: int) -> Value:
        """A vector of channels of the pixel whose address is in the table."""
        fn, step = self.fn, self.step
        pixel = fn.load(PTR, table, 8 * entry)
        scalar = SCALARS[step.dtype]
        kind = vector(scalar, step.lanes)
        if step.adjacent:
            return load_lanes(fn, kind, fn.gep(pixel, fn.mul(channel, step.item)), count, masks=step.target.masks)
        stride: Index = self.fields["x_c"] if self.steps is None else fn.load(I64, steps, 8 * entry)
        return gather(fn, kind, fn.gep(pixel, fn.mul(channel, stride)), stride, count)


def gather(fn: Function, kind: str, pointer: Value, stride: Index, count: int) -> Value:
    """A vector whose first `count` lanes are elements `stride` bytes apart; the others are zero."""
    scalar = kind[1:-1].split(" x ")[1]
    value = fn.const(kind, 0.0)
    for lane in range(count):
        element = fn.load(scalar, pointer)
        value = fn.op(kind, f"insertelement {kind} {value.name}, {scalar} {element.name}, i32 {lane}")
        pointer = fn.gep(pointer, stride)
    return value


def _both(fn: Function, a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None:
        return a if b is None else b
    assert a.type == I1
    return fn.both(a, b)
