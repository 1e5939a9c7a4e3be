"""Copies between arrays whose adjacent elements lie along different axes: squares of a vector's width, in registers."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import transpose
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.net_outer import starts


@dataclass(frozen=True, slots=True)
class TurnSpec:
    """Copy planes of `rows` x `columns`: elements along a column are adjacent in the source, along a row in the target.

    Planes are counted along `outer` dimensions; a chunk is `block` rows of a plane.  Buffers: in0, out.  Fields:
    `{p,b}_{div,count}` split the chunk's number into plane and block; `row_count`, `column_count`, `block`; `size{d}`,
    `in0_{d}`, `out_{d}` of the outer dimensions; `in0_column`, `out_row` bytes from column to column, row to row.
    """

    target: Target
    dtype: str
    outer: int

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        lanes, item, scalar = self.target.lanes(self.dtype), self._item, SCALARS[self.dtype]
        plane, part = kernel.index("p"), kernel.index("b")
        x, out = starts(fn, fields, self.outer, ("in0", "out"), plane)
        column, row = fields["in0_column"], fields["out_row"]
        begin = fn.mul(part, fields["block"])
        count = fn.sub(fn.smin(fn.add(begin, fields["block"]), fields["row_count"]), begin)
        source = fn.gep(x, fn.mul(begin, item))
        target = fn.gep(out, fn.mul(begin, row))
        rows = fn.mul(fn.udiv(count, lanes), lanes)
        columns = fn.mul(fn.udiv(fields["column_count"], lanes), lanes)

        def square(fn: Function, source: Value, target: Value) -> None:
            kind = vector(scalar, lanes)
            read = [fn.load(kind, fn.gep(source, fn.mul(column, i))) for i in range(lanes)]
            for i, value in enumerate(transpose(fn, read)):
                fn.store(value, fn.gep(target, fn.mul(row, i)))

        def single(first: Index, end: Index, begin: Index, stop: Index) -> None:
            def each(i: Value, _: list[Value]) -> list[Value]:
                def one(j: Value, _: list[Value]) -> list[Value]:
                    value = fn.load(scalar, fn.gep(source, fn.add(fn.mul(j, column), fn.mul(i, item))))
                    fn.store(value, fn.gep(target, fn.add(fn.mul(i, row), fn.mul(j, item))))
                    return []

                fn.loop(begin, stop, 1, [], one, guard=True, hint="single")
                return []

            fn.loop(first, end, 1, [], each, guard=True, hint="singles")

        def strip(i: Value, _: list[Value]) -> list[Value]:
            def block(j: Value, _: list[Value]) -> list[Value]:
                square(
                    fn,
                    fn.gep(source, fn.add(fn.mul(j, column), fn.mul(i, item))),
                    fn.gep(target, fn.add(fn.mul(i, row), fn.mul(j, item))),
                )
                return []

            fn.loop(0, columns, lanes, [], block, guard=True, hint="square")
            return []

        fn.loop(0, rows, lanes, [], strip, guard=True, hint="strip")
        single(0, rows, columns, fields["column_count"])
        single(rows, count, 0, fields["column_count"])
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Vectors through transposes."""
        planes = f["p_count"]
        lanes = host.target.lanes(self.dtype)
        whole = (f["row_count"] // lanes) * (f["column_count"] // lanes) * lanes
        rest = f["row_count"] * f["column_count"] - whole * lanes
        nbytes = planes * f["row_count"] * f["column_count"] * self._item
        counts = {"block": float(planes * whole), "element": float(planes * rest)}
        return Cost(counts, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)
