"""A line of pixels covered by tiles exactly, whatever its length.

n pixels make t = ceil(n / rows) tiles, as even as can be: n mod t of them are one row higher than the others.  Long
lines need tiles of `rows` and one row less only; the planner knows the lengths that occur and names the heights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value


def heights_of(lengths: Iterable[int], rows: int) -> tuple[int, ...]:
    """The heights of all tiles that lines of these lengths need, the highest first."""
    found: set[int] = set()
    for pixels in lengths:
        if pixels > 0:
            low, higher = divmod(pixels, -(-pixels // rows))
            found |= {low, low + 1} if higher else {low}
    return tuple(sorted(found, reverse=True))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of at least one pixel, split into tiles; the numbers may be known only when the kernel runs."""

    fn: Function
    tiles: Index
    low: Index
    higher: Index

    @staticmethod
    def of(fn: Function, pixels: Index, rows: int) -> Line:
        """Split so many pixels into tiles of at most `rows`."""
        tiles = fn.udiv(fn.add(pixels, rows - 1), rows)
        low = fn.udiv(pixels, tiles)
        return Line(fn, tiles, low, fn.sub(pixels, fn.mul(low, tiles)))

    def walk(
        self, heights: tuple[int, ...], state: list[Value], body: Callable[[int, list[Value]], list[Value]]
    ) -> list[Value]:
        """Emit `body(height, state)` for each tile, in loops over those of one height."""
        fn = self.fn
        for height in heights:
            higher = fn.select(fn.cmp("eq", fn.add(self.low, 1), height), self.higher, 0)
            lower = fn.select(fn.cmp("eq", self.low, height), fn.sub(self.tiles, self.higher), 0)

            def tile(_: Value, state: list[Value], height: int = height) -> list[Value]:
                return body(height, state)

            state = fn.loop(0, fn.add(higher, lower), 1, state, tile, guard=True, hint="tile")
        return state
