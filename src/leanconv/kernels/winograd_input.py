"""The input step of a Winograd kernel: the windows of tiles, transformed, as a matrix a point: [point][tile][channel].

A table of addresses is made once a tile, of every pixel of its window or, with channels first, of every row; padding
is an address of zeros.  The transform takes a vector of channels through one axis after the other, the last one first,
over a window's worth of vectors on the stack; along two axes, channels last, in registers where there are enough.
"""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, I64, PTR, SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channel_runs import gather, load_runs
from leanconv.kernels.cook_toom import Matrix
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import ZERO_BYTES
from leanconv.kernels.epilogue import load_lanes
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.linear import Linear, in_registers, linear, register_parts
from leanconv.kernels.winograd_tiles import Counters, Place, Tiling, Turns, over, row_major


@dataclass(frozen=True, slots=True)
class InputStep:
    """How windows are read and transformed.

    `padded`: some lie partly outside the image; `pad_mode` what is there.  `adjacent`: channels are, or else `runs`:
    pixels along the last axis are, the image is at least as wide as a window, and padding is zeros; `tail` channels are
    left over by whole vectors; `sections`: V has several sections of channels, without a tail.  Fields: `x_n x_c
    at{d}` bytes between images, channels and pixels; `in{d}`, and `reach{d}` = in + high padding; `channels_vec`
    channels in whole vectors; `v_point v_section v_row` bytes between points, sections and tiles, `section_channels` in
    each section but the last.
    """

    target: Target
    dtype: str
    tiling: Tiling
    padded: bool
    pad_mode: str
    adjacent: bool
    runs: bool
    tail: int
    sections: bool = False

    @property
    def lanes(self) -> int:
        """Channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def _zero_bytes(self) -> int:
        """What is read of zeros: a row of a window, or a pixel."""
        row = self.tiling.sizes[-1] * self.item if self.runs else 0
        return -(-max(row, ZERO_BYTES) // LINE) * LINE

    def emit(self, fn: Function, fields: Fields, x: Value, zeros: Value | None, target: Value) -> InputEmitter:
        """An emitter of the step; `zeros` a row of channels that are zero, `target` the matrices."""
        points, width = self.tiling.points, self.target.vector_bytes
        # A row of a window, its pixels inside the image put in place; on either side up to as many that are not.
        row = fn.alloca(3 * self.tiling.sizes[-1] * width) if self.runs and self.padded else None
        return InputEmitter(
            self,
            fn,
            fields,
            x,
            zeros if zeros is not None else fn.module.zeros(self._zero_bytes),
            target,
            fn.alloca(8 * points),
            fn.alloca(8 * points) if self.padded and not self.adjacent else None,
            fn.alloca(points * width),
            row,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """A tile's window: pixels along each axis, the transform along it, and where its rows begin if they are cut.

    `shift` is how many pixels of a row (in bytes of their vectors) lie before the first that is inside, less those cut
    off behind the last; `inside` whether none is cut.
    """

    sizes: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    shift: Value | None = None
    inside: Value | None = None


@dataclass(frozen=True, slots=True)
class InputEmitter:
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
    row: Value | None

    @property
    def kind(self) -> str:
        """A vector of channels."""
        return vector(SCALARS[self.step.dtype], self.step.lanes)

    def tile(self, place: Place, rows: Counters) -> None:
        """Transform one tile; `rows` are its rows in the matrices of each class."""
        fn, fields, step = self.fn, self.fields, self.step
        window = self._window(place)
        bases = {bits: fn.gep(self.target, fn.mul(row, fields["v_row"])) for bits, row in rows.items()}
        whole = fields["channels_vec"]

        def some(first: Index, end: Index, bases: Counters) -> None:
            def channels(c: Value, _: list[Value]) -> list[Value]:
                self._vector(window, bases, c, step.lanes)
                return []

            fn.loop(first, end, step.lanes, [], channels, guard=True, hint="channel")

        def section(first: Value, state: list[Value]) -> list[Value]:
            end = fn.smin(fn.add(first, fields["section_channels"]), whole)
            some(first, end, {bits: fn.gep(base, state[0]) for bits, base in bases.items()})
            return [fn.i64(fn.add(state[0], fn.sub(fields["v_section"], fields["v_row"])))]

        if step.sections:
            fn.loop(0, whole, fields["section_channels"], [fn.i64(0)], section, hint="section")
        else:
            some(0, whole, bases)
        if step.tail:
            self._vector(window, bases, whole, step.tail)

    def _window(self, place: Place) -> Window:
        """Fill the table for a tile."""
        fn, step = self.fn, self.step
        axes, last = step.tiling.axes, len(place.outputs) - 1
        sizes = tuple(axis.transform.span(n) for n, axis in zip(place.outputs, axes, strict=True))
        matrices = tuple(axis.transform.inputs(n) for n, axis in zip(place.outputs, axes, strict=True))
        corners = [
            fn.i64(fn.sub(fn.mul(at, axis.stride), axis.pad_low)) for at, axis in zip(place.origin, axes, strict=True)
        ]
        if not step.runs:
            self._fill_table(place, sizes, corners, [self._spot(last, corners[last], j) for j in range(sizes[last])])
            return Window(sizes, matrices)
        start = corners[last]
        if self.row is not None:
            start = fn.i64(fn.smax(0, fn.smin(start, fn.sub(self.fields[f"in{last}"], sizes[last]))))
            zero = fn.const(self.kind, 0.0)
            for j in range(sizes[last]):
                fn.store(zero, self.row, (sizes[last] + j) * step.target.vector_bytes)
        self._fill_table(place, sizes, corners, [(fn.mul(start, step.item), None)])
        if self.row is None:
            return Window(sizes, matrices)
        moved = fn.smax(fn.smin(fn.sub(start, corners[last]), sizes[last]), -sizes[last])
        shift = fn.i64(fn.mul(fn.add(moved, sizes[last]), step.target.vector_bytes))
        return Window(sizes, matrices, shift, fn.cmp("eq", moved, 0))

    def _fill_table(
        self, place: Place, sizes: tuple[int, ...], corners: list[Value], spots: list[tuple[Index, Value | None]]
    ) -> None:
        """The address of every pixel, in row-major order; `spots` are those along the last axis."""
        fn, fields = self.fn, self.fields
        image = fn.gep(self.x, fn.mul(place.image, fields["x_n"]))

        def rows(d: int, base: Value, valid: Value | None, table: Value, steps: Value) -> None:
            if d == len(sizes) - 1:
                for j, (offset, inside) in enumerate(spots):
                    pixel, ok = fn.gep(base, offset), _both(fn, valid, inside)
                    if ok is not None:
                        pixel = fn.select(ok, pixel, self.zeros)
                    if self.steps is not None:
                        step = fields["x_c"] if ok is None else fn.select(ok, fields["x_c"], 0)
                        fn.store(step, steps, 8 * j)
                    fn.store(pixel, table, 8 * j)
                return

            def row(i: Value, state: list[Value]) -> list[Value]:
                offset, inside = self._spot(d, corners[d], i)
                rows(d + 1, fn.gep(base, offset), _both(fn, valid, inside), state[0], state[1])
                size = 8 * math.prod(sizes[d + 1 : -1]) * len(spots)
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

    def _vector(self, window: Window, bases: Counters, channel: Index, count: int) -> None:
        """All points of `count` channels from `channel` on."""
        fn, tiling = self.fn, self.step.tiling
        to = {bits: fn.gep(base, fn.mul(channel, self.step.item)) for bits, base in bases.items()}
        order = tiling.active[::-1]
        if self.step.adjacent and len(order) == 2:
            programs = linear(window.matrices[order[0]]), linear(window.matrices[order[1]])
            if parts := register_parts(self.step.target, programs):
                self._in_registers(window, to, programs, parts, channel, count)
                return

        def along(d: int, inside: bool = True) -> list[Value]:
            self._pass(window, to, d, order, channel, count, inside)
            return []

        if window.inside is None:
            along(order[0])
        else:
            fn.if_(window.inside, lambda: along(order[0]), lambda: along(order[0], False), hint="inside")
        for d in order[1:]:
            along(d)

    def _in_registers(
        self,
        window: Window,
        to: Counters,
        programs: tuple[Linear, Linear],
        parts: list[list[int]],
        channel: Index,
        count: int,
    ) -> None:
        """Both axes at once: some columns of points at a time."""
        fn, step = self.fn, self.step
        axes, (high, wide) = step.tiling.axes, step.tiling.active
        entries = [8 * n for n in row_major(window.sizes)]
        far = [fn.mul(self.fields["v_point"], n) for n in row_major(step.tiling.sizes)]
        asked: set[int] = set()

        def load(i: int, j: int) -> Value:
            if i not in asked:
                asked.add(i)
                self._ask(window, fn.gep(self.table, entries[high] * i), entries[wide], channel)
            return self._load(self.table, self.table, entries[high] * i + entries[wide] * j, channel, count)

        def done(j: int, values: list[Value]) -> None:
            for i, value in enumerate(values):
                place = {high: i, wide: j}
                bits = tuple(axis.bit(place.get(d, 0)) for d, axis in enumerate(axes))
                fn.store(value, fn.gep(fn.gep(to[bits], fn.mul(far[wide], j)), fn.mul(far[high], i)))

        in_registers(fn, programs, parts, load, done, fused=step.target.fma)

    def _pass(
        self, window: Window, to: Counters, d: int, order: list[int], channel: Index, count: int, inside: bool
    ) -> None:
        """Transform along one axis: the first reads pixels, the last writes points, others work on the stack."""
        fn, step, sizes = self.fn, self.step, window.sizes
        axis = step.tiling.axes[d]
        first, final = d == order[0], d == order[-1]
        program = linear(window.matrices[d])
        near = [step.target.vector_bytes * n for n in row_major(sizes)]
        far = [fn.mul(self.fields["v_point"], n) for n in row_major(step.tiling.sizes)]
        entries = [8 * n for n in row_major((*sizes[:-1], 1) if step.runs else sizes)]

        def line(state: list[Value], bits: tuple[int, ...]) -> None:
            if not first:
                values = [fn.load(self.kind, state[0], near[d] * j) for j in range(sizes[d])]
            elif step.runs:
                values = self._run(window, state[0], state[1], channel, count, inside)
            else:
                values = [self._load(state[0], state[1], entries[d] * j, channel, count) for j in range(sizes[d])]
            if first and step.adjacent:
                self._ask(window, state[0], entries[d], channel)
            for j, value in enumerate(program.emit(fn, values, fused=step.target.fma)):
                if final:
                    base = to[(*bits[:d], axis.bit(j), *bits[d:])]
                    fn.store(value, fn.gep(fn.gep(base, state[2]), fn.mul(far[d], j)))
                else:
                    fn.store(value, state[2], near[d] * j)

        loops = []
        for k, other in enumerate(step.tiling.axes):
            if k != d:
                reading = entries[k] if first else near[k]
                loops.append(Turns(other.split(sizes[k]), [reading, reading, far[k] if final else near[k]]))
        source, second = (self.table, self.steps or self.table) if first else (self.stack, self.stack)
        over(fn, loops, [source, second, Value("0", I64) if final else self.stack], line)

    def _ask(self, window: Window, table: Value, entry: int, channel: Index) -> None:
        """Ask for what the next tile reads of a row and this one does not; vectors that share a line share the work."""
        fn, step, last = self.fn, self.step, len(window.sizes) - 1
        axis = step.tiling.axes[last]
        apart = window.sizes[last] - axis.transform.taps + axis.stride
        fresh, sharing = min(apart, window.sizes[last]), max(1, LINE // step.target.vector_bytes)
        count = -(-fresh // sharing)
        turn = fn.smin(fn.mul(fn.urem(fn.udiv(channel, step.lanes), sharing), count), fresh - count)
        pixels = fn.gep(table, fn.mul(fn.add(turn, window.sizes[last] - fresh), entry))
        ahead = fn.add(fn.mul(channel, step.item), fn.mul(self.fields[f"at{last}"], apart * axis.dilation))
        for j in range(count):
            fn.prefetch(fn.gep(fn.load(PTR, pixels, entry * j), ahead))

    def _load(self, table: Value, steps: Value, entry: int, channel: Index, count: int) -> Value:
        """A vector of channels of the pixel whose address is in the table."""
        fn, step = self.fn, self.step
        pixel = fn.load(PTR, table, entry)
        if step.adjacent:
            return load_lanes(fn, self.kind, fn.gep(pixel, fn.mul(channel, step.item)), count, masks=step.target.masks)
        stride = self._stride(steps, entry)
        return gather(fn, self.kind, fn.gep(pixel, fn.mul(channel, stride)), stride, count)

    def _stride(self, steps: Value, entry: int) -> Value:
        """Bytes between channels at an address of the table: none where it is one of zeros."""
        return self.fields["x_c"] if self.steps is None else self.fn.load(I64, steps, entry)

    def _run(self, window: Window, table: Value, steps: Value, channel: Index, count: int, inside: bool) -> list[Value]:
        """The vectors of channels of a row of the window."""
        fn, size, width = self.fn, window.sizes[-1], self.step.target.vector_bytes
        stride = self._stride(steps, 0)
        start = fn.gep(fn.load(PTR, table), fn.mul(channel, stride))
        values = load_runs(fn, self.kind, start, stride, size, count)
        if inside:
            return values
        assert self.row is not None and window.shift is not None
        to = fn.gep(self.row, window.shift)
        for j, value in enumerate(values):
            fn.store(value, to, j * width)
        return [fn.load(self.kind, self.row, (size + j) * width) for j in range(size)]


def _both(fn: Function, a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None:
        return a if b is None else b
    assert a.type == I1
    return fn.both(a, b)
