"""A constant matrix as a table in memory, for code that a loop over its rows shares."""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, lanes_of
from leanconv.codegen.types import ITEMSIZE
from leanconv.kernels.cook_toom import Matrix


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The table, its numbers' type, and how many a row has."""

    table: Value
    scalar: str
    columns: int

    @staticmethod
    def of(fn: Function, matrix: Matrix, dtype: str) -> Coefficients:
        """The table of a matrix, in numbers of a type."""
        scalar = SCALARS[dtype]
        return Coefficients(fn.module.table([float(c) for row in matrix for c in row], scalar), scalar, len(matrix[0]))

    def row(self, fn: Function, i: Index, kind: str) -> list[Value]:
        """The entries of a row, each in all lanes of a vector."""
        size = ITEMSIZE[self.scalar]
        start = fn.gep(self.table, fn.mul(i, self.columns * size))
        return [fn.splat(fn.load(self.scalar, start, j * size), lanes_of(kind)) for j in range(self.columns)]


def weighted(fn: Function, factors: Sequence[Value], rows: Sequence[Sequence[Value]], *, fused: bool) -> list[Value]:
    """Rows of vectors, each times its factor, added up one after another."""
    total = [fn.binary("fmul", value, factors[0]) for value in rows[0]]
    for factor, row in zip(factors[1:], rows[1:], strict=True):
        total = [fn.multiply_add(value, factor, sum_, fused=fused) for value, sum_ in zip(row, total, strict=True)]
    return total
