"""Micropanels: the windows of a tile of output pixels, interleaved pixel by pixel, as a GEMM packs its operand.

    strip  [tile][tap, channel][pixel of the tile]                             channels first
           [tile][tap, channel / 4][pixel of the tile][channel mod 4]          channels last, a multiple of 4 of them

Every step of the core then reads its pixels close together, through one address; images with channels first are
packed without a transpose, because the pixels of a channel lie side by side there too.  With channels last four of
them stay together: 16 channels of 12 pixels take 24 shuffles and 12 whole stores, where transposing them wholly took 64
shuffles and 16 stores that overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, PTR, SCALARS, Function, Index, Value, lanes_of
from leanconv.kernels.core import Sum
from leanconv.kernels.cost import Cost
from leanconv.kernels.cursor import ZERO_BYTES, Cursor, FoursCursor, SharedCursor
from leanconv.kernels.epilogue import load_lanes, pieces, transpose
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import following, position_of
from leanconv.kernels.patches import Patches

if TYPE_CHECKING:
    from leanconv.host import Host


FOUR = Cursor.unroll  # channels that stay together: those of a round of the core
SHADED = 0.8  # of the time of copying a vector that is left if tiles are packed while others are multiplied


@dataclass(frozen=True, slots=True)
class PackTiles:
    """Packs the windows of output pixels [first, end) in tiles of `height` pixels, the last ones a pixel shorter.

    The split is that of the dense kernel: n pixels make t = ceil(n / height) tiles, of which height * t - n are short.
    `tail` = channels mod lanes.  `joint` taps of the last dimension follow each other in the image as in the strip,
    and are packed in one run (1: each on its own), of which `joint_tail` elements are left over by whole vectors:
    transposing vectors takes as long whether they hold 3 channels or 16.  `fours`: four channels of a pixel stay
    together.  Packing writes up to a vector behind the last tile.  Fields: those of `Patches`, less the matrix's steps.
    """

    patches: Patches
    height: int
    tail: int
    joint: int = 1
    joint_tail: int = 0
    fours: bool = False

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
                return [self.tile(fn, fields, x, state[0], positions[:-1]), *positions[-1]]

            state = fn.loop(begin, stop, 1, state, tile, guard=True, hint="pack")
        return scratch, 0

    def cost(self, f: Mapping[str, int], host: Host) -> Cost:
        """Channels copied four by four or transposed, or two short runs for the pixels of each channel and tile."""
        patches = self.patches
        lanes, taps = patches.target.lanes(patches.dtype), math.prod(patches.kernel)
        pixels = f["n_count"] * f["g_count"] * f["pixels"]
        nbytes = pixels * taps * f["channels"] * patches.itemsize
        if patches.unit_channel:
            runs = taps // self.joint
            vectors = pixels * runs * -(-f["channels"] * self.joint // lanes)
            if "part" in f:  # beside the multiply-adds
                return Cost({"vector": vectors * SHADED, "tap": pixels})
            counts: dict[str, float] = {"vector" if self.fours else "block": vectors}
        else:
            runs = taps
            counts = {"vector": 2 * pixels * taps * f["channels"] / self.height}
        counts["tap"] = pixels * runs
        return Cost(counts, (), ((nbytes, min(nbytes, host.l2 / 2)),))

    def tile(self, fn: Function, fields: Fields, x: Value, target: Value, positions: list[list[Value]]) -> Value:
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
            vectors = [load_lanes(fn, patches.lanes, pixel, count, masks=patches.target.masks) for pixel in at]
            unit = FOUR if self.fours else 1
            many = lanes // unit  # pixels of a vector
            turned = fours_together if self.fours else transpose
            groups = [turned(fn, vectors[first : first + many]) for first in range(0, rows, many)]
            for c in range(count // unit):
                for g, group in enumerate(groups):
                    fn.store(group[c], target, (c * rows + g * many) * unit * item)
            return [fn.gep(target, count * rows * item), *(fn.gep(p, s) for p, s in zip(at, strides, strict=True))]

        whole = fn.mul(fn.udiv(fn.mul(fields["channels"], taps), lanes), lanes)
        state = [target, *sources]
        state = fn.loop(0, whole, lanes, state, lambda _, s: block(s, lanes), guard=True, hint="channels")
        tail = self.tail if taps == 1 else self.joint_tail
        if tail:
            state = block(state, tail)
        return state[0]


def fours_together(fn: Function, pixels: Sequence[Value]) -> list[Value]:
    """Vectors of the same four channels of all pixels, from vectors of channels of each; as many as hold four.

    Every step picks the even or the odd fours of two vectors, which x86-64 does in one shuffle.
    """
    lanes = lanes_of(pixels[0].type)
    vectors = [*pixels, *[Value("poison", pixels[0].type)] * (lanes // FOUR - len(pixels))]

    def parted(vectors: list[Value]) -> list[Value]:
        if len(vectors) == 1:
            return vectors
        even = [lane for lane in range(2 * lanes) if not lane // FOUR % 2]
        both = []
        for picked in (even, [lane + FOUR for lane in even]):
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            both.append(parted([fn.shuffle(a, b, picked) for a, b in pairs]))
        return [vector for pair in zip(*both, strict=True) for vector in pair]

    return parted(vectors)


@dataclass(frozen=True, slots=True)
class Micropanels:
    """Where the core reads pixels that were packed in tiles, `fours` as in `PackTiles`. Field: `depth` steps a tile."""

    dtype: str
    fours: bool = False

    def start(self, fn: Function, fields: Fields, pixel: Index) -> list[Value]:
        """Tiles are packed from the first pixel on."""
        return [fn.i64(0)]

    def tile(self, sum_: Sum, base: Value, weights: Value, state: list[Value]) -> list[Value]:
        """The pixels of a step are neighbours, those of the next step follow."""
        fn = sum_.fn
        return packed_sums(sum_, weights, [fn.opaque(fn.gep(base, state[0]))], self.cursor)

    def cursor(self, sum_: Sum, state: list[Value]) -> Cursor:
        """The walk through a tile from an address on."""
        fn, item, rows = sum_.fn, sum_.tile.itemsize, sum_.tile.rows
        if self.fours:
            return FoursCursor(fn, state[0], rows, item)
        return SharedCursor(fn, [fn.gep(state[0], i * item) for i in range(rows)], 0, rows * item)

    def next(self, fn: Function, fields: Fields, rows: int, state: list[Value]) -> list[Value]:
        """A tile is as long as the sum."""
        item = 8 if self.dtype == "float64" else 4
        return [fn.i64(fn.add(state[0], fn.mul(fields["depth"], rows * item)))]


def packed_sums(
    sum_: Sum,
    weights: Value,
    state: list[Value],
    cursor: Callable[[Sum, list[Value]], Cursor],
    apart: Callable[[int], list[Index]] = lambda _: [],
) -> list[Value]:
    """The sums of a packed tile; `state` is its address, and what else the cursor begins with.

    `apart` says by how much the rest of that state moves from tap to tap of a dimension.
    """
    fn, red = sum_.fn, sum_.reduction
    nbytes = sum_.tile.rows * sum_.tile.itemsize

    def taps(dim: int, state: list[Value], weights: Value, accs: list[Value], *, first: bool) -> list[Value]:
        if dim == len(red.kernel):
            behind, accs = sum_.run(cursor(sum_, state), red.channels, weights, accs, first=first)
            return [behind, *accs]
        if red.kernel[dim] == 1:
            return taps(dim + 1, state, weights, accs, first=first)

        def body(tap: Value, carried: list[Value]) -> list[Value]:
            here, (weights, *accs) = carried[: len(state)], carried[len(state) :]
            weights, *accs = taps(dim + 1, here, weights, accs, first=False)
            moves = [fn.mul(sum_.fields[f"w_rows{dim}"], nbytes), *apart(dim)]
            moved = [
                fn.gep(at, move) if at.type == PTR else fn.i64(fn.add(at, move))
                for at, move in zip(here, moves, strict=True)
            ]
            return [*moved, weights, *sum_.end_section(dim, accs, tap)]

        return fn.loop(0, red.kernel[dim], 1, [*state, weights, *accs], body, hint="tap")[len(state) :]

    behind, accs = sum_.start(weights)
    return sum_.finish(taps(0, state, behind, accs, first=red.short)[1:])
