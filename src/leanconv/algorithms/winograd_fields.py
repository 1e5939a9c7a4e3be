"""Numbers of tiles of a transform, where images have their pixels, and how far matrices lie apart."""

from __future__ import annotations

from leanconv.kernels.winograd_tiles import Axis, Tiling
from leanconv.memory import ALIGNMENT
from leanconv.problem import Problem


def tile_fields(problem: Problem, tiling: Tiling) -> dict[str, int]:
    """Numbers of tiles, and where the image and the output have their pixels."""
    p, item = problem, problem.itemsize
    fields = {"x_n": p.x_strides[0] * item, "x_c": p.x_strides[1] * item, "x_g": p.group_in * p.x_strides[1] * item}
    total = p.batch
    for d, axis in enumerate(tiling.axes):
        out = p.out_size[d]
        count, last = tiles_along(axis, out)
        fields |= {f"tiles{d}": count, f"last{d}": last, f"out{d}": out, f"at{d}": p.x_strides[2 + d] * item}
        fields |= {f"in{d}": p.in_size[d], f"reach{d}": p.in_size[d] + p.pad_high[d]}
        total *= count
    fields["tile_count"] = total
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            channel = strides[1] * item
            fields |= {f"{letter}_n": strides[0] * item, f"{letter}_k": channel, f"{letter}_g": p.group_out * channel}
            fields |= {f"{letter}_at{d}": stride * item for d, stride in enumerate(strides[2:])}
    return fields


def tiles_along(axis: Axis, out: int) -> tuple[int, int]:
    """Tiles along an axis of so many outputs, and the number of the last one of an interleaved problem."""
    step = axis.transform.outputs * axis.dilation
    last = -(-out // step) - 1
    return last * axis.dilation + min(axis.dilation, out - last * step), last


def odd_lines(nbytes: int) -> int:
    """Bytes filled up to an odd number of cache lines."""
    return (-(-nbytes // ALIGNMENT) | 1) * ALIGNMENT
