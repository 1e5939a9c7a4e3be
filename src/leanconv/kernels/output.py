"""Stores a finished tile: channels adjacent ("rows", NHWC) or pixels adjacent ("columns", NCHW, after a transpose)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.cost import LINE
from leanconv.kernels.epilogue import Epilogue, load_lanes, row_addresses, store_lanes, transpose
from leanconv.kernels.fields import Fields
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class Output:
    """Where and how the tiles of one panel are stored; `valid` channels count in the panel's last register.

    Fields: `o_k`/`r_k` bytes between channels ("columns") or panels ("rows"); `o_row`/`r_row` bytes
    between pixels ("rows"; adjacent in "columns").  `letter` and `extra` are the fields' first letters for what is
    stored and for what is added (the output itself, to accumulate). `past`: whole registers, at multiples of their
    size, are stored past the caches ("rows").
    """

    fn: Function
    fields: Fields | Mapping[str, Index]
    tile: Tile
    epilogue: Epilogue
    valid: int
    columns: bool
    letter: str = "o"
    extra: str = "r"
    past: bool = False

    def panel(self, base: Value, panel: Value, letter: str) -> Value:
        """The address of a panel's first channel."""
        return self.fn.gep(base, self.fn.mul(panel, self.fields[f"{letter}_panel"]))

    def store(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value) -> None:
        """Apply the epilogue to the tile at a pixel and store it."""
        if self.columns:
            self._columns(accs, out, residual, pixel)
        else:
            self.store_rows(accs, out, residual, pixel)

    def _count(self, vector: int) -> int:
        lanes = self.tile.target.lanes(self.tile.dtype)
        return self.valid if vector == self.tile.vectors - 1 else lanes

    def store_rows(
        self,
        accs: list[Value],
        out: Value,
        residual: Value | None,
        pixel: Value,
        last: Callable[[int, Value], Value] | None = None,
    ) -> None:
        """The same for channels that are adjacent; `last` adds the last term to the accumulator of a number."""
        fn, tile, masks = self.fn, self.tile, self.tile.target.masks
        width = tile.target.vector_bytes

        def rows_of(base: Value, letter: str) -> list[Value]:
            step = self.fields[f"{letter}_row"]
            return row_addresses(fn, fn.gep(base, fn.mul(pixel, step)), tile.rows, step)

        sources = rows_of(residual, self.extra) if residual is not None else []
        for i, row in enumerate(rows_of(out, self.letter)):
            for v in range(tile.vectors):
                extra = None
                if sources:
                    extra = load_lanes(fn, tile.vec, fn.gep(sources[i], v * width), self._count(v), masks=masks)
                at = i * tile.vectors + v
                value = self.epilogue.apply(fn, last(at, accs[at]) if last else accs[at], extra)
                if self.past:
                    fn.stream(value, fn.gep(row, v * width), width)
                else:
                    store_lanes(fn, value, fn.gep(row, v * width), self._count(v), masks=masks)

    def fetch(self, out: Value, pixel: Value) -> None:
        """Ask for the lines of a tile `o_ahead` bytes behind the one at a pixel, soon to be stored to ("rows")."""
        fn, step = self.fn, self.fields["o_row"]
        ahead = fn.gep(out, fn.add(fn.mul(pixel, step), self.fields["o_ahead"]))
        for row in row_addresses(fn, ahead, self.tile.rows, step):
            for line in range(0, self.tile.vectors * self.tile.target.vector_bytes, LINE):
                fn.prefetch(row, line, write=True)

    def _columns(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value) -> None:
        fn, tile, masks = self.fn, self.tile, self.tile.target.masks
        lanes = tile.target.lanes(tile.dtype)
        at = fn.mul(pixel, tile.itemsize)

        def place(base: Value, letter: str, channel: int, first: int) -> Value:
            address = fn.gep(base, fn.add(at, fn.mul(self.fields[f"{letter}_k"], channel)))
            return fn.gep(address, first * tile.itemsize)

        for first in range(0, tile.rows, lanes):
            count = min(lanes, tile.rows - first)
            for v in range(tile.vectors):
                rows = [accs[i * tile.vectors + v] for i in range(first, first + count)]
                for lane, value in enumerate(transpose(fn, rows)[: self._count(v)]):
                    channel, extra = v * lanes + lane, None
                    if residual is not None:
                        source = place(residual, self.extra, channel, first)
                        extra = load_lanes(fn, tile.vec, source, count, masks=masks)
                    value = self.epilogue.apply(fn, value, extra)
                    store_lanes(fn, value, place(out, self.letter, channel, first), count, masks=masks)
