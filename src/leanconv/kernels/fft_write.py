"""The output step of the FFT kernels: bins back to pixels, then bias, residual, activation and the one store."""

from __future__ import annotations

from collections.abc import Callable

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_passes import Line, Passes, load_products
from leanconv.kernels.fft_rows import Finish, Lie
from leanconv.kernels.fields import Fields
from leanconv.kernels.winograd_tiles import Counters, Place


@dataclass(frozen=True, slots=True)
class FftOutput:
    """How bins become outputs.

    `adjacent`: output channels are, or else `runs`: pixels of a row.  Fields: `{o,r}_n {o,r}_k {o,r}_at{d}` bytes
    between images, channels and pixels of the output and the residual; `m_point` bytes between points; `plane_back`
    from the products to a tile's plane, behind which is a row.
    """

    target: Target
    dtype: str
    tiling: FftTiling
    adjacent: bool
    runs: bool
    bias: bool
    epilogue: Epilogue

    @property
    def kind(self) -> str:
        """A vector of channels."""
        return vector(SCALARS[self.dtype], self.target.lanes(self.dtype))

    def writer(
        self, fn: Function, fields: Fields, plane: Value, row: Value, out: Value, residual: Value | None
    ) -> FftWriter:
        """The step inside one kernel, with a plane and a row to work in."""
        grid, width = self.tiling.grid, self.target.vector_bytes
        passes = Passes(fn, grid, self.kind, width, self.target.fma, plane)
        return FftWriter(self, fn, fields, passes, row, out, residual)

    def emit(
        self, fn: Function, fields: Fields, source: Value, out: Value, residual: Value | None, vectors: int, valid: int
    ) -> FftProducts:
        """An emitter for panels of `vectors` registers, whose last one holds `valid` channels."""
        plane = fn.gep(source, fields["plane_back"])
        row = fn.gep(plane, self.tiling.grid.plane_bytes(self.target.vector_bytes))
        writer = self.writer(fn, fields, plane, row, out, residual)
        return FftProducts(self, writer, source, vectors, valid)


@dataclass(frozen=True, slots=True)
class FftWriter:
    """The step inside one kernel: transforms the bins of a vector of channels and stores the outputs."""

    step: FftOutput
    fn: Function
    fields: Fields
    passes: Passes
    row: Value
    out: Value
    residual: Value | None

    def outputs(
        self,
        place: Place,
        channel: Index,
        vectors: Index,
        apart: int,
        bias: Callable[[Index], Value | None],
        bins: Callable[[Value], list[Value]],
        tail: Callable[[Index], tuple[Value, int] | None],
    ) -> None:
        """All outputs of a tile, of the vectors of channels from `channel` on, whose planes are `apart`.

        `bins(at)` are those of the row at a place of the plane, all other axes transformed back; of each vector, `bias`
        is what is added and `tail` a flag, and how many channels there are if it is set.
        """
        fn, fields, passes, grid = self.fn, self.fields, self.passes, self.passes.grid

        def first_pixel(base: Value, letter: str) -> Value:
            offset = fn.add(fn.mul(place.image, fields[f"{letter}_n"]), fn.mul(channel, fields[f"{letter}_k"]))
            for d, at in enumerate(place.origin):
                offset = fn.add(offset, fn.mul(at, fields[f"{letter}_at{d}"]))
            return fn.gep(base, offset)

        letters = ("o", "r" if self.residual is not None else "o")
        out = first_pixel(self.out, "o")
        residual = first_pixel(self.residual, "r") if self.residual is not None else out
        steps = [self._steps(letter) for letter in letters]
        channels = [fn.mul(fields[f"{letter}_k"], self.step.target.lanes(self.step.dtype)) for letter in letters]

        def leaf(v: Index, state: list[Value]) -> list[Value]:
            if grid.fold is None:
                passes.row_inverse(bins(state[0]), self.row)
            else:
                plane = replace(passes, plane=state[0])
                plane.folded_rows(lambda at: plane.row_inverse(bins(at), at))
                plane.gather(self.row, grid.windows[grid.axis].outputs)
            self._store(place, bias(v), state[1], state[2], tail(v))
            return [fn.gep(p, move) for p, move in zip(state, (apart, *channels), strict=True)]

        def rows(rest: list[int], state: list[Value]) -> None:
            if not rest:
                if vectors == 1:
                    leaf(0, state)
                else:
                    fn.loop(0, vectors, 1, state, leaf, hint="vector")
                return

            def one(_: Index, state: list[Value]) -> list[Value]:
                rows(rest[1:], state)
                moves = (0 if grid.fold is not None else passes.near(rest[0]), steps[0][rest[0]], steps[1][rest[0]])
                return [fn.gep(p, move) for p, move in zip(state, moves, strict=True)]

            count = place.valid[rest[0]]
            if count == 1:
                rows(rest[1:], state)
            else:
                fn.loop(0, count, 1, state, one, guard=isinstance(count, Value), hint="row")

        rows([d for d in range(len(grid.windows)) if d != grid.axis], [passes.plane, out, residual])

    def _steps(self, letter: str) -> list[Index]:
        """Bytes between outputs of one tile along each axis."""
        axes = self.step.tiling.axes
        return [self.fn.mul(self.fields[f"{letter}_at{d}"], axis.dilation) for d, axis in enumerate(axes)]

    def _store(
        self, place: Place, bias: Value | None, out: Value, residual: Value, tail: tuple[Value, int] | None
    ) -> None:
        fn, step, fields, d = self.fn, self.step, self.fields, self.passes.grid.axis

        def lie(letter: str) -> Lie:
            return Lie(step.adjacent, step.runs, self._steps(letter)[d], fields[f"{letter}_k"])

        more = lie("r") if self.residual is not None else None
        finish = Finish(step.epilogue, bias, lie("o"), more)

        def some(count: int) -> list[Value]:
            finish.store(fn, step.target, self.passes.kind, self.row, place.valid[d], out, residual, count)
            return []

        lanes = step.target.lanes(step.dtype)
        if tail is None:
            some(lanes)
        else:
            fn.if_(tail[0], lambda: some(tail[1]), lambda: some(lanes), hint="tail")


@dataclass(frozen=True, slots=True)
class FftProducts:
    """Outputs from matrices of products [point][tile][NR], for panels of one shape."""

    step: FftOutput
    writer: FftWriter
    source: Value
    vectors: int
    valid: int

    def tile(self, place: Place, rows: Counters, channel: Index, bias: Value) -> None:
        """One tile of the panel whose first output channel is `channel`, its biases at `bias`."""
        fn, fields, step = self.writer.fn, self.writer.fields, self.step
        width, lanes = step.target.vector_bytes, step.target.lanes(step.dtype)
        (row,) = rows.values()
        base = fn.gep(self.source, fn.mul(row, self.vectors * width))
        grid = step.tiling.grid

        passes = self.writer.passes
        n = grid.sizes[grid.active[0]]

        def produce(line: Line) -> list[Value]:
            return load_products(fn, step.kind, line, n, fields["m_point"])

        def vectors(v: Value, state: list[Value]) -> list[Value]:
            tail = (fn.cmp("eq", v, self.vectors - 1), self.valid) if self.valid < lanes else None
            shift = fn.load(step.kind, state[1]) if step.bias else None
            first = fn.add(channel, fn.mul(v, lanes))
            if passes.alone:

                def bins(at: Value) -> list[Value]:
                    return produce(Line(grid.last_regions(True)[0], at, 0, state[0]))

            else:
                passes.columns_inverse(True, state[0], fields["m_point"], produce)
                bins = passes.kept_row
            self.writer.outputs(place, first, 1, 0, lambda _: shift, bins, lambda _: tail)
            return [fn.gep(pointer, width) for pointer in state]

        fn.loop(0, self.vectors, 1, [base, bias], vectors, hint="vector")
