"""im2win with vectors along the last axis: the core over windows in a band or the whole tensor (`batchstage.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.batchcost import core_cost
from leanconv.kernels.batchpanels import Place, each_line
from leanconv.kernels.batchstage import BatchStage, each_vectors, line_number
from leanconv.kernels.batchsum import BatchSum, Range
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.reduction import Reduction
from leanconv.kernels.tile import Tile


@dataclass(frozen=True, slots=True)
class BatchBandSpec:
    """Windows out of a band; one chunk is one (image, group, block of rows, panels).

    `reduction` over runs of a window, `stride` that of the columns.  `own`: the chunk copies the columns of `wide`
    pixels at a time to the thread's buffer "scratch" itself; otherwise all are in the buffer windows.  `across`:
    vectors of a tile are of two neighbouring pixels; `ragged` vectors of a pixel hold what whole ones leave over.

    Buffers: x or windows, w (packed), out, residual.  Fields: those of `Place`, `each_line`, `BatchStage` and
    `BatchStageSpec`; `wide` pixels copied at a time; `reach` columns of a window; `tap0` bytes between its runs.
    """

    stage: BatchStage
    reduction: Reduction
    own: bool
    across: bool
    ragged: int
    rows: int
    short: bool
    bias: bool
    epilogue: Epilogue

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.stage.target

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.stage.dtype

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        _Emitter(self, kernel).emit()
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Tiles read the band; a band of the chunk's own is copied once for each group of panels."""
        stage, dims = self.stage, self.stage.dims
        item = 8 if self.dtype == "float64" else 4
        terms, width = f["w_row"] // item - self.bias, f[f"out{dims - 1}"]
        wide = f["wide"] if self.own else width
        held = ((min(wide, width) - 1) * stage.stride[-1] + f["reach"]) * f["column"]
        core = core_cost(self, f, chunks, dims, terms, self.reduction.kernel[0], held=held)
        if not self.own:
            return core
        pieces = -(-width // wide)
        columns = (width - pieces) * stage.stride[-1] + pieces * f["reach"]
        copied = stage.cost(f, f["n_count"] * f["g_count"] * f["k_count"] * columns, min(held, host.l2))
        counts = {name: core.counts.get(name, 0.0) + value for name, value in copied.counts.items()}
        return Cost({**core.counts, **counts}, core.reads + copied.reads, core.writes + copied.writes, chunks)


class BandWindow:
    """A window in the band: runs of terms, all of them there."""

    def __init__(self, fn: Function, fields: Fields, base: Value, runs: int) -> None:
        self.fn, self.fields, self.base, self.runs = fn, fields, base, runs

    def taps(self, dim: int) -> Range:
        """All runs."""
        return 0, self.runs

    def place(self, base: Value, dim: int, tap: Index) -> Value:
        """The address of a run."""
        return self.fn.gep(base, self.fn.mul(tap, self.fields["tap0"])) if self.runs > 1 else base


class _Emitter(Place):
    """The loops of one kernel: rows of output pixels, vectors of a pixel, pieces of a row, pixels."""

    def __init__(self, spec: BatchBandSpec, kernel: KernelFunction) -> None:
        super().__init__(spec, kernel, "x" if spec.own else "windows")
        self.spec = spec

    def emit(self) -> None:
        """All rows of the chunk."""
        each_line(self.fn, self.fields, self.index["b"], self.spec.stage.dims, self._line)

    def _line(self, outer: list[Index]) -> None:
        fn, fields, spec = self.fn, self.fields, self.spec
        width = fields[f"out{spec.stage.dims - 1}"]

        def vectors(number: Index, shift: Index, count: int, left: Value | None) -> None:
            if not spec.own:
                row = fn.mul(line_number(fn, fields, outer), fields["t_line"])
                band = fn.gep(self.x, fn.add(fn.mul(number, fields["t_vectors"]), row))
                self._pixels(band, outer, 0, width, shift, count, left)
                return
            scratch = fn.gep(fields.buffer("scratch"), fn.mul(self.kernel.thread, fields["thread_scratch"]))
            step = spec.stage.stride[-1]

            def piece(first: Value, _: list[Value]) -> list[Value]:
                end = fn.smin(fn.add(first, fields["wide"]), width)
                columns = fn.add(fn.mul(fn.sub(fn.sub(end, first), 1), step), fields["reach"])
                x = fn.gep(self.x, shift)
                spec.stage.columns(fn, fields, x, scratch, outer, fn.mul(first, step), columns, left)
                self._pixels(scratch, outer, first, end, shift, count, left)
                return []

            fn.loop(0, width, fields["wide"], [], piece, hint="piece")

        each_vectors(fn, fields, spec.stage, spec.ragged, vectors)

    def _pixels(
        self, band: Value, outer: list[Index], first: Index, end: Index, shift: Index, count: int, left: Value | None
    ) -> None:
        """The output pixels [first, end) of a row, the first of which starts the band."""
        fn, fields, spec = self.fn, self.fields, self.spec
        step = fn.mul(fields["column"], spec.stage.stride[-1])

        def pixel(at: Index, vectors: int) -> None:
            place = fn.gep(band, fn.mul(fn.sub(at, first), step))
            window = BandWindow(fn, fields, place, spec.reduction.kernel[0])

            def sum_of(tile: Tile) -> BatchSum:
                apart: Index = step if spec.across else spec.target.vector_bytes
                return BatchSum(
                    fn,
                    fields,
                    tile,
                    spec.reduction,
                    left=left,
                    apart=apart,
                    channel=spec.stage.entry,
                    shared=spec.across,
                    padded=True,
                )

            self.all_panels([*outer, at], shift, vectors, window, sum_of)

        def one(at: Value, _: list[Value]) -> list[Value]:
            pixel(at, count)
            return []

        if not spec.across:
            fn.loop(first, end, 1, [], one, hint="pixel")
            return
        paired = fn.add(first, fn.mul(fn.udiv(fn.sub(end, first), 2), 2))

        def two(at: Value, _: list[Value]) -> list[Value]:
            pixel(at, 2)
            return []

        fn.loop(first, paired, 2, [], two, guard=True, hint="pair")
        fn.loop(paired, end, 1, [], one, guard=True, hint="pixel")
