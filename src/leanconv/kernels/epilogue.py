"""The output step of every kernel: residual add and activation on registers, then stores in either layout.

Bias is not here: accumulators start from it.  An epilogue works on vectors that are about to be stored, so it
costs no extra pass over the output.
"""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Value, lanes_of
from leanconv.kernels.activations import emit_activation
from leanconv.problem import Activation


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to a sum before it is stored: `residual` is None, "before" or "after" the activation."""

    activation: Activation | None = None
    residual: str | None = None

    def apply(self, fn: Function, value: Value, residual: Value | None) -> Value:
        """The stored value for a vector of sums and the residual's vector."""
        if residual is not None and self.residual == "before":
            value = fn.binary("fadd", value, residual)
        if self.activation is not None:
            value = emit_activation(fn, self.activation, value)
        if residual is not None and self.residual == "after":
            value = fn.binary("fadd", value, residual)
        return value


def store_lanes(fn: Function, value: Value, pointer: Value, count: int, *, masks: bool) -> None:
    """Store the first `count` lanes (known when the kernel is made); touches no byte beyond them.

    Without cheap masks the lanes are stored in pieces of 4, 2 and 1: a masked store costs 42 micro-operations
    on Zen 3.
    """
    lanes = lanes_of(value.type)
    if count == lanes:
        fn.store(value, pointer)
    elif masks:
        fn.masked_store(value, pointer, fn.lane_mask(lanes, count))
    else:
        for first, size in pieces(count):
            part = fn.shuffle(value, value, range(first, first + size))
            fn.store(part, pointer, first * item_bytes(value))


def load_lanes(fn: Function, kind: str, pointer: Value, count: int, *, masks: bool) -> Value:
    """Load the first `count` lanes, the rest undefined; touches no byte beyond them."""
    lanes = lanes_of(kind)
    if count == lanes:
        return fn.load(kind, pointer)
    if masks:
        return fn.masked_load(kind, pointer, fn.lane_mask(lanes, count))
    scalar = kind[1:-1].split(" x ")[1]
    result = Value("poison", kind)
    for first, size in pieces(count):
        part = fn.load(f"<{size} x {scalar}>", pointer, first * (4 if scalar == "float" else 8))
        wide = fn.shuffle(part, part, [*range(size), *[-1] * (lanes - size)])
        merged = [lanes + lane - first if first <= lane < first + size else lane for lane in range(lanes)]
        result = fn.shuffle(result, wide, merged)
    return result


def pieces(count: int) -> list[tuple[int, int]]:
    """Split a count into (first, size) pieces whose sizes are falling powers of two."""
    result, first = [], 0
    for size in (1 << bit for bit in reversed(range(count.bit_length()))):
        if count & size:
            result.append((first, size))
            first += size
    return result


def item_bytes(value: Value) -> int:
    """Bytes of one element of a value."""
    return 8 if "double" in value.type else 4


def transpose(fn: Function, rows: Sequence[Value]) -> list[Value]:
    """Transpose up to L vectors of L lanes; missing rows give undefined lanes.

    First L/2-lane halves are exchanged, then quarters, and so on; every step is one two-operand shuffle that
    x86 and NEON have as one or two instructions.
    """
    lanes = lanes_of(rows[0].type)
    work = [*rows, *[Value("poison", rows[0].type)] * (lanes - len(rows))]
    block = lanes // 2
    while block:
        result = list(work)
        for i in range(lanes):
            if i & block:
                continue
            low, high = work[i], work[i + block]
            if low.name == high.name == "poison":
                continue
            first = [lane if not lane & block else lanes + lane - block for lane in range(lanes)]
            second = [lane + block if not lane & block else lanes + lane for lane in range(lanes)]
            result[i] = fn.shuffle(low, high, first)
            result[i + block] = fn.shuffle(low, high, second)
        work = result
        block //= 2
    return work


def row_addresses(fn: Function, base: Value, rows: int, step: Index) -> list[Value]:
    """Addresses of `rows` rows `step` bytes apart."""
    return [fn.gep(base, fn.mul(step, i)) for i in range(rows)]
