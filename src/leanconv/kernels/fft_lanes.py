"""Depthwise convolution by FFT: a vector of channels goes through all passes over one plane.

A chunk is one (tile, vector of channels).  Along the first axis a line is transformed, multiplied with the filters'
bins and transformed back without leaving its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.codegen.ir import Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_passes import Line, times_weights
from leanconv.kernels.fft_read import FftInput
from leanconv.kernels.fft_write import FftOutput
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.winograd_tiles import Counters, Place


@dataclass(frozen=True, slots=True)
class FftLanesSpec:
    """Everything the kernel is specialised for.

    Fields besides those of the steps: `k_* b_*` for the chunk; `vectors` of channels, `w_panel` bytes of bins (and
    biases) a vector.  Buffer "scratch": a plane and a row a thread.
    """

    target: Target
    dtype: str
    tiling: FftTiling
    read: FftInput
    write: FftOutput

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, write = kernel.fn, kernel.fields, self.write
        lanes, width, grid = self.target.lanes(self.dtype), self.target.vector_bytes, self.tiling.grid
        vector, number = fn.i64(kernel.index("k")), fn.i64(kernel.index("b"))
        plane = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        weights = fn.gep(fields.buffer("w"), fn.mul(vector, fields["w_panel"]))
        bias = fn.load(write.kind, weights) if write.bias else None
        bins_at = fn.gep(weights, width if write.bias else 0)
        channel = fn.mul(vector, lanes)
        last = fn.cmp("eq", fn.add(vector, 1), fields["vectors"]) if self.read.tail else None
        residual = fields.buffer("residual") if write.epilogue.residual else None
        reader = self.read.reader(fn, fields, fields.buffer("x"), plane)
        writer = write.writer(fn, fields, plane, fields.buffer("out"), residual)

        def multiply(line: Line, values: Sequence[Value]) -> None:
            n = grid.sizes[grid.active[0]]
            products = times_weights(fn, line, n, values, line.point, self.target.fma)
            if reader.passes.alone:
                reader.passes.keep_row(products, line.at)
            else:
                reader.passes.line_inverse(line, products)

        def tile(place: Place, _: Counters) -> None:
            corner = reader.corner(place)
            reader.window(corner, place.image, channel, bins_at, fn.i64(width), multiply, last, False)
            tail = None if last is None else (last, self.read.tail)
            writer.outputs(place, channel, bias, plane, 0, None, tail, False)

        start = self.tiling.start(fn, fields, number)
        self.tiling.each(fn, fields, number, fn.i64(fn.add(number, 1)), start, tile)
        return kernel.finish()
