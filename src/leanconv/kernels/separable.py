"""Filters that are sums of column times row, pixels adjacent: the columns as the stage of the rows.

Where `planes` copies the rows under a band of output rows to scratch, this filters them vertically on the way: one row
for each output row and rank, pads in place and strides taken apart as a copied row has them.  The kernel of `planes`
then sees an image of as many channels as the rank, and windows one row high.

    x --- R taps down, vectors of pixels ---> scratch [rank][row][padded W] --- S taps along ---> out

Rows whose windows lie inside the image are computed some at a time; with few taps all weights stay in registers and
every register of pixels is loaded once for all the rows it is under.  Taps are added in order, one sum for each pixel,
wherever a row lies, so that bands do not show in the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.chain import RowWindow
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.image import mapped_position
from leanconv.kernels.planes import APART, Planes, PlaneSpec

RESIDENT = 0.7  # times the multiply-adds, where pixels are loaded once for several rows
ALONE = 4  # registers of a row that is computed by itself


@dataclass(frozen=True, slots=True)
class SeparableSpec:
    """What a kernel is specialised for: the rows of `planes` and the windows down the columns.

    Tiles are `height` rows by `vectors` registers of `piece` pixels; `resident`: with all weights in registers.
    `padded`: some windows reach outside the image, where `pad_mode`
    says what there is.  Buffers: those of `PlaneSpec`, whose x has unit pixels, v (vertical
    weights, [output][rank][taps]), and, if rows are copied on (`copies`), filtered (of each thread: `height` rows).
    Fields: those of `PlaneSpec`, of which `x_g` counts bytes between channels of x; `multiplier` outputs of a channel;
    `v_in` rows of x, `v_at` bytes between them, `v_low`, `v_high` output rows whose windows lie inside; `v_k` bytes of
    weights of one output, `f_row` bytes between rows of `filtered`.
    """

    plane: PlaneSpec
    window: RowWindow
    padded: bool
    pad_mode: str
    height: int
    vectors: int
    piece: int
    resident: bool

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.plane.target

    @property
    def copies(self) -> bool:
        """Whether rows are filtered into a place of their own and copied on: strides to take apart, pads to fill."""
        stage = self.plane.stage
        return stage.stride > 1 or (stage.padded and stage.pad_mode != "zeros")

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Separable(kernel, kernel.fn, kernel.fields, self.plane, self).run()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """The rows of `planes`, and the columns in place of their copies."""
        rows = self.plane.cost(f, chunks, host)
        images = f["n_count"] * f["unit_count"]
        registers = images * self.plane.channels * f["out0"] * -(-f["in1"] // self.piece)
        counts = dict(rows.counts)
        counts["multiply"] += registers * self.window.kernel * (RESIDENT if self.resident else APART)
        counts["tile"] += registers / (self.height * self.vectors)
        if not self.copies:
            for name in ("run", "vector", "element"):
                counts.pop(name, None)
        counts["vector"] = counts.get("vector", 0.0) + registers
        item = 8 if self.plane.dtype == "float64" else 4
        read = images * f["v_in"] * f["in1"] * item / f["multiplier"]
        return Cost(counts, ((read, read),), rows.writes, chunks)


Column = Callable[[Index, int], None]


@dataclass(slots=True)
class _Separable(Planes):
    """Emits one kernel."""

    whole: SeparableSpec

    @property
    def _piece(self) -> str:
        return vector(SCALARS[self.spec.dtype], self.whole.piece)

    def _fill(self, x: Value, group: Value, scratch: Value, outer: Index, top: Value, bottom: Value) -> None:
        """Filter rows [top, bottom) of one output, a rank at a time."""
        fn, fields = self.fn, self.fields
        x = fn.gep(x, fn.mul(fn.udiv(group, fields["multiplier"]), fields["x_g"]))
        weights = fn.gep(fields.buffer("v"), fn.mul(group, fields["v_k"]))

        def rank(index: Value, _: list[Value]) -> list[Value]:
            taps = fn.gep(weights, fn.mul(index, self.whole.window.kernel * self._item))
            self._rank(x, taps, fn.gep(scratch, fn.mul(index, fields["s_channel"])), top, bottom)
            return []

        fn.loop(0, self.spec.channels, 1, [], rank, hint="rank")

    def _rank(self, x: Value, weights: Value, scratch: Value, top: Value, bottom: Value) -> None:
        """Rows inside the image in tiles, those at its edges one by one."""
        fn, fields, spec = self.fn, self.fields, self.whole
        low, high = top, bottom
        if spec.padded:
            low = fn.i64(fn.smin(fn.smax(fields["v_low"], top), bottom))
            high = fn.i64(fn.smin(fn.smax(fields["v_high"], low), bottom))

        def alone(first: Value, end: Value) -> list[Value]:
            def row(at: Value, _: list[Value]) -> list[Value]:
                self._alone(x, weights, scratch, top, at)
                return []

            fn.loop(first, end, 1, [], row, guard=True, hint="alone")
            return []

        def tiles() -> list[Value]:
            loaded = self._loaded(weights) if spec.resident else []
            last = fn.sub(high, spec.height)

            def tile(at: Value, _: list[Value]) -> list[Value]:
                self._together(x, weights, loaded, scratch, top, fn.i64(fn.smin(at, last)))
                return []

            # The last tile computes some rows again, so that all are whole.
            fn.loop(low, high, spec.height, [], tile, hint="tile")
            return []

        if spec.padded:
            alone(top, low)
        fn.if_(fn.cmp("sge", fn.sub(high, low), spec.height), tiles, lambda: alone(low, high), hint="high")
        if spec.padded:
            alone(high, bottom)

    def _loaded(self, weights: Value) -> list[Value]:
        """All weights of a column in registers."""
        fn, spec = self.fn, self.whole
        scalar = SCALARS[self.spec.dtype]
        return [fn.splat(fn.load(scalar, weights, i * self._item), spec.piece) for i in range(spec.window.kernel)]

    def _targets(self, scratch: Value, top: Value, row: Value, rows: int) -> list[Value]:
        """Where filtered rows go: straight to their places, or to a place they are copied on from."""
        fn, fields = self.fn, self.fields
        if self.whole.copies:
            base = fn.gep(fields.buffer("filtered"), fn.mul(self.kernel.thread, fields["thread_filtered"]))
            return [fn.gep(base, fn.mul(fields["f_row"], i)) for i in range(rows)]
        return [fn.gep(p, self.spec.stage.pad_low * self._item) for p in self._places(scratch, top, row, rows)]

    def _places(self, scratch: Value, top: Value, row: Value, rows: int) -> list[Value]:
        """Where staged rows begin."""
        fn = self.fn
        base = fn.gep(scratch, fn.mul(fn.sub(row, top), self.fields["s_row"]))
        return [fn.gep(base, fn.mul(self.fields["s_row"], i)) for i in range(rows)]

    def _copy_on(self, targets: list[Value], scratch: Value, top: Value, row: Value) -> None:
        if self.whole.copies:
            for source, place in zip(targets, self._places(scratch, top, row, len(targets)), strict=True):
                self.spec.stage.emit(self.fn, self.fields, source, place)

    def _columns(self, vectors: int, body: Column) -> None:
        """Call `body(bytes, registers)` for tiles that cover a row; the last register may overlap the one before."""
        fn, piece, item = self.fn, self.whole.piece, self._item
        size = self.fields["in1"]
        whole = fn.mul(fn.udiv(size, vectors * piece), vectors * piece)

        def wide(at: Value, _: list[Value]) -> list[Value]:
            body(fn.mul(at, item), vectors)
            return []

        def rest(at: Value, _: list[Value]) -> list[Value]:
            body(fn.mul(fn.smin(at, fn.sub(size, piece)), item), 1)
            return []

        fn.loop(0, whole, vectors * piece, [], wide, guard=True, hint="wide")
        fn.loop(fn.i64(whole), size, piece, [], rest, guard=True, hint="rest")

    def _together(self, x: Value, weights: Value, loaded: list[Value], scratch: Value, top: Value, row: Value) -> None:
        """Some rows inside the image."""
        fn, fields, spec, window = self.fn, self.fields, self.whole, self.whole.window
        kind, step = self._piece, spec.piece * self._item
        source = fn.gep(x, fn.mul(fn.sub(fn.mul(row, window.stride), window.pad_low), fields["v_at"]))
        targets = self._targets(scratch, top, row, spec.height)

        def column(shift: Index, vectors: int) -> None:
            at = fn.gep(source, shift)
            sums = [fn.const(kind, 0.0)] * (spec.height * vectors)
            if spec.resident:
                for y in range((spec.height - 1) * window.stride + window.reach):
                    readers = [
                        (j, i)
                        for j in range(spec.height)
                        for i in range(window.kernel)
                        if j * window.stride + i * window.dilation == y
                    ]
                    place = fn.gep(at, fn.mul(fields["v_at"], y)) if readers else at
                    for v in range(vectors if readers else 0):
                        value = fn.load(kind, place, v * step)
                        for j, i in readers:
                            n = j * vectors + v
                            sums[n] = fn.multiply_add(value, loaded[i], sums[n], fused=self.spec.target.fma)
            else:

                def tap(i: Value, sums: list[Value]) -> list[Value]:
                    w = self._weight(weights, i)
                    place = fn.gep(at, fn.mul(fn.mul(i, window.dilation), fields["v_at"]))
                    result = []
                    for j in range(spec.height):
                        for v in range(vectors):
                            value = fn.load(kind, fn.gep(place, fn.mul(fields["v_at"], j * window.stride)), v * step)
                            total = sums[j * vectors + v]
                            result.append(fn.multiply_add(value, w, total, fused=self.spec.target.fma))
                    return result

                sums = fn.loop(0, window.kernel, 1, sums, tap, hint="tap")
            for j, target in enumerate(targets):
                for v in range(vectors):
                    fn.store(sums[j * vectors + v], fn.gep(target, shift), v * step)

        self._columns(spec.vectors, column)
        self._copy_on(targets, scratch, top, row)

    def _weight(self, weights: Value, tap: Value) -> Value:
        fn = self.fn
        value = fn.load(SCALARS[self.spec.dtype], fn.gep(weights, fn.mul(tap, self._item)))
        return fn.splat(value, self.whole.piece)

    def _alone(self, x: Value, weights: Value, scratch: Value, top: Value, row: Value) -> None:
        """One row, some of whose taps may lie outside the image."""
        fn, fields, spec, window = self.fn, self.fields, self.whole, self.whole.window
        kind, step, mode = self._piece, spec.piece * self._item, spec.pad_mode
        corner = fn.sub(fn.mul(row, window.stride), window.pad_low)
        first: Index = 0
        end: Index = window.kernel
        if spec.padded and mode == "zeros":

            def reach(distance: Index) -> Index:
                return fn.udiv(fn.add(fn.smax(distance, 0), window.dilation - 1), window.dilation)

            end = fn.smin(reach(fn.sub(fields["v_in"], corner)), window.kernel)
            first = fn.smin(reach(fn.sub(0, corner)), end)
        (target,) = targets = self._targets(scratch, top, row, 1)

        def column(shift: Index, vectors: int) -> None:
            def tap(i: Value, sums: list[Value]) -> list[Value]:
                at = fn.i64(fn.add(corner, fn.mul(i, window.dilation)))
                if spec.padded and mode != "zeros":
                    at = mapped_position(fn, at, fields["v_in"], mode)
                place = fn.gep(fn.gep(x, fn.mul(at, fields["v_at"])), shift)
                w = self._weight(weights, i)
                values = [fn.load(kind, place, v * step) for v in range(vectors)]
                return [
                    fn.multiply_add(value, w, total, fused=self.spec.target.fma)
                    for value, total in zip(values, sums, strict=True)
                ]

            zeros = [fn.const(kind, 0.0)] * vectors
            for v, total in enumerate(fn.loop(first, end, 1, zeros, tap, guard=True, hint="tap")):
                fn.store(total, fn.gep(target, shift), v * step)

        self._columns(ALONE, column)
        self._copy_on(targets, scratch, top, row)
