"""Winograd's weights, transformed where they are used: a row of points at a time.

    filters of a panel  ->  taps [channel][tap][NR]  ->  for each row of points: U [point][channel][NR], used at once

The points of a row stay near until the products have read them: to store all points of a panel first takes longer than
to work them out, since each line of the second level of cache is fetched before it is written, and written back.
All rows share their code, with coefficients from a table.
"""

from __future__ import annotations

import math

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.coefficients import Coefficients, weighted
from leanconv.kernels.fields import Fields
from leanconv.kernels.winograd_tiles import row_major
from leanconv.kernels.winograd_weights import WeightStep, store_points


@dataclass(frozen=True, slots=True)
class FlyStep:
    """The two steps for panels of `width` output channels, of which the first `count` exist; fields of `WeightStep`."""

    step: WeightStep
    width: int
    count: int

    @property
    def filter_bytes(self) -> int:
        """Of the taps of an input channel."""
        return math.prod(self.step.taps) * self.width * self.step.item

    def take(self, fn: Function, fields: Fields, source: Value, target: Value) -> None:
        """Write the taps of a panel from filters at `source`."""
        step = self.step
        near = [n * self.width * step.item for n in row_major(step.taps)]

        def one(source: Value, target: Value, dense: Value, exist: int) -> None:
            step.ask(fn, fields, source, exist)
            step.take(fn, fields, source, target, near, dense, exist)

        step.each_filter(fn, fields, [source, target], self.filter_bytes, self.width, self.count, one)

    def row(self, fn: Function, fields: Fields, taps: Value, target: Value, point: Index, i: Value) -> None:
        """Write row i of the points along the first axis that has a transform, `point` bytes from one to the next."""
        step, (first, *others) = self.step, self.step.tiling.active
        number, wide = step.taps[first], math.prod(step.taps) // step.taps[first]
        factors = Coefficients.of(fn, step.tiling.axes[first].transform.weights(), step.dtype).row(fn, i, step.kind)
        row, far = self.width * step.item, fn.mul(point, step.tiling.sizes[step.tiling.active[-1]])

        def channel(_: Value, state: list[Value]) -> list[Value]:
            def one(v: Value, at: list[Value]) -> list[Value]:
                taken = [fn.load(step.kind, at[0], t * row) for t in range(number * wide)]
                lines = [taken[wide * t : wide * (t + 1)] for t in range(number)]
                values = weighted(fn, factors, lines, fused=step.target.fma)
                store_points(fn, step, others, values, at[1], (point, far))
                return [fn.gep(pointer, step.target.vector_bytes) for pointer in at]

            fn.loop(0, self.width // step.lanes, 1, state, one, hint="vector")
            return [fn.gep(state[0], self.filter_bytes), fn.gep(state[1], row)]

        fn.loop(0, fields["channels"], 1, [taps, target], channel, hint="channel")
