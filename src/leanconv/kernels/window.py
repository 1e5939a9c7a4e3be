"""The geometry of windows that kernels with few channels a group are specialised for."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index
from leanconv.kernels.fields import Fields


@dataclass(frozen=True, slots=True)
class Edges:
    """Which pixels under a tile lie outside the image, along the innermost dimension.

    `left` columns of the first tile do; of the last tile those from `width * stride + right` on (None: none), or those
    that it finds when it runs (`asks`).  With `known` false every tile finds out when it runs.
    """

    known: bool
    left: int
    right: int | None
    asks: bool = False

    def knows(self, *, last: bool) -> bool:
        """Whether nothing has to be found out about a tile: the last one of a row, or another."""
        return self.known and not (last and self.asks)


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry that kernels are specialised for; `padded` dimensions have pads."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: tuple[bool, ...]
    pad_mode: str

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    def tap_range(self, fn: Function, fields: Fields, dim: int, at: Index) -> tuple[Index, Index]:
        """The taps [first, end) of a dimension that read inside the image for an output position."""
        if not self.padded[dim] or self.pad_mode != "zeros":
            return 0, self.kernel[dim]
        dilation = self.dilation[dim]
        corner = fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])

        def reach(distance: Index) -> Index:
            return fn.udiv(fn.add(fn.smax(distance, 0), dilation - 1), dilation)

        end = reach(fn.sub(fields[f"in{dim}"], corner))
        return fn.smin(reach(fn.sub(0, corner)), self.kernel[dim]), fn.smin(end, self.kernel[dim])
