"""Packed weights: [group][panel][bias NR][taps][channels][NR], what the register-tiled core reads from end to end.

NR is the width of a panel (`Panels`); output channels past the last are zeros, or left out (`tight`).  Taps and
channels stand in the order in which they are summed, which an algorithm may choose.  The bias heads its panel, so that
accumulators start from it.  A convolution is bound to its weights by running this kernel once; a call with weights that
may change runs it first.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import store_lanes
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.panels import PanelShape


@dataclass(frozen=True, slots=True)
class PackSpec:
    """Weights to panels. One chunk is one panel of one group; buffers: weights, bias, w (packed).

    Fields: `g_*`, `p_*` for the chunk; `panel_count`; `channels`; `w_k w_c w_{d}` bytes between weights along
    output channels, input channels and kernel dimensions; `w_g` bytes between groups; `p_g`, `p_panel` packed
    bytes per group and whole panel; `bias_g` bytes of bias per group.  `order` lists the axes of a panel, outermost
    first: kernel dimensions by number, and channels as the number after the last.  `outputs` channels a whole panel
    holds, if fewer than its lanes (0: as many).  `tight`: rows of the last panel hold only the channels there are.
    `block` channels stand in that order before the next ones (0: all do).
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    panels: PanelShape
    bias: bool
    order: tuple[int, ...]
    outputs: int = 0
    tight: bool = False
    block: int = 0

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, panel = kernel.index("g"), fn.i64(kernel.index("p"))
        lanes = self.target.lanes(self.dtype)
        item = 8 if self.dtype == "float64" else 4
        shape = self.panels
        whole = shape.vectors * lanes
        outputs = self.outputs or whole
        source = fn.gep(fields.buffer("weights"), fn.mul(group, fields["w_g"]))
        source = fn.gep(source, fn.mul(fn.mul(panel, outputs), fields["w_k"]))
        packed = fn.gep(fields.buffer("w"), fn.mul(group, fields["p_g"]))
        packed = fn.gep(packed, fn.mul(panel, fields["p_panel"]))
        bias = None
        if self.bias:
            bias = fn.gep(fields.buffer("bias"), fn.mul(group, fields["bias_g"]))
            bias = fn.gep(bias, fn.mul(panel, outputs * item))

        def one(width: int, count: int) -> list[Value]:
            self._panel(fn, fields, source, bias, packed, width, count)
            return []

        is_last = fn.cmp("eq", fn.add(panel, 1), fields["panel_count"])
        if not shape.last:
            one(whole, outputs)
        else:
            tail = (shape.last - 1) * lanes + shape.valid
            if shape.whole:
                fn.if_(is_last, lambda: one(shape.last * lanes, tail), lambda: one(whole, outputs), hint="last")
            else:
                one(shape.last * lanes, tail)
        return kernel.finish()

    def _panel(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        bias: Value | None,
        packed: Value,
        width: int,
        count: int,
    ) -> None:
        """One panel of `width` output channels of which `count` exist."""
        if self.tight:
            width = count
        scalar = SCALARS[self.dtype]
        lanes = self.target.lanes(self.dtype)
        item = 8 if self.dtype == "float64" else 4

        def row(base: Value, step: Index, target: Value) -> None:
            """Gather one element of each output channel into one row."""
            for first in range(0, width, lanes):
                value = fn.const(vector(scalar, lanes), 0.0)
                for lane in range(min(lanes, max(0, count - first))):
                    element = fn.load(scalar, base, fn.mul(step, first + lane))
                    value = fn.op(
                        value.type,
                        f"insertelement {value.type} {value.name}, {scalar} {element.name}, i32 {lane}",
                    )
                store_lanes(fn, value, fn.gep(target, first * item), min(lanes, width - first), masks=self.target.masks)

        if bias is not None:
            row(bias, item, packed)
            packed = fn.gep(packed, width * item)

        def axes(level: int, base: Value, target: Value, some: Index) -> Value:
            axis = self.order[level]
            channels = axis == len(self.kernel)

            def element(_: Value, state: list[Value]) -> list[Value]:
                if level + 1 < len(self.order):
                    after = axes(level + 1, state[0], state[1], some)
                else:
                    row(state[0], fields["w_k"], state[1])
                    after = fn.gep(state[1], width * item)
                return [fn.gep(state[0], fields["w_c" if channels else f"w_{axis}"]), after]

            count = some if channels else self.kernel[axis]
            return fn.loop(0, count, 1, [base, target], element, hint="pack")[1]

        total = fields["channels"]
        if not self.block:
            axes(0, source, packed, total)
            return

        def block(first: Value, state: list[Value]) -> list[Value]:
            after = axes(0, state[0], state[1], fn.smin(fn.sub(total, first), self.block))
            return [fn.gep(state[0], fn.mul(fields["w_c"], self.block)), after]

        fn.loop(0, total, self.block, [source, packed], block, hint="block")
