"""The dimensions outside a kernel's own: rows or planes counted by one number, innermost fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.fields import Fields, KernelFunction


def starts(fn: Function, fields: Fields, outer: int, roles: Sequence[str], number: Index) -> list[Value]:
    """Where the row or plane of that number starts in each buffer.

    Fields: `size{d}` of the `outer` dimensions but the first, and for each role `{role}_{d}` bytes from step to step.
    """
    rest, places = number, [fields.buffer(role) for role in roles]
    for d in reversed(range(outer)):
        at = fn.urem(rest, fields[f"size{d}"]) if d else rest
        rest = fn.udiv(rest, fields[f"size{d}"]) if d else rest
        places = [fn.gep(place, fn.mul(at, fields[f"{role}_{d}"])) for place, role in zip(places, roles, strict=True)]
    return places


def each_row(kernel: KernelFunction, outer: int, roles: Sequence[str], body: Callable[[list[Value]], None]) -> None:
    """Call `body` with the `starts` of each row of the chunk.

    Fields besides: `r_{div,count}`; `rows` of a chunk; `row_count` of them all.
    """
    fn, fields = kernel.fn, kernel.fields
    first = fn.mul(kernel.index("r"), fields["rows"])
    stop = fn.smin(fn.add(first, fields["rows"]), fields["row_count"])

    def row(index: Value, _: list[Value]) -> list[Value]:
        body(starts(fn, fields, outer, roles, index))
        return []

    fn.loop(first, stop, 1, [], row, hint="row")
