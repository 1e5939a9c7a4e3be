"""The sums of one tile of output rows and vectors of pixels over staged rows (see `planes`)."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import Fields
from leanconv.kernels.planestage import tap_distance
from leanconv.kernels.taporder import TapOrder, TapSum
from leanconv.kernels.window import Window


@dataclass(frozen=True, slots=True)
class PlaneTile:
    """Rows and registers of a tile, and how many pixels its last register holds."""

    height: int
    vectors: int
    valid: int


@dataclass(slots=True)
class PlaneTerms:
    """Emits the sums of a tile; `channels` of a group are staged."""

    fn: Function
    fields: Fields
    target: Target
    dtype: str
    window: Window
    channels: int
    tile: PlaneTile

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    @property
    def _lanes(self) -> int:
        return self.target.lanes(self.dtype)

    @property
    def _kind(self) -> str:
        return vector(SCALARS[self.dtype], self._lanes)

    def _tap_offset(self, tap: Index) -> Index:
        return tap_distance(self.fn, self.fields, self.window, self._item, tap)

    def resident(self, x: Value, loaded: list[Value], sums: list[Value]) -> list[Value]:
        """Row after row of the image: each register of pixels is loaded once for all output rows it is under."""
        fn, fields, tile = self.fn, self.fields, self.tile
        rows, taps = self.window.kernel
        stride, dilation = self.window.stride[0], self.window.dilation[0]
        sums = list(sums)
        for y in range((tile.height - 1) * stride + (rows - 1) * dilation + 1):
            readers = [(j, r) for j in range(tile.height) for r in range(rows) if j * stride + r * dilation == y]
            if not readers:
                continue
            base = fn.gep(x, fn.mul(fields["s_row"], y))
            for channel in range(self.channels):
                at = fn.gep(base, fn.mul(fields["s_channel"], channel)) if channel else base
                for s in range(taps):
                    place = fn.gep(at, self._tap_offset(s))
                    for v in range(tile.vectors):
                        value = fn.load(self._kind, place, v * self.target.vector_bytes)
                        for j, r in readers:
                            w = loaded[(r * taps + s) * self.channels + channel]
                            i = j * tile.vectors + v
                            sums[i] = fn.multiply_add(value, w, sums[i], fused=self.target.fma)
        return sums

    def general(self, x: Value, weights: Value, sums: list[Value]) -> list[Value]:
        """Tap after tap, a chunk of a row's weights at a time."""
        fn, fields, tile = self.fn, self.fields, self.tile
        window, item = self.window, self._item
        row_dim = window.dims - 2

        def move(dim: int, x: Value, tap: Value) -> Value:
            if dim == row_dim:
                return fn.gep(x, fn.mul(fn.mul(tap, window.dilation[dim]), fields["s_row"]))
            return fn.gep(x, fn.mul(tap, fields["s_slice"]))

        def chunk(x: Value, weights: Value, sums: list[Value], first: Index, size: int) -> list[Value]:
            sums = list(sums)
            offsets = [self._tap_offset(fn.add(first, s)) for s in range(size)]
            for channel in range(self.channels):
                ws = []
                for s in range(size):
                    w = fn.load(SCALARS[self.dtype], weights, (s * self.channels + channel) * item)
                    ws.append(fn.splat(w, self._lanes))
                row = fn.opaque(fn.gep(x, fn.mul(fields["s_channel"], channel)) if channel else x)
                for j in range(tile.height):
                    for s, w in enumerate(ws):
                        place = fn.gep(row, offsets[s])
                        for v in range(tile.vectors):
                            value = fn.load(self._kind, place, v * self.target.vector_bytes)
                            i = j * tile.vectors + v
                            sums[i] = fn.multiply_add(value, w, sums[i], fused=self.target.fma)
                    if j < tile.height - 1:
                        row = fn.gep(row, fn.mul(fields["s_row"], window.stride[row_dim]))
            return sums

        order = TapOrder(window.kernel, self.channels)
        sum_ = TapSum(fn, order, self.channels * item, self.target.vector_bytes, move, chunk)
        return sum_.run(x, weights, sums, [(0, taps) for taps in window.kernel[:-1]])
