"""The innermost loops of staging: channels of one pixel, or of some, to a place where they are adjacent."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.codegen.ir import Function, Index, Value, lanes_of, scalar_of
from leanconv.kernels.epilogue import item_bytes, pieces, store_lanes, transpose

STRAIGHT = 8  # vectors copied without a loop


@dataclass(frozen=True, slots=True)
class Run:
    """A copy of `count` adjacent elements in vectors of type `kind`; `tail` = count mod lanes.

    Either the count is known or it is at least one vector.  The last elements of a long run go in one more vector that
    overlaps the one before.
    """

    kind: str
    count: Index
    tail: int

    def emit(self, fn: Function, source: Value | None, target: Value) -> None:
        """Copy; zeros without a source."""
        lanes = lanes_of(self.kind)
        item = item_bytes(Value("", self.kind))

        def move(kind: str, at: Index) -> None:
            value = fn.load(kind, source, at) if source is not None else fn.const(kind, 0.0)
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


def transposed(
    fn: Function,
    kind: str,
    source: Value,
    target: Value,
    step: Index,
    move: Index,
    sizes: tuple[Index, int],
    *,
    masks: bool,
) -> None:
    """Copy a block of as many pixels as a vector has lanes, adjacent in the image, to pixels of adjacent channels.

    `step` bytes between channels of the image, `move` between pixels of the target; `sizes` is the number of channels,
    and that modulo lanes.
    """
    lanes = lanes_of(kind)
    item = item_bytes(Value("", kind))
    count, tail = sizes

    def square(source: Value, target: Value, channels: int) -> None:
        rows = transpose(fn, [fn.load(kind, source, fn.mul(step, i)) for i in range(channels)])
        for i, value in enumerate(rows):
            store_lanes(fn, value, fn.gep(target, fn.mul(move, i)), channels, masks=masks)

    def block(_: Value, state: list[Value]) -> list[Value]:
        square(state[0], state[1], lanes)
        return [fn.gep(state[0], fn.mul(step, lanes)), fn.gep(state[1], lanes * item)]

    source, target = fn.loop(0, fn.sub(count, tail), lanes, [source, target], block, guard=True, hint="channels")
    if tail:
        square(source, target, tail)
