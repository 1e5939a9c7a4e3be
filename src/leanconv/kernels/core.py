"""The register-tiled core: every dense algorithm ends here, and most differ only in where it reads its pixels.

A tile is `rows` output pixels by `vectors` vector registers of output channels.  One step of the reduction
loads one row of packed weights (`vectors` registers), broadcasts one element of each pixel and does rows *
vectors multiply-adds:

            weights  [panel][tap][channel][NR]            NR = vectors * lanes
                        |  w0      |  w1
    pixel 0 --x0-->  acc[0][0]  acc[0][1]     accumulators live in registers through the whole reduction
    pixel 1 --x1-->  acc[1][0]  acc[1][1]     (phi nodes, never memory)
      ...

Where the last register would be half empty or less, it holds its channels of two pixels (`Tile.pairs`); the sums and
their order are the same.

In which order the terms are added: `reduction`; how sums begin and end: `sections`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import Index, Value
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import Cursor
from leanconv.kernels.sections import REACH, Sections

LOOP_ALIGN = 64  # bytes; instructions are fetched in lines of 64
LONG_RUN = 25  # steps from which a run of known length is worth blocks of up to 12 (11x11, 3 channels: 78 to 65 %)
DEEPEST = 3  # steps of a block by pixels: of longer ones LLVM loads ahead, and spills
AHEAD = 2048  # bytes of weights between a prefetch and its use: about 200 cycles


@dataclass(slots=True)
class Sum(Sections):
    """Emits the reduction of one tile."""

    def step(
        self,
        pixels: Sequence[Value],
        offset: Index,
        weights: Value,
        accs: list[Value],
        row: int,
        *,
        first: bool = False,
    ) -> list[Value]:
        """One step: the element `offset` bytes behind every pixel's address times row `row` of the weights.

        The `first` step of a sum multiplies only: to clear a register takes as long as a multiply-add on some CPUs.
        """
        return self._add(pixels, offset, self.vectors(weights, row), accs, 0, first=first)

    def _add(
        self, pixels: Sequence[Value], offset: Index, row: list[Value], accs: list[Value], at: int, *, first: bool
    ) -> list[Value]:
        """The sums with a step of some pixels of the tile, the first of which is its `at`-th one."""
        fn, tile = self.fn, self.tile
        lanes = tile.target.lanes(tile.dtype)
        result = list(accs)

        def add(x: Value, w: Value, i: int) -> None:
            product = fn.binary("fmul", x, w) if first else fn.multiply_add(x, w, accs[i], fused=tile.target.fma)
            result[i] = product

        whole = row[:-1] if tile.pairs else row
        before: Value | None = None
        nothing = fn.const(tile.vec, 0.0)  # for a pixel left out whose sum shares a register with one that is not
        for i, pixel in enumerate(pixels, at):
            x = fn.splat(fn.load(tile.scalar, pixel, offset), lanes)
            for v, w in enumerate(whole):
                add(x, w, i * len(whole) + v)
            if tile.pairs and (i % 2 or i + 1 == at + len(pixels)):
                low, high = (before or nothing, x) if i % 2 else (x, x if i + 1 == tile.rows else nothing)
                lower, upper = range(lanes // 2), range(lanes + lanes // 2, 2 * lanes)
                both = x if low is high else fn.shuffle(low, high, [*lower, *upper])
                add(both, row[-1], tile.rows * len(whole) + i // 2)
            before = None if i % 2 else x
        return result

    def vectors(self, weights: Value, row: int) -> list[Value]:
        """Row `row` of the operand that is read in whole vectors."""
        fn, tile = self.fn, self.tile
        if self.reduction.stream:
            for line in range(max(1, tile.step_bytes // LINE)):
                fn.prefetch(weights, row * tile.step_bytes + AHEAD + line * LINE)
        return tile.row(fn, weights, row * tile.step_bytes - REACH)

    def moved(self, weights: Value, count: int) -> Value:
        """That operand's address `count` rows further on."""
        return self.fn.gep(weights, count * self.tile.step_bytes)

    def run(
        self, cursor: Cursor, count: int | None, weights: Value, accs: list[Value], *, first: bool = False
    ) -> tuple[Value, list[Value]]:
        """The steps along one cursor: `count` of them if known, else all channels; returns the weights' new address.

        `first`: nothing has been added to the accumulators before.
        """
        if count is None:
            return self._run_channels(cursor, weights, accs, first=first)
        longest = self._depth(cursor, count)
        if longest == 1:
            longest = cursor.longest if count < LONG_RUN else max(cursor.longest, 12)
        unroll = max(d for d in range(1, min(count, longest) + 1) if count % d == 0)
        if unroll == count:
            return self._block(cursor, count, weights, accs, first=first)
        state = [*cursor.state, weights, *accs]
        if first:
            state = self._round(cursor, unroll, state, first=True)

        def body(_: Value, state: list[Value]) -> list[Value]:
            return self._round(cursor, unroll, state)

        state = self.fn.loop(unroll if first else 0, count, unroll, state, body, hint="run", align=LOOP_ALIGN)
        return self.split(cursor, state)

    def _block(
        self, cursor: Cursor, count: int, weights: Value, accs: list[Value], *, first: bool = False
    ) -> tuple[Value, list[Value]]:
        steps, depth = cursor.addresses(count), self._depth(cursor, count)
        pixels = len(steps[0][0])
        together = self._together if depth > 1 else max(pixels, 1)  # the lower of tiles of one row has none
        for begin in range(0, count, depth):
            rows = range(begin, begin + depth)
            loaded = [self.vectors(weights, row) for row in rows]
            for at in range(0, pixels, together):
                for row, weight in zip(rows, loaded, strict=True):
                    some, offset = steps[row][0][at : at + together], steps[row][1]
                    accs = self._add(some, offset, weight, accs, cursor.first + at, first=first and row == 0)
        return self.moved(weights, count), accs

    @property
    def _together(self) -> int:
        """Pixels that go through several steps before the next ones: enough for the latency of their sums."""
        return 8 if self.tile.vectors == 1 else 4

    def _depth(self, cursor: Cursor, count: int) -> int:
        """Steps of a block that some pixels go through before the next pixels do (1: all go through each)."""
        tile = self.tile
        if not cursor.by_pixels or tile.rows <= self._together:
            return 1
        room = (tile.target.registers - tile.sums - 2) // tile.vectors  # of which the rows of weights stay in registers
        return max(d for d in range(1, max(1, min(DEEPEST, room)) + 1) if count % d == 0)

    def split(self, cursor: Cursor, state: list[Value]) -> tuple[Value, list[Value]]:
        """The weights' address and the accumulators of such a state."""
        return state[len(cursor.state)], state[len(cursor.state) + 1 :]

    def _round(self, cursor: Cursor, count: int, state: list[Value], *, first: bool = False) -> list[Value]:
        here = cursor.at(state[: len(cursor.state)])
        weights, accs = self.split(cursor, state)
        if self.later is not None:
            apart, lines = self.later
            place = self.fn.gep(weights, apart)
            for line in range(lines):
                self.fn.prefetch(place, line * LINE - REACH, level=2)
        weights, accs = self._block(here, count, weights, accs, first=first)
        return [*here.behind(accs).advanced(count), weights, *accs]

    def rounds(self, cursor: Cursor, first: Index, end: Index, state: list[Value]) -> list[Value]:
        """The channels [first, end) in rounds; the state is the cursor's, the weights' address and the accumulators."""
        count = cursor.unroll
        return self.fn.loop(
            first,
            end,
            count,
            state,
            lambda _, s: self._round(cursor, count, s),
            hint="channels",
            align=LOOP_ALIGN,
        )

    def _run_channels(
        self, cursor: Cursor, weights: Value, accs: list[Value], *, first: bool
    ) -> tuple[Value, list[Value]]:
        """All channels of one tap: rounds of some steps, in chunks of a section, then the remainder."""
        fn, red = self.fn, self.reduction
        whole = self.fields["channels_whole"]  # channels rounded down to whole rounds
        state = [*cursor.state, weights, *accs]

        if red.flush == "channels":
            section = self.fields["section"]

            def chunk(first: Value, state: list[Value]) -> list[Value]:
                after = fn.add(first, section)
                state = self.rounds(cursor, first, fn.smin(after, whole), state)
                known = len(cursor.state) + 1
                accs = state[known:]
                if math.prod(red.kernel) > 1 or red.remainder:
                    return [*state[:known], *self.add_up(accs)]
                more = fn.cmp("slt", after, whole)  # what the last section gives is added where it ends anyway
                return [*state[:known], *fn.if_(more, lambda: self.add_up(accs), lambda: accs, hint="section")]

            state = fn.loop(0, whole, section, state, chunk, hint="section")
        elif first:  # of more than two rounds: fewer channels are unrolled
            state = self._round(cursor, cursor.unroll, state, first=True)
            state = self.rounds(cursor, cursor.unroll, whole, state)
        else:
            state = self.rounds(cursor, 0, whole, state)
        weights, accs = self.split(cursor, state)
        if red.remainder:
            return self._block(cursor.at(state[: len(cursor.state)]), red.remainder, weights, accs)
        return weights, accs
