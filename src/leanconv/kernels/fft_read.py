"""The input step of the FFT kernels: a tile's window of one vector of channels, transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_passes import Consume, Line, Passes, store_windows
from leanconv.kernels.fft_rows import Lie, clear, fetch
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.winograd_tiles import Counters, Place


@dataclass(frozen=True, slots=True)
class FftInput:
    """How windows are read and transformed.

    `padded`: some lie partly outside the image; `pad_mode` what is there.  `adjacent`: channels are, or else `runs`:
    pixels of a row; `tail` channels are left over by whole vectors.  Fields: `x_n x_c at{d}` bytes between images,
    channels and pixels; `in{d}`, and `reach{d}` = in + high padding; `channels`; `v_point`, `v_row` bytes between
    points and tiles; `plane_at` from the matrices to a tile's plane, behind which is a row.
    """

    target: Target
    dtype: str
    tiling: FftTiling
    padded: bool
    pad_mode: str
    adjacent: bool
    runs: bool
    tail: int

    @property
    def lanes(self) -> int:
        """Channels in a vector."""
        return self.target.lanes(self.dtype)

    def reader(self, fn: Function, fields: Fields, x: Value, plane: Value, row: Value) -> FftReader:
        """The step inside one kernel, with a plane and a row to work in."""
        kind = vector(SCALARS[self.dtype], self.lanes)
        grid = self.tiling.grid
        passes = Passes(fn, grid, kind, self.target.vector_bytes, self.target.fma, plane)
        return FftReader(self, fn, fields, x, passes, row)

    def emit(self, fn: Function, fields: Fields, x: Value, zeros: Value | None, target: Value) -> FftWindows:
        """An emitter for whole tiles; `target` the matrices."""
        plane = fn.gep(target, fields["plane_at"])
        row = fn.gep(plane, self.tiling.grid.plane_bytes(self.target.vector_bytes))
        return FftWindows(self, self.reader(fn, fields, x, plane, row), target)


@dataclass(frozen=True, slots=True)
class FftReader:
    """The step inside one kernel: reads rows of a window, transforms it, and hands out its bins."""

    step: FftInput
    fn: Function
    fields: Fields
    x: Value
    passes: Passes
    row: Value

    def corner(self, place: Place) -> list[Value]:
        """The position of the first pixel of a tile's window, and zeros in its row where there are none."""
        fn, step = self.fn, self.step
        axes = step.tiling.axes
        corner = [fn.i64(fn.sub(at, axis.pad_low)) for at, axis in zip(place.origin, axes, strict=True)]
        if step.padded:
            filled = self.filled(self.passes.grid.axis)
            clear(fn, self.passes.kind, self.passes.width, self.row, (0, filled))
        return corner

    def filled(self, d: int) -> int:
        """Places along an axis of the image that may be other than zero."""
        return self.passes.grid.windows[d].filled

    def _span(self, corner: list[Value]) -> tuple[Index, Index]:
        """The places of a row that are inside the image, or stand for a pixel that is."""
        fn, step, d = self.fn, self.step, self.passes.grid.axis
        if not step.padded:
            return 0, self.filled(d)
        apart, at = step.tiling.axes[d].dilation, corner[d]

        def below(position: Index) -> Index:
            return fn.udiv(fn.smax(fn.add(fn.sub(position, at), apart - 1), 0), apart)

        zeros = step.pad_mode == "zeros"
        high = fn.smin(below(self.fields[f"in{d}" if zeros else f"reach{d}"]), self.filled(d))
        return fn.smin(below(0), high) if zeros else 0, high

    def window(
        self,
        corner: list[Value],
        image: Value,
        channel: Index,
        to: Value,
        step: Index,
        consume: Consume,
        tail: Value | None,
        gauss: bool,
    ) -> None:
        """All bins of the vector of channels at `channel`, of which only some exist if `tail`.

        `consume` gets the lines of the last pass; bins are numbered from `to` on in steps of `step`.
        """
        self.rows(
            corner,
            image,
            channel,
            1,
            0,
            lambda _: tail,
            lambda at, _, bins: consume(Line(self.passes.grid.last_regions(gauss)[0], at, 0, to), bins),
        )
        self.columns(self.passes, to, step, consume, gauss)

    def rows(
        self,
        corner: list[Value],
        image: Value,
        channel: Index,
        vectors: Index,
        apart: int,
        tail: Callable[[Index], Value | None],
        alone: Callable[[Value, Index, Sequence[Value]], None],
    ) -> None:
        """The spectra of all rows, of several vectors of channels whose planes are `apart`.

        `tail(v)`: whether only some channels of a vector exist; `alone(place, v, bins)` gets those of rows that are all
        there is.
        """
        fn, fields, passes = self.fn, self.fields, self.passes
        grid = passes.grid
        base = fn.gep(self.x, fn.add(fn.mul(image, fields["x_n"]), fn.mul(channel, fields["x_c"])))
        span = self._span(corner)
        given = tuple(range(self.filled(grid.axis)))

        def leaf(v: Index, state: list[Value], inside: Value | None) -> list[Value]:
            self._fetch(state[0], corner, span, inside, tail(v))
            moved = [fn.gep(state[0], fn.mul(fields["x_c"], self.step.lanes)), fn.gep(state[1], apart)]
            if grid.fold is not None:
                plane = replace(passes, plane=state[1])
                plane.spread(self.row, 0, len(given))
                every = tuple(range(grid.fold[1]))
                plane.folded_rows(lambda at: plane.keep_row(plane.row_forward(at, every), at))
                return moved
            bins = passes.row_forward(self.row, given)
            if passes.alone:
                alone(state[1], v, bins)
            else:
                passes.keep_row(bins, state[1])
            return moved

        def rows(rest: list[int], source: Value, inside: Value | None, at: Value) -> None:
            if not rest:
                if vectors == 1:
                    leaf(0, [source, at], inside)
                else:
                    fn.loop(0, vectors, 1, [source, at], lambda v, state: leaf(v, state, inside), hint="vector")
                return
            d = rest[0]

            def one(i: Index, state: list[Value]) -> list[Value]:
                offset, here = self._spot(d, corner[d], i)
                if inside is not None and here is not None:
                    here = fn.both(inside, here)
                rows(rest[1:], fn.gep(source, offset), here if here is not None else inside, state[0])
                return [state[0] if grid.fold is not None else fn.gep(state[0], passes.near(d))]

            if self.filled(d) == 1:
                one(0, [at])
            else:
                fn.loop(0, self.filled(d), 1, [at], one, hint="row")

        rows([d for d in range(len(grid.windows)) if d != grid.axis], base, None, passes.plane)

    def columns(self, passes: Passes, to: Value, step: Index, consume: Consume, gauss: bool) -> None:
        """What follows the rows of one plane."""
        if not passes.alone:
            extents = tuple(w.filled for w in passes.grid.lines)
            passes.columns_forward(lambda d: tuple(range(extents[d])), extents, gauss, to, step, consume)

    def _spot(self, d: int, corner: Value, i: Index) -> tuple[Index, Value | None]:
        """The offset of the i-th place along an axis, and whether there is a pixel (None: always)."""
        fn, fields, step = self.fn, self.fields, self.step
        at = fn.add(corner, fn.mul(i, step.tiling.axes[d].dilation))
        if not step.padded:
            return fn.mul(at, fields[f"at{d}"]), None
        if step.pad_mode == "zeros":
            return fn.mul(at, fields[f"at{d}"]), fn.cmp("ult", at, fields[f"in{d}"])
        inside = fn.cmp("slt", at, fields[f"reach{d}"])
        return fn.mul(mapped_position(fn, fn.i64(at), fields[f"in{d}"], step.pad_mode), fields[f"at{d}"]), inside

    def _fetch(
        self, source: Value, corner: list[Value], span: tuple[Index, Index], inside: Value | None, tail: Value | None
    ) -> None:
        """The pixels of a row, or zeros."""
        fn, fields, step, d = self.fn, self.fields, self.step, self.passes.grid.axis
        dilation = step.tiling.axes[d].dilation
        lie = Lie(step.adjacent, step.runs, fn.mul(fields[f"at{d}"], dilation), fields["x_c"])
        position = None
        if step.padded and step.pad_mode != "zeros":
            lie = Lie(step.adjacent, False, fields[f"at{d}"], fields["x_c"])

            def mapped(j: Value) -> Index:
                at = fn.i64(fn.add(corner[d], fn.mul(j, dilation)))
                return mapped_position(fn, at, fields[f"in{d}"], step.pad_mode)

            position = mapped
        else:
            source = fn.gep(source, fn.mul(corner[d], fields[f"at{d}"]))

        def some(count: int) -> list[Value]:
            fetch(fn, step.target, self.passes.kind, lie, source, span, self.row, count, position)
            return []

        def take() -> list[Value]:
            if tail is None:
                return some(step.lanes)
            return fn.if_(tail, lambda: some(step.tail), lambda: some(step.lanes), hint="tail")

        def nothing() -> list[Value]:
            clear(fn, self.passes.kind, self.passes.width, self.row, span)
            return []

        if inside is None:
            take()
        else:
            fn.if_(inside, take, nothing, hint="inside")


@dataclass(frozen=True, slots=True)
class FftWindows:
    """Windows of all channels, or of those of a span, as matrices [point][tile][channel]."""

    step: FftInput
    reader: FftReader
    target: Value
    span: tuple[Index, Index] | None = None

    def tile(self, place: Place, rows: Counters) -> None:
        """Transform one tile; `rows` its row in the matrices."""
        fn, fields, step = self.reader.fn, self.reader.fields, self.step
        (row,) = rows.values()
        low, high = self.span or (0, fields["channels"])
        to = fn.gep(
            self.target, fn.add(fn.mul(row, fields["v_row"]), fn.mul(low, step.target.vector_bytes // step.lanes))
        )
        corner = self.reader.corner(place)
        grid = step.tiling.grid

        def consume(line: Line, values: Sequence[Value]) -> None:
            store_windows(fn, line, grid.sizes[grid.active[0]], values, fields["v_point"])

        def channels(c: Value, state: list[Value]) -> list[Value]:
            tail = fn.cmp("sgt", c, fn.sub(fields["channels"], step.lanes)) if step.tail else None
            self.reader.window(corner, place.image, c, state[0], fields["v_point"], consume, tail, True)
            return [fn.gep(state[0], step.target.vector_bytes)]

        fn.loop(low, high, step.lanes, [to], channels, hint="channel")
