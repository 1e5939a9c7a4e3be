"""Rows of pixels as vectors of channels, one behind the other, and back: how the FFT kernels meet the image.

Loops over four pixels and over what is left, so that transforms, straight-line code, read and write nothing but their
own rows whatever the layout, the padding and the edge of the image.
"""

from __future__ import annotations

from collections.abc import Callable

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.channel_runs import gather, load_runs, scatter, store_runs
from leanconv.kernels.epilogue import Epilogue, load_lanes, store_lanes

FOUR = 4


@dataclass(frozen=True, slots=True)
class Lie:
    """How pixels and channels lie: channels `adjacent`, or pixels of a row in `runs`, or neither; bytes from each."""

    adjacent: bool
    runs: bool
    pixel: Index
    channel: Index


def _fours(
    fn: Function, low: Index, high: Index, state: list[Value], four: Callable[..., list[Value]]
) -> tuple[Value, list[Value]]:
    """Run `four(j, state)` from `low` on as long as there are four; returns where it ended."""
    count = fn.smax(fn.sub(high, low), 0)
    end = fn.i64(fn.add(low, fn.sub(count, fn.urem(count, FOUR))))
    return end, fn.loop(low, end, FOUR, state, four, guard=True, hint="four")


def fetch(
    fn: Function,
    target: Target,
    kind: str,
    lie: Lie,
    source: Value,
    span: tuple[Index, Index],
    row: Value,
    count: int,
    position: Callable[[Value], Index] | None = None,
) -> None:
    """Copy the pixels [low, high) to their places in `row`; `count` channels exist.

    `source` is where pixel 0 would be; `position` gives the place in the image of a pixel, if that is not its number.
    """
    low, high = span
    width = target.vector_bytes
    to = fn.gep(row, fn.mul(low, width))

    def pixel(j: Value, state: list[Value]) -> list[Value]:
        at = fn.gep(source, fn.mul(j if position is None else position(j), lie.pixel))
        if lie.adjacent:
            value = load_lanes(fn, kind, at, count, masks=target.masks)
        else:
            value = gather(fn, kind, at, lie.channel, count)
        fn.store(value, state[0])
        return [fn.gep(state[0], width)]

    def four(j: Value, state: list[Value]) -> list[Value]:
        at = fn.gep(source, fn.mul(j, lie.pixel))
        if lie.runs:
            values = load_runs(fn, kind, at, lie.channel, FOUR, count)
        else:
            values = []
            for _ in range(FOUR):
                values.append(load_lanes(fn, kind, at, count, masks=target.masks))
                at = fn.gep(at, lie.pixel)
        for i, value in enumerate(values):
            fn.store(value, state[0], i * width)
        return [fn.gep(state[0], FOUR * width)]

    at, state = fn.i64(low), [to]
    if position is None and (lie.runs or lie.adjacent):
        at, state = _fours(fn, low, high, state, four)
    fn.loop(at, high, 1, state, pixel, guard=True, hint="pixel")


def clear(fn: Function, kind: str, width: int, row: Value, span: tuple[Index, Index]) -> None:
    """Zeros in the places [low, high) of a row."""

    def place(_: Value, state: list[Value]) -> list[Value]:
        fn.store(fn.const(kind, 0.0), state[0])
        return [fn.gep(state[0], width)]

    fn.loop(span[0], span[1], 1, [fn.gep(row, fn.mul(span[0], width))], place, guard=True, hint="zero")


@dataclass(frozen=True, slots=True)
class Finish:
    """What is done to sums on the way out: bias and epilogue, and where the output and the residual have pixels."""

    epilogue: Epilogue
    bias: Value | None
    out: Lie
    residual: Lie | None

    def store(
        self, fn: Function, target: Target, kind: str, row: Value, high: Index, out: Value, residual: Value, count: int
    ) -> None:
        """Write the pixels [0, high) of a row; `count` channels exist."""
        width, more = target.vector_bytes, self.residual if self.residual is not None else self.out

        def done(value: Value, extra: Value | None) -> Value:
            if self.bias is not None:
                value = fn.binary("fadd", value, self.bias)
            return self.epilogue.apply(fn, value, extra)

        def pixel(_: Value, state: list[Value]) -> list[Value]:
            extra = None
            if self.residual is not None and more.adjacent:
                extra = load_lanes(fn, kind, state[2], count, masks=target.masks)
            elif self.residual is not None:
                extra = gather(fn, kind, state[2], more.channel, count)
            value = done(fn.load(kind, state[0]), extra)
            if self.out.adjacent:
                store_lanes(fn, value, state[1], count, masks=target.masks)
            else:
                scatter(fn, value, state[1], self.out.channel, count)
            return [fn.gep(p, s) for p, s in zip(state, (width, self.out.pixel, more.pixel), strict=True)]

        def four(_: Value, state: list[Value]) -> list[Value]:
            extra: list[Value | None] = [None] * FOUR
            if self.residual is not None:
                extra = [*load_runs(fn, kind, state[2], more.channel, FOUR, count)]
            values = [done(fn.load(kind, state[0], i * width), extra[i]) for i in range(FOUR)]
            store_runs(fn, values, state[1], self.out.channel, count)
            steps = (width, self.out.pixel, more.pixel)
            return [fn.gep(p, fn.mul(s, FOUR)) for p, s in zip(state, steps, strict=True)]

        at, state = fn.i64(0), [row, out, residual]
        if self.out.runs and more.runs:
            at, state = _fours(fn, 0, high, state, four)
        fn.loop(at, high, 1, state, pixel, guard=True, hint="pixel")
