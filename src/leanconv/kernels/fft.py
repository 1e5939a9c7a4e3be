"""Convolution by FFT, fused: a block of tiles goes through all steps while it is in the cache.

As in `winograd.py`, whose kernel this is but for the transforms: windows to matrices [point][tile][channel], a real
matrix product for each point and panel of output channels, products to outputs.  A complex bin is multiplied as three
real points: (a + b i)(c + d i) = c (a + b) - b (c + d) + (c (a + b) + a (d - c)) i.
"""

from __future__ import annotations

from leanconv.classes import dataclass, replace
from leanconv.codegen.ir import Function, Value
from leanconv.kernels.fields import Fields
from leanconv.kernels.winograd import Chunk, WinogradSpec
from leanconv.kernels.winograd_fly import FlyStep
from leanconv.kernels.winograd_products import Heights, Products, ask_next_point
from leanconv.kernels.winograd_tiles import Bits


@dataclass(frozen=True, slots=True)
class FftSpec(WinogradSpec):
    """Everything the kernel is specialised for; as `WinogradSpec`, with the steps' own fields."""

    def _zeros(self, fn: Function, fields: Fields, scratch: Value) -> Value | None:
        return None

    def _products(
        self,
        fn: Function,
        fields: Fields,
        chunk: Chunk,
        product: Products,
        heights: dict[Bits, tuple[Value, ...]],
        begin: list[Value],
        fly: FlyStep | None,
    ) -> None:
        """The matrix product of every point: tiles are all of one class."""
        steps = [fields["v_point"], self._point_bytes(fields, product.vectors), fields["m_point"]]
        (height,) = heights.values()
        product = replace(product, ahead=ask_next_point)

        def point(_: Value, state: list[Value]) -> list[Value]:
            product.point(fn, fields, Heights(*height), state)
            return [fn.gep(pointer, step) for pointer, step in zip(state, steps, strict=True)]

        fn.loop(0, self.tiling.points, 1, begin, point, hint="point")
