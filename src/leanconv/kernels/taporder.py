"""The order in which kernels with few channels a group add up a window, and the loops that follow it.

Taps of the outer dimensions come first, then chunks of the innermost dimension's taps, then the channels of the group,
then the taps of the chunk: the weights of one chunk and channel stay in registers while a row of pixels passes.  The
order depends on the kernel and the channels only, so tile, layout and threads do not change a bit of the result.

As in the register-tiled core, sums of more than `SECTION` terms are cut into sections that are added up apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.core import LOOP_ALIGN
from leanconv.kernels.reduction import SECTION

STRAIGHT = 3  # rows of taps that are written out where all of them count: loops of three turns are often mispredicted
LONGEST = 7  # taps in one chunk: with as many weights in registers, AVX2 has 8 left for sums


@dataclass(frozen=True, slots=True)
class TapOrder:
    """The order of a sum over `kernel` taps of `channels` channels each."""

    kernel: tuple[int, ...]
    channels: int

    @property
    def chunks(self) -> tuple[int, int, int]:
        """The innermost taps as (size, n, m): n chunks of `size` taps, then m of one tap less."""
        taps = self.kernel[-1]
        number = 1 if taps <= LONGEST else -(-taps // (LONGEST - 1))
        size = -(-taps // number)
        short = size * number - taps
        return size, number - short, short

    @property
    def single(self) -> bool:
        """Whether the innermost taps are one chunk."""
        return self.chunks[1:] == (1, 0)

    @property
    def sections(self) -> tuple[int, int] | None:
        """The dimension whose loop ends sections, and after how many turns of it (chunks, in the innermost one)."""
        size, long, short = self.chunks
        inner = size * self.channels
        turns = [*self.kernel[:-1], long + short]
        for dim in reversed(range(len(turns))):
            if inner * turns[dim] > SECTION:
                return dim, max(1, SECTION // inner)
            inner *= turns[dim]
        return None


Chunk = Callable[[Value, Value, list[Value], Index, int], list[Value]]


@dataclass(slots=True)
class TapSum:
    """Emits a sum in the order of `order`.

    `move(dim, x, tap)` is the address of the image under a tap of an outer dimension; `chunk(x, weights, sums, first,
    size)` adds the terms of `size` innermost taps from `first` on, weights being those of tap `first`;
    `step` bytes of weights lie between two taps.
    """

    fn: Function
    order: TapOrder
    step: int
    register_bytes: int
    move: Callable[[int, Value, Value], Value]
    chunk: Chunk
    totals: Value | None = None

    def run(self, x: Value, weights: Value, sums: list[Value], ranges: Sequence[tuple[Index, Index]]) -> list[Value]:
        """All terms added to `sums`; `ranges` are the taps [first, end) of each outer dimension that count."""
        fn = self.fn
        if self.order.sections is None:
            return self._level(0, x, weights, sums, ranges)
        if self.totals is None:
            self.totals = fn.alloca(len(sums) * self.register_bytes)
        for i, value in enumerate(sums):
            fn.store(value, self.totals, i * self.register_bytes)
        self._level(0, x, weights, [fn.const(value.type, 0.0) for value in sums], ranges)
        return [fn.load(value.type, self.totals, i * self.register_bytes) for i, value in enumerate(sums)]

    def _add_up(self, sums: list[Value]) -> list[Value]:
        """The end of a section: sums go to the totals and start again from zero."""
        fn = self.fn
        assert self.totals is not None
        for i, value in enumerate(sums):
            old = fn.load(value.type, self.totals, i * self.register_bytes)
            fn.store(fn.binary("fadd", old, value), self.totals, i * self.register_bytes)
        return [fn.const(value.type, 0.0) for value in sums]

    def _level(
        self, dim: int, x: Value, weights: Value, sums: list[Value], ranges: Sequence[tuple[Index, Index]]
    ) -> list[Value]:
        fn, kernel = self.fn, self.order.kernel
        if dim == len(kernel) - 1:
            return self._innermost(x, weights, sums)
        turns = kernel[dim]
        step = self.step
        for taps in kernel[dim + 1 :]:
            step *= taps
        first, end = ranges[dim]
        whole = first == 0 and end == turns

        def tap(at: Value, sums: list[Value]) -> list[Value]:
            return self._level(dim + 1, self.move(dim, x, at), fn.gep(weights, fn.mul(at, step)), sums, ranges)

        def looped() -> list[Value]:
            return fn.loop(first, end, 1, sums, tap, guard=not whole, hint="tap", align=LOOP_ALIGN)

        def straight() -> list[Value]:
            result = sums
            for at in range(turns):
                result = tap(fn.i64(at), result)
            return result

        sections = self.order.sections
        if sections is None or sections[0] != dim:
            if turns > STRAIGHT or not self.order.single or dim != len(kernel) - 2:
                return looped()
            if whole:
                return straight()
            every = fn.both(fn.cmp("eq", first, 0), fn.cmp("eq", end, turns))
            return fn.if_(every, straight, looped, hint="rows")

        def section(start: Value, sums: list[Value]) -> list[Value]:
            begin, stop = fn.smax(first, start), fn.smin(end, fn.add(start, sections[1]))
            return self._add_up(fn.loop(begin, stop, 1, sums, tap, guard=True, hint="tap", align=LOOP_ALIGN))

        return fn.loop(0, turns, sections[1], sums, section, hint="section")

    def _innermost(self, x: Value, weights: Value, sums: list[Value]) -> list[Value]:
        fn = self.fn
        size, long, short = self.order.chunks
        sections = self.order.sections
        ends = sections[1] if sections is not None and sections[0] == len(self.order.kernel) - 1 else None
        if self.order.single:
            return self.chunk(x, weights, sums, 0, size)
        for width, begin, stop in ((size, 0, long), (size - 1, long, long + short)):
            if begin == stop:
                continue

            def one(at: Value, sums: list[Value], width: int = width) -> list[Value]:
                # Before chunk `at` there are as many taps as in chunks of this width, and one more for each longer one.
                first = fn.add(fn.mul(at, width), 0 if width == size else long)
                sums = self.chunk(x, fn.gep(weights, fn.mul(first, self.step)), sums, first, width)
                if ends is None:
                    return sums
                number = fn.add(at, 1)
                over = fn.cmp("eq", fn.urem(number, ends), 0)
                over = fn.either(over, fn.cmp("eq", number, long + short))
                return fn.if_(over, lambda: self._add_up(sums), lambda: sums, hint="section")

            sums = fn.loop(begin, stop, 1, sums, one, hint="chunk", align=LOOP_ALIGN)
        return sums
