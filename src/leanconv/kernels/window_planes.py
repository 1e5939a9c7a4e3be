"""Where the core finds the pixels of a tile when the channels of a tensor lie planes apart: im2win, channels first."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cursor import SharedCursor
from leanconv.kernels.image import Image

PLANES = "planes"  # the loop over channels, after some turns of which a section of the sum ends


@dataclass(frozen=True, slots=True)
class Planes(Image):
    """Windows whose taps are one run in the plane of each channel; channels are summed outermost.

    The reduction's `channels` are the elements of a run, and its `kernel` the runs of a window.  Fields besides those
    of `Image`: `planes` channels, `x_plane` bytes between them, `tap0` between the runs.
    """

    def total(self, sum_: Sum, pixels: list[Value], weights: Value) -> list[Value]:
        """Channel by channel, run by run."""
        fn, red, fields = sum_.fn, sum_.reduction, sum_.fields
        pixels = [fn.opaque(pixel) for pixel in pixels]
        (runs,) = red.kernel

        def run(at: Value, weights: Value, accs: list[Value]) -> list[Value]:
            cursor = SharedCursor(fn, pixels, at, sum_.tile.itemsize)
            weights, accs = sum_.run(cursor, red.channels, weights, accs)
            return [weights, *accs]

        def tap(turn: Value, state: list[Value]) -> list[Value]:
            at, weights, *accs = state
            weights, *accs = run(at, weights, accs)
            return [fn.i64(fn.add(at, fields["tap0"])), weights, *sum_.end_section(0, accs, turn)]

        def plane(turn: Value, state: list[Value]) -> list[Value]:
            at, weights, *accs = state
            if runs == 1:
                weights, *accs = run(at, weights, accs)
            else:
                _, weights, *accs = fn.loop(0, runs, 1, [at, weights, *accs], tap, hint="tap")
            return [fn.i64(fn.add(at, fields["x_plane"])), weights, *sum_.end_section(PLANES, accs, turn)]

        weights, accs = sum_.start(weights)
        state = fn.loop(0, fields["planes"], 1, [fn.i64(0), weights, *accs], plane, hint="plane")
        return sum_.finish(state[2:])
