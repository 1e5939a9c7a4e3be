"""The sum over windows of which every tap lies inside the image."""

from __future__ import annotations

from leanconv.codegen.ir import Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import Cursor, EvenCursor, OverlapCursor, PlaneCursor, SharedCursor

PLANES_AHEAD = 8  # channels between a prefetch and its use: about 50 cycles


def whole_windows(
    sum_: Sum,
    pixels: list[Value],
    weights: Value,
    ranges: list[tuple[Index, Index]] | None = None,
    apart: int | None = None,
    later: Value | None = None,
    line: Index | None = None,
    step: Index | None = None,
    overlap: int = 1,
) -> list[Value]:
    """Sum over windows that lie inside the image; `pixels` address the first taps.

    `ranges` are the taps [first, last) of each dimension but the innermost that do, where the others read nothing but
    padding; `apart` the bytes from pixel to pixel, if the kernel is made for them; `later` as in `SharedCursor` and
    `overlap` as in `EvenCursor`; `line` the bytes from one tap of the first dimension to the next, if not
    those of the image.
    """
    fn, red = sum_.fn, sum_.reduction
    many = sum_.tile.target.masks and len(pixels) > 6
    even = step if many and isinstance(step, Value) else None
    pixels = [fn.opaque(pixel) for pixel in pixels[: 1 if apart is not None else None]]
    stride: Index = sum_.tile.itemsize if red.unit_channel else sum_.fields["x_c"]
    once = red.stream and red.channels is None and not red.unit_channel and all(count == 1 for count in red.kernel)
    ahead = PLANES_AHEAD if once else 0  # under several taps lines come back before long

    def taps(
        dim: int, offset: Index, weights: Value, accs: list[Value], *, first: bool = False
    ) -> tuple[Value, list[Value]]:
        last = dim == len(red.kernel) - 1
        if dim == len(red.kernel) or (last and red.merged):
            count = None if red.channels is None else red.channels * (red.kernel[dim] if red.merged else 1)
            cursor: Cursor = SharedCursor(fn, pixels, offset, stride, ahead, later if overlap == 1 else None)
            if even is not None and isinstance(stride, int):
                cursor = EvenCursor(fn, pixels, even, stride, offset, later, overlap)
            if apart is not None:  # one address that moves, not one for each pixel and a common offset
                place = fn.gep(pixels[0], offset)
                if isinstance(stride, int):
                    cursor = OverlapCursor(fn, place, sum_.tile.rows, apart, stride, pairs=sum_.tile.target.pairs)
                else:
                    cursor = PlaneCursor(fn, place, [i * apart for i in range(sum_.tile.rows)], stride)
            return sum_.run(cursor, count, weights, accs, first=first)
        if red.kernel[dim] == 1 and ranges is None:
            return taps(dim + 1, offset, weights, accs, first=first)
        step = line if line is not None and dim == 0 else sum_.fields[f"tap{dim}"]
        if ranges is not None and not last:

            def some(tap: Value, accs: list[Value]) -> list[Value]:
                at = fn.add(offset, fn.mul(tap, step))
                w = fn.gep(weights, fn.mul(fn.mul(tap, sum_.fields[f"w_rows{dim}"]), sum_.tile.step_bytes))
                return sum_.end_section(dim, taps(dim + 1, at, w, accs)[1], tap)

            start, end = ranges[dim]
            return weights, fn.loop(start, end, 1, accs, some, guard=True, hint="tap")

        def body(tap: Value, state: list[Value]) -> list[Value]:
            at, w, *inner = state
            w, inner = taps(dim + 1, at, w, inner)
            if not sum_.splits(dim):
                inner = sum_.end_section(dim, inner, tap)
            return [fn.i64(fn.add(at, step)), w, *inner]

        state = [fn.i64(offset), weights, *accs]
        for start, end in sum_.spans(dim):
            state = fn.loop(start, end, 1, state, body, hint="tap")
            state = [*state[:2], *sum_.end_span(dim, state[2:], (start, end))]
        return state[1], state[2:]

    weights, accs = sum_.start(weights, spans=ranges is None)
    return sum_.finish(taps(0, 0, weights, accs, first=red.short)[1])
