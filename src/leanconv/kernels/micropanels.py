"""Micropanels: the windows of a tile of output pixels, interleaved pixel by pixel, as a GEMM packs its operand.

    strip  [tile][tap, channel][pixel of the tile]

Every step of the core then reads its pixels side by side, through one address; images with channels first are
packed without a transpose, because the pixels of a channel lie side by side there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Value
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import Cost
from leanconv.kernels.cursor import ZERO_BYTES, SharedCursor
from leanconv.kernels.epilogue import load_lanes, pieces, transpose
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import following, position_of
from leanconv.kernels.patches import Patches

if TYPE_CHECKING:
    from leanconv.host import Host


@dataclass(frozen=True, slots=True)
class PackTiles:
    """Packs the windows of output pixels [first, end) in tiles of `height` pixels, the last ones a pixel shorter.

    The split is that of the dense kernel: n pixels make t = ceil(n / height) tiles, of which height * t - n are short.
    `tail` = channels mod lanes.  `joint` taps of the last dimension follow each other in the image as in the strip,
    and are packed in one run (1: each on its own), of which `joint_tail` elements are left over by whole vectors:
    transposing vectors takes as long whether they hold 3 channels or 16.  Packing writes up to a
    vector behind the last tile.  Fields: those of `Patches`, less the matrix's steps.
    """

    patches: Patches
    height: int
    tail: int
    joint: int = 1
    joint_tail: int = 0

    def emit(
        self, fn: Function, fields: Fields, x: Value, scratch: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Pack the tiles one after another; see `Stage`."""
        patches, count = self.patches, fn.sub(end, first)
        number = fn.udiv(fn.add(count, self.height - 1), self.height)
        short = fn.sub(fn.mul(number, self.height), count)
        state = [scratch, *position_of(fn, fields, first, patches.dims)]
        spans = [(self.height, 0, fn.sub(number, short)), (self.height - 1, fn.sub(number, short), number)]
        for rows, begin, stop in spans[: 2 if self.height > 1 else 1]:

            def tile(_: Value, state: list[Value], rows: int = rows) -> list[Value]:
                positions = [state[1:]]
                for _row in range(rows):
                    positions.append(following(fn, fields, positions[-1]))
                return [self._tile(fn, fields, x, state[0], positions[:-1]), *positions[-1]]

            state = fn.loop(begin, stop, 1, state, tile, guard=True, hint="pack")
        return scratch, 0

    def cost(self, f: Mapping[str, int], host: Host) -> Cost:
        """Transposes of channels, or two short runs for the pixels of each channel and tile."""
        patches = self.patches
        lanes, taps = patches.target.lanes(patches.dtype), math.prod(patches.kernel)
        pixels = f["n_count"] * f["g_count"] * f["pixels"]
        nbytes = pixels * taps * f["channels"] * patches.itemsize
        if patches.unit_channel:
            runs = taps // self.joint
            counts: dict[str, float] = {"block": pixels * runs * -(-f["channels"] * self.joint // lanes)}
        else:
            runs = taps
            counts = {"vector": 2 * pixels * taps * f["channels"] / self.height}
        counts["tap"] = pixels * runs
        return Cost(counts, (), ((nbytes, min(nbytes, host.l2 / 2)),))

    def _tile(self, fn: Function, fields: Fields, x: Value, target: Value, positions: list[list[Value]]) -> Value:
        """One tile; returns where the next one goes."""
        patches = self.patches

        def taps(dim: int, offsets: list[Index], valid: list[Value], target: Value) -> Value:
            if dim == patches.dims:
                return self._channels(fn, fields, x, offsets, valid, target)
            if dim == patches.dims - 1 and self.joint > 1:
                return self._run_of_taps(fn, fields, x, positions, offsets, valid, target, each)
            return each(dim, offsets, valid, target)

        def each(dim: int, offsets: list[Index], valid: list[Value], target: Value) -> Value:
            def tap(index: Value, state: list[Value]) -> list[Value]:
                moved: list[Index] = []
                inside: list[Value] = []
                for position, offset, ok in zip(positions, offsets, valid, strict=True):
                    at, exists = patches.place(fn, fields, dim, position[dim], index)
                    moved.append(fn.add(offset, fn.mul(at, fields[f"at{dim}"])))
                    inside.append(ok if exists is None else fn.both(ok, exists))
                return [taps(dim + 1, moved, inside, state[0])]

            return fn.loop(0, patches.kernel[dim], 1, [target], tap, hint="tap")[0]

        return taps(0, [0] * len(positions), [Value("true", I1)] * len(positions), target)

    def _run_of_taps(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        positions: list[list[Value]],
        offsets: list[Index],
        valid: list[Value],
        target: Value,
        each: Callable[[int, list[Index], list[Value], Value], Value],
    ) -> Value:
        """All taps of the last dimension in one run, or `each` on its own where one may lie outside the image."""
        patches, last = self.patches, self.patches.dims - 1
        corners = [fn.sub(fn.mul(p[last], patches.stride[last]), patches.pad_low[last]) for p in positions]

        def together() -> list[Value]:
            moved = [fn.add(o, fn.mul(corner, fields[f"at{last}"])) for o, corner in zip(offsets, corners, strict=True)]
            return [self._channels(fn, fields, x, moved, valid, target, self.joint)]

        if not patches.padded:
            return together()[0]
        inside = Value("true", I1)
        for corner in corners:
            end = fn.cmp("slt", fn.add(corner, self.joint - 1), fields[f"in{last}"])
            inside = fn.both(inside, fn.both(fn.cmp("sge", corner, 0), end))
        return fn.if_(inside, together, lambda: [each(last, offsets, valid, target)], hint="joint")[0]

    def _channels(
        self,
        fn: Function,
        fields: Fields,
        x: Value,
        offsets: list[Index],
        valid: list[Value],
        target: Value,
        taps: int = 1,
    ) -> Value:
        """All channels of one tap, or of several that follow each other; returns where the next tap goes."""
        patches = self.patches
        sources = [fn.gep(x, offset) for offset in offsets]
        punched = patches.padded and patches.pad_mode == "zeros"
        step: Index = patches.itemsize if patches.unit_channel else fields["s_c"]
        steps: list[Index] = [step] * len(sources)
        if punched:
            zeros = fn.module.zeros(ZERO_BYTES)
            sources = [fn.select(ok, source, zeros) for ok, source in zip(valid, sources, strict=True)]
            steps = [fn.select(ok, step, 0) for ok in valid]
        if patches.unit_channel:
            return self._transposed(fn, fields, sources, steps, target, taps)
        adjacent = valid[0]
        for i, (offset, ok) in enumerate(zip(offsets[1:], valid[1:], strict=True), 1):
            neighbour = fn.cmp("eq", offset, fn.add(offsets[0], i * patches.itemsize))
            adjacent = fn.both(adjacent, fn.both(ok, neighbour))
        return fn.if_(
            adjacent,
            lambda: [self._runs(fn, fields, sources, steps, target, whole=True)],
            lambda: [self._runs(fn, fields, sources, steps, target, whole=False)],
            hint="adjacent",
        )[0]

    def _runs(
        self,
        fn: Function,
        fields: Fields,
        sources: list[Value],
        steps: Sequence[Index],
        target: Value,
        *,
        whole: bool,
    ) -> Value:
        """Channel by channel, with all pixels in one run or each from a place of its own."""
        item, rows = self.patches.itemsize, len(sources)
        scalar = SCALARS[self.patches.dtype]
        moving, walk = (sources[:1], steps[:1]) if whole else (sources, steps)

        def channel(_: Value, state: list[Value]) -> list[Value]:
            target, *at = state
            if whole:
                for first, size in pieces(rows):
                    fn.store(fn.load(f"<{size} x {scalar}>", at[0], first * item), target, first * item)
            else:
                for i, pixel in enumerate(at):
                    fn.store(fn.load(scalar, pixel), target, i * item)
            return [fn.gep(target, rows * item), *(fn.gep(p, s) for p, s in zip(at, walk, strict=True))]

        return fn.loop(0, fields["channels"], 1, [target, *moving], channel, hint="channel")[0]

    def _transposed(
        self, fn: Function, fields: Fields, sources: list[Value], steps: Sequence[Index], target: Value, taps: int
    ) -> Value:
        """Blocks of L adjacent channels; whole vectors are stored, whose last lanes the next store overwrites."""
        patches, rows = self.patches, len(sources)
        lanes, item = patches.target.lanes(patches.dtype), patches.itemsize
        strides = [fn.mul(step, lanes) for step in steps]

        def block(state: list[Value], count: int) -> list[Value]:
            target, *at = state
            groups = []
            for first in range(0, rows, lanes):
                vectors = [
                    load_lanes(fn, patches.lanes, pixel, count, masks=patches.target.masks)
                    for pixel in at[first : first + lanes]
                ]
                groups.append(transpose(fn, vectors))
            for c in range(count):
                for g, group in enumerate(groups):
                    fn.store(group[c], target, (c * rows + g * lanes) * item)
            return [fn.gep(target, count * rows * item), *(fn.gep(p, s) for p, s in zip(at, strides, strict=True))]

        whole = fn.mul(fn.udiv(fn.mul(fields["channels"], taps), lanes), lanes)
        state = [target, *sources]
        state = fn.loop(0, whole, lanes, state, lambda _, s: block(s, lanes), guard=True, hint="channels")
        tail = self.tail if taps == 1 else self.joint_tail
        if tail:
            state = block(state, tail)
        return state[0]


@dataclass(frozen=True, slots=True)
class Micropanels:
    """Where the core reads pixels that were packed in tiles. Field: `depth` steps of a tile."""

    dtype: str

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """Tiles are packed from the first pixel on."""
        return [fn.i64(0)]

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The pixels of a step are neighbours, those of the next step follow."""
        fn, item, rows = sum_.fn, sum_.tile.itemsize, sum_.tile.rows
        first = fn.opaque(fn.gep(base, state[0]))
        cursor = SharedCursor(fn, [fn.gep(first, i * item) for i in range(rows)], 0, rows * item)
        weights, accs = sum_.start(weights)
        return sum_.finish(sum_.run(cursor, sum_.reduction.channels, weights, accs)[1])

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """A tile is as long as the sum."""
        item = 8 if self.dtype == "float64" else 4
        return [fn.i64(fn.add(state[0], fn.mul(fields["depth"], rows * item)))]
