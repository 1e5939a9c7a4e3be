"""Channels first to vectors of channels and back: short runs of adjacent pixels, one a channel, turned in registers.

A run is cut into pieces of 4, 2 and 1 pixels.  The pieces of `lanes` channels fill as many vectors as a piece has
pixels, s; interleaving vectors within blocks of s lanes turns them:

    a0 a1 a2 a3 | e0 e1 e2 e3        a0 b0 c0 d0 | e0 f0 g0 h0
    b0 b1 b2 b3 | f0 f1 f2 f3   <->  a1 b1 c1 d1 | e1 f1 g1 h1      (4 pixels of 8 channels, a to h)
    ...
"""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.codegen.ir import Function, Index, Value, lanes_of, scalar_of, vector
from leanconv.codegen.types import ITEMSIZE


def gather(fn: Function, kind: str, pointer: Value, stride: Index, count: int) -> Value:
    """A vector whose first `count` lanes are elements `stride` bytes apart; the others are zero."""
    scalar = scalar_of(kind)
    value = fn.const(kind, 0.0)
    for lane in range(count):
        element = fn.load(scalar, pointer)
        value = fn.op(kind, f"insertelement {kind} {value.name}, {scalar} {element.name}, i32 {lane}")
        pointer = fn.gep(pointer, stride)
    return value


def scatter(fn: Function, value: Value, pointer: Value, stride: Index, count: int) -> None:
    """Store the first `count` lanes `stride` bytes apart."""
    scalar = scalar_of(value.type)
    for lane in range(count):
        element = fn.op(scalar, f"extractelement {value.type} {value.name}, i32 {lane}")
        fn.store(element, pointer)
        pointer = fn.gep(pointer, stride)


def load_runs(fn: Function, kind: str, pointer: Value, stride: Index, pixels: int, count: int) -> list[Value]:
    """The vectors of channels of `pixels` adjacent pixels; `count` channels `stride` bytes apart exist."""
    scalar, lanes = scalar_of(kind), lanes_of(kind)
    result = []
    for first, size in _pieces(pixels, lanes):
        start = fn.gep(pointer, first * ITEMSIZE[scalar])
        if size == 1:
            result.append(gather(fn, kind, start, stride, count))
            continue
        piece = vector(scalar, size)
        parts = []
        for _ in range(count):
            parts.append(fn.load(piece, start))
            start = fn.gep(start, stride)
        parts += [Value("poison", piece)] * (lanes - count)
        result += _turned(fn, [_joined(fn, parts[r::size]) for r in range(size)])
    return result


def store_runs(fn: Function, values: Sequence[Value], pointer: Value, stride: Index, count: int) -> None:
    """Store vectors of channels as runs of adjacent pixels; `count` channels `stride` bytes apart exist."""
    kind = values[0].type
    scalar, lanes = scalar_of(kind), lanes_of(kind)
    for first, size in _pieces(len(values), lanes):
        start = fn.gep(pointer, first * ITEMSIZE[scalar])
        if size == 1:
            scatter(fn, values[first], start, stride, count)
            continue
        turned = _turned(fn, list(values[first : first + size]))
        for channel in range(count):
            block = channel // size * size
            part = fn.shuffle(turned[channel % size], turned[channel % size], range(block, block + size))
            fn.store(part, start)
            start = fn.gep(start, stride)


def _pieces(pixels: int, lanes: int) -> list[tuple[int, int]]:
    """(first, size) pieces of a run; larger ones than 4 would have to be turned across the halves of a register."""
    result, first = [], 0
    for size in (4, 2, 1):
        while size <= lanes and pixels - first >= size:
            result.append((first, size))
            first += size
    return result


def _joined(fn: Function, parts: list[Value]) -> Value:
    """One vector of several short ones."""
    while len(parts) > 1:
        width = lanes_of(parts[0].type)
        parts = [fn.shuffle(a, b, range(2 * width)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _turned(fn: Function, vectors: list[Value]) -> list[Value]:
    """Transpose the blocks of s lanes of s vectors."""
    size, lanes = len(vectors), lanes_of(vectors[0].type)
    half = size // 2
    low = [lane for block in range(0, lanes, size) for i in range(half) for lane in (block + i, lanes + block + i)]
    high = [lane + half for lane in low]
    for _ in range(half.bit_length()):
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        vectors = [fn.shuffle(a, b, lane) for a, b in pairs for lane in (low, high)]
    return vectors
