"""The sum of a tile of output channels by vectors along the last axis, over the taps of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from leanconv.classes import dataclass
from leanconv.codegen.ir import Index, Value
from leanconv.kernels.columns import ColumnSum
from leanconv.kernels.cursor import SharedCursor

Range = tuple[Index, Index]


class Window(Protocol):
    """The window of an output pixel: where its taps are, and which of them are summed."""

    @property
    def base(self) -> Value:
        """The address that places of the first axis start from."""

    def taps(self, dim: int) -> Range:
        """The taps of one axis [first, end) that are to be summed."""

    def place(self, base: Value, dim: int, tap: Index) -> Value:
        """The address of a tap of one axis, from that of the axes before it."""


@dataclass(slots=True)
class BatchSum(ColumnSum):
    """The reduction of a tile over the taps of a window.

    Vectors are read `apart` bytes from each other, channels `channel` bytes.  `shared`: the same lanes exist of all
    vectors; `padded`: lanes that do not exist may be read.
    """

    apart: Index = 0
    channel: Index = 0
    shared: bool = False
    padded: bool = False

    def mask(self, vector: int) -> Value | None:
        """Which lanes of a vector exist; None for all."""
        if self.left is None:
            return None
        lanes = self.tile.target.lanes(self.tile.dtype)
        return self.fn.lane_mask(lanes, self.left if self.shared else self.fn.sub(self.left, vector * lanes))

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """The vectors of one channel."""
        fn, tile = self.fn, self.tile
        base = fn.gep(weights, fn.mul(self.channel, row))
        result = []
        for v in range(tile.vectors):
            place, mask = fn.gep(base, fn.mul(self.apart, v)), None if self.padded else self.mask(v)
            result.append(fn.load(tile.vec, place) if mask is None else fn.masked_load(tile.vec, place, mask))
        return result

    def moved(self, weights: Value, count: int) -> Value:
        """The place `count` channels further on."""
        return self.fn.gep(weights, self.fn.mul(self.channel, count))

    def window_sums(self, window: Window, weights: Value) -> list[Value]:
        """The sums over a window with the panel at `weights`."""
        fn, tile, red = self.fn, self.tile, self.reduction
        weights = self.behind(weights)
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

        return self.finish(taps(0, window.base, 0, self.begin()))

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
            accs = fn.if_(fn.cmp("sge", first, every), lambda: self.add_up(accs), lambda: accs, hint="section")
        guard = not (isinstance(first, int) and isinstance(end, int))
        accs = list(fn.loop(first, end, 1, accs, tap, guard=guard, hint="tap"))
        if carries and not isinstance(end, int):
            accs = fn.if_(fn.cmp("sle", end, last), lambda: self.add_up(accs), lambda: accs, hint="section")
        return accs
