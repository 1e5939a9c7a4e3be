"""Sums in groups of their terms: each group adds its part to what those before it have stored in the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.epilogue import Epilogue, load_lanes, row_addresses
from leanconv.kernels.fields import Fields
from leanconv.kernels.output import Output
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.sections import REACH
from leanconv.kernels.tile import Tile


class Group(NamedTuple):
    """Which of several groups is summed: whether it is the first and the last one, and how many terms are before it."""

    first: Value
    last: Value
    before: Index


def group_parts(
    fn: Function, fields: Fields, reduction: Reduction, epilogue: Epilogue, valid: int, group: Group
) -> tuple[Callable[[Tile], Sum], Callable[[Tile], Output]]:
    """What sums and stores the tiles of a panel for one group."""

    def sums(shape: Tile) -> Sum:
        return GroupSum(fn, fields, shape, reduction, group=group)

    def output(shape: Tile) -> Output:
        return GroupOutput(fn, fields, shape, epilogue, valid, False, group=group)

    return sums, output


@dataclass(slots=True, kw_only=True)
class GroupSum(Sum):
    """One group of the terms of a sum: the bias is in the first, the weights lie behind those of the groups before."""

    group: Group

    def start(self, weights: Value, *, spans: bool = False) -> tuple[Value, list[Value]]:
        """Sums as they begin, and the address of the group's weights."""
        offset = self.fn.mul(self.group.before, self.tile.step_bytes)
        return self.fn.gep(self.fn.gep(self.behind(weights), offset), REACH), self.begin()

    def biases(self, head: Value) -> list[Value]:
        """The bias in the first group, zero in the others."""
        zero, loaded = self.fn.const(self.tile.vec, 0.0), Sum.biases(self, head)
        chosen = {value: self.fn.select(self.group.first, value, zero) for value in dict.fromkeys(loaded)}
        return [chosen[value] for value in loaded]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOutput(Output):
    """Adds a group to what the groups before have stored; residual and activation come with the last one."""

    group: Group

    def store_rows(
        self,
        accs: list[Value],
        out: Value,
        residual: Value | None,
        pixel: Value,
        last: Callable[[int, Value], Value] | None = None,
    ) -> None:
        """Add the tile at a pixel to the output."""
        fn, tile = self.fn, self.tile
        plain = Output(fn, self.fields, tile, Epilogue(), self.valid, False)

        def put(output: Output, extra: Value | None, add: Callable[[int, Value], Value] | None) -> list[Value]:
            Output.store_rows(output, accs, out, extra, pixel, add)
            return []

        def added() -> Callable[[int, Value], Value]:
            step = self.fields["o_row"]
            rows = row_addresses(fn, fn.gep(out, fn.mul(pixel, step)), tile.rows, step)

            def add(at: int, acc: Value) -> Value:
                i, v = divmod(at, tile.vectors)
                place = fn.gep(rows[i], v * tile.target.vector_bytes)
                old = load_lanes(fn, tile.vec, place, self._count(v), masks=tile.target.masks)
                return fn.binary("fadd", old, last(at, acc) if last else acc)

            return add

        def later() -> list[Value]:
            add = added()
            return fn.if_(self.group.last, lambda: put(self, residual, add), lambda: put(plain, None, add), hint="last")

        fn.if_(self.group.first, lambda: put(plain, None, last), later, hint="first")
