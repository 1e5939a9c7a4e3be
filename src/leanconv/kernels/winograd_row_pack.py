"""Weights for Winograd along rows: G times the taps along a row, in panels [panel][bias NR][point][terms][NR].

Terms are rows of the filter, then the phases of a stride, then channels, as the elements of staged rows lie.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channel_runs import gather
from leanconv.kernels.cook_toom import CookToom
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.linear import linear
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.winograd_weights import copy_bias, each_shape


@dataclass(frozen=True, slots=True)
class RowPackSpec:
    """Transform all weights. One chunk is one panel; buffers: weights, bias, w (packed).

    `kernel` taps, rows of them first; `stride` along the row.  Fields: `p_*` for the chunk; `panel_count`; `w_k w_c
    w_0 w_1` bytes between weights; `p_panel` packed bytes of a whole panel.
    """

    target: Target
    dtype: str
    transform: CookToom
    kernel: tuple[int, int]
    stride: int
    channels: int
    panels: PanelShape
    bias: bool

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def lanes(self) -> int:
        """Output channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def kind(self) -> str:
        """A vector of output channels."""
        return vector(SCALARS[self.dtype], self.lanes)

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        panel = fn.i64(kernel.index("p"))
        whole = self.panels.vectors * self.lanes
        source = fn.gep(fields.buffer("weights"), fn.mul(fn.mul(panel, whole), fields["w_k"]))
        packed = fn.gep(fields.buffer("w"), fn.mul(panel, fields["p_panel"]))

        def one(width: int, count: int) -> list[Value]:
            target = packed
            if self.bias:
                bias = fn.gep(fields.buffer("bias"), fn.mul(panel, whole * self.item))
                copy_bias(fn, self.kind, bias, packed, width, count)
                target = fn.gep(packed, width * self.item)
            self._filters(fn, fields, source, target, width, count)
            return []

        each_shape(fn, fields, self.panels, self.lanes, panel, one)
        return kernel.finish()

    def _filters(self, fn: Function, fields: Fields, source: Value, target: Value, width: int, count: int) -> None:
        """All terms of a panel, `count` of whose `width` channels exist."""
        row = width * self.item
        point = self.kernel[0] * self.stride * self.channels * row

        def line(r: Value, _: list[Value]) -> list[Value]:
            for phase in range(self.stride):
                first = fn.add(fn.mul(r, self.stride * self.channels), phase * self.channels)
                filters = fn.gep(fn.gep(source, fn.mul(r, fields["w_0"])), fn.mul(fields["w_1"], phase))

                def channel(c: Value, at: list[Value], phase: int = phase) -> list[Value]:
                    for v in range(width // self.lanes):
                        exist = max(0, min(self.lanes, count - v * self.lanes))
                        first = fn.gep(at[0], fn.mul(fields["w_k"], v * self.lanes))
                        self._term(fn, fields, first, fn.gep(at[1], v * self.target.vector_bytes), phase, point, exist)
                    return [fn.gep(at[0], fields["w_c"]), fn.gep(at[1], row)]

                fn.loop(0, self.channels, 1, [filters, fn.gep(target, fn.mul(first, row))], channel, hint="channel")
            return []

        fn.loop(0, self.kernel[0], 1, [], line, hint="row")

    def _term(
        self, fn: Function, fields: Fields, source: Value, target: Value, phase: int, point: Index, exist: int
    ) -> None:
        """The points of one term of a vector of filters; a phase may have a tap less than the transform."""
        kind, taps = self.kind, []
        for t in range(self.transform.taps):
            if phase + t * self.stride >= self.kernel[1]:
                taps.append(fn.const(kind, 0.0))
                continue
            tap = fn.gep(source, fn.mul(fields["w_1"], t * self.stride))
            taps.append(gather(fn, kind, tap, fields["w_k"], exist))
        for i, value in enumerate(linear(self.transform.weights()).emit(fn, taps, fused=self.target.fma)):
            fn.store(value, fn.gep(target, fn.mul(point, i)))
