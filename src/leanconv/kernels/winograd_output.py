"""The output step of a Winograd kernel: products back to pixels, then bias, residual, activation and the one store."""

from __future__ import annotations

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import I64, SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channel_runs import gather, load_runs, scatter, store_runs
from leanconv.kernels.cook_toom import Matrix
from leanconv.kernels.cost import LINE
from leanconv.kernels.cursor import ZERO_BYTES
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes
from leanconv.kernels.fields import Fields, Overlaid
from leanconv.kernels.linear import Linear, in_registers, linear, register_parts
from leanconv.kernels.winograd_tiles import Bits, Counters, Place, Tiling, Turns, over, row_major

_AHEAD = 2  # tiles between asking for pixels and writing them: one takes about as long as the third level of cache


@dataclass(frozen=True, slots=True)
class OutputStep:
    """How products become outputs.

    `adjacent`: output channels are, or else `runs`: pixels along the last axis are.  Fields: `{o,r}_n {o,r}_k
    {o,r}_at{d}` bytes between images, channels and pixels of the output and the residual; `m_point` bytes between
    points.  `split`: outputs are sums over several blocks of input channels, and `c_before` and `c_after` channels
    come before and after this one; the first adds the residual, the others what the output holds, and the sum of the
    last is activated.
    """

    target: Target
    dtype: str
    tiling: Tiling
    adjacent: bool
    runs: bool
    bias: bool
    epilogue: Epilogue
    split: bool = False

    @property
    def lanes(self) -> int:
        """Channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    def emit(
        self, fn: Function, fields: Fields, source: Value, out: Value, residual: Value | None, vectors: int, valid: int
    ) -> OutputEmitter:
        """An emitter of the step for panels of `vectors` registers, whose last one holds `valid` channels."""
        stack = fn.alloca(self.tiling.points * self.target.vector_bytes)
        if not self.split:
            return OutputEmitter(self, fn, fields, source, out, residual, stack, vectors, valid)
        begins = fn.cmp("eq", fields["c_before"], 0)
        names = ["n", "k", *(f"at{d}" for d in range(len(self.tiling.axes)))]
        steps = {
            f"r_{name}": fn.select(begins, 0 if residual is None else fields[f"r_{name}"], fields[f"o_{name}"])
            for name in names
        }
        given = fn.module.zeros(ZERO_BYTES) if residual is None else residual
        return OutputEmitter(
            self,
            fn,
            Overlaid(fields, steps),
            source,
            out,
            fn.select(begins, given, out),
            stack,
            vectors,
            valid,
            fn.cmp("eq", fields["c_after"], 0),
        )


@dataclass(frozen=True, slots=True)
class OutputEmitter:
    """The step inside one kernel, for panels of one shape; `residual` is what is added, `ends` whether it is all."""

    step: OutputStep
    fn: Function
    fields: Fields
    source: Value
    out: Value
    residual: Value | None
    stack: Value
    vectors: int
    valid: int
    ends: Value | None = None

    def tile(self, place: Place, rows: Counters, channel: Index, bias: Value) -> None:
        """One tile of the panel whose first output channel is `channel`, its biases at `bias`."""
        fn, fields, step = self.fn, self.fields, self.step
        width = step.target.vector_bytes
        bases = {bits: fn.gep(self.source, fn.mul(row, self.vectors * width)) for bits, row in rows.items()}

        def first_pixel(base: Value, letter: str) -> Value:
            offset = fn.add(fn.mul(place.image, fields[f"{letter}_n"]), fn.mul(channel, fields[f"{letter}_k"]))
            for d, at in enumerate(place.origin):
                offset = fn.add(offset, fn.mul(at, fields[f"{letter}_at{d}"]))
            return fn.gep(base, offset)

        out = first_pixel(self.out, "o")
        residual = first_pixel(self.residual, "r") if self.residual is not None else out
        if step.adjacent:
            self._ask(place, out, "o")
            if self.residual is not None:
                self._ask(place, residual, "r")
        matrices = [axis.transform.results(n) for n, axis in zip(place.outputs, step.tiling.axes, strict=True)]

        def one(v: Index, count: int) -> None:
            at = fn.mul(v, width)
            to = [fn.gep(out, fn.mul(fields["o_k"], fn.mul(v, step.lanes)))]
            to.append(to[0])
            if self.residual is not None:
                to[1] = fn.gep(residual, fn.mul(fields["r_k"], fn.mul(v, step.lanes)))
            shift = fn.load(vector(SCALARS[step.dtype], step.lanes), fn.gep(bias, at)) if step.bias else None
            self._vector(place, matrices, {bits: fn.gep(b, at) for bits, b in bases.items()}, to, shift, count)

        whole = self.vectors - (self.valid < step.lanes)

        def vectors(v: Value, _: list[Value]) -> list[Value]:
            one(v, step.lanes)
            return []

        if whole == 1:
            one(0, step.lanes)
        elif whole:
            fn.loop(0, whole, 1, [], vectors, hint="vector")
        if whole < self.vectors:
            one(whole, self.valid)

    def _ask(self, place: Place, pixel: Value, letter: str) -> None:
        """Ask for the pixels of the tile after the next one, which is to be written (or its residual read)."""
        fn, tiling, last = self.fn, self.step.tiling, len(place.outputs) - 1
        steps = [fn.mul(self.fields[f"{letter}_at{d}"], axis.dilation) for d, axis in enumerate(tiling.axes)]
        lines = -(-self.vectors * self.step.target.vector_bytes // LINE)

        def row(state: list[Value], _: Bits) -> None:
            for j in range(place.outputs[last]):
                at = fn.gep(state[0], fn.mul(steps[last], _AHEAD * tiling.axes[last].transform.outputs + j))
                for line in range(lines):
                    fn.prefetch(at, line * LINE, write=letter == "o")

        over(fn, [Turns([(n, 0)], [step]) for n, step in zip(place.outputs[:last], steps, strict=False)], [pixel], row)

    def _vector(
        self,
        place: Place,
        matrices: list[Matrix],
        bases: Counters,
        to: list[Value],
        shift: Value | None,
        count: int,
    ) -> None:
        """All outputs of one vector of channels."""
        fn, step, tiling = self.fn, self.step, self.step.tiling
        width = step.target.vector_bytes
        kind = vector(SCALARS[step.dtype], step.lanes)
        sizes = tuple(axis.transform.span(n) for n, axis in zip(place.outputs, tiling.axes, strict=True))
        near = [width * n for n in row_major(sizes)]
        far = [fn.mul(self.fields["m_point"], n) for n in row_major(tiling.sizes)]
        active = tiling.active
        last = len(sizes) - 1

        def source(state: list[Value], bits: tuple[int, ...], d: int, first: bool) -> list[Value]:
            """The values along axis d: products, or what the axes before have left on the stack."""
            if not first:
                return [fn.load(kind, state[0], near[d] * j) for j in range(sizes[d])]
            result = []
            for j in range(sizes[d]):
                base = bases[(*bits[:d], tiling.axes[d].bit(j), *bits[d:])]
                result.append(fn.load(kind, fn.gep(fn.gep(base, state[0]), fn.mul(far[d], j))))
            return result

        if len(active) == 2 and active[-1] == last:
            programs = linear(matrices[active[0]]), linear(matrices[last])
            if parts := register_parts(step.target, programs):
                self._in_registers(place, programs, parts, bases, to, shift, count)
                return
        zero = Value("0", I64)
        passes = [d for d in active if d != last]

        def along(d: int) -> None:
            first, program = d == passes[0], linear(matrices[d])

            def line(state: list[Value], bits: tuple[int, ...]) -> None:
                values = source(state, bits, d, first)
                for j, value in enumerate(program.emit(fn, values, fused=step.target.fma)):
                    fn.store(value, state[1], near[d] * j)

            loops = []
            for k in range(len(sizes)):
                if k != d:
                    done = k in passes and k < d
                    spans = [(place.outputs[k], 0)] if done else tiling.axes[k].split(sizes[k])
                    loops.append(Turns(spans, [far[k] if first else near[k], near[k]]))
            over(fn, loops, [zero if first else self.stack, self.stack], line)

        for d in passes:
            along(d)

        alone, program = not passes, linear(matrices[last])

        def row(state: list[Value], bits: tuple[int, ...]) -> None:
            values = source(state, bits, last, alone)
            self._store(program.emit(fn, values, fused=step.target.fma), state[1], state[2], place, shift, count)

        loops = []
        for k in range(last):
            spans = [(place.valid[k], 0)]
            o_at = fn.mul(self.fields[f"o_at{k}"], tiling.axes[k].dilation)
            r_at = fn.mul(self.fields[f"r_at{k}"], tiling.axes[k].dilation) if self.residual is not None else o_at
            loops.append(Turns(spans, [far[k] if alone else near[k], o_at, r_at]))
        over(fn, loops, [zero if alone else self.stack, *to], row)

    def _in_registers(
        self,
        place: Place,
        programs: tuple[Linear, Linear],
        parts: list[list[int]],
        bases: Counters,
        to: list[Value],
        shift: Value | None,
        count: int,
    ) -> None:
        """Both axes at once: some rows of outputs at a time."""
        fn, fields, tiling = self.fn, self.fields, self.step.tiling
        axes, (high, wide) = tiling.axes, tiling.active
        kind = vector(SCALARS[self.step.dtype], self.step.lanes)
        far = [fn.mul(fields["m_point"], n) for n in row_major(tiling.sizes)]
        letters = "oo" if self.residual is None else "or"

        def load(j: int, i: int) -> Value:
            point = {high: i, wide: j}
            base = bases[tuple(axis.bit(point.get(d, 0)) for d, axis in enumerate(axes))]
            return fn.load(kind, fn.gep(fn.gep(base, fn.mul(far[wide], j)), fn.mul(far[high], i)))

        def done(i: int, values: list[Value]) -> None:
            out, residual = (
                fn.gep(pointer, fn.mul(fields[f"{letter}_at{high}"], i * axes[high].dilation))
                for pointer, letter in zip(to, letters, strict=True)
            )

            def row() -> list[Value]:
                self._store(values, out, residual, place, shift, count)
                return []

            exist = place.valid[high]
            if isinstance(exist, int):
                row()
            else:
                fn.if_(fn.cmp("sgt", exist, i), row, lambda: [], hint="exists")

        in_registers(fn, programs, parts, load, done, fused=self.step.target.fma)

    def _store(
        self, values: list[Value], out: Value, residual: Value, place: Place, shift: Value | None, count: int
    ) -> None:
        """Bias, then a row of outputs along the last axis; those beyond the image are left out."""
        fn, fields, step = self.fn, self.fields, self.step
        last = len(place.outputs) - 1
        dilation = step.tiling.axes[last].dilation
        if shift is not None:
            values = [fn.binary("fadd", value, shift) for value in values]
        if step.runs:
            extra: list[Value | None] = [None] * len(values)
            if self.residual is not None:
                extra = [*load_runs(fn, values[0].type, residual, fields["r_k"], len(values), count)]
            done = [self._applied(value, more) for value, more in zip(values, extra, strict=True)]
            store_runs(fn, done, out, fields["o_k"], count)
            return

        def from_(j: int) -> list[Value]:
            if j == len(values):
                return []

            def one() -> list[Value]:
                o = fn.gep(out, fn.mul(fields[f"o_at{last}"], j * dilation))
                r = o
                if self.residual is not None:
                    r = fn.gep(residual, fn.mul(fields[f"r_at{last}"], j * dilation))
                self._one(values[j], o, r, count)
                return from_(j + 1)

            exist = place.valid[last]
            return one() if isinstance(exist, int) else fn.if_(fn.cmp("sgt", exist, j), one, lambda: [], hint="exists")

        from_(0)

    def _one(self, value: Value, out: Value, residual: Value, count: int) -> None:
        """One pixel of one vector of channels."""
        fn, step, extra = self.fn, self.step, None
        if step.adjacent:
            if self.residual is not None:
                extra = load_lanes(fn, value.type, residual, count, masks=step.target.masks)
            store_lanes(fn, self._applied(value, extra), out, count, masks=step.target.masks)
            return
        if self.residual is not None:
            extra = gather(fn, value.type, residual, self.fields["r_k"], count)
        scatter(fn, self._applied(value, extra), out, self.fields["o_k"], count)

    def _applied(self, value: Value, extra: Value | None) -> Value:
        """What is stored for a sum, and what is added to it."""
        fn, epilogue = self.fn, self.step.epilogue
        if self.ends is None:
            return epilogue.apply(fn, value, extra)
        assert extra is not None
        total = fn.binary("fadd", value, extra)
        if epilogue.activation is None:
            return total
        activated = replace(epilogue, residual=None)
        (total,) = fn.if_(self.ends, lambda: [activated.apply(fn, total, None)], lambda: [total], hint="ends")
        return total
