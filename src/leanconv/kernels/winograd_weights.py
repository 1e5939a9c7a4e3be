"""Winograd's weights: G g G^T of every filter, in panels [group][panel][bias NR][point][channels][NR].

Points are an odd number of cache lines apart: what is written for one filter would else fall into one set of the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, lanes_of, scalar_of, vector
from leanconv.codegen.targets import Target
from leanconv.codegen.types import ITEMSIZE
from leanconv.kernels.channel_runs import gather, load_runs
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.linear import linear
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.winograd_tiles import Tiling, Turns, over, row_major

OneFilter = Callable[[Value, Value, Value, int], None]
"""What is done to a vector of filters: where they are, where to write, whether their taps are dense, how many exist."""

_TOGETHER = 8  # input channels whose points, and the filters of one vector of output channels, are in the first cache


@dataclass(frozen=True, slots=True)
class WeightStep:
    """How the filters of a panel are transformed.

    `lines`: along the last axis are taps, and they are adjacent: [line][channel][tap][width].
    Fields: `channels`, `w_k w_c w_{d}` bytes between weights, `u_point` (of the last panel `u_last`) bytes between
    points, or lines of them.
    """

    target: Target
    dtype: str
    tiling: Tiling
    lines: ClassVar[bool] = False

    @property
    def lanes(self) -> int:
        """Output channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def kind(self) -> str:
        """A vector of output channels."""
        return vector(SCALARS[self.dtype], self.lanes)

    @property
    def taps(self) -> list[int]:
        """Taps along each axis."""
        return [axis.transform.taps for axis in self.tiling.axes]

    def emit(
        self, fn: Function, fields: Fields, source: Value, target: Value, point: Index, width: int, count: int
    ) -> None:
        """Write [point][channel][width] from filters at `source`; the first `count` of `width` channels exist.

        Some channels at a time, a vector of filters after the other: the filters of a whole panel may fall into two
        sets of the first-level cache (512 channels of 3x3 taps are 4.5 pages).
        """
        stack = fn.alloca(self.tiling.points * self.target.vector_bytes)

        steps = (
            (width * self.item, point)
            if self.lines
            else (point, fn.mul(point, self.tiling.sizes[self.tiling.active[-1]]))
        )

        def one(source: Value, target: Value, dense: Value, exist: int) -> None:
            self._one(fn, fields, source, target, stack, dense, steps, exist)

        taps = self.tiling.sizes[-1] if self.lines else 1
        self.each_filter(fn, fields, [source, target], taps * width * self.item, width, count, one)

    def each_filter(
        self, fn: Function, fields: Fields, state: list[Value], move: Index, width: int, count: int, one: OneFilter
    ) -> None:
        """Run `one` for every vector of filters; what it writes is `move` bytes further on for the next channel."""
        dense = fn.cmp("eq", 0, 0)  # the taps of a filter lie one behind the other
        for d, step in enumerate(row_major(self.taps)):
            if self.taps[d] > 1:
                dense = fn.both(dense, fn.cmp("eq", fields[f"w_{d}"], step * self.item))
        moves: list[Index] = [fields["w_c"], move]

        def some(first: Value, state: list[Value]) -> list[Value]:
            number = fn.smin(fn.sub(fields["channels"], first), _TOGETHER)

            def vector_of(state: list[Value], exist: int) -> None:
                def channel(_: Value, inner: list[Value]) -> list[Value]:
                    one(inner[0], inner[1], dense, exist)
                    return [fn.gep(pointer, move) for pointer, move in zip(inner, moves, strict=True)]

                fn.loop(0, number, 1, state, channel, hint="channel")

            def whole(_: Value, inner: list[Value]) -> list[Value]:
                vector_of(inner, self.lanes)
                return [fn.gep(inner[0], across), fn.gep(inner[1], self.target.vector_bytes)]

            across = fn.mul(fields["w_k"], self.lanes)
            behind = state
            if count >= self.lanes:
                behind = fn.loop(0, count // self.lanes, 1, state, whole, hint="vector")
            for v in range(count // self.lanes, width // self.lanes):
                vector_of(behind, max(0, count - v * self.lanes))
                behind = [behind[0], fn.gep(behind[1], self.target.vector_bytes)]
            return [fn.gep(pointer, fn.mul(move, _TOGETHER)) for pointer, move in zip(state, moves, strict=True)]

        fn.loop(0, fields["channels"], _TOGETHER, state, some, hint="some")

    def _one(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        target: Value,
        stack: Value,
        dense: Value,
        steps: tuple[Index, Index],
        exist: int,
    ) -> None:
        """A vector of filters of one input channel, of which the first `exist` are there."""
        if len(self.tiling.active) > 2:
            near = [self.target.vector_bytes * n for n in row_major(self.tiling.sizes)]
            self.take(fn, fields, source, stack, near, dense, exist)
            self._transform(fn, stack, target, steps[0])
            return
        self.ask(fn, fields, source, exist)
        kind, places = self.kind, list(itertools.product(*map(range, self.taps)))

        def apart() -> list[Value]:
            values = []
            for at in places:
                tap = source
                for d, i in enumerate(at):
                    tap = fn.gep(tap, fn.mul(fields[f"w_{d}"], i))
                values.append(gather(fn, kind, tap, fields["w_k"], exist))
            return values

        taps = fn.if_(
            dense, lambda: load_runs(fn, kind, source, fields["w_k"], len(places), exist), apart, hint="dense"
        )
        store_points(fn, self, self.tiling.active, taps, target, steps)

    def ask(self, fn: Function, fields: Fields, source: Value, exist: int) -> None:
        """Ask for filters that are soon to be read."""
        ahead = fn.gep(source, fn.mul(fields["w_c"], 2 * _TOGETHER))
        for _ in range(exist):  # too many rows at one time for the hardware: 64 to 384 channels, 1.05 to 1.18 times
            fn.prefetch(ahead)
            ahead = fn.gep(ahead, fields["w_k"])

    def take(
        self, fn: Function, fields: Fields, source: Value, to: Value, near: Sequence[int], dense: Value, count: int
    ) -> None:
        """Store the taps of a vector of filters, so many bytes apart along each axis."""

        def runs() -> list[Value]:
            values = load_runs(fn, self.kind, source, fields["w_k"], math.prod(self.taps), count)
            for at, value in zip(itertools.product(*map(range, self.taps)), values, strict=True):
                fn.store(value, to, sum(i * step for i, step in zip(at, near, strict=True)))
            return []

        def one(state: list[Value], _: tuple[int, ...]) -> None:
            fn.store(gather(fn, self.kind, state[0], fields["w_k"], count), state[1])

        def apart() -> list[Value]:
            loops = [Turns([(n, 0)], [fields[f"w_{d}"], near[d]]) for d, n in enumerate(self.taps)]
            over(fn, loops, [source, to], one)
            return []

        fn.if_(dense, runs, apart, hint="dense")

    def _transform(self, fn: Function, stack: Value, target: Value, point: Index) -> None:
        """From taps to points, one axis after the other; the last one writes to the panel."""
        axes, active = self.tiling.axes, self.tiling.active
        near = [self.target.vector_bytes * n for n in row_major(self.tiling.sizes)]
        far = [fn.mul(point, n) for n in row_major(self.tiling.sizes)]

        def along(d: int, final: bool) -> None:
            program = linear(axes[d].transform.weights())
            to = far if final else near

            def line(state: list[Value], _: tuple[int, ...]) -> None:
                taken = [fn.load(self.kind, state[0], near[d] * j) for j in range(self.taps[d])]
                for j, value in enumerate(program.emit(fn, taken, fused=self.target.fma)):
                    fn.store(value, fn.gep(state[1], fn.mul(to[d], j)))

            loops = []
            for k, axis in enumerate(axes):
                if k != d:
                    count = axis.transform.size if k in active and k < d else axis.transform.taps
                    loops.append(Turns([(count, 0)], [near[k], to[k]]))
            over(fn, loops, [stack, target if final else stack], line)

        for d in active:
            along(d, d == active[-1])


class LineWeightStep(WeightStep):
    """The same for lines of points: `tiling` has taps along its last axis."""

    lines: ClassVar[bool] = True


def store_points(
    fn: Function, step: WeightStep, axes: Sequence[int], taps: list[Value], target: Value, steps: tuple[Index, Index]
) -> None:
    """Transform taps along at most two axes and store their points, so many bytes apart along the last one, and rows.

    Row by row: what two rows share stays in registers.
    """
    if not axes:
        fn.store(taps[0], target)
        return
    fused, tiling = step.target.fma, step.tiling
    programs = [linear(tiling.axes[d].transform.weights()) for d in axes]
    wide, size = step.taps[axes[-1]], tiling.sizes[axes[-1]]
    columns = [programs[0].lazily(fn, taps[j::wide], fused=fused) for j in range(wide)]
    for i in range(math.prod(tiling.sizes[d] for d in axes) // size):
        row = [column(i) for column in columns] if len(programs) > 1 else taps
        for j, value in enumerate(programs[-1].emit(fn, row, fused=fused)):
            fn.store(value, fn.gep(target, fn.mul(steps[0], j)))
        target = fn.gep(target, steps[1])


@dataclass(frozen=True, slots=True)
class WinogradPackSpec:
    """Transform all weights. One chunk is one panel of one group; buffers: weights, bias, w (packed).

    Fields: `g_* p_*` for the chunk; `panel_count`; those of `WeightStep`; `w_g` bytes between groups; `p_g`, `p_panel`
    packed bytes a group and a whole panel; `bias_g` bytes of bias a group.
    """

    step: WeightStep
    panels: PanelShape
    bias: bool

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.step.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, panel = kernel.index("g"), fn.i64(kernel.index("p"))
        whole = self.panels.vectors * self.step.lanes
        source = fn.gep(fields.buffer("weights"), fn.mul(group, fields["w_g"]))
        source = fn.gep(source, fn.mul(fn.mul(panel, whole), fields["w_k"]))
        packed = fn.gep(fields.buffer("w"), fn.mul(group, fields["p_g"]))
        packed = fn.gep(packed, fn.mul(panel, fields["p_panel"]))

        def one(width: int, count: int) -> list[Value]:
            target = packed
            if self.bias:
                shift = fn.gep(fields.buffer("bias"), fn.mul(group, fields["bias_g"]))
                copy_bias(
                    fn, self.step.kind, fn.gep(shift, fn.mul(panel, whole * self.step.item)), packed, width, count
                )
                target = fn.gep(packed, width * self.step.item)
            point = fields["u_point" if width == whole else "u_last"]
            self.step.emit(fn, fields, source, target, point, width, count)
            return []

        each_shape(fn, fields, self.panels, self.step.lanes, panel, one)
        return kernel.finish()


def each_shape(
    fn: Function,
    fields: Fields,
    panels: PanelShape,
    lanes: int,
    panel: Value,
    one: Callable[[int, int], list[Value]],
) -> None:
    """Emit `one(width, channels that exist)` for whole panels and for the last one, and branch between them."""
    whole = panels.vectors * lanes
    last = (panels.last * lanes, (panels.last - 1) * lanes + panels.valid)
    if not panels.last:
        one(whole, whole)
    elif not panels.whole:
        one(*last)
    else:
        is_last = fn.cmp("eq", fn.add(panel, 1), fields["panel_count"])
        fn.if_(is_last, lambda: one(*last), lambda: one(whole, whole), hint="last")


def copy_bias(fn: Function, kind: str, source: Value, target: Value, width: int, count: int) -> None:
    """The biases of a panel, in vectors of a kind, zeros behind the last."""
    lanes, item = lanes_of(kind), ITEMSIZE[scalar_of(kind)]
    for first in range(0, width, lanes):
        exist = max(0, min(lanes, count - first))
        fn.store(gather(fn, kind, fn.gep(source, first * item), item, exist), target, first * item)
