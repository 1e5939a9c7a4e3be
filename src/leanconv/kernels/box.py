"""Sums over boxes, whose cost does not grow with the boxes' height, and with their width only as its logarithm.

Down the columns rows go in blocks as high as the box.  A window that begins at row t of a block is the sum of the
block's rows from t on and of the next block's rows before t: one row is added for each of the two, and one to join them
(M. van Herk, J. Gil and M. Werman do this for maxima).  Along the rows sums of 4, 16, 64 ... pixels are made of four
sums of the length before, and those that the width's digits in base 4 name are added up.

        suffix sums of a block      prefix sums of the next         x ----> M ---4---> A ---4---> A ...
        s[t] = x[t] + s[t + 1]      p[t] = p[t - 1] + x[t]          |       |          |
        column sum of window t  =  s[t] + p[t - 1]                  M[0..]  + A[..]    + A[..]    = out

Nothing is ever subtracted, as in summed-area tables and running sums: a sum's error is bounded by its own terms, and a
pixel that is not finite shows only where the box covers it.  The order of every sum follows from the pixel's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.boxrow import BoxRow, RowSums, cover, digits, kind_of
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a kernel is specialised for.

    `row` is how column sums are added up along a row; rows are read in vectors of `piece` numbers.
    Buffers: x, w (the value of each plane's taps), out, and of each thread suffix (`high` rows), prefix (two rows),
    middle, sums, total (a row each).  Fields: `{n,c,s,b}_{div,count}` split the chunk's number into image, plane, strip
    of output columns and blocks of rows; `blocks` a chunk, `block_count`; `high` rows of a box; `step_y step_x`
    strides, `pad_y pad_x`, `in0 in1 out0 out1` sizes in pixels; `strip` output columns; `x_n x_c x_row o_n o_c o_row`
    bytes; `row` bytes of a row of buffers.
    """

    row: BoxRow
    piece: int
    padded: bool

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.row.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Box(kernel, kernel.fn, kernel.fields, self).run()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Passes over rows: three down, and one along for each digit of the width."""
        lanes, item = self.target.lanes(self.row.dtype), self.row.item
        images, strips = f["n_count"] * f["c_count"], f["s_count"]
        wide = (f["strip"] * f["step_x"] + self.row.width) * self.row.elements * strips
        rows, outputs = f["out0"] * f["step_y"], f["out0"]
        passes = len(digits(self.row.width))
        vectors = images * (6.0 * rows + 4.0 * passes * outputs) * wide / lanes
        counts = {"vector": vectors, "run": float(images * strips * (3 * rows + passes * outputs))}
        if self.row.apart:
            counts["element"] = float(images * outputs * f["out1"] * self.row.elements)
        read = float(images * f["in0"] * f["in1"] * self.row.elements * item)
        written = float(images * outputs * f["out1"] * self.row.elements * item)
        return Cost(counts, ((read, read), (read, f["high"] * f["row"])), ((written, written),), chunks)


@dataclass(slots=True)
class _Box:
    """Emits one kernel."""

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: BoxSpec

    @property
    def _copied(self) -> bool:
        """Whether pads are pixels of the row, of which any may be wanted: then there is one strip."""
        return self.spec.padded and self.spec.row.pad_mode != "zeros"

    def run(self) -> None:
        """All blocks of rows of the chunk's strip."""
        kernel, fn, fields = self.kernel, self.fn, self.fields
        image, plane, strip, blocks = (kernel.index(letter) for letter in "ncsb")
        scratch = {
            name: fn.gep(fields.buffer(name), fn.mul(kernel.thread, fields[f"thread_{name}"]))
            for name in ("suffix", "prefix", "middle", "sums", "total")
        }
        # Columns are counted in pixels; padded ones begin `pad_x` before the image.
        first = fn.mul(strip, fields["strip"])
        end = fn.smin(fn.add(first, fields["strip"]), fields["out1"])
        count = fn.sub(end, first)
        corner = fn.mul(first, fields["step_x"])
        reach = fn.add(fn.mul(fn.sub(count, 1), fields["step_x"]), self.spec.row.width)
        low: Index = 0
        high: Index = fields["in1"]
        if not self._copied:
            low = fn.smax(fn.sub(corner, fields["pad_x"]), 0)
            high = fn.smin(fn.sub(fn.add(corner, reach), fields["pad_x"]), high)
        size = fn.mul(fn.smax(fn.sub(high, low), 0), self.spec.row.elements)
        inside = fn.gep(scratch["middle"], fn.mul(fn.sub(fn.add(low, fields["pad_x"]), corner), self.spec.row.pixel))
        x = fn.gep(fields.buffer("x"), fn.add(fn.mul(image, fields["x_n"]), fn.mul(plane, fields["x_c"])))
        x = fn.gep(x, fn.mul(low, self.spec.row.pixel))
        out = fn.gep(fields.buffer("out"), fn.add(fn.mul(image, fields["o_n"]), fn.mul(plane, fields["o_c"])))
        out = fn.gep(out, fn.mul(first, self.spec.row.pixel))
        scale = fn.load(SCALARS[self.spec.row.dtype], fn.gep(fields.buffer("w"), fn.mul(plane, self.spec.row.item)))
        if self.spec.padded and self.spec.row.pad_mode == "zeros":
            self._clear(scratch["middle"])

        def block(index: Value, _: list[Value]) -> list[Value]:
            top = fn.i64(fn.mul(index, fields["high"]))
            rows = tuple(
                fn.i64(fn.smin(self._up(at, fields["step_y"]), fields["out0"]))
                for at in (top, fn.add(top, fields["high"]))
            )

            def some() -> list[Value]:
                self._block(x, size, scratch, inside, top, (rows[0], rows[1]), along)
                return []

            fn.if_(fn.cmp("slt", rows[0], rows[1]), some, hint="some")
            return []

        def along(row: Index) -> None:
            """One output row, of the column sums in `middle`."""
            sums = RowSums(fn, fields, self.spec.row, scratch, count, reach)
            if self._copied:
                sums.pads()
            sums.emit(fn.gep(out, fn.mul(row, fields["o_row"])), scale)

        begin = fn.mul(blocks, fields["blocks"])
        stop = fn.smin(fn.add(begin, fields["blocks"]), fields["block_count"])
        fn.loop(fn.i64(begin), stop, 1, [], block, hint="block")

    def _up(self, a: Index, b: Index) -> Index:
        """A / b, rounded up."""
        return self.fn.udiv(self.fn.sub(self.fn.add(a, b), 1), b)

    def _clear(self, row: Value) -> None:
        fn, lanes = self.fn, self.spec.target.lanes(self.spec.row.dtype)

        def one(at: Value, _: list[Value]) -> list[Value]:
            fn.store(fn.const(kind_of(self.spec.row.dtype, lanes), 0.0), row, at)
            return []

        fn.loop(0, self.fields["row"], lanes * self.spec.row.item, [], one, hint="clear")

    # -- down the columns --------------------------------------------------------------------------------------------

    def _row(self, x: Value, at: Index, have: Callable[[Value], None], none: Callable[[], None]) -> None:
        """Call `have` with the address of a padded row, or emit `none` if it is zeros."""
        fn, fields, spec = self.fn, self.fields, self.spec
        row = fn.i64(fn.sub(at, fields["pad_y"]))
        if not spec.padded or spec.row.pad_mode != "zeros":
            row = mapped_position(fn, row, fields["in0"], spec.row.pad_mode) if spec.padded else row
            have(fn.gep(x, fn.mul(row, fields["x_row"])))
            return

        def inside() -> list[Value]:
            have(fn.gep(x, fn.mul(row, fields["x_row"])))
            return []

        def outside() -> list[Value]:
            none()
            return []

        fn.if_(fn.cmp("ult", row, fields["in0"]), inside, outside, hint="inside")

    def _block(
        self,
        x: Value,
        size: Index,
        scratch: Mapping[str, Value],
        middle: Value,
        top: Value,
        rows: tuple[Value, Value],
        along: Callable[[Index], None],
    ) -> None:
        """Output rows [first, end), whose windows begin in the block at padded row `top`."""
        fn, fields, piece = self.fn, self.fields, self.spec.piece
        kind, pitch, high = kind_of(self.spec.row.dtype, piece), fields["row"], fields["high"]
        suffix, prefix = scratch["suffix"], scratch["prefix"]

        def added(place: Value, before: Value, source: Value | None) -> None:
            """A row of sums: the row before plus a row of the image."""

            def one(at: Index) -> None:
                value = fn.load(kind, before, at)
                fn.store(value if source is None else fn.binary("fadd", value, fn.load(kind, source, at)), place, at)

            cover(fn, self.spec.row.item, size, piece, one)

        def start(place: Value, source: Value | None) -> None:
            """A row of sums of one row."""

            def one(at: Index) -> None:
                fn.store(fn.load(kind, source, at) if source is not None else fn.const(kind, 0.0), place, at)

            cover(fn, self.spec.row.item, size, piece, one)

        first = fn.sub(fn.mul(rows[0], fields["step_y"]), top)
        bottom = fn.sub(high, 1)
        last = fn.gep(suffix, fn.mul(bottom, pitch))
        self._row(x, fn.add(top, bottom), lambda source: start(last, source), lambda: start(last, None))

        def up(turn: Value, _: list[Value]) -> list[Value]:
            t = fn.sub(bottom, turn)
            place = fn.gep(suffix, fn.mul(t, pitch))
            before = fn.gep(place, pitch)
            self._row(
                x, fn.add(top, t), lambda source: added(place, before, source), lambda: added(place, before, None)
            )
            return []

        fn.loop(1, fn.sub(high, first), 1, [], up, guard=True, hint="suffix")

        # Two rows of prefix sums take turns, so that none is read and written at once.
        def extend(t: Value, state: list[Value]) -> list[Value]:
            """Prefix sums that end with row t of the next block."""
            old, new = state
            at = fn.add(fn.add(top, high), t)
            is_first = fn.cmp("eq", t, 0)

            def begin() -> list[Value]:
                self._row(x, at, lambda source: start(new, source), lambda: start(new, None))
                return []

            def go_on() -> list[Value]:
                self._row(x, at, lambda source: added(new, old, source), lambda: added(new, old, None))
                return []

            fn.if_(is_first, begin, go_on, hint="first")
            return [new, old]

        def output(row: Value, state: list[Value]) -> list[Value]:
            t, *turns = state
            wanted = fn.sub(fn.mul(row, fields["step_y"]), top)
            turns = fn.loop(t, wanted, 1, turns, extend, guard=True, hint="prefix")
            here, joined = fn.gep(suffix, fn.mul(wanted, pitch)), turns[0]

            def whole() -> list[Value]:
                start(middle, here)
                return []

            def split() -> list[Value]:
                added(middle, here, joined)
                return []

            fn.if_(fn.cmp("eq", wanted, 0), whole, split, hint="whole")
            along(row)
            return [fn.i64(wanted), *turns]

        fn.loop(rows[0], rows[1], 1, [fn.i64(0), prefix, fn.gep(prefix, pitch)], output, hint="output")
