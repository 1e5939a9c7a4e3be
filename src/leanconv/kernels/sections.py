"""Where the sums of a tile begin and end: at the bias or with a product, in sections with totals apart, pair by pair.

Totals are on the stack, a register for each accumulator. `reduction` says where sections end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Value
from leanconv.kernels.fields import Fields
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.tile import Tile

REACH = 128  # the weights' address points so far ahead that a round's displacements fit one signed byte


@dataclass(slots=True)
class Sections:
    """The sums of one tile, but for the steps of the reduction.

    Attributes:
        totals: where the totals of sections are, once there are any.
        head: where the bias is, if there is one.
        known: whether it is known where the first and the last section end.
        later: bytes from a round's weights to lines that are asked for beside it, and how many; none if None.
        late: whoever stores a sum adds its last term, beside the output step: with all these additions before the
            first activation Zen 5 takes 25 cycles more for a tile of 12 x 2 registers, a tenth of a sum of 16 terms.
    """

    fn: Function
    fields: Fields
    tile: Tile
    reduction: Reduction
    totals: Value | None = field(default=None)
    head: Value | None = field(default=None)
    known: bool = field(default=False)
    later: tuple[Value, int] | None = field(default=None)
    late: bool = field(default=False)

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
            return self.add_up(accs)
        if self.totals is None:
            self.totals = self.fn.alloca(len(accs) * self.tile.target.vector_bytes)
        zeros = [self.fn.const(self.tile.vec, 0.0)] * len(accs)
        return self.add_up(accs, zeros if self.head is None else self.biases(self.head))

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
            return self.add_up(accs)
        last = self.reduction.kernel[0] - 1 if level == 0 else None
        ends = fn.cmp("ne", turn, last) if last is not None else None
        if every > 1:
            whole = fn.cmp("eq", fn.urem(turn, every), every - 1)
            ends = whole if ends is None else fn.both(ends, whole)
        if ends is None:
            return self.add_up(accs)
        return fn.if_(ends, lambda: self.add_up(accs), lambda: accs, hint="section")

    def add_up(self, accs: list[Value], olds: list[Value] | None = None) -> list[Value]:
        """Add the accumulators to the totals, or to `olds` as the first ones; returns accumulators at zero."""
        fn, tile = self.fn, self.tile
        assert self.totals is not None
        for i, acc in enumerate(accs):
            old = fn.load(tile.vec, self.totals, i * tile.target.vector_bytes) if olds is None else olds[i]
            fn.store(fn.binary("fadd", old, acc), self.totals, i * tile.target.vector_bytes)
        return [fn.const(tile.vec, 0.0)] * len(accs)

    def finish(self, accs: list[Value]) -> list[Value]:
        """The whole sums, `vectors` of each pixel; if `late` all but what `last_term` adds."""
        last = None if self.late else self.last_term()
        sums = accs if last is None else [last(i, acc) for i, acc in enumerate(accs)]
        return self._apart(sums) if self.tile.pairs else sums

    def last_term(self) -> Callable[[int, Value], Value] | None:
        """What makes an accumulator a whole sum: it adds the sections before, or the bias of a short sum."""
        fn, tile = self.fn, self.tile
        if self.reduction.flush is not None:
            totals = self.totals
            assert totals is not None
            return lambda i, acc: fn.binary("fadd", fn.load(tile.vec, totals, i * tile.target.vector_bytes), acc)
        if self.reduction.short and self.head is not None:
            olds = self.biases(self.head)
            return lambda i, acc: fn.binary("fadd", olds[i], acc)
        return None

    def _apart(self, sums: list[Value]) -> list[Value]:
        """The sums pixel by pixel, the last register of each with its channels in the low half."""
        tile, result = self.tile, []
        wide, half = tile.vectors - 1, tile.target.lanes(tile.dtype) // 2
        upper = [*range(half, 2 * half), *[-1] * half]
        for i in range(tile.rows):
            last = sums[tile.rows * wide + i // 2]
            result += [*sums[i * wide : (i + 1) * wide], self.fn.shuffle(last, last, upper) if i % 2 else last]
        return result
