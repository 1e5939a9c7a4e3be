"""Window tensors: an image with the taps of all dimensions but one beside each position, as MEC and im2win make them.

One dimension, the one that windows slide along, keeps its positions, padding included; of the others every output
position has its taps:

    im2win   [output row][column][tap of the column][channel]    a window is S neighbouring entries of R * C elements
    MEC      [output column][row][tap of the row][channel]       a window is R neighbouring entries of S * C elements

So windows overlap where they lie one after another, and each is one run.  An entry is copied once for the windows of
all taps along that dimension, S (or R) times less than im2row copies.  Seen from the copy both are the same: positions
in the order of the image, `kernel` taps for each (one along the dimension that slides), and a step in the tensor for
each dimension.  Padding is written as zeros, or as the pixels that another pad mode names, so the core has no edges.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I1, SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import Fields
from leanconv.kernels.image import mapped_position
from leanconv.kernels.runs import Run, gathered, interleaved, transposed


@dataclass(frozen=True, slots=True)
class Windows:
    """How a window tensor is written.

    `kernel stride dilation pad_low` per dimension, 1 1 1 along the one that slides.  `adjacent` says which elements
    are neighbours in the image: "channels", "pixels" (of a row), "row" (pixels of the only channel, whose rows under
    the taps are interleaved; windows slide along it) or "none".  `channels` if few, else None, and `tail` = channels
    mod lanes.  `joint` taps of the last dimension follow each other in the image as in the tensor, and are copied in
    one run (1: each on its own).  `past`: channels are stored past the caches, in whole lines.

    Fields: `e{d}` positions, `in{d} at{d}` input sizes and byte strides, `s_c` bytes between input channels,
    `channels`, `m{d}` and `k{d}` bytes in the tensor between positions and between taps.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    padded: bool
    pad_mode: str
    adjacent: str
    channels: int | None
    tail: int
    joint: int
    past: bool = False

    @property
    def last(self) -> int:
        """The dimension whose positions are walked innermost."""
        return len(self.kernel) - 1

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 8 if self.dtype == "float64" else 4

    def emit(self, fn: Function, fields: Fields, x: Value, tensor: Value, first: Index, end: Index) -> None:
        """Copy positions [first, end), counted along the last dimension first; position 0 stands at `tensor`."""
        width = fields[f"e{self.last}"]
        row0 = fn.i64(fn.udiv(first, width))
        row1 = fn.udiv(fn.sub(fn.add(end, width), 1), width)

        def row(index: Value, _: list[Value]) -> list[Value]:
            before = fn.mul(index, width)
            low, high = fn.smax(fn.sub(first, before), 0), fn.smin(fn.sub(end, before), width)
            position: list[Index] = []
            target, rest = tensor, index
            for dim in reversed(range(self.last)):
                at = rest if dim == 0 else fn.i64(fn.urem(rest, fields[f"e{dim}"]))
                rest = rest if dim == 0 else fn.i64(fn.udiv(rest, fields[f"e{dim}"]))
                position.insert(0, at)
                target = fn.gep(target, fn.mul(at, fields[f"m{dim}"]))
            self._taps(fn, fields, position, x, target, (low, high))
            return []

        fn.loop(row0, row1, 1, [], row, hint="row")

    def _taps(
        self, fn: Function, fields: Fields, position: list[Index], x: Value, target: Value, span: tuple[Index, Index]
    ) -> None:
        """All taps of one row of positions."""
        if self.adjacent != "row":
            self._each_tap(fn, fields, position, x, target, span)
            return
        done = self._interleave(fn, fields, position, x, target, span)
        self._each_tap(fn, fields, position, x, target, (span[0], done[0]))
        self._each_tap(fn, fields, position, x, target, (done[1], span[1]))

    def _interleave(
        self, fn: Function, fields: Fields, position: list[Index], x: Value, target: Value, span: tuple[Index, Index]
    ) -> tuple[Index, Index]:
        """Whole vectors of positions under all taps at once, if all lie inside the image; returns which were done."""
        last, lanes = self.last, self.target.lanes(self.dtype)
        low, high = span
        rows = [x]
        inside = Value("true", I1)
        for dim in range(last):
            corner = fn.sub(fn.mul(position[dim], self.stride[dim]), self.pad_low[dim])
            reach = (self.kernel[dim] - 1) * self.dilation[dim]
            rows = [
                fn.gep(row, fn.mul(fn.add(corner, tap * self.dilation[dim]), fields[f"at{dim}"]))
                for row in rows
                for tap in range(self.kernel[dim])
            ]
            if self.padded:
                fits = fn.cmp("slt", fn.add(corner, reach), fields[f"in{dim}"])
                inside = fn.both(inside, fn.both(fn.cmp("sge", corner, 0), fits))
        pad = self.pad_low[last]
        if self.padded:
            low = fn.select(inside, fn.smin(fn.smax(pad, low), high), high)
            high = fn.smax(fn.smin(fn.add(fields[f"in{last}"], pad), high), low)
        whole = fn.mul(fn.udiv(fn.sub(high, low), lanes), lanes)
        begin, move = fn.mul(fn.sub(low, pad), self.item), fields[f"m{last}"]

        def block(_: Value, state: list[Value]) -> list[Value]:
            kind = vector(SCALARS[self.dtype], lanes)
            interleaved(fn, kind, [fn.gep(row, state[0]) for row in rows], state[1])
            return [fn.i64(fn.add(state[0], lanes * self.item)), fn.gep(state[1], fn.mul(move, lanes))]

        fn.loop(0, whole, lanes, [fn.i64(begin), fn.gep(target, fn.mul(low, move))], block, guard=True, hint="block")
        return low, fn.add(low, whole)

    def _each_tap(
        self, fn: Function, fields: Fields, position: list[Index], x: Value, target: Value, span: tuple[Index, Index]
    ) -> None:
        """Tap by tap, so that rows of the image are read from end to end."""

        def taps(dim: int, source: Value, valid: Value, target: Value) -> None:
            if dim == self.last and self.joint > 1:
                self._positions(fn, fields, source, valid, target, 0, span)
                return

            def tap(index: Index, state: list[Value]) -> list[Value]:
                if dim == self.last:
                    self._positions(fn, fields, source, valid, state[0], index, span)
                else:
                    at, ok = self._place(fn, fields, dim, position[dim], index)
                    row = fn.gep(source, fn.mul(at, fields[f"at{dim}"]))
                    taps(dim + 1, row, valid if ok is None else fn.both(valid, ok), state[0])
                return [fn.gep(state[0], fields[f"k{dim}"])]

            if self.kernel[dim] == 1:
                tap(0, [target])
            else:
                fn.loop(0, self.kernel[dim], 1, [target], tap, hint="tap")

        taps(0, x, Value("true", I1), target)

    def _place(self, fn: Function, fields: Fields, dim: int, at: Index, tap: Index) -> tuple[Index, Value | None]:
        """The input position under a tap, and whether it lies inside (None if it always does)."""
        corner = fn.sub(fn.mul(at, self.stride[dim]), self.pad_low[dim])
        where = fn.add(corner, fn.mul(tap, self.dilation[dim]))
        if not self.padded:
            return where, None
        size = fields[f"in{dim}"]
        if self.pad_mode == "zeros":
            return where, fn.cmp("ult", where, size)
        return mapped_position(fn, fn.i64(where), size, self.pad_mode), None

    def _positions(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        valid: Value,
        target: Value,
        tap: Index,
        span: tuple[Index, Index],
    ) -> None:
        """Positions of the last dimension under one tap (or its joint taps): edge, inside, edge."""
        last, stride = self.last, self.stride[self.last]
        at, move = fields[f"at{last}"], fields[f"m{last}"]
        corner = fn.sub(fn.mul(tap, self.dilation[last]), self.pad_low[last])
        low, high = span
        if self.padded:

            def reach(distance: Index) -> Index:
                return fn.udiv(fn.add(fn.smax(distance, 0), stride - 1), stride)

            # Inside are the positions n with 0 <= n * stride + corner and n * stride + corner + joint - 1 < size.
            inner = fn.smin(fn.smax(reach(fn.sub(0, corner)), low), high)
            outer = reach(fn.sub(fn.sub(fields[f"in{last}"], corner), self.joint - 1))
            outer = fn.smax(fn.smin(outer, high), inner)
            if self.pad_mode == "zeros":
                inner, outer = fn.select(valid, inner, high), fn.select(valid, outer, high)
            self._edge(fn, fields, source, valid, target, tap, (low, inner))
            self._edge(fn, fields, source, valid, target, tap, (outer, high))
            low, high = inner, outer
        source = fn.gep(source, fn.mul(fn.add(fn.mul(low, stride), corner), at))
        target = fn.gep(target, fn.mul(low, move))
        count = fn.sub(high, low)
        if self.adjacent == "pixels":
            lanes = self.target.lanes(self.dtype)
            whole = fn.mul(fn.udiv(count, lanes), lanes)

            def block(_: Value, state: list[Value]) -> list[Value]:
                kind = vector(SCALARS[self.dtype], lanes)
                sizes, steps = (self._channels(fields), self.tail), (fields["s_c"], move, stride)
                transposed(fn, kind, state[0], state[1], steps, sizes, masks=self.target.masks)
                return [fn.gep(state[0], lanes * stride * self.item), fn.gep(state[1], fn.mul(move, lanes))]

            source, target = fn.loop(0, whole, lanes, [source, target], block, guard=True, hint="block")
            count = fn.sub(count, whole)
        step = fn.mul(at, stride)

        def one(_: Value, state: list[Value]) -> list[Value]:
            self._copy(fn, fields, state[0], state[1], self.joint)
            return [fn.gep(state[0], step), fn.gep(state[1], move)]

        fn.loop(0, count, 1, [source, target], one, guard=True, hint="position")

    def _edge(
        self,
        fn: Function,
        fields: Fields,
        source: Value,
        valid: Value,
        target: Value,
        tap: Index,
        span: tuple[Index, Index],
    ) -> None:
        """Positions at least one of whose taps lies outside the image."""
        last = self.last
        move = fields[f"m{last}"]

        def position(index: Value, state: list[Value]) -> list[Value]:
            def one(further: Value, state: list[Value]) -> list[Value]:
                at, ok = self._place(fn, fields, last, index, fn.add(tap, further))
                pixel = fn.gep(source, fn.mul(at, fields[f"at{last}"]))

                def copy() -> list[Value]:
                    self._copy(fn, fields, pixel, state[0], 1)
                    return []

                def clear() -> list[Value]:
                    self._copy(fn, fields, None, state[0], 1)
                    return []

                if ok is None:
                    copy()
                else:
                    fn.if_(fn.both(valid, ok), copy, clear, hint="inside")
                return [fn.gep(state[0], fields[f"k{last}"])] if self.joint > 1 else state

            fn.loop(0, self.joint, 1, state, one, hint="edge")
            return [fn.gep(state[0], move)]

        start = fn.gep(target, fn.mul(span[0], move))
        fn.loop(span[0], span[1], 1, [start], position, guard=True, hint="edge")

    def _channels(self, fields: Fields) -> Index:
        return fields["channels"] if self.channels is None else self.channels

    def _copy(self, fn: Function, fields: Fields, source: Value | None, target: Value, taps: int) -> None:
        """The channels of `taps` taps of one position; zeros without a source."""
        lanes = self.target.lanes(self.dtype)
        kind = vector(SCALARS[self.dtype], lanes)
        if source is None or self.adjacent in ("channels", "row"):
            count = fn.mul(self._channels(fields), taps)
            Run(kind, count, self.tail * taps % lanes, past=self.past).emit(fn, source, target)
        else:
            gathered(fn, kind, source, target, fields["s_c"], (self._channels(fields), self.tail))
