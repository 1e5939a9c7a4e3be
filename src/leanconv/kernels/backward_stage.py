"""The gradient of an output, staged for sums over pixels: [pixel][output channels], a box of pixels at a time."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.boxes import Box
from leanconv.kernels.epilogue import load_lanes, transpose
from leanconv.kernels.fields import Fields


@dataclass(frozen=True, slots=True)
class GradientRows:
    """How the gradient lies: `channels` or `pixels` (of the last dimension) adjacent; neither: any strides.

    Fields: `y_n y_{d}` bytes between images and positions, `y_k` between channels.
    """

    target: Target
    dtype: str
    dims: int
    channels: bool
    pixels: bool

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    def emit(
        self, fn: Function, fields: Fields, grad: Value, staged: Value, box: Box, vectors: int, valid: int
    ) -> None:
        """Copy `vectors` registers of channels of a box's pixels; in the last one `valid` channels exist."""
        width = vectors * self.target.vector_bytes

        def level(dim: int, source: Value, target: Value) -> Value:
            first, end = box.ranges[dim] if dim >= 0 else box.images
            step = fields[f"y_{dim}"] if dim >= 0 else fields["y_n"]
            start = fn.gep(source, fn.mul(first, step))
            if dim == self.dims - 1:
                self._line(fn, fields, start, target, fn.i64(fn.sub(end, first)), vectors, valid)
                return fn.gep(target, fn.mul(fn.sub(end, first), width))

            def part(_: Value, state: list[Value]) -> list[Value]:
                return [fn.gep(state[0], step), level(dim + 1, state[0], state[1])]

            return fn.loop(first, end, 1, [start, target], part, hint="stage")[1]

        level(-1, grad, staged)

    def _line(
        self, fn: Function, fields: Fields, source: Value, target: Value, count: Value, vectors: int, valid: int
    ) -> None:
        """Pixels of the last dimension."""
        lanes, width = self.target.lanes(self.dtype), self.target.vector_bytes
        kind = vector(SCALARS[self.dtype], lanes)
        step: Index = self.item if self.pixels and not self.channels else fields[f"y_{self.dims - 1}"]
        done: Index = 0
        state = [source, target]
        counts = [lanes] * (vectors - 1) + [valid]
        if self.pixels and not self.channels:
            done = fn.mul(fn.udiv(count, lanes), lanes)

            def block(_: Value, state: list[Value]) -> list[Value]:
                for v, number in enumerate(counts):
                    rows = [
                        fn.load(kind, fn.gep(state[0], fn.mul(fields["y_k"], v * lanes + lane)))
                        for lane in range(number)
                    ]
                    for pixel, value in enumerate(transpose(fn, rows)):
                        fn.store(value, state[1], (pixel * vectors + v) * width)
                return [fn.gep(state[0], lanes * self.item), fn.gep(state[1], lanes * vectors * width)]

            state = fn.loop(0, done, lanes, state, block, guard=True, hint="block")

        def pixel(_: Value, state: list[Value]) -> list[Value]:
            for v, number in enumerate(counts):
                if self.channels:
                    place = fn.gep(state[0], v * width)
                    value = load_lanes(fn, kind, place, number, masks=self.target.masks)
                else:
                    value = self._gathered(fn, fields, state[0], kind, v * lanes, number)
                fn.store(value, state[1], v * width)
            return [fn.gep(state[0], step), fn.gep(state[1], vectors * width)]

        fn.loop(done, count, 1, state, pixel, guard=True, hint="pixel")

    def _gathered(self, fn: Function, fields: Fields, source: Value, kind: str, first: int, count: int) -> Value:
        """Channels one by one."""
        scalar = SCALARS[self.dtype]
        value = fn.const(kind, 0.0)
        for lane in range(count):
            element = fn.load(scalar, fn.gep(source, fn.mul(fields["y_k"], first + lane)))
            value = fn.op(kind, f"insertelement {kind} {value.name}, {scalar} {element.name}, i32 {lane}")
        return value
