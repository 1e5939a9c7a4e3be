"""Depthwise convolution by FFT: a vector of channels goes through all passes over one plane.

A chunk is one (tile, vector of channels).  Along the first axis a line is transformed, multiplied with the filters'
bins and transformed back without leaving its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_passes import Line, times_weights
from leanconv.kernels.fft_read import FftInput
from leanconv.kernels.fft_write import FftOutput
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.winograd_tiles import Counters, Place

TOGETHER = 40  # longest line that is transformed forth and back in one loop: longer ones do not fit the code's cache


@dataclass(frozen=True, slots=True)
class FftLanesSpec:
    """Everything the kernel is specialised for.

    `group` vectors of channels go side by side: with channels last they share cache lines.  Fields besides those of the
    steps: `k_* b_*` for the chunk; `vectors` of channels, `w_panel` bytes of bins (and biases) a vector.  Buffer
    "scratch": `group` planes and a row a thread.
    """

    target: Target
    dtype: str
    tiling: FftTiling
    read: FftInput
    write: FftOutput
    group: int

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, write = kernel.fn, kernel.fields, self.write
        lanes, width, grid = self.target.lanes(self.dtype), self.target.vector_bytes, self.tiling.grid
        first, number = fn.i64(fn.mul(kernel.index("k"), self.group)), fn.i64(kernel.index("b"))
        plane = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        apart = grid.plane_bytes(width)
        weights = fn.gep(fields.buffer("w"), fn.mul(first, fields["w_panel"]))
        before = width if write.bias else 0
        channel = fn.mul(first, lanes)
        last = fn.sub(fn.sub(fields["vectors"], 1), first)
        count = 1 if self.group == 1 else fn.smin(self.group, fn.add(last, 1))
        residual = fields.buffer("residual") if write.epilogue.residual else None
        row = fn.gep(plane, self.group * apart)
        reader = self.read.reader(fn, fields, fields.buffer("x"), plane, row)
        writer = write.writer(fn, fields, plane, row, fields.buffer("out"), residual)
        passes, n = reader.passes, grid.sizes[grid.active[0]]

        def partial(v: Index) -> Value | None:
            return fn.cmp("eq", v, last) if self.read.tail else None

        def tail(v: Index) -> tuple[Value, int] | None:
            flag = partial(v)
            return None if flag is None else (flag, self.read.tail)

        def bias(v: Index) -> Value | None:
            return fn.load(write.kind, weights, fn.mul(fields["w_panel"], v)) if write.bias else None

        def alone(at: Value, v: Index, bins: Sequence[Value]) -> None:
            factors = fn.gep(weights, fn.add(fn.mul(fields["w_panel"], v), before))
            line = Line(grid.last_regions(False)[0], at, 0, factors)
            passes.keep_row(times_weights(fn, line, n, bins, factors, self.target.fma), at)

        def column(v: Index, state: list[Value]) -> list[Value]:
            here = replace(passes, plane=state[0])

            def multiply(line: Line, bins: Sequence[Value]) -> None:
                products = times_weights(fn, line, n, bins, line.point, self.target.fma)
                if n > TOGETHER:
                    here.keep(line, grid.active[0], products)
                else:
                    here.line_inverse(line, products)

            reader.columns(here, fn.gep(state[1], before), width, multiply, False)
            every = tuple(range(n))
            here.columns_inverse(
                False, plane, 0, (lambda line: here.taken(line, grid.active[0], every)) if n > TOGETHER else None
            )
            return [fn.gep(state[0], apart), fn.gep(state[1], fields["w_panel"])]

        def tile(place: Place, _: Counters) -> None:
            reader.rows(reader.corner(place), place.image, channel, count, apart, partial, alone)
            if passes.columns and self.group == 1:
                column(0, [plane, weights])
            elif passes.columns:
                fn.loop(0, count, 1, [plane, weights], column, hint="vector")
            writer.outputs(place, channel, count, apart, bias, passes.kept_row, tail)

        start = self.tiling.start(fn, fields, number)
        self.tiling.each(fn, fields, number, fn.i64(fn.add(number, 1)), start, tile)
        return kernel.finish()
