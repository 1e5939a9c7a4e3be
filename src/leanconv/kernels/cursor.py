"""How the core walks through memory: where the next elements of the pixels of a tile are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.cost import LINE

ZERO_BYTES = 64  # a block of zeros that padded pixels read: a round of channels, 8 at the most, of 8 bytes

Addresses = list[tuple[Sequence[Value], Index]]  # per step: every pixel's address, and an offset common to all


class Cursor(ABC):
    """A place in the input for every pixel of a tile; immutable, so that it can be carried through loops as phis."""

    state: list[Value]
    unroll: int = 4
    """Steps in one round of the inner loop: 4 x 20 instructions at 6x2, well inside the op cache."""
    longest: int = 4
    """Most steps in one block where their number is known; longer ones spill and leave the op cache."""
    first: int = 0
    """Which pixel of the tile its first one is."""
    by_pixels: bool = False
    """Whether some pixels can take several steps before the next pixels do: addresses take no registers."""

    @abstractmethod
    def at(self, state: list[Value]) -> Cursor:
        """The same walk at another place."""

    @abstractmethod
    def addresses(self, count: int) -> Addresses:
        """Where the next `count` steps read."""

    @abstractmethod
    def advanced(self, count: int) -> list[Value]:
        """The state `count` steps further on."""

    def behind(self, sums: Sequence[Value]) -> Cursor:
        """The same walk once a round has been summed, for one that does more than read."""
        return self


class SharedCursor(Cursor):
    """All pixels move alike: one offset register serves them all (every window lies inside the image).

    The line of the first pixel is asked for `ahead` steps before its use (0: it is not). With pixels one behind the
    other, `later` is where a tile begins whose lines are asked for in the order in which they lie in memory.
    """

    def __init__(
        self,
        fn: Function,
        pixels: Sequence[Value],
        offset: Index,
        stride: Index,
        ahead: int = 0,
        later: Value | None = None,
    ) -> None:
        self._fn, self._pixels, self._stride, self._ahead, self._later = fn, pixels, stride, ahead, later
        self.state = [fn.i64(offset)]

    def at(self, state: list[Value]) -> SharedCursor:
        """The same walk at another offset."""
        moved = SharedCursor(self._fn, self._pixels, state[0], self._stride, self._ahead, self._later)
        moved.first = self.first
        return moved

    def addresses(self, count: int) -> Addresses:
        """A constant stride becomes a displacement of the load, any other an offset register a step."""
        fn, offset = self._fn, self.state[0]
        if isinstance(self._stride, int):
            if self._later is not None:
                rows = len(self._pixels)
                part = fn.gep(self._later, fn.mul(offset, rows))
                for line in range(-(-count * self._stride * rows // LINE)):
                    fn.prefetch(part, line * LINE)
            moved = [fn.gep(pixel, offset) for pixel in self._pixels]
            return [(moved, u * self._stride) for u in range(count)]
        result: Addresses = []
        at: Index = offset
        far = fn.mul(self._stride, self._ahead)
        for _ in range(count):
            if self._ahead:
                fn.prefetch(self._pixels[0], fn.add(at, far))
            result.append((self._pixels, at))
            at = fn.add(at, self._stride)
        return result

    def advanced(self, count: int) -> list[Value]:
        """The offset `count` steps further on."""
        return [self._fn.i64(self._fn.add(self.state[0], self._fn.mul(self._stride, count)))]


class EvenCursor(Cursor):
    """Pixels `step` bytes from one another, channels `item` bytes: every third pixel has an address that moves.

    x86-64 adds one or two steps in the load itself: twelve pixels take five registers. Twelve addresses, the weights'
    and a section's bounds are more than there are, and were loaded from the stack in every round. `later` as in
    `SharedCursor`; of rows that are windows `overlap` times as long as their distance only that part is asked for.
    """

    def __init__(
        self,
        fn: Function,
        pixels: Sequence[Value],
        step: Value,
        item: int,
        offset: Index = 0,
        later: Value | None = None,
        overlap: int = 1,
    ) -> None:
        self._fn, self._pixels, self._step, self._item, self._later = fn, pixels, step, item, later
        self._overlap = overlap
        lines = -(-len(pixels) * self.unroll * item // (overlap * LINE))  # of a round
        self._wide = lines * LINE // (self.unroll * item) if overlap > 1 else len(pixels)
        self.state = [fn.gep(pixel, offset) for pixel in pixels[::3]]
        if later is not None:
            self.state.append(fn.gep(later, fn.mul(offset, self._wide)))

    def at(self, state: list[Value]) -> EvenCursor:
        """The same walk at another channel."""
        moved = EvenCursor(self._fn, self._pixels, self._step, self._item, 0, self._later, self._overlap)
        moved.state, moved.first = state, self.first
        return moved

    def addresses(self, count: int) -> Addresses:
        """An address, none to two steps, and a displacement."""
        fn, rows = self._fn, len(self._pixels)
        if self._later is not None:
            for line in range(-(-count * self._item * self._wide // LINE)):
                fn.prefetch(self.state[-1], line * LINE)
        # LLVM would make an address for each pixel again. Those of before are used no more, or each took two registers.
        self.state = [fn.anew(base) for base in self.state]
        moved = [fn.gep(self.state[i // 3], fn.mul(self._step, i % 3)) for i in range(rows)]
        return [(moved, u * self._item) for u in range(count)]

    def advanced(self, count: int) -> list[Value]:
        """The addresses `count` channels further on."""
        apart = [self._item] * len(self.state)
        if self._later is not None:
            apart[-1] *= self._wide
        return [self._fn.gep(base, count * item) for base, item in zip(self.state, apart, strict=True)]


class FoursCursor(Cursor):
    """Pixels packed so that four channels of each lie side by side, then those of the next pixel.

    One address moves from round to round; steps come four at a time.
    """

    def __init__(self, fn: Function, first: Value, rows: int, item: int) -> None:
        self._fn, self._rows, self._item = fn, rows, item
        self.state = [first]

    def at(self, state: list[Value]) -> FoursCursor:
        """The same walk at another round."""
        return FoursCursor(self._fn, state[0], self._rows, self._item)

    def addresses(self, count: int) -> Addresses:
        """Displacements of one address."""
        pixels = [self._fn.gep(self.state[0], i * self.unroll * self._item) for i in range(self._rows)]
        return [(pixels, u * self._item) for u in range(count)]

    def advanced(self, count: int) -> list[Value]:
        """The address `count` channels further on."""
        return [self._fn.gep(self.state[0], count * self._rows * self._item)]


class PlaneCursor(Cursor):
    """Pixels at fixed distances from one address that moves from channel to channel."""

    def __init__(self, fn: Function, pixel: Value, apart: Sequence[Index], step: Index) -> None:
        self._fn, self._apart, self._step = fn, apart, step
        self.state = [pixel]

    def at(self, state: list[Value]) -> PlaneCursor:
        """The same walk at another channel."""
        return PlaneCursor(self._fn, state[0], self._apart, self._step)

    def addresses(self, count: int) -> Addresses:
        """The pixels of some channels."""
        fn = self._fn
        planes = [fn.gep(self.state[0], fn.mul(self._step, u)) for u in range(count)]
        return [([fn.gep(plane, apart) for apart in self._apart], 0) for plane in planes]

    def advanced(self, count: int) -> list[Value]:
        """The address `count` channels further on."""
        return [self._fn.gep(self.state[0], self._fn.mul(self._step, count))]


class OverlapCursor(Cursor):
    """Pixels `apart` bytes from one another, channels adjacent, whose windows may overlap.

    Steps `apart` bytes from one another then read the same elements, all but one. LLVM would keep those in registers
    until the later step, and spill sums: it is told of another address for every run of steps that share none. `pairs`:
    the target loads two adjacent elements at once, of which the second would be kept alike: every step is such a run.
    """

    def __init__(self, fn: Function, pixel: Value, rows: int, apart: int, item: int, *, pairs: bool) -> None:
        self._fn, self._rows, self._apart, self._item, self._pairs = fn, rows, apart, item, pairs
        self._run = 1 if pairs else apart // item
        self.by_pixels = not pairs
        self.state = [pixel]
        self.longest = min(12, 4 * self._run)  # a step takes no register of its own, a run one

    def at(self, state: list[Value]) -> OverlapCursor:
        """The same walk at another element."""
        return OverlapCursor(self._fn, state[0], self._rows, self._apart, self._item, pairs=self._pairs)

    def addresses(self, count: int) -> Addresses:
        """Displacements of an address for each run."""
        fn, steps = self._fn, self._run
        bases = list(self.state)
        for _ in range(steps, count, steps):
            bases.append(fn.anew(bases[-1]))
        result: Addresses = []
        for u in range(count):
            base, at = bases[u // steps], u * self._item
            result.append(([fn.gep(base, at + i * self._apart) for i in range(self._rows)], 0))
        return result

    def advanced(self, count: int) -> list[Value]:
        """The address `count` elements further on."""
        return [self._fn.gep(self.state[0], count * self._item)]


class PointerCursor(Cursor):
    """Every pixel has an address and a stride of its own: those outside the image stay on a block of zeros.

    `strides` are zero for such a pixel.  With adjacent channels (`item` bytes apart) the steps of one round
    read behind the same address, so the block of zeros must hold as many elements as a round.
    """

    def __init__(self, fn: Function, pixels: list[Value], strides: Sequence[Value], item: int | None) -> None:
        self._fn, self._strides, self._item = fn, strides, item
        self.state = pixels
        self.longest = 8  # all channels that are known: the strides are those of rounds of `unroll`
        if item is None:
            self.unroll = 1  # six addresses that move at each step: LLVM would load ahead and spill

    @staticmethod
    def punched(fn: Function, pixels: Sequence[Value], valid: Sequence[Value], stride: Index) -> PointerCursor:
        """A walk in steps of `stride` (a number for adjacent channels) that reads zeros for pixels not valid."""
        zeros, item = fn.module.zeros(ZERO_BYTES), stride if isinstance(stride, int) else None
        steps = fn.mul(stride, Cursor.unroll) if item else stride
        return PointerCursor(
            fn,
            [fn.select(ok, pixel, zeros) for ok, pixel in zip(valid, pixels, strict=True)],
            [fn.select(ok, steps, 0) for ok in valid],
            item,
        )

    def at(self, state: list[Value]) -> PointerCursor:
        """The same walk at other addresses."""
        return PointerCursor(self._fn, state, self._strides, self._item)

    def addresses(self, count: int) -> Addresses:
        """Displacements for adjacent channels, else one addition a pixel and step."""
        if self._item is not None:
            return [(self.state, u * self._item) for u in range(count)]
        result: Addresses = []
        pixels = self.state
        for _ in range(count):
            result.append((pixels, 0))
            pixels = self._moved(pixels)
        return result

    def _moved(self, pixels: Sequence[Value]) -> list[Value]:
        return [self._fn.gep(pixel, stride) for pixel, stride in zip(pixels, self._strides, strict=True)]

    def advanced(self, count: int) -> list[Value]:
        """Adjacent channels: strides are those of a whole round; else one step is added `count` times."""
        pixels = list(self.state)
        for _ in range(1 if self._item is not None else count):
            pixels = self._moved(pixels)
        return pixels
