"""Convolution by FFT whose windows and products all threads share: a phase for each step.

Windows are large and hence few, often one block of four to sixteen; a chunk of the fused form (`fft.py`) is a block and
some panels.  Here chunks are as small as threads like, and nothing is computed twice:

    windows     a tile's, of some vectors of channels  ->  V [group][point][tile][channel]
    multiply    some points of one panel               ->  M [group][panel][point][tile][NR]
    outputs     a tile's, of one panel                 ->  pixels

V and M are shared by all threads; each has a plane and a row of its own ("scratch") to work in.
"""

from __future__ import annotations

from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fft_grid import FftTiling
from leanconv.kernels.fft_read import FftInput, FftWindows
from leanconv.kernels.fft_write import FftOutput, FftProducts
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.winograd_products import Products, ask_next_point
from leanconv.kernels.winograd_tiles import Counters, Place
from leanconv.kernels.winograd_weights import each_shape


def _working_place(kernel: KernelFunction, tiling: FftTiling, target: Target) -> tuple[Value, Value]:
    """The plane and the row of the thread."""
    fn, fields = kernel.fn, kernel.fields
    plane = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
    return plane, fn.gep(plane, tiling.grid.plane_bytes(target.vector_bytes))


def _tile(kernel: KernelFunction, tiling: FftTiling, body: Callable[[Place, Counters], None]) -> None:
    """Emit `body` for the tile of the chunk; all are of one class."""
    fn, number = kernel.fn, kernel.fn.i64(kernel.index("b"))
    (bits,) = tiling.classes
    start = tiling.start(fn, kernel.fields, number)
    tiling.each(fn, kernel.fields, number, fn.i64(fn.add(number, 1)), start, body, {bits: number})


@dataclass(frozen=True, slots=True)
class FftWindowsSpec:
    """The first phase.

    Fields besides those of the step: `g_* b_* k_*` for the chunk, `k_count` parts of the `vectors` of channels;
    `x_g v_g` bytes between groups.
    """

    read: FftInput

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.read.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, read = kernel.fn, kernel.fields, self.read
        group, part = kernel.index("g"), kernel.index("k")
        reader = read.reader(
            fn,
            fields,
            fn.gep(fields.buffer("x"), fn.mul(group, fields["x_g"])),
            *_working_place(kernel, read.tiling, self.target),
        )
        low, high = (
            fn.mul(fn.udiv(fn.mul(n, fields["vectors"]), fields["k_count"]), read.lanes)
            for n in (part, fn.add(part, 1))
        )
        windows = fn.gep(fields.buffer("windows"), fn.mul(group, fields["v_g"]))
        matrices = FftWindows(read, reader, windows, (low, fn.smin(high, fields["channels"])))
        _tile(kernel, read.tiling, matrices.tile)
        return kernel.finish()


@dataclass(frozen=True, slots=True)
class FftMultiplySpec:
    """The second phase.

    Fields besides those of `Products`: `g_* p_* k_*` for the chunk, `k_count` parts of the points; `tile_count`
    tiles; `w_g w_panel` bytes of weights a group and whole panel, `u_point u_last` from point to point in whole panels
    and the last; `v_g m_g m_panel` bytes between groups and panels.
    """

    target: Target
    dtype: str
    points: int
    reduction: Reduction
    panels: PanelShape
    bias: bool
    asked: int

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        module.hides = True  # see `WinogradSpec.emit`
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, panel, part = kernel.index("g"), fn.i64(kernel.index("p")), kernel.index("k")
        low, high = (fn.i64(fn.udiv(fn.mul(n, self.points), fields["k_count"])) for n in (part, fn.add(part, 1)))
        windows = fn.gep(fields.buffer("windows"), fn.add(fn.mul(group, fields["v_g"]), fn.mul(low, fields["v_point"])))
        weights = fn.add(fn.mul(group, fields["w_g"]), fn.mul(panel, fields["w_panel"]))
        products = fn.add(fn.mul(group, fields["m_g"]), fn.mul(panel, fields["m_panel"]))
        to = fn.gep(fields.buffer("products"), fn.add(products, fn.mul(low, fields["m_point"])))
        lanes = self.target.lanes(self.dtype)

        def shape(width: int, _: int) -> list[Value]:
            product = Products(
                self.target, self.dtype, self.reduction, width // lanes, False, self.asked, ask_next_point
            )
            heights = product.heights(fn, fields, fields["tile_count"])
            point = fields["u_point" if width == self.panels.vectors * lanes else "u_last"]
            bias = product.row if self.bias else 0
            first = fn.gep(fields.buffer("w"), fn.add(fn.add(weights, bias), fn.mul(low, point)))
            steps = [fields["v_point"], point, fields["m_point"]]

            def one(_: Value, state: list[Value]) -> list[Value]:
                product.point(fn, fields, heights, state)
                return [fn.gep(pointer, step) for pointer, step in zip(state, steps, strict=True)]

            fn.loop(low, high, 1, [windows, first, to], one, guard=True, hint="point")
            return []

        each_shape(fn, fields, self.panels, lanes, panel, shape)
        return kernel.finish()


@dataclass(frozen=True, slots=True)
class FftOutputsSpec:
    """The third phase.

    Fields besides those of the step: `g_* p_* b_*` for the chunk; `o_g r_g w_g` bytes of outputs, residual and weights
    between groups; `w_panel m_g m_panel` as in the phase before.
    """

    write: FftOutput
    panels: PanelShape

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.write.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, write = kernel.fn, kernel.fields, self.write
        group, panel = kernel.index("g"), fn.i64(kernel.index("p"))
        lanes = self.target.lanes(write.dtype)

        def group_of(role: str, letter: str) -> Value:
            return fn.gep(fields.buffer(role), fn.mul(group, fields[f"{letter}_g"]))

        bias = fn.gep(group_of("w", "w"), fn.mul(panel, fields["w_panel"]))
        products = fn.gep(group_of("products", "m"), fn.mul(panel, fields["m_panel"]))
        residual = group_of("residual", "r") if write.epilogue.residual else None
        working = _working_place(kernel, write.tiling, self.target)
        writer = write.writer(fn, fields, *working, group_of("out", "o"), residual)
        channel = fn.mul(panel, self.panels.vectors * lanes)

        def shape(width: int, count: int) -> list[Value]:
            vectors = width // lanes
            matrices = FftProducts(write, writer, products, vectors, count - (vectors - 1) * lanes)
            _tile(kernel, write.tiling, lambda place, rows: matrices.tile(place, rows, channel, bias))
            return []

        each_shape(fn, fields, self.panels, lanes, panel, shape)
        return kernel.finish()
