"""Element-wise formulas over arrays of any strides: rows in vectors, one pass for a whole chain."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.net_expression import Formula
from leanconv.kernels.net_outer import each_row

UNIT, SAME, FAR = "unit", "same", "far"
"""How the elements of a row lie: adjacent, one for all, or at a distance."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """`out = formula(in0, in1, ...)` on rows, counted along `outer` dimensions.

    `rows` says how a row of each operand and of the output lies.  A chunk is `rows` rows, or a part of `block` elements
    of them.  Buffers: in0, in1, ..., out; the output may be an operand that lies exactly as it does.  Fields:
    `{r,b}_{div,count}` split the chunk's number; `rows`, `row_count`, `block`, `length`; `size{d}` of the outer
    dimensions; `{in0,in1,...,out}_{d}` bytes from step to step, `..._at` bytes between elements of a row that is FAR.
    """

    target: Target
    dtype: str
    formula: Formula
    outer: int
    rows: tuple[str, ...]

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    @property
    def _roles(self) -> list[str]:
        return [*(f"in{i}" for i in range(self.formula.inputs)), "out"]

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        begin = fn.mul(kernel.index("b"), fields["block"])
        count = fn.sub(fn.smin(fn.add(begin, fields["block"]), fields["length"]), begin)

        def row(places: list[Value]) -> None:
            begun = [fn.gep(at, fn.mul(begin, self._step(fields, which))) for which, at in enumerate(places)]
            self._row(fn, fields, begun, count)

        each_row(kernel, self.outer, self._roles, row)
        return kernel.finish()

    def _step(self, fields: Fields, which: int) -> Index:
        """Bytes between the elements of a row of one array."""
        how = self.rows[which]
        return fields[f"{self._roles[which]}_at"] if how == FAR else self._item if how == UNIT else 0

    def _row(self, fn: Function, fields: Fields, starts: list[Value], count: Index) -> None:
        scalar = SCALARS[self.dtype]
        lanes = self.target.lanes(self.dtype) if FAR not in self.rows else 1
        fixed = [fn.load(scalar, p) if how == SAME else None for p, how in zip(starts, self.rows, strict=True)]

        def run(kind: str, step: int, first: Index, end: Index) -> None:
            held = [fn.splat(v, step) if v is not None and step > 1 else v for v in fixed]

            def body(at: Value, _: list[Value]) -> list[Value]:
                def place(i: int) -> Value:
                    return fn.gep(starts[i], fn.mul(at, self._step(fields, i)))

                operands = [v if v is not None else fn.load(kind, place(i)) for i, v in enumerate(held[:-1])]
                fn.store(self.formula.emit(fn, kind, operands), place(len(starts) - 1))
                return []

            fn.loop(first, end, step, [], body, guard=True, hint="element")

        whole: Index = 0
        if lanes > 1:
            whole = fn.mul(fn.udiv(count, lanes), lanes)
            run(vector(scalar, lanes), lanes, 0, whole)
        run(scalar, 1, whole, count)

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Vectors of the result, or elements where some lie apart."""
        rows, length = f["row_count"], f["length"]
        lanes = host.target.lanes(self.dtype)
        nbytes = rows * length * self._item
        work = max(1, len(self.formula.steps))
        if FAR in self.rows:
            counts = {"element": float(rows * length), "multiply": float(rows * length * work)}
        else:
            vectors = rows * (length // lanes + length % lanes)
            counts = {"vector": float(vectors * self.formula.inputs), "multiply": float(vectors * work)}
        read = sum(how != SAME for how in self.rows[:-1]) * nbytes
        return Cost({**counts, "run": float(rows)}, ((read, read),), ((nbytes, nbytes),), chunks)
