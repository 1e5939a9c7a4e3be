"""The core with images as vectors: a tile is output channels by vectors along the last axis, which has one tap.

With the batch last, and wherever else the last axis has a kernel of one tap, stride 1 and no padding, its elements go
through the convolution side by side.  They are loaded as vectors, weights are broadcast, and a tile is stored as it
stands, as in `kernels/columns.py`; what is new are the taps, and that only some of them lie inside the image:

    channel 0 --w0-->  acc[0][0]  acc[0][1]       two vectors of one pixel, or one each of two pixels of a row
    channel 1 --w1-->  acc[1][0]  acc[1][1]
      ...

A tap outside the image is left out for all lanes at once, so edges need no zeros.  Weights are packed as for columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.columns import ColumnSum
from leanconv.kernels.core import Reduction, Tile
from leanconv.kernels.cursor import SharedCursor
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position

Range = tuple[Index, Index]


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """A kernel over the outputs of all axes but the last; one chunk is one (image, group, block of rows, panels).

    `reduction.kernel`, `stride`, `dilation` and `pad_low` are those of the axes but the last, the innermost of which
    makes the rows.  `across`: a tile takes the same vector of two neighbouring pixels, instead of two of one; `tail`:
    vectors that the last tile of a pixel takes under masks (0: none).  `rows`, `short`: heights of panels as in
    `ColumnSpec`.

    Buffers: x, w (packed), out, residual.  Fields: `{n,g,b,k}_*`, `n_first`, `panels panel_count panel_long w_g w_row
    x_n x_g x_c o_n o_g o_k r_n r_g r_k` as in `ColumnSpec`; `block` rows a block, `lines` rows in all; `out{d} in{d}
    at{d} oat{d} rat{d}` extents, and bytes between pixels of image, output and residual; `low{d} high{d}` output
    positions whose windows lie inside; `w_rows{d}` channels of weights a tap; `length` elements of the last axis.
    """

    target: Target
    dtype: str
    reduction: Reduction
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    across: bool
    tail: int
    rows: int
    short: bool
    bias: bool
    epilogue: Epilogue

    @property
    def dims(self) -> int:
        """Axes but the last."""
        return len(self.stride)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Emitter(self, kernel).emit()
        return kernel.finish()


class _Emitter:
    """The loops of one kernel: rows of output pixels, pixels, vectors of a pixel, panels, taps."""

    def __init__(self, spec: BatchSpec, kernel: KernelFunction) -> None:
        self.spec, self.kernel = spec, kernel
        self.fn, self.fields = kernel.fn, kernel.fields

    def emit(self) -> None:
        """All rows of the chunk."""
        fn, fields, spec = self.fn, self.fields, self.spec
        index = {letter: self.kernel.index(letter) for letter in "ngbk"}
        image = fn.add(index["n"], fields["n_first"])

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(index["g"], fields[f"{letter}_g"]))
            return fn.gep(fields.buffer(role), offset)

        self.x, self.out = moved("x", "x"), moved("out", "o")
        self.residual = moved("residual", "r") if spec.epilogue.residual else None
        self.weights = fn.gep(fields.buffer("w"), fn.mul(index["g"], fields["w_g"]))
        first = fn.i64(fn.mul(index["k"], fields["panels"]))
        self.panels = (first, fn.smin(fn.add(first, fields["panels"]), fields["panel_count"]))
        begin = fn.i64(fn.mul(index["b"], fields["block"]))
        end = fn.smin(fn.add(begin, fields["block"]), fields["lines"])

        def line(at: Value, _: list[Value]) -> list[Value]:
            position: list[Index] = []
            rest: Index = at
            for dim in reversed(range(1, spec.dims - 1)):
                position.insert(0, fn.urem(rest, fields[f"out{dim}"]))
                rest = fn.udiv(rest, fields[f"out{dim}"])
            self._line([rest, *position] if spec.dims > 1 else [])
            return []

        fn.loop(begin, end, 1, [], line, hint="line")

    def _line(self, outer: list[Index]) -> None:
        """One row of output pixels; `outer` is its position."""
        fn, fields, spec = self.fn, self.fields, self.spec
        last = spec.dims - 1
        width = fields[f"out{last}"]

        def single(at: Value, _: list[Value]) -> list[Value]:
            self._pixels([*outer, at], 1)
            return []

        if not spec.across:
            fn.loop(0, width, 1, [], single, hint="pixel")
            return
        low: Index = fields[f"low{last}"] if spec.padded else 0
        inside = fn.smax(fn.sub(fields[f"high{last}"], low), 0) if spec.padded else width
        paired = fn.add(low, fn.mul(fn.udiv(inside, 2), 2))

        def pair(at: Value, _: list[Value]) -> list[Value]:
            self._pixels([*outer, at], 2)
            return []

        fn.loop(low, paired, 2, [], pair, guard=True, hint="pair")

        def part(number: Value, _: list[Value]) -> list[Value]:
            before = fn.cmp("eq", number, 0)
            fn.loop(fn.select(before, 0, paired), fn.select(before, low, width), 1, [], single, guard=True, hint="edge")
            return []

        fn.loop(0, 2, 1, [], part, hint="edges")

    def _pixels(self, position: list[Index], pixels: int) -> None:
        """All vectors of one pixel, or the one vector of two."""
        fn, fields, spec = self.fn, self.fields, self.spec
        width = spec.target.vector_bytes
        if spec.across:
            apart = fn.mul(fields[f"at{spec.dims - 1}"], spec.stride[-1])
            left = fields["length"] if spec.tail else None
            self._panels(position, 0, pixels, apart, left, pixels > 1)
            return
        wide = 2 * spec.target.lanes(spec.dtype)
        whole = fn.mul(fn.udiv(fields["length"], wide), wide)

        def full(at: Value, _: list[Value]) -> list[Value]:
            self._panels(position, fn.mul(at, spec.itemsize), 2, width, None, False)
            return []

        fn.loop(0, whole, wide, [], full, guard=True, hint="vectors")
        if spec.tail:
            rest = fn.i64(fn.sub(fields["length"], whole))

            def masked() -> list[Value]:
                self._panels(position, fn.mul(whole, spec.itemsize), spec.tail, width, rest, False)
                return []

            fn.if_(fn.cmp("ne", rest, 0), masked, lambda: [], hint="tail")

    def _panels(
        self, position: list[Index], shift: Index, vectors: int, apart: Index, left: Value | None, inside: bool
    ) -> None:
        """All panels of the chunk for `vectors` vectors, `shift` bytes into a pixel; `inside` along the row."""
        fn, fields, spec = self.fn, self.fields, self.spec
        window = _Window(spec, fn, fields, self.x, position, shift, inside)

        def place(base: Value | None, letter: str) -> Value | None:
            if base is None:
                return None
            for dim, at in enumerate(position):
                base = fn.gep(base, fn.mul(at, fields[f"{letter}at{dim}"]))
            return fn.gep(base, shift)

        out, residual = place(self.out, "o"), place(self.residual, "r")
        assert out is not None
        long = fields["panel_long"]
        begin, stop = self.panels
        spans: list[tuple[int, Index, Index]] = [(spec.rows, begin, fn.smin(stop, long))]
        if spec.short:
            spans.append((spec.rows - 1, fn.smax(begin, long), stop))
        for rows, first, end in spans:
            tile = Tile(spec.target, spec.dtype, rows, vectors, spec.bias)

            def panel(at: Value, _: list[Value], tile: Tile = tile) -> list[Value]:
                # Panels before this one hold rows * at channels, less one for each short panel among them.
                channel = fn.mul(at, spec.rows)
                if tile.rows < spec.rows:
                    channel = fn.sub(channel, fn.sub(at, long))
                sum_ = BatchSum(fn, fields, tile, spec.reduction, left=left, apart=apart, shared=spec.across)
                accs = sum_.window_sums(window, fn.gep(self.weights, fn.mul(channel, fields["w_row"])))
                o = fn.gep(out, fn.mul(channel, fields["o_k"]))
                r = fn.gep(residual, fn.mul(channel, fields["r_k"])) if residual is not None else None
                self._store(sum_, accs, o, r)
                return []

            fn.loop(first, end, 1, [], panel, guard=True, hint="panel")

    def _store(self, sum_: BatchSum, accs: list[Value], out: Value, residual: Value | None) -> None:
        fn, fields, tile, spec = self.fn, self.fields, sum_.tile, self.spec

        def apart(letter: str, vector: int) -> Index:
            if not spec.across:
                return vector * spec.target.vector_bytes
            return fn.mul(fields[f"{letter}at{spec.dims - 1}"], vector)

        for i in range(tile.rows):
            row = fn.gep(out, fn.mul(fields["o_k"], i))
            extra_row = fn.gep(residual, fn.mul(fields["r_k"], i)) if residual is not None else None
            for v in range(tile.vectors):
                mask, extra = sum_.mask(v), None
                if extra_row is not None:
                    source = fn.gep(extra_row, apart("r", v))
                    extra = fn.load(tile.vec, source) if mask is None else fn.masked_load(tile.vec, source, mask)
                value = spec.epilogue.apply(fn, accs[i * tile.vectors + v], extra)
                target = fn.gep(row, apart("o", v))
                if mask is None:
                    fn.store(value, target)
                else:
                    fn.masked_store(value, target, mask)


class _Window:
    """The window of an output pixel: where its taps are, and which of them lie inside the image."""

    def __init__(
        self, spec: BatchSpec, fn: Function, fields: Fields, x: Value, position: list[Index], shift: Index, inside: bool
    ) -> None:
        self.fn, self.fields, self.spec, self.inside = fn, fields, spec, inside
        self.corner = [fn.sub(fn.mul(at, spec.stride[d]), spec.pad_low[d]) for d, at in enumerate(position)]
        self.base = fn.gep(x, shift)

    def mapped(self, dim: int) -> bool:
        """Whether taps outside stand for other pixels."""
        last = dim == self.spec.dims - 1
        return self.spec.padded and self.spec.pad_mode != "zeros" and not (self.inside and last)

    def taps(self, dim: int) -> Range:
        """The taps of one axis [first, end) that are to be summed."""
        spec, fn = self.spec, self.fn
        size, step = spec.reduction.kernel[dim], spec.dilation[dim]
        if not spec.padded or spec.pad_mode != "zeros" or (self.inside and dim == spec.dims - 1):
            return 0, size

        def reach(distance: Index) -> Index:
            return fn.udiv(fn.add(fn.smax(distance, 0), step - 1), step)

        end = reach(fn.sub(self.fields[f"in{dim}"], self.corner[dim]))
        return reach(fn.sub(0, self.corner[dim])), fn.smin(end, size)

    def place(self, base: Value, dim: int, tap: Index) -> Value:
        """The address of a tap of one axis, from that of the axes before it."""
        at = self.fn.add(self.corner[dim], self.fn.mul(tap, self.spec.dilation[dim]))
        if self.mapped(dim):
            at = mapped_position(self.fn, self.fn.i64(at), self.fields[f"in{dim}"], self.spec.pad_mode)
        return self.fn.gep(base, self.fn.mul(at, self.fields[f"at{dim}"]))


@dataclass(slots=True)
class BatchSum(ColumnSum):
    """The reduction of a tile over the taps of a window; vectors `apart` bytes, which `shared` lanes exist of."""

    apart: Index = 0
    shared: bool = False

    def mask(self, vector: int) -> Value | None:
        """Which lanes of a vector exist; None for all."""
        if self.left is None:
            return None
        lanes = self.tile.target.lanes(self.tile.dtype)
        return self.fn.lane_mask(lanes, self.left if self.shared else self.fn.sub(self.left, vector * lanes))

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """The vectors of one channel."""
        fn, tile = self.fn, self.tile
        base = fn.gep(weights, fn.mul(self.fields["x_c"], row))
        result = []
        for v in range(tile.vectors):
            place, mask = fn.gep(base, fn.mul(self.apart, v)), self.mask(v)
            result.append(fn.load(tile.vec, place) if mask is None else fn.masked_load(tile.vec, place, mask))
        return result

    def window_sums(self, window: _Window, weights: Value) -> list[Value]:
        """The sums over a window with the panel at `weights`."""
        fn, tile, red = self.fn, self.tile, self.reduction
        accs, weights = self.heads(weights)
        rows = [fn.gep(weights, i * tile.itemsize) for i in range(tile.rows)]
        step = tile.rows * tile.itemsize

        def taps(dim: int, base: Value, offset: Index, accs: list[Value]) -> list[Value]:
            if dim == len(red.kernel):
                return self.run(SharedCursor(fn, rows, offset, step), red.channels, base, accs)[1]

            def tap(index: Value, accs: list[Value]) -> list[Value]:
                place = window.place(base, dim, index)
                at = fn.add(offset, fn.mul(fn.mul(index, self.fields[f"w_rows{dim}"]), step))
                return self.end_section(dim, taps(dim + 1, place, at, accs), index)

            return self._range(dim, window.taps(dim), accs, tap)

        return self.finish(taps(0, window.base, 0, self.begin(accs)))

    def _range(
        self,
        dim: int,
        taps: Range,
        accs: list[Value],
        tap: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """A loop over some of an axis's taps in which sections end where they do in one over all of them."""
        fn, red = self.fn, self.reduction
        first, end = taps
        every = red.every
        last = red.kernel[dim] // every * every - 1  # the last tap after which a section ends
        carries = red.flush == dim and dim > 0 and last >= 0  # into the next tap of the axis before
        if carries and not isinstance(first, int):
            accs = fn.if_(fn.cmp("sge", first, every), lambda: self._add_up(accs), lambda: accs, hint="section")
        guard = not (isinstance(first, int) and isinstance(end, int))
        accs = list(fn.loop(first, end, 1, accs, tap, guard=guard, hint="tap"))
        if carries and not isinstance(end, int):
            accs = fn.if_(fn.cmp("sle", end, last), lambda: self._add_up(accs), lambda: accs, hint="section")
        return accs
