"""Winograd for gradients with respect to weights: the products, and the way back to taps.

    dW = G^T [ sum over tiles of (B^T d B) (.) (A dY A^T) ] G

For each point the sum is a matrix product over tiles, on the register-tiled core: input channels, broadcast, by a panel
of output channels.  The sum of a section of tiles starts at zero and is added to what earlier sections gave.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.backward_tiles import RUNS, along, each_run
from leanconv.kernels.backward_winograd_stage import transform, transposed
from leanconv.kernels.channel_runs import scatter, store_runs
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import Cost, issue_slots
from leanconv.kernels.cursor import SharedCursor
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.panels import PanelShape, each_panel
from leanconv.kernels.sections import REACH
from leanconv.kernels.tile import Tile
from leanconv.kernels.winograd_tiles import Tiling


@dataclass(frozen=True, slots=True)
class ProductSpec:
    """One chunk is one (point, some panels of output channels, part of the input channels).

    `rows` input channels a tile, and `short` whether the last tiles are one lower, for whole panels and the last one.
    Buffers: windows, gradients (see `backward_winograd_stage.py`), sums: [point][input channel][output channels].
    Fields: `e_* k_* c_*` for the chunk; those of `Tiling`; `section_first`, `section_count`, `section` tiles of one,
    `tile_count`; `v_section v_point v_row z_section z_point z_panel m_point m_row` bytes; `panels` a chunk,
    `panel_count panel_whole`; `tiles_of{j} long{j}` tiles, and those of full height, of panels of kind j.
    """

    target: Target
    dtype: str
    tiling: Tiling
    panels: PanelShape
    rows: tuple[int, int]
    short: tuple[bool, bool]

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, tiling = kernel.fn, kernel.fields, self.tiling
        point, group, part = (fn.i64(kernel.index(letter)) for letter in "ekc")
        kept: list[Index] = []
        rest: Index = point
        for d in reversed(range(len(tiling.axes))):
            axis = tiling.axes[d]
            tiles: Index = fields[f"tiles{d}"]
            if axis.ragged:
                left_out = fn.cmp("uge", fn.urem(rest, axis.transform.size), axis.kept)
                tiles = fn.select(left_out, tiling.whole_tiles(fields, fn, d), tiles)
            kept.insert(0, tiles)
            rest = fn.udiv(rest, axis.transform.size)
        windows, grads, sums = (
            fn.gep(fields.buffer(role), fn.mul(point, fields[f"{letter}_point"]))
            for role, letter in (("windows", "v"), ("gradients", "z"), ("sums", "m"))
        )
        low = fn.i64(fn.mul(group, fields["panels"]))
        high = fn.i64(fn.smin(fn.add(low, fields["panels"]), fields["panel_count"]))

        def section(number: Value, _: list[Value]) -> list[Value]:
            at = fn.add(fields["section_first"], number)
            first = fn.mul(at, fields["section"])
            end = fn.smin(fn.add(first, fields["section"]), fields["tile_count"])
            count = fn.i64(fn.sub(tiling.before(fn, fields, end, kept), tiling.before(fn, fields, first, kept)))
            fresh = fn.cmp("eq", at, 0)
            pixels = fn.gep(windows, fn.mul(number, fields["v_section"]))
            weights = fn.gep(grads, fn.mul(number, fields["z_section"]))

            def panel(at: Value, vectors: int, _: int, last: bool) -> None:
                columns = fn.gep(weights, fn.mul(at, fields["z_panel"]))
                first = fn.mul(at, self.panels.vectors * self.target.vector_bytes)
                totals = fn.gep(sums, first)
                self._tiles(fn, fields, int(last), vectors, part, (pixels, columns, totals), count, fresh)

            each_panel(fn, fields, self.panels, self.target.lanes(self.dtype), (low, high), panel)
            return []

        fn.loop(0, fields["section_count"], 1, [], section, hint="section")
        return kernel.finish()

    def _tiles(
        self,
        fn: Function,
        fields: Fields,
        kind: int,
        vectors: int,
        part: Value,
        places: tuple[Value, Value, Value],
        count: Value,
        fresh: Value,
    ) -> None:
        """The tiles of a panel that are the chunk's."""
        tiles, long, parts = fields[f"tiles_of{kind}"], fields[f"long{kind}"], fields["c_count"]
        begin, end = (fn.i64(fn.udiv(fn.mul(tiles, n), parts)) for n in (part, fn.add(part, 1)))
        most = self.rows[kind]

        def span(rows: int, start: Index, stop: Index) -> None:
            def tile(at: Value, _: list[Value]) -> list[Value]:
                channel = fn.mul(at, most)
                if rows < most:
                    channel = fn.sub(channel, fn.sub(at, long))
                windows, grads, totals = places
                here = fn.gep(windows, fn.mul(channel, self.item))
                to = fn.gep(totals, fn.mul(channel, fields["m_row"]))
                self._tile(fn, fields, rows, vectors, (here, grads, to), count, fresh)
                return []

            fn.loop(start, stop, 1, [], tile, guard=True, hint="tile")

        span(most, begin, fn.smin(end, long))
        if self.short[kind]:
            span(most - 1, fn.smax(begin, long), end)

    def _tile(
        self,
        fn: Function,
        fields: Fields,
        rows: int,
        vectors: int,
        places: tuple[Value, Value, Value],
        count: Value,
        fresh: Value,
    ) -> None:
        """The sum of a section, stored or added."""
        tile = Tile(self.target, self.dtype, rows, vectors, bias=False)
        sum_ = Sum(fn, fields, tile, RUNS)
        windows, grads, totals = places
        cursor = SharedCursor(fn, [fn.gep(windows, i * self.item) for i in range(rows)], 0, fields["v_row"])

        zeros = [fn.const(tile.vec, 0.0)] * (rows * vectors)
        accs = each_run(sum_, count, [*cursor.state, fn.gep(grads, REACH), *zeros], along(sum_, cursor))[2:]
        width = self.target.vector_bytes
        spots = [fn.gep(totals, fn.mul(fields["m_row"], i)) for i in range(rows)]

        def put(*, add: bool) -> list[Value]:
            for i, acc in enumerate(accs):
                spot, at = spots[i // vectors], i % vectors * width
                fn.store(fn.binary("fadd", fn.load(tile.vec, spot, at), acc) if add else acc, spot, at)
            return []

        fn.if_(fresh, lambda: put(add=False), lambda: put(add=True), hint="fresh")

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Register tiles, and the matrices that each point reads."""
        f = fields
        counts = {"multiply": 0.0, "tile": 0.0, "vector": 0.0}
        tiles = f["tiles_here"]
        kept = sum(points * part for points, part in self.tiling.counted(f))
        panels = [(0, self.panels.vectors, f["panel_whole"])] if self.panels.whole else []
        panels += [(1, self.panels.last, 1)] if self.panels.last else []
        for kind, vectors, number in panels:
            many = f[f"tiles_of{kind}"] * number
            rows = self.rows[kind] - self.short[kind] / 2
            counts["multiply"] += kept * tiles * many * issue_slots(rows, vectors)
            counts["tile"] += self.tiling.points * f["section_count"] * many
            counts["vector"] += 2 * self.tiling.points * f["section_count"] * many * rows * vectors
        read = kept * tiles * (f["v_row"] + f["m_row"])
        sums = self.tiling.points * f["channels"] * f["m_row"]
        held = f["section_count"] * (f["v_section"] + f["z_section"])
        return Cost(counts, ((read, held),), ((sums, sums),), chunks)


@dataclass(frozen=True, slots=True)
class TapSpec:
    """The sums of all points, transformed to taps; a chunk is a block of input channels.

    `valid` channels are in the last vector; `dense`: the taps of a filter lie one behind the other; `near`: or else
    its input channels.  Buffers: sums and out.  Fields: `c_block` channels a chunk, `channels`; `vectors` of output
    channels; `m_point m_row o_k o_c o_{d}`.
    """

    target: Target
    dtype: str
    tiling: Tiling
    valid: int
    dense: bool
    near: bool

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        lanes, width = self.target.lanes(self.dtype), self.target.vector_bytes
        low = fn.i64(fn.mul(kernel.chunk, fields["c_block"]))
        high = fn.i64(fn.smin(fn.add(low, fields["c_block"]), fields["channels"]))
        partly = int(self.valid < lanes)
        taps = math.prod(axis.transform.taps for axis in self.tiling.axes)
        stack = fn.alloca(taps * lanes * width) if self.near else kernel.thread

        def vector_of(number: Value, count: int) -> None:
            sums = fn.gep(fields.buffer("sums"), fn.mul(number, width))
            out = fn.gep(fields.buffer("out"), fn.mul(fn.mul(number, lanes), fields["o_k"]))

            def channel(at: Value, _: list[Value]) -> list[Value]:
                here = fn.gep(sums, fn.mul(at, fields["m_row"]))
                self._taps(fn, fields, here, fn.gep(out, fn.mul(at, fields["o_c"])), count)
                return []

            done: Index = low
            if self.near:  # runs of channels, turned in registers: single lanes would go to as many lines as weights
                done = fn.add(low, fn.mul(fn.udiv(fn.sub(high, low), lanes), lanes))

                def block(at: Value, _: list[Value]) -> list[Value]:
                    here = fn.gep(sums, fn.mul(at, fields["m_row"]))
                    self._block(fn, fields, here, fn.gep(out, fn.mul(at, fields["o_c"])), stack, count)
                    return []

                fn.loop(low, done, lanes, [], block, guard=True, hint="block")
            fn.loop(done, high, 1, [], channel, guard=self.near, hint="channel")

        def whole(number: Value, _: list[Value]) -> list[Value]:
            vector_of(number, lanes)
            return []

        fn.loop(0, fn.sub(fields["vectors"], partly), 1, [], whole, guard=True, hint="vector")
        if partly:
            vector_of(fn.i64(fn.sub(fields["vectors"], 1)), self.valid)
        return kernel.finish()

    def _taps(self, fn: Function, fields: Fields, sums: Value, out: Value, count: int) -> None:
        """A vector of filters of one input channel, of which `count` exist."""
        taps = self._filters(fn, fields, sums)
        if self.dense:
            store_runs(fn, taps, out, fields["o_k"], count)
            return
        for place, value in zip(self._places(fn, fields, out), taps, strict=True):
            scatter(fn, value, place, fields["o_k"], count)

    def _block(self, fn: Function, fields: Fields, sums: Value, out: Value, stack: Value, count: int) -> None:
        """As many input channels as a vector has lanes, which are adjacent in the result."""
        lanes, width = self.target.lanes(self.dtype), self.target.vector_bytes
        kind = vector(SCALARS[self.dtype], lanes)

        def channel(at: Value, state: list[Value]) -> list[Value]:
            to = fn.gep(stack, fn.mul(at, width))
            for tap, value in enumerate(self._filters(fn, fields, state[0])):
                fn.store(value, to, tap * lanes * width)
            return [fn.gep(state[0], fields["m_row"])]

        fn.loop(0, lanes, 1, [sums], channel, hint="channel")
        for tap, place in enumerate(self._places(fn, fields, out)):
            values = [fn.load(kind, stack, (tap * lanes + c) * width) for c in range(lanes)]
            store_runs(fn, values, place, fields["o_k"], count)

    def _filters(self, fn: Function, fields: Fields, sums: Value) -> list[Value]:
        """The taps of a vector of filters."""
        kind = vector(SCALARS[self.dtype], self.target.lanes(self.dtype))
        points = [fn.load(kind, fn.gep(sums, fn.mul(fields["m_point"], n))) for n in range(self.tiling.points)]
        matrices = [transposed(axis.transform.weights()) for axis in self.tiling.axes]
        return transform(fn, points, list(self.tiling.sizes), matrices, fused=self.target.fma)

    def _places(self, fn: Function, fields: Fields, out: Value) -> list[Value]:
        """Where the taps of a filter are."""
        places = []
        for at in itertools.product(*(range(axis.transform.taps) for axis in self.tiling.axes)):
            place = out
            for d, i in enumerate(at):
                place = fn.gep(place, fn.mul(fields[f"o_{d}"], i))
            places.append(place)
        return places

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Sums are read once, taps are written once."""
        filters = fields["channels"] * fields["vectors"]
        taps = math.prod(axis.transform.taps for axis in self.tiling.axes)
        read = filters * self.tiling.points * self.target.vector_bytes
        wrote = filters * taps * self.target.vector_bytes
        counts = {"vector": 2.0 * filters * self.tiling.points, "turn": float(filters * taps)}
        return Cost(counts, ((read, read),), ((wrote, wrote),), chunks)
