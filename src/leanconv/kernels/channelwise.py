"""Few channels a group, channels adjacent in memory: vectors of channels, tiles of pixels along an output row.

A tile is `width` output pixels of one row by one register of channels.  The weights of one chunk of a row's taps stay
in registers; every pixel under the tile is loaded once for them and multiplied into all outputs that want it:

    taps       w0 w1 w2                              width + 2 loads for 3 * width multiply-adds
    pixels   x0 x1 x2 x3 x4 ...
    sums        s0 s1 s2 ...        s0 += x0 w0, x1 w1, x2 w2;  s1 += x1 w0, ...

A strip is the column of tiles at one place of all rows. A chunk takes all tiles that it has of a row before those of
the next: what comes from far away comes in the order in which it lies there. Where vectors are whole lines of a cache a
chunk may have one strip only (`algorithms.channeltiles`). Rows of taps above and below the image are left out. Where
the image ends on the left and right the first and the last tile leave out the same taps always, so that they are left
out of the code (`Edges.known`); if the pads reach further, or name pixels of the image, the tiles ask where each pixel
lies.

Outputs that no cache will hold are stored past the caches if the output begins with a whole vector: the processor then
does not read the lines that it overwrites, a third of the traffic of a depthwise layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.window import Edges, Window

if TYPE_CHECKING:
    from leanconv.kernels.channelrows import ChannelRowsSpec

SPREAD = 1.3  # times the multiply-adds, where inputs are shuffled for them


@dataclass(frozen=True, slots=True)
class ChannelwiseSpec:
    """What a kernel is specialised for.

    Tiles are `width` pixels wide, or one less (`short`); `single`: one tile is a whole row; `rest` groups are left for
    the last unit (0: none); `stream`: outputs are stored past the caches where they can be; `fetch` arrays (image,
    output) are asked for a tile ahead, in the order of memory if `linear`.  With `perhaps` there may be no tiles of
    either width, in a chunk none at all, and the field `asks` says whether to `fetch` (0: no; LINEAR: as with
    `linear`).
    Buffers: x, w (packed [unit][part][bias][taps][channels][lanes]), out, residual.
    Fields: `{n,b,t,u}_{div,count}` split the chunk's number into image, band of rows, strips and units; `band`,
    `strips`, `units` a chunk, `row_count`, `strip_count`, `strip_long` (those of full width), `unit_count`,
    `unit_whole`; `x_n o_n r_n o_row r_row` bytes between images and output pixels; `in{d} out{d} at{d} step{d} tap{d}`
    as in `Image`.
    """

    target: Target
    dtype: str
    window: Window
    edges: Edges
    lanes: Lanes
    width: int
    short: bool
    single: bool
    whole: bool
    rest: int
    bias: bool
    epilogue: Epilogue
    stream: bool = False
    fetch: int = 0
    linear: bool = False
    perhaps: bool = False

    def stand_in(self, fields: Mapping[str, int]) -> tuple[ChannelRowsSpec, Mapping[str, int]] | None:
        """A kernel that computes the same for images of other extents too, and its fields; None if there is none."""
        from leanconv.kernels.channelrows import for_other_extents  # only here: few networks run at several sizes

        return for_other_extents(self, fields)

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        self.emit_chunk(kernel, kernel.fields)
        return kernel.finish()

    def emit_chunk(self, kernel: KernelFunction, fields: Fields) -> None:
        """Emit all of a kernel's chunk."""
        from leanconv.kernels.channelstrips import Channelwise  # only here: kernels from the cache need it not

        fn = kernel.fn
        image, band, strips, units = (kernel.index(letter) for letter in "nbtu")

        def span(index: Index, size: str, count: str) -> tuple[Value, Value]:
            first = fn.i64(fn.mul(index, fields[size]))
            return first, fn.i64(fn.smin(fn.add(first, fields[size]), fields[count]))

        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        out = fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"]))
        residual = fn.gep(fields.buffer("residual"), fn.mul(image, fields["r_n"])) if self.epilogue.residual else None
        spans = (
            span(band, "band", "row_count"),
            span(strips, "strips", "strip_count"),
            span(units, "units", "unit_count"),
        )

        def run(stream: bool) -> list[Value]:
            Channelwise(fn, fields, self, x, fields.buffer("w"), out, residual, stream).run(*spans)
            return []

        def streamed() -> list[Value]:
            run(True)
            fn.stream_end(self.target.triple)
            return []

        if self.stream:
            address = fn.op(I64, f"ptrtoint ptr {out.name} to i64")
            whole = fn.cmp("eq", fn.urem(address, self.target.vector_bytes), 0)
            fn.if_(whole, streamed, lambda: run(False), hint="whole")
        else:
            run(False)

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Tiles of pixels by one register; a channel that is spread over lanes takes a shuffle for every pixel.

        A byte is read for a few multiply-adds: at stride 2 for two of 16 lanes, half as long as the third level takes.
        """
        lanes, item = self.lanes, 8 if self.dtype == "float64" else 4
        inner = self.window.dims - 1
        taps = math.prod(self.window.kernel) * lanes.group_in
        rows = f["n_count"] * f["row_count"]
        registers = f["unit_count"] * lanes.parts
        pixels = rows * f[f"out{inner}"]
        groups = f["unit_whole"] * lanes.groups + self.rest
        spread = lanes.groups > 1 and lanes.group_in * lanes.group_out > 1
        counts = {
            "multiply": pixels * registers * taps * (SPREAD if spread else 1.0),
            "tile": rows * f["strip_count"] * registers,
        }
        size = math.prod(f[f"in{d}"] for d in range(self.window.dims))
        source = f["n_count"] * size * groups * lanes.group_in * item
        out = pixels * groups * lanes.group_out * item
        return Cost(counts, (), ((out, out),), chunks, ((source, source),))
