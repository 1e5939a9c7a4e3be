"""Stores a finished tile: channels adjacent ("rows", NHWC) or pixels adjacent ("columns", NCHW, after a transpose)."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.codegen.ir import Function, Value
from leanconv.kernels.core import Tile
from leanconv.kernels.epilogue import Epilogue, clamp_offsets, load_lanes, store_lanes, transpose
from leanconv.kernels.fields import Fields


@dataclass(frozen=True, slots=True)
class Output:
    """Where and how the tiles of one panel are stored; `valid` channels count in the panel's last register.

    Fields: `o_k`/`r_k` bytes between channels ("columns") or panels of two registers ("rows"); `o_row`/`r_row` bytes
    between pixels ("rows"; adjacent in "columns").
    """

    fn: Function
    fields: Fields
    tile: Tile
    epilogue: Epilogue
    valid: int
    columns: bool

    def panel(self, base: Value, panel: Value, letter: str) -> Value:
        """The address of a panel's first channel; every panel before it is two registers wide."""
        return self.fn.gep(base, self.fn.mul(panel, self.fields[f"{letter}_panel"]))

    def store(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value, left: Value) -> None:
        """Apply the epilogue to a tile and store it; of its rows only `left` exist (the others repeat the last)."""
        if self.columns:
            self._columns(accs, out, residual, pixel, left)
        else:
            self._rows(accs, out, residual, pixel, left)

    def _count(self, vector: int) -> int:
        lanes = self.tile.target.lanes(self.tile.dtype)
        return self.valid if vector == self.tile.vectors - 1 else lanes

    def _rows(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value, left: Value) -> None:
        fn, tile, masks = self.fn, self.tile, self.tile.target.masks
        width = tile.target.vector_bytes

        def rows_of(base: Value, letter: str) -> list[Value]:
            step = self.fields[f"{letter}_row"]
            first = fn.gep(base, fn.mul(pixel, step))
            return [fn.gep(first, offset) for offset in clamp_offsets(fn, tile.rows, left, step)]

        # A repeated row must see the residual as it was, should the residual be the output: all loads, then all stores.
        sources = rows_of(residual, "r") if residual is not None else None
        done = []
        for i in range(tile.rows):
            for v in range(tile.vectors):
                extra = None
                if sources is not None:
                    extra = load_lanes(fn, tile.vec, fn.gep(sources[i], v * width), self._count(v), masks=masks)
                done.append(self.epilogue.apply(fn, accs[i * tile.vectors + v], extra))
        for i, row in enumerate(rows_of(out, "o")):
            for v in range(tile.vectors):
                store_lanes(fn, done[i * tile.vectors + v], fn.gep(row, v * width), self._count(v), masks=masks)

    def _columns(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value, left: Value) -> None:
        fn, tile = self.fn, self.tile
        lanes = tile.target.lanes(tile.dtype)
        at = fn.mul(pixel, tile.itemsize)
        o, r = fn.gep(out, at), fn.gep(residual, at) if residual is not None else None

        def groups(whole: bool) -> list[Value]:
            for first in range(0, tile.rows, lanes):
                count = min(lanes, tile.rows - first)
                mask = None if whole else fn.lane_mask(lanes, fn.sub(left, first))
                for v in range(tile.vectors):
                    rows = [accs[i * tile.vectors + v] for i in range(first, first + count)]
                    for lane, column in enumerate(transpose(fn, rows)[: self._count(v)]):
                        channel = v * lanes + lane
                        self._column(column, o, r, channel, first * tile.itemsize, count, mask)
            return []

        fn.if_(fn.cmp("sge", left, tile.rows), lambda: groups(True), lambda: groups(False), hint="whole")

    def _column(
        self, value: Value, out: Value, residual: Value | None, channel: int, at: int, count: int, mask: Value | None
    ) -> None:
        """Store the pixels of one channel: `count` of them, or those under a mask."""
        fn, masks = self.fn, self.tile.target.masks
        extra = None
        if residual is not None:
            source = fn.gep(fn.gep(residual, fn.mul(self.fields["r_k"], channel)), at)
            if mask is None:
                extra = load_lanes(fn, value.type, source, count, masks=masks)
            else:
                extra = fn.masked_load(value.type, source, mask)
        value = self.epilogue.apply(fn, value, extra)
        target = fn.gep(fn.gep(out, fn.mul(self.fields["o_k"], channel)), at)
        if mask is None:
            store_lanes(fn, value, target, count, masks=masks)
        else:
            fn.masked_store(value, target, mask)
