"""The core turned round, for matrices whose columns are pixels: a tile is channels by vectors of adjacent pixels.

A pointwise layer with channels first, and every im2col matrix, have the pixels of one channel side by side.  Here these
are loaded as vectors and weights are broadcast, so that a tile is stored as it stands:

                matrix  [depth][pixels]
                        |  16 pixels
    channel 0 --w0-->  acc[0]      weights are packed [group][panel][bias][depth][rows]
    channel 1 --w1-->  acc[1]
      ...

The sums are those of the other form, bit for bit.  The vectors of the last pixels are loaded and stored under masks.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import SharedCursor
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.stage import Stage
from leanconv.kernels.tile import Tile

AHEAD = 8  # rows of the matrix between a prefetch and its use: about 50 cycles


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A dense kernel over pixel columns; one chunk is one (image, group, block of pixels, group of panels).

    `rows` output channels a tile, `short` whether the last panels are one row shorter; `tail` vectors hold the pixels
    that whole tiles leave over at the end of a block (0: none); `ahead`: each row of a tile asks for that of the next.
    Buffers: x, w (packed), out, residual.  Fields: as in `DenseSpec`, with `x_c` bytes between rows of the matrix,
    `panel_long` panels of full height, `w_row` bytes of weights a channel.
    """

    target: Target
    dtype: str
    reduction: Reduction
    rows: int
    short: bool
    tail: int
    bias: bool
    epilogue: Epilogue
    stage: Stage | None = None
    ahead: bool = False

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        index = {letter: kernel.index(letter) for letter in "ngbk"}
        image = fn.add(index["n"], fields["n_first"])

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(index["g"], fields[f"{letter}_g"]))
            return fn.gep(fields.buffer(role), offset)

        x, out = moved("x", "x"), moved("out", "o")
        residual = moved("residual", "r") if self.epilogue.residual else None
        weights = fn.gep(fields.buffer("w"), fn.mul(index["g"], fields["w_g"]))
        first = fn.i64(fn.mul(index["b"], fields["block"]))
        is_last = fn.cmp("eq", fn.add(index["b"], 1), fields["b_count"])
        end = fn.select(is_last, fields["pixels"], fn.add(first, fields["block"]))
        item = 8 if self.dtype == "float64" else 4
        start: Index = first
        if self.stage is not None:
            scratch = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
            x, start = self.stage.emit(fn, fields, x, scratch, first, end)
        panels = (
            fn.i64(fn.mul(index["k"], fields["panels"])),
            fn.i64(fn.smin(fn.add(fn.mul(index["k"], fields["panels"]), fields["panels"]), fields["panel_count"])),
        )
        wide = 2 * self.target.lanes(self.dtype)
        tail = fn.i64(fn.urem(fn.sub(end, first), wide)) if self.tail else fn.i64(0)
        whole = fn.sub(end, tail) if self.tail else end
        source = fn.gep(x, fn.mul(start, item))

        def pixels(vectors: int, pixel: Value, source: Value, left: Value | None) -> None:
            shift = fn.mul(pixel, item)
            o, r = fn.gep(out, shift), fn.gep(residual, shift) if residual is not None else None
            self._panels(fn, fields, vectors, source, weights, o, r, panels, left)

        def full(pixel: Value, state: list[Value]) -> list[Value]:
            pixels(2, pixel, state[0], None)
            return [fn.gep(state[0], wide * item)]

        (source,) = fn.loop(first, whole, wide, [source], full, guard=True, hint="pixels")
        if self.tail:
            at = fn.i64(whole)

            def rest() -> list[Value]:
                pixels(self.tail, at, source, tail)
                return []

            fn.if_(fn.cmp("ne", tail, 0), rest, lambda: [], hint="tail")
        return kernel.finish()

    def _panels(
        self,
        fn: Function,
        fields: Fields,
        vectors: int,
        x: Value,
        weights: Value,
        out: Value,
        residual: Value | None,
        panels: tuple[Value, Value],
        left: Value | None,
    ) -> None:
        """All panels of the chunk for one column of tiles."""
        long = fields["panel_long"]
        spans = [(self.rows, panels[0], fn.smin(panels[1], long))]
        if self.short:
            spans.append((self.rows - 1, fn.i64(fn.smax(panels[0], long)), panels[1]))
        for rows, begin, stop in spans:
            tile = Tile(self.target, self.dtype, rows, vectors, self.bias)

            def panel(at: Value, _: list[Value], tile: Tile = tile) -> list[Value]:
                # Panels before this one hold rows * at channels, less one for each short panel among them.
                channel = fn.mul(at, self.rows)
                if tile.rows < self.rows:
                    channel = fn.sub(channel, fn.sub(at, long))
                sum_ = ColumnSum(fn, fields, tile, self.reduction, left=left, ahead=self.ahead and left is None)
                accs = sum_.tile_sums(x, fn.gep(weights, fn.mul(channel, fields["w_row"])))
                o = fn.gep(out, fn.mul(channel, fields["o_k"]))
                r = fn.gep(residual, fn.mul(channel, fields["r_k"])) if residual is not None else None
                self._store(fn, fields, sum_, accs, o, r)
                return []

            fn.loop(begin, stop, 1, [], panel, guard=True, hint="panel")

    def _store(
        self, fn: Function, fields: Fields, sum_: ColumnSum, accs: list[Value], out: Value, residual: Value | None
    ) -> None:
        tile = sum_.tile
        for i in range(tile.rows):
            row = fn.gep(out, fn.mul(fields["o_k"], i))
            extra_row = fn.gep(residual, fn.mul(fields["r_k"], i)) if residual is not None else None
            for v in range(tile.vectors):
                at, mask = v * self.target.vector_bytes, sum_.mask(v)
                extra = None
                if extra_row is not None:
                    place = fn.gep(extra_row, at)
                    extra = fn.load(tile.vec, place) if mask is None else fn.masked_load(tile.vec, place, mask)
                value = self.epilogue.apply(fn, accs[i * tile.vectors + v], extra)
                if mask is None:
                    fn.store(value, row, at)
                else:
                    fn.masked_store(value, fn.gep(row, at), mask)


@dataclass(slots=True)
class ColumnSum(Sum):
    """The reduction of a tile whose vectors are pixels; `left` pixels exist in a last tile, None in a whole one.

    `ahead`: the lines of the next tile are asked for.
    """

    left: Value | None = None
    ahead: bool = False

    def mask(self, vector: int) -> Value | None:
        """Which lanes of a vector exist; None for all."""
        if self.left is None:
            return None
        lanes = self.tile.target.lanes(self.tile.dtype)
        return self.fn.lane_mask(lanes, self.fn.sub(self.left, vector * lanes))

    def behind(self, weights: Value) -> Value:
        """The address behind the bias at the head of a panel."""
        if not self.tile.bias:
            return weights
        self.head = weights
        return self.fn.gep(weights, self.tile.rows * self.tile.itemsize)

    def biases(self, head: Value) -> list[Value]:
        """The bias of each accumulator: one a row."""
        fn, tile = self.fn, self.tile
        lanes = tile.target.lanes(tile.dtype)
        heads = [fn.splat(fn.load(tile.scalar, head, i * tile.itemsize), lanes) for i in range(tile.rows)]
        return [value for value in heads for _ in range(tile.vectors)]

    def tile_sums(self, x: Value, weights: Value) -> list[Value]:
        """The sums of the tile at matrix address x with the panel at `weights`."""
        fn, tile, red = self.fn, self.tile, self.reduction
        weights = self.behind(weights)
        rows = [fn.gep(weights, i * tile.itemsize) for i in range(tile.rows)]
        cursor = SharedCursor(fn, rows, 0, tile.rows * tile.itemsize)
        return self.finish(self.run(cursor, red.channels, x, self.begin(), first=red.short)[1])

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """Pixels of one row of the matrix."""
        fn, tile = self.fn, self.tile
        base = fn.gep(weights, fn.mul(self.fields["x_c"], row))
        if self.ahead:
            width = tile.vectors * tile.target.vector_bytes
            for end in range(min(width, LINE), width + 1, LINE):
                # By their last bytes: where a tile begins within a line, this one has asked for the next one's first.
                fn.prefetch(base, width + end - 1)
        if self.reduction.stream:
            fn.prefetch(base, fn.mul(self.fields["x_c"], AHEAD))
        result = []
        for v in range(tile.vectors):
            place, mask = fn.gep(base, v * tile.target.vector_bytes), self.mask(v)
            result.append(fn.load(tile.vec, place) if mask is None else fn.masked_load(tile.vec, place, mask))
        return result

    def moved(self, weights: Value, count: int) -> Value:
        """The matrix `count` rows further on."""
        return self.fn.gep(weights, self.fn.mul(self.fields["x_c"], count))


@dataclass(frozen=True, slots=True)
class RowPackSpec:
    """Weights for `ColumnSpec`: [group][panel][bias][taps][channels][rows]; one chunk is one panel of one group.

    `order` lists the axes of the kernel, outermost first, if it is not theirs.

    Buffers: weights, bias, w (packed).  Fields: `g_* p_*` for the chunk; `panel_long`; `channels`; `w_k w_c w_{d}` and
    `w_g` bytes between weights and groups; `p_g` packed bytes a group, `p_row` a channel; `bias_g` bytes of bias a
    group.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    rows: int
    short: bool
    bias: bool
    order: tuple[int, ...] | None = None

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, panel = kernel.index("g"), fn.i64(kernel.index("p"))
        long = fields["panel_long"]

        def one(rows: int) -> list[Value]:
            channel = fn.mul(panel, self.rows)
            if rows < self.rows:
                channel = fn.sub(channel, fn.sub(panel, long))
            self._panel(kernel, rows, group, channel)
            return []

        if self.short:
            fn.if_(fn.cmp("slt", panel, long), lambda: one(self.rows), lambda: one(self.rows - 1), hint="long")
        else:
            one(self.rows)
        return kernel.finish()

    def _panel(self, kernel: KernelFunction, rows: int, group: Index, channel: Index) -> None:
        fn, fields = kernel.fn, kernel.fields
        scalar = Tile(self.target, self.dtype, rows, 1, self.bias).scalar
        item = 8 if self.dtype == "float64" else 4
        source = fn.gep(fields.buffer("weights"), fn.mul(group, fields["w_g"]))
        source = fn.gep(source, fn.mul(channel, fields["w_k"]))
        target = fn.gep(fields.buffer("w"), fn.mul(group, fields["p_g"]))
        target = fn.gep(target, fn.mul(channel, fields["p_row"]))

        def row(base: Value, step: Index, to: Value) -> Value:
            for i in range(rows):
                fn.store(fn.load(scalar, base, fn.mul(step, i)), to, i * item)
            return fn.gep(to, rows * item)

        if self.bias:
            bias = fn.gep(fields.buffer("bias"), fn.mul(group, fields["bias_g"]))
            target = row(fn.gep(bias, fn.mul(channel, item)), item, target)

        axes = self.order or tuple(range(len(self.kernel)))

        def taps(level: int, base: Value, to: Value) -> Value:
            last = level == len(self.kernel)

            def body(_: Value, state: list[Value]) -> list[Value]:
                after = row(state[0], fields["w_k"], state[1]) if last else taps(level + 1, state[0], state[1])
                return [fn.gep(state[0], fields["w_c" if last else f"w_{axes[level]}"]), after]

            count: Index = fields["channels"] if last else self.kernel[axes[level]]
            return fn.loop(0, count, 1, [base, to], body, hint="pack")[1]

        taps(0, source, target)
