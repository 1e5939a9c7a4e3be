"""Softmax along one axis: rows whose elements are adjacent, or many rows side by side, one in each lane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.activations import emit_exp
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.net_expression import emit_log, pick
from leanconv.kernels.net_outer import each_row


@dataclass(frozen=True, slots=True)
class SoftmaxSpec:
    """`exp(x - max) / sum(exp(x - max))`, or its logarithm, of each row.

    `along`: the elements of a row are adjacent, here and in the output; otherwise `beside` says whether rows are, and
    vectors hold one element of each.  Rows are counted along `outer` dimensions; a chunk is `rows` of them.  Buffers:
    in0, out.  Fields: `r_{div,count}`, `rows`, `row_count`, `length`, `size{d} in0_{d} out_{d}`, `in0_at out_at` bytes
    between the elements of a row, `width` rows side by side (the innermost dimension, not counted in `outer`).
    """

    target: Target
    dtype: str
    outer: int
    along: bool
    beside: bool
    log: bool

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        scalar, lanes, item = SCALARS[self.dtype], self.target.lanes(self.dtype), self._item

        def row(places: list[Value]) -> None:
            x, out = places
            if self.along:
                self._along(fn, fields, x, out)
                return
            done: Index = 0
            for width in (lanes, 1) if self.beside else (1,):
                end = fn.add(done, fn.mul(fn.udiv(fn.sub(fields["width"], done), width), width))
                kind = vector(scalar, width) if width > 1 else scalar

                def some(at: Value, _: list[Value], kind: str = kind) -> list[Value]:
                    shift = fn.mul(at, item)
                    self._beside(fn, fields, kind, fn.gep(x, shift), fn.gep(out, shift))
                    return []

                fn.loop(done, end, width, [], some, guard=True, hint="rows")
                done = end

        each_row(kernel, self.outer, ("in0", "out"), row)
        return kernel.finish()

    def _beside(self, fn: Function, fields: Fields, kind: str, x: Value, out: Value) -> None:
        """A vector of rows: every lane on its own."""
        step, to, length = fields["in0_at"], fields["out_at"], fields["length"]

        def reduce(start: Value, join: Callable[[Value, Value], Value], source: Value, step: Index) -> Value:
            def body(_: Value, state: list[Value]) -> list[Value]:
                return [join(state[0], fn.load(kind, state[1])), fn.gep(state[1], step)]

            return fn.loop(0, length, 1, [start, source], body, hint="reduce")[0]

        most = reduce(fn.const(kind, -math.inf), lambda a, b: _larger(fn, a, b), x, step)

        def exponent(_: Value, state: list[Value]) -> list[Value]:
            e = emit_exp(fn, fn.binary("fsub", fn.load(kind, state[1]), most))
            if not self.log:
                fn.store(e, state[2])
            return [fn.binary("fadd", state[0], e), fn.gep(state[1], step), fn.gep(state[2], to)]

        total = fn.loop(0, length, 1, [fn.const(kind, 0.0), x, out], exponent, hint="exp")[0]
        shift = emit_log(fn, total) if self.log else total

        def finish(_: Value, state: list[Value]) -> list[Value]:
            fn.store(self._last(fn, fn.load(kind, state[0]), most, shift), state[1])
            return [fn.gep(state[0], step if self.log else to), fn.gep(state[1], to)]

        fn.loop(0, length, 1, [x if self.log else out, out], finish, hint="finish")

    def _last(self, fn: Function, value: Value, most: Value, shift: Value) -> Value:
        if self.log:
            return fn.binary("fsub", fn.binary("fsub", value, most), shift)
        return fn.binary("fdiv", value, shift)

    def _along(self, fn: Function, fields: Fields, x: Value, out: Value) -> None:
        """One row in vectors; the order of its sum depends on its length only."""
        scalar, lanes, item = SCALARS[self.dtype], self.target.lanes(self.dtype), self._item
        wide, length = vector(scalar, lanes), fields["length"]
        whole = fn.mul(fn.udiv(length, lanes), lanes)

        def each(starts: tuple[float, Callable[[Value, Value], Value]], term: Callable[[str, Value], Value]) -> Value:
            start, join = starts

            def run(kind: str, width: int, first: Index, end: Index) -> Value:
                def body(at: Value, state: list[Value]) -> list[Value]:
                    return [join(state[0], term(kind, fn.i64(fn.mul(at, item))))]

                return fn.loop(first, end, width, [fn.const(kind, start)], body, guard=True, hint="row")[0]

            total = run(wide, lanes, 0, whole)
            size = lanes
            while size > 1:
                size //= 2
                total = join(fn.shuffle(total, total, range(size)), fn.shuffle(total, total, range(size, 2 * size)))
            single = fn.op(scalar, f"extractelement {total.type} {total.name}, i32 0")
            return join(single, run(scalar, 1, whole, length))

        def splat(value: Value, kind: str) -> Value:
            return fn.splat(value, lanes) if kind == wide else value

        most = each((-math.inf, lambda a, b: _larger(fn, a, b)), lambda kind, at: fn.load(kind, x, at))

        def exponent(kind: str, at: Value) -> Value:
            e = emit_exp(fn, fn.binary("fsub", fn.load(kind, x, at), splat(most, kind)))
            if not self.log:
                fn.store(e, out, at)
            return e

        total = each((0.0, lambda a, b: fn.binary("fadd", a, b)), exponent)
        shift = emit_log(fn, total) if self.log else total
        for kind, width, first, end in ((wide, lanes, 0, whole), (scalar, 1, whole, length)):

            def finish(at: Value, _: list[Value], kind: str = kind) -> list[Value]:
                place = fn.mul(at, item)
                value = fn.load(kind, x if self.log else out, place)
                fn.store(self._last(fn, value, splat(most, kind), splat(shift, kind)), out, place)
                return []

            fn.loop(first, end, width, [], finish, guard=True, hint="finish")

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Some twenty operations for each exponential."""
        rows = f["row_count"] * (1 if self.along else f["width"])
        lanes = host.target.lanes(self.dtype) if self.along or self.beside else 1
        vectors = rows * f["length"] / lanes
        nbytes = rows * f["length"] * self._item
        return Cost({"multiply": 24 * vectors, "vector": 3 * vectors}, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)


def _larger(fn: Function, a: Value, b: Value) -> Value:
    return pick(fn, fn.fcmp("ogt", a, b), a, b)
