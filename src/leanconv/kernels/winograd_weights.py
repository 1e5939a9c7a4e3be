"""Winograd's weights: G g G^T of every filter, in panels [group][panel][bias NR][point][channels][NR]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.channel_runs import gather
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.linear import linear
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.winograd_tiles import Tiling, Turns, over, row_major


@dataclass(frozen=True, slots=True)
class WeightStep:
    """How the filters of a panel are transformed; fields `channels`, `w_k w_c w_{d}` bytes between weights."""

    target: Target
    dtype: str
    tiling: Tiling

    @property
    def lanes(self) -> int:
        """Output channels in a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, fn: Function, fields: Fields, source: Value, target: Value, width: int, count: int) -> None:
        """Write [point][channel][width] from filters at `source`; the first `count` of `width` channels exist."""
        stack = fn.alloca(self.tiling.points * self.target.vector_bytes)
        point = fn.mul(fields["channels"], width * self.item)

        def channel(_: Value, state: list[Value]) -> list[Value]:
            for first in range(0, width, self.lanes):
                exist = max(0, min(self.lanes, count - first))
                base = fn.gep(state[0], fn.mul(fields["w_k"], first))
                self._vector(fn, fields, base, fn.gep(state[1], first * self.item), point, stack, exist)
            return [fn.gep(state[0], fields["w_c"]), fn.gep(state[1], width * self.item)]

        fn.loop(0, fields["channels"], 1, [source, target], channel, hint="channel")

    def _vector(
        self, fn: Function, fields: Fields, source: Value, target: Value, point: Index, stack: Value, count: int
    ) -> None:
        """All points of one input channel of a vector of filters."""
        axes, active = self.tiling.axes, self.tiling.active
        kind = vector(SCALARS[self.dtype], self.lanes)
        near = [self.target.vector_bytes * n for n in row_major(self.tiling.sizes)]
        far = [fn.mul(point, n) for n in row_major(self.tiling.sizes)]

        def along(d: int) -> None:
            first, final = d == active[0], d == active[-1]
            program = linear(axes[d].transform.weights())

            def line(state: list[Value], _: tuple[int, ...]) -> None:
                taps = range(axes[d].transform.taps)
                if first:
                    steps = fields[f"w_{d}"]
                    taken = [gather(fn, kind, fn.gep(state[0], fn.mul(steps, j)), fields["w_k"], count) for j in taps]
                else:
                    taken = [fn.load(kind, state[0], near[d] * j) for j in taps]
                for j, value in enumerate(program.emit(fn, taken, fused=self.target.fma)):
                    fn.store(value, fn.gep(state[1], fn.mul(far[d], j)) if final else fn.gep(state[1], near[d] * j))

            loops = []
            for k, axis in enumerate(axes):
                if k != d:
                    done = k in active and k < d
                    spans = [(axis.transform.size if done else axis.transform.taps, 0)]
                    loops.append(Turns(spans, [fields[f"w_{k}"] if first else near[k], far[k] if final else near[k]]))
            over(fn, loops, [source if first else stack, target if final else stack], line)

        for d in active:
            along(d)


@dataclass(frozen=True, slots=True)
class WinogradPackSpec:
    """Transform all weights. One chunk is one panel of one group; buffers: weights, bias, w (packed).

    Fields: `g_* p_*` for the chunk; `panel_count`; those of `WeightStep`; `w_g` bytes between groups; `p_g`, `p_panel`
    packed bytes a group and a whole panel; `bias_g` bytes of bias a group.
    """

    step: WeightStep
    panels: PanelShape
    bias: bool

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.step.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, panel = kernel.index("g"), fn.i64(kernel.index("p"))
        whole = self.panels.vectors * self.step.lanes
        source = fn.gep(fields.buffer("weights"), fn.mul(group, fields["w_g"]))
        source = fn.gep(source, fn.mul(fn.mul(panel, whole), fields["w_k"]))
        packed = fn.gep(fields.buffer("w"), fn.mul(group, fields["p_g"]))
        packed = fn.gep(packed, fn.mul(panel, fields["p_panel"]))

        def one(width: int, count: int) -> list[Value]:
            target = packed
            if self.bias:
                shift = fn.gep(fields.buffer("bias"), fn.mul(group, fields["bias_g"]))
                copy_bias(fn, self.step, fn.gep(shift, fn.mul(panel, whole * self.step.item)), packed, width, count)
                target = fn.gep(packed, width * self.step.item)
            self.step.emit(fn, fields, source, target, width, count)
            return []

        each_shape(fn, fields, self.panels, self.step.lanes, panel, one)
        return kernel.finish()


def each_shape(
    fn: Function,
    fields: Fields,
    panels: PanelShape,
    lanes: int,
    panel: Value,
    one: Callable[[int, int], list[Value]],
) -> None:
    """Emit `one(width, channels that exist)` for whole panels and for the last one, and branch between them."""
    whole = panels.vectors * lanes
    last = (panels.last * lanes, (panels.last - 1) * lanes + panels.valid)
    if not panels.last:
        one(whole, whole)
    elif not panels.whole:
        one(*last)
    else:
        is_last = fn.cmp("eq", fn.add(panel, 1), fields["panel_count"])
        fn.if_(is_last, lambda: one(*last), lambda: one(whole, whole), hint="last")


def copy_bias(fn: Function, step: WeightStep, source: Value, target: Value, width: int, count: int) -> None:
    """The biases of a panel, zeros behind the last."""
    kind = vector(SCALARS[step.dtype], step.lanes)
    for first in range(0, width, step.lanes):
        exist = max(0, min(step.lanes, count - first))
        fn.store(gather(fn, kind, fn.gep(source, first * step.item), step.item, exist), target, first * step.item)
