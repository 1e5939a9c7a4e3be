"""Rows of an image whose channels are shifted apart, copied for the core: each channel from where its shift says.

A table has the runs of adjacent channels that share a shift: (rows, columns, first channel, channels).  What lies
outside the image is written as zeros, or is the pixel that the pad mode names.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, I64, SCALARS, Function, Index, Value
from leanconv.kernels.copy import copy_run
from leanconv.kernels.fields import Fields
from leanconv.kernels.patches import Patches

RUN = 32  # bytes of the table for a run


@dataclass(frozen=True, slots=True)
class ShiftedRows(Patches):
    """A stage of whole output rows; the windows are 1x1 and each channel's tap lies at its shift.

    `single`: every run is one channel.  Buffer: runs.  Fields: those of `Patches`, and `run_count`.
    """

    single: bool

    def emit(
        self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Copy what output pixels [first, end), which are whole rows, read to the matrix; see `Stage`."""
        table = fields.buffer("runs")

        def run(index: Value, _: list[Value]) -> list[Value]:
            entry = fn.gep(table, fn.mul(index, RUN))
            down, along, channel, count = (fn.load(I64, entry, 8 * part) for part in range(4))
            source = fn.gep(x, fn.mul(channel, fields["s_c"]))
            target = fn.gep(matrix, fn.mul(channel, fields["m_c"]))
            if self.rows:
                self._pixels(fn, fields, source, target, (first, end), [down, along], count)
            else:
                self._planes(fn, fields, source, target, (first, end), [down, along], count)
            return []

        fn.loop(0, fields["run_count"], 1, [], run, hint="run")
        return matrix, 0

    def _planes(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        target: Value,
        span: tuple[Value, Value],
        shift: list[Value],
        count: Value,
    ) -> None:
        """The channels of a run, pixels adjacent."""

        def channel(_: Value, state: list[Value]) -> list[Value]:
            self.plane(fn, fields, state[0], state[1], span[0], span[1], shift)
            return [fn.gep(state[0], fields["s_c"]), fn.gep(state[1], fields["m_c"])]

        fn.loop(0, count, 1, [source, target], channel, hint="channel")

    def _pixels(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        target: Value,
        span: tuple[Value, Value],
        shift: list[Value],
        count: Value,
    ) -> None:
        """The channels of a run, channels adjacent."""
        width, step = fields["out1"], fields["m_pixel"]
        zeros = self.pad_mode == "zeros"

        def copy(source: Value | None, target: Value) -> list[Value]:
            if self.single:
                scalar = SCALARS[self.dtype]
                fn.store(fn.load(scalar, source) if source is not None else fn.const(scalar, 0.0), target)
            else:
                channel: Index = self.itemsize if self.unit_channel else fields["s_c"]
                copy_run(fn, self.lanes, count, source, target, (channel, self.itemsize), self.unit_channel)
            return []

        def row(at: Value, state: list[Value]) -> list[Value]:
            place, inside = self.place(fn, fields, 0, at, shift[0])
            line = fn.gep(source, fn.mul(place, fields["at0"]))
            low, high = self._span(fn, fields, shift[1], inside) if zeros else (0, width)

            def pixel(q: Value, state: list[Value]) -> list[Value]:
                column, _ = self.place(fn, fields, 1, q, shift[1])
                copy(fn.gep(line, fn.mul(column, fields["at1"])), state[0])
                return [fn.gep(state[0], step)]

            def clear(_: Value, state: list[Value]) -> list[Value]:
                copy(None, state[0])
                return [fn.gep(state[0], step)]

            if zeros:
                state = fn.loop(0, low, 1, state, clear, guard=True, hint="clear")
            state = fn.loop(low, high, 1, state, pixel, guard=True, hint="pixel")
            if zeros:
                state = fn.loop(high, width, 1, state, clear, guard=True, hint="clear")
            return state

        fn.loop(fn.udiv(span[0], width), fn.udiv(span[1], width), 1, [target], row, hint="row")

    def _span(self, fn: Function, fields: Fields, along: Value, inside: Value | None) -> tuple[Value, Value]:
        """The output pixels [low, high) of a row whose shifts lie inside; none if the row does not."""
        width, stride = fields["out1"], self.stride[1]
        low = fn.smin(fn.udiv(fn.smax(fn.sub(stride - 1, along), 0), stride), width)
        reach = fn.smax(fn.add(fn.sub(fields["in1"], along), stride - 1), 0)
        high = fn.smax(fn.smin(fn.udiv(reach, stride), width), low)
        valid = Value("true", I1) if inside is None else inside
        return fn.select(valid, low, width), fn.select(valid, high, width)
