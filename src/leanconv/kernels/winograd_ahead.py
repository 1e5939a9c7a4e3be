"""What a Winograd kernel asks for beside its products, where image and outputs do not fit the caches near by.

A window is transformed, and a tile of outputs written, in less time than memory takes to bring it; and while a block's
products are summed nobody asks memory for anything.  So register tiles do, each for a row of pixels: of this panel's
outputs, which are written once all products are there, and those of the last panel, a line a round, of the windows of
the next block.  Of a window only the rows and columns that the tiles before it do not have are asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, PTR, Function, Index, Value
from leanconv.kernels.cost import LINE
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.reduction import UNROLL
from leanconv.kernels.winograd_products import Ahead, Asked
from leanconv.kernels.winograd_tiles import Counters, Place, Tiling

_TILES = 32  # of a block that rows are kept of; of larger blocks the rest is not asked for here


class Grid(NamedTuple):
    """How rows lie: `steps` bytes apart along all axes but the last, and then their `parts`."""

    steps: Sequence[Index]
    parts: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Addresses of rows of pixels, taken one after another: bytes `taken` of those that there are, then an idle one."""

    fn: Function
    table: Value
    taken: Value
    nbytes: Value

    @staticmethod
    def of(fn: Function, tiling: Tiling, each: Each, first: Callable[[Place], Value], grid: Grid) -> Rows:
        """The rows of tiles, or several parts of each, the first one of a tile at `first`."""
        counts = [*(axis.transform.outputs for axis in tiling.axes[:-1]), grid.parts]
        size = 8 * math.prod(counts)
        table, end = fn.alloca(_TILES * size + 8), fn.alloca(8)
        fn.store(fn.i64(0), end)

        def add(place: Place, _: Counters) -> None:
            at, begin = fn.load(I64, end), first(place)
            for n, numbers in enumerate(itertools.product(*map(range, counts))):
                row = begin
                for number, step in zip(numbers, grid.steps, strict=True):
                    row = fn.gep(row, fn.mul(step, number))
                fn.store(row, fn.gep(table, at), 8 * n)
            fn.store(fn.i64(fn.add(at, size)), end)

        each(add)
        nbytes = fn.load(I64, end)
        fn.store(table, fn.gep(table, nbytes))  # a line that is near
        return Rows(fn, table, fn.alloca(8), nbytes)

    def begin(self, *, used: Value | None = None) -> None:
        """Take from the first one on; the idle one only, unless `used`."""
        zero = self.fn.i64(0)
        self.fn.store(zero if used is None else self.fn.select(used, zero, self.nbytes), self.taken)

    def take(self) -> Value:
        """The next one."""
        fn = self.fn
        at = fn.load(I64, self.taken)
        fn.store(fn.i64(fn.smin(fn.add(at, 8), self.nbytes)), self.taken)
        return fn.load(PTR, fn.gep(self.table, at))


Each = Callable[[Callable[[Place, Counters], None]], object]


@dataclass(frozen=True, slots=True)
class Asks:
    """What the chunk of one block asks for.

    Fields: `b_ahead`, how many blocks behind (for threads that take blocks from the back, before) this one the thread's
    next one is, 0 if that is not known; those of the image and the output, whose pixels along the last axis follow one
    another without gaps.
    """

    fn: Function
    fields: Fields
    tiling: Tiling
    item: int
    outputs: Rows
    windows: Rows

    @staticmethod
    def of(
        kernel: KernelFunction, fields: Fields, tiling: Tiling, item: int, block: Index, each: Each, sections: int
    ) -> Asks:
        """Those of a block, whose tiles `each` runs through; a register tile sums one of `sections` of channels."""
        fn, axes = kernel.fn, tiling.axes

        def pixel(place: Place, role: str, letter: str, at: str, offsets: Sequence[int]) -> Value:
            offset = fn.mul(place.image, fields[f"{letter}_n"])
            for d, (origin, more) in enumerate(zip(place.origin, offsets, strict=True)):
                offset = fn.add(offset, fn.mul(fn.add(origin, more), fields[f"{at}{d}"]))
            return fn.gep(fields.buffer(role), offset)

        def rows(each: Each, role: str, letter: str, at: str, offsets: Sequence[int], parts: int) -> Rows:
            part = fn.mul(fields["section_channels"], axes[-1].transform.outputs * item)
            grid = Grid([*(fields[f"{at}{d}"] for d in range(len(axes) - 1)), part], parts)
            return Rows.of(fn, tiling, each, lambda place: pixel(place, role, letter, at, offsets), grid)

        outputs = rows(each, "out", "o", "o_at", [0] * len(axes), 1)
        back = fn.cmp("ne", fn.op(I64, f"and i64 {kernel.thread.name}, 1"), 0)
        ahead = fn.i64(fields["b_ahead"])
        after = fn.add(block, fn.select(back, fn.i64(fn.sub(0, ahead)), ahead))
        after = fn.select(fn.cmp("ult", after, fields["b_count"]), after, block)
        span = [fn.i64(fn.udiv(fn.mul(n, fields["tile_count"]), fields["b_count"])) for n in (after, fn.add(after, 1))]

        def next_block(body: Callable[[Place, Counters], None]) -> object:
            end = fn.i64(fn.smin(span[1], fn.add(span[0], _TILES)))
            return tiling.each(fn, fields, span[0], end, tiling.start(fn, fields, span[0]), body)

        fresh = [axis.transform.size - axis.transform.outputs - axis.pad_low for axis in axes]
        return Asks(fn, fields, tiling, item, outputs, rows(next_block, "x", "x", "at", fresh, sections))

    def panel(self, channel: Index, vectors: int, width: int, last: Value) -> Ahead:
        """What the register tiles of a panel of `vectors` registers of `width` bytes ask for; `last` of the chunk."""
        fn, axis = self.fn, len(self.tiling.axes) - 1
        outputs = self.tiling.axes[axis].transform.outputs
        self.outputs.begin()
        self.windows.begin(used=fn.both(last, fn.cmp("ne", self.fields["b_ahead"], 0)))

        def ask(fn: Function, fields: Fields, pixels: list[Value]) -> Asked:
            row = fn.gep(self.outputs.take(), fn.mul(channel, fields["o_k"]))
            for j in range(outputs):
                for line in range(-(-vectors * width // LINE)):
                    fn.prefetch(fn.gep(row, fn.mul(fields[f"o_at{axis}"], j)), line * LINE, write=True)
            nbytes = outputs * UNROLL * self.item  # of a round: the channels of as many pixels, in as many rounds
            return self.windows.take(), nbytes, -(-nbytes // LINE)

        return ask
