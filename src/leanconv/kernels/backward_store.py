"""What ends a gradient with respect to weights: lanes written to where results lie, and the gradient of the bias."""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.backward_stage import GradientRows
from leanconv.kernels.boxes import Box, each_box
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.panels import PanelShape, each_panel


def put_lanes(fn: Function, value: Value, place: Value, step: Index, count: int, *, accumulate: bool = False) -> None:
    """Store the first `count` lanes `step` bytes apart; `accumulate`: added to what is there."""
    scalar = value.type[1:-1].split(" x ")[1]
    for lane in range(count):
        element = fn.op(scalar, f"extractelement {value.type} {value.name}, i32 {lane}")
        target = fn.gep(place, fn.mul(step, lane))
        if accumulate:
            element = fn.binary("fadd", fn.load(scalar, target), element)
        fn.store(element, target)


def add_staged(fn: Function, box: Box, kind: str, staged: Value, totals: Value, vectors: int, nbytes: int) -> None:
    """Add the staged pixels of a box, rows of so many vectors of `nbytes`, to totals: the gradient of the bias."""
    count: Index = fn.sub(box.images[1], box.images[0])
    for extent in box.extents:
        count = fn.mul(count, extent)

    def row(at: Value, state: list[Value]) -> list[Value]:
        line = fn.gep(staged, fn.mul(at, vectors * nbytes))
        return [fn.binary("fadd", acc, fn.load(kind, line, v * nbytes)) for v, acc in enumerate(state)]

    accs = fn.loop(0, count, 1, [fn.const(kind, 0.0)] * vectors, row, hint="bias")
    for v, acc in enumerate(accs):
        fn.store(fn.binary("fadd", fn.load(kind, totals, v * nbytes), acc), totals, v * nbytes)


@dataclass(frozen=True, slots=True)
class BiasGradientSpec:
    """The gradient of the bias alone, for algorithms that do not stage all pixels; a chunk is a panel of a group.

    The sums have the order of those beside `BackwardWeightsSpec`.  Buffers: weights (the gradient of the output),
    bias; scratch (staged gradient) of each thread.  Fields: `g_* k_*` for the chunk; `batch out{d}`; `b_n b_{d}` sizes
    of a box; `y_n y_g y_k y_{d}` bytes of the gradient; `bias_g`; `panel_count panel_whole`.
    """

    target: Target
    dtype: str
    panels: PanelShape
    gradient: GradientRows

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, at = fn.i64(kernel.index("g")), fn.i64(kernel.index("k"))
        width, lanes, item = self.target.vector_bytes, self.target.lanes(self.dtype), self.gradient.item
        kind = vector(SCALARS[self.dtype], lanes)
        staged = fn.gep(fields.buffer("scratch"), fn.mul(kernel.thread, fields["thread_scratch"]))
        totals = fn.alloca(max(self.panels.vectors, self.panels.last) * width)

        def panel(number: Value, vectors: int, valid: int, _: bool) -> None:
            first = fn.mul(number, self.panels.vectors * lanes)
            grad = fn.gep(fields.buffer("weights"), fn.mul(group, fields["y_g"]))
            grad = fn.gep(grad, fn.mul(first, fields["y_k"]))
            for v in range(vectors):
                fn.store(fn.const(kind, 0.0), totals, v * width)

            def add(box: Box) -> None:
                self.gradient.emit(fn, fields, grad, staged, box, vectors, valid)
                add_staged(fn, box, kind, staged, totals, vectors, width)

            each_box(fn, fields, self.gradient.dims, add)
            bias = fn.gep(fields.buffer("bias"), fn.mul(group, fields["bias_g"]))
            bias = fn.gep(bias, fn.mul(first, item))
            for v in range(vectors):
                count = valid if v == vectors - 1 else lanes
                put_lanes(fn, fn.load(kind, totals, v * width), fn.gep(bias, v * width), item, count)

        each_panel(fn, fields, self.panels, lanes, (at, fn.i64(fn.add(at, 1))), panel)
        return kernel.finish()

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """The gradient is staged and read once."""
        f = fields
        pixels = f["batch"] * math.prod(f[f"out{d}"] for d in range(self.gradient.dims))
        vectors = pixels * f["g_count"] * (self.panels.vectors * f["panel_whole"] + self.panels.last)
        nbytes = vectors * self.target.vector_bytes
        counts = {"vector": vectors} if self.gradient.channels else {"block": vectors}
        return Cost(counts | {"store": vectors}, ((nbytes, nbytes),), (), chunks)
