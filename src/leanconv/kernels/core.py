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

In which order the terms are added, and where sums are cut into sections: `reduction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import Cursor
from leanconv.kernels.epilogue import load_lanes
from leanconv.kernels.fields import Fields
from leanconv.kernels.reduction import Reduction

LOOP_ALIGN = 64  # bytes; instructions are fetched in lines of 64
LONG_RUN = (
    24  # steps from which a run of known length is worth blocks of up to 12 (11x11 taps of 3 channels: 78 to 65 %)
)
DEEPEST = 3  # steps of a block by pixels: of longer ones LLVM loads ahead, and spills
REACH = 128  # the weights' address points so far ahead that a round's displacements fit one signed byte
AHEAD = 2048  # bytes of weights between a prefetch and its use: about 200 cycles


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile and the names of its emitter's surroundings.

    `valid` channels are in the last register of a row of weights packed without a gap (0: rows are whole registers).
    `pairs`: the last register holds at most half as many channels as it has lanes, of two pixels.
    """

    target: Target
    dtype: str
    rows: int
    vectors: int
    bias: bool
    valid: int = 0
    pairs: bool = False

    @property
    def scalar(self) -> str:
        """LLVM's name of the element type."""
        return SCALARS[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def vec(self) -> str:
        """LLVM's vector type."""
        return vector(self.scalar, self.target.lanes(self.dtype))

    @property
    def sums(self) -> int:
        """Accumulators: those of whole registers, pixel by pixel, then those of pairs."""
        return self.rows * (self.vectors - 1) + -(-self.rows // 2) if self.pairs else self.rows * self.vectors

    @property
    def step_bytes(self) -> int:
        """Bytes of packed weights that one step of the reduction reads."""
        lanes = self.target.lanes(self.dtype)
        return ((self.vectors - 1) * lanes + (self.valid or lanes)) * self.itemsize

    def row(self, fn: Function, weights: Value, at: int) -> list[Value]:
        """One row of packed weights, `at` bytes behind an address."""
        width, masks = self.target.vector_bytes, self.target.masks
        apart = self.pairs or bool(self.valid)
        whole = [fn.load(self.vec, weights, at + v * width) for v in range(self.vectors - apart)]
        if self.pairs:
            half = self.target.lanes(self.dtype) // 2
            last = fn.load(vector(self.scalar, half), weights, at + len(whole) * width)
            return [*whole, fn.shuffle(last, last, [*range(half), *range(half)])]
        if not self.valid:
            return whole
        return [*whole, load_lanes(fn, self.vec, fn.gep(weights, at + len(whole) * width), self.valid, masks=masks)]


@dataclass(slots=True)
class Sum:
    """Emits the reduction of one tile."""

    fn: Function
    fields: Fields
    tile: Tile
    reduction: Reduction
    totals: Value | None = field(default=None)
    head: Value | None = field(default=None)
    known: bool = field(default=False)

    def start(self, weights: Value, *, spans: bool = False) -> tuple[Value, list[Value]]:
        """Accumulators, and the address of the first weights behind the bias.

        `spans`: all sections end with a span of the first dimension, so that it is known which are first and last.
        """
        self.known = spans and self.splits(0)
        return self.fn.gep(self.behind(weights), REACH), self.begin()

    def behind(self, weights: Value) -> Value:
        """The address behind the bias at the head of a panel."""
        if not self.tile.bias:
            return weights
        self.head = weights
        return self.fn.gep(weights, self.tile.step_bytes)

    def biases(self, head: Value) -> list[Value]:
        """The bias of each accumulator."""
        tile = self.tile
        loaded = tile.row(self.fn, head, 0)
        if tile.pairs:
            return loaded[:-1] * tile.rows + loaded[-1:] * -(-tile.rows // 2)
        return loaded * tile.rows

    def begin(self) -> list[Value]:
        """Accumulators at the bias (or zero), put by as the first totals if the sum has sections.

        A short sum without sections has its bias added last, to begin with a product.
        """
        fn, tile = self.fn, self.tile
        zeros = [fn.const(tile.vec, 0.0)] * tile.sums
        if self.known:
            return zeros
        if self.reduction.flush is None:
            return zeros if self.reduction.short or self.head is None else self.biases(self.head)
        accs = zeros if self.head is None else self.biases(self.head)
        if self.totals is None:
            self.totals = fn.alloca(len(accs) * tile.target.vector_bytes)
        for i, total in enumerate(accs):
            fn.store(total, self.totals, i * tile.target.vector_bytes)
        return zeros

    def spans(self, dim: int) -> list[tuple[int, int]]:
        """The turns of a tap loop, split where sections end if channels are few.

        Their loops are short, and a test for the end of a section in every turn costs 7 % (11x11 taps of 3 channels).
        """
        turns, every = self.reduction.kernel[dim], self.reduction.every
        if not self.splits(dim):
            return [(0, turns)]
        return [(first, min(first + every, turns)) for first in range(0, turns, every)]

    def end_span(self, dim: int, accs: list[Value], span: tuple[int, int]) -> list[Value]:
        """The end of one of several spans is that of a section: the first begins the totals, `finish` adds the last.

        A tile of 363 terms stored 24 registers three times when the bias began them, and the last one was put by too.
        """
        if not self.splits(dim) or (self.known and span[1] == self.reduction.kernel[dim]):
            return accs
        if not self.known or span[0]:
            return self._add_up(accs)
        if self.totals is None:
            self.totals = self.fn.alloca(len(accs) * self.tile.target.vector_bytes)
        zeros = [self.fn.const(self.tile.vec, 0.0)] * len(accs)
        return self._add_up(accs, zeros if self.head is None else self.biases(self.head))

    def splits(self, dim: int) -> bool:
        """Whether the tap loop of a dimension is split into spans."""
        return self.reduction.flush == dim and self.reduction.channels is not None

    def end_section(self, level: int | str, accs: list[Value], turn: Value | None = None) -> list[Value]:
        """Where a section ends: add the accumulators to the totals and start again from zero.

        `turn` counts the turns of the loop whose end this is; without it every turn ends a section.
        """
        if self.reduction.flush != level:
            return accs
        every, fn = self.reduction.every, self.fn
        if turn is None:
            return self._add_up(accs)
        last = self.reduction.kernel[0] - 1 if level == 0 else None
        ends = fn.cmp("ne", turn, last) if last is not None else None
        if every > 1:
            whole = fn.cmp("eq", fn.urem(turn, every), every - 1)
            ends = whole if ends is None else fn.both(ends, whole)
        if ends is None:
            return self._add_up(accs)
        return fn.if_(ends, lambda: self._add_up(accs), lambda: accs, hint="section")

    def _add_up(self, accs: list[Value], olds: list[Value] | None = None) -> list[Value]:
        fn, tile = self.fn, self.tile
        assert self.totals is not None
        for i, acc in enumerate(accs):
            old = fn.load(tile.vec, self.totals, i * tile.target.vector_bytes) if olds is None else olds[i]
            fn.store(fn.binary("fadd", old, acc), self.totals, i * tile.target.vector_bytes)
        return [fn.const(tile.vec, 0.0)] * len(accs)

    def finish(self, accs: list[Value]) -> list[Value]:
        """The whole sums, `vectors` of each pixel."""
        sums = self._whole(accs)
        return self._apart(sums) if self.tile.pairs else sums

    def _whole(self, accs: list[Value]) -> list[Value]:
        fn, tile = self.fn, self.tile
        if self.reduction.flush is not None:
            assert self.totals is not None
            olds = [fn.load(tile.vec, self.totals, i * tile.target.vector_bytes) for i in range(len(accs))]
        elif self.reduction.short and self.head is not None:
            olds = self.biases(self.head)
        else:
            return accs
        return [fn.binary("fadd", old, acc) for old, acc in zip(olds, accs, strict=True)]

    def _apart(self, sums: list[Value]) -> list[Value]:
        """The sums pixel by pixel, the last register of each with its channels in the low half."""
        tile, result = self.tile, []
        wide, half = tile.vectors - 1, tile.target.lanes(tile.dtype) // 2
        upper = [*range(half, 2 * half), *[-1] * half]
        for i in range(tile.rows):
            last = sums[tile.rows * wide + i // 2]
            result += [*sums[i * wide : (i + 1) * wide], self.fn.shuffle(last, last, upper) if i % 2 else last]
        return result

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
        """The sums with a step of some pixels of the tile, the first of which is its `at`-th one (an even number)."""
        fn, tile = self.fn, self.tile
        lanes = tile.target.lanes(tile.dtype)
        result = list(accs)

        def add(x: Value, w: Value, i: int) -> None:
            product = fn.binary("fmul", x, w) if first else fn.multiply_add(x, w, accs[i], fused=tile.target.fma)
            result[i] = product

        whole = row[:-1] if tile.pairs else row
        before: Value | None = None
        for i, pixel in enumerate(pixels, at):
            x = fn.splat(fn.load(tile.scalar, pixel, offset), lanes)
            for v, w in enumerate(whole):
                add(x, w, i * len(whole) + v)
            if tile.pairs and (i % 2 or i + 1 == tile.rows):
                both = (
                    fn.shuffle(before, x, [*range(lanes // 2), *range(lanes + lanes // 2, 2 * lanes)]) if before else x
                )
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
        weights, accs = self._block(here, count, weights, accs, first=first)
        return [*here.advanced(count), weights, *accs]

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
                    return [*state[:known], *self._add_up(accs)]
                more = fn.cmp("slt", after, whole)  # what the last section gives is added where it ends anyway
                return [*state[:known], *fn.if_(more, lambda: self._add_up(accs), lambda: accs, hint="section")]

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
