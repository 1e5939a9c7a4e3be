"""The innermost loops of staging: channels of one pixel, or of some, to a place where they are adjacent."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value, lanes_of, scalar_of
from leanconv.kernels.epilogue import item_bytes, pieces, store_lanes, transpose

STRAIGHT = 8  # vectors copied without a loop


@dataclass(frozen=True, slots=True)
class Run:
    """A copy of `count` adjacent elements in vectors of type `kind`; `tail` = count mod lanes.

    Either the count is known or it is at least one vector.  The last elements of a long run go in one more vector that
    overlaps the one before.  `past`: whole vectors, at multiples of their size, are stored past the caches.
    """

    kind: str
    count: Index
    tail: int
    past: bool = False

    def emit(self, fn: Function, source: Value | None, target: Value) -> None:
        """Copy; zeros without a source."""
        lanes = lanes_of(self.kind)
        item = item_bytes(Value("", self.kind))

        def move(kind: str, at: Index) -> None:
            value = fn.load(kind, source, at) if source is not None else fn.const(kind, 0.0)
            if self.past:
                fn.stream(value, fn.gep(target, at), lanes * item)
            else:
                fn.store(value, target, at)

        if isinstance(self.count, int) and self.count <= STRAIGHT * lanes:
            for first in range(0, self.count - self.tail, lanes):
                move(self.kind, first * item)
            if self.tail and self.count > lanes:
                move(self.kind, (self.count - lanes) * item)
            elif self.tail:
                for first, size in pieces(self.tail):
                    move(f"<{size} x {scalar_of(self.kind)}>", first * item)
            return
        turn = 4 * lanes
        whole = fn.sub(self.count, self.tail)
        fours = fn.mul(fn.udiv(whole, turn), turn)

        def four(at: Value, _: list[Value]) -> list[Value]:
            for part in range(4):
                move(self.kind, fn.add(fn.mul(at, item), part * lanes * item))
            return []

        def one(at: Value, _: list[Value]) -> list[Value]:
            move(self.kind, fn.mul(at, item))
            return []

        fn.loop(0, fours, turn, [], four, guard=True, hint="copy")
        fn.loop(fours, whole, lanes, [], one, guard=True, hint="copy")
        if self.tail:
            move(self.kind, fn.mul(fn.sub(self.count, lanes), item))


def gathered(fn: Function, kind: str, source: Value, target: Value, step: Index, sizes: tuple[Index, int]) -> None:
    """Copy elements `step` bytes apart to adjacent ones; `sizes` is their number, and that modulo lanes."""
    lanes, scalar = lanes_of(kind), scalar_of(kind)
    item = item_bytes(Value("", kind))
    count, tail = sizes

    def block(_: Value, state: list[Value]) -> list[Value]:
        value = Value("poison", kind)
        for lane in range(lanes):
            element = fn.load(scalar, state[0], fn.mul(step, lane))
            value = fn.op(kind, f"insertelement {kind} {value.name}, {scalar} {element.name}, i32 {lane}")
        fn.store(value, state[1])
        return [fn.gep(state[0], fn.mul(step, lanes)), fn.gep(state[1], lanes * item)]

    source, target = fn.loop(0, fn.sub(count, tail), lanes, [source, target], block, guard=True, hint="gather")
    for i in range(tail):
        fn.store(fn.load(scalar, source, fn.mul(step, i)), target, i * item)


def interleaved(fn: Function, kind: str, rows: list[Value], target: Value) -> None:
    """Copy a vector of each row so that the first elements of all rows come first, then the second ones, and so on."""
    lanes, item = lanes_of(kind), item_bytes(Value("", kind))
    count = len(rows)
    vectors = [fn.load(kind, row) for row in rows]
    for first in range(0, count * lanes, lanes):
        places = [divmod(first + lane, count) for lane in range(lanes)]
        result = Value("poison", kind)
        for row, value in enumerate(vectors):
            picked = [lanes + at if at_row == row else lane for lane, (at, at_row) in enumerate(places)]
            if any(at_row == row for _, at_row in places):
                result = fn.shuffle(result, value, picked)
        fn.store(result, target, first * item)


def spaced(fn: Function, kind: str, source: Value, stride: int) -> Value:
    """One vector of elements `stride` elements apart; nothing is read behind the last of them."""
    lanes, item = lanes_of(kind), item_bytes(Value("", kind))
    result, done = Value("poison", kind), 0
    while done < lanes:
        first = min(done * stride, (lanes - 1) * stride - (lanes - 1))
        part = fn.load(kind, source, first * item)
        held = [lane * stride - first for lane in range(lanes)]
        picked = [lane if lane < done else lanes + at if at < lanes else -1 for lane, at in enumerate(held)]
        result = fn.shuffle(result, part, picked)
        done = sum(lane >= 0 for lane in picked)
    return result


def transposed(
    fn: Function,
    kind: str,
    source: Value,
    target: Value,
    steps: tuple[Index, Index, int],
    sizes: tuple[Index, int],
    *,
    masks: bool,
) -> None:
    """Copy a block of as many pixels as a vector has lanes, of one row of the image, to pixels of adjacent channels.

    `steps` are the bytes between channels of the image, between pixels of the target, and the elements between pixels
    of the image; `sizes` is the number of channels, and that modulo lanes.
    """
    lanes, item = lanes_of(kind), item_bytes(Value("", kind))
    channel, move, stride = steps
    count, tail = sizes

    def square(source: Value, target: Value, channels: int) -> None:
        rows = [spaced(fn, kind, fn.gep(source, fn.mul(channel, i)), stride) for i in range(channels)]
        for i, value in enumerate(transpose(fn, rows)):
            store_lanes(fn, value, fn.gep(target, fn.mul(move, i)), channels, masks=masks)

    def block(_: Value, state: list[Value]) -> list[Value]:
        square(state[0], state[1], lanes)
        return [fn.gep(state[0], fn.mul(channel, lanes)), fn.gep(state[1], lanes * item)]

    source, target = fn.loop(0, fn.sub(count, tail), lanes, [source, target], block, guard=True, hint="channels")
    if tail:
        square(source, target, tail)
