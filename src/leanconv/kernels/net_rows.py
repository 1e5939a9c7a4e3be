"""A row of adjacent elements reduced in vectors: several in flight, then what is left, then across the lanes.

The order depends on the row's length only, so the bits of a sum do not depend on who computes it.
"""

from __future__ import annotations

from collections.abc import Callable

from leanconv.codegen.ir import Function, Index, Value, vector

VECTORS = 4  # in flight


def reduce_row(
    fn: Function,
    scalar: str,
    lanes: int,
    length: Index,
    start: float,
    join: Callable[[Value, Value], Value],
    term: Callable[[str, Index], Value],
) -> Value:
    """`join` of all terms.

    Args:
        fn: where it is computed.
        scalar: type of an element.
        lanes: of a vector.
        length: of the row.
        start: what changes nothing when joined.
        join: of two scalars or vectors.
        term: called with a type and the number of the first element.
    """
    wide, bundle = vector(scalar, lanes), VECTORS * lanes
    bundles, whole = (fn.mul(fn.udiv(length, size), size) for size in (bundle, lanes))

    def several(at: Value, state: list[Value]) -> list[Value]:
        return [join(s, term(wide, fn.add(at, i * lanes))) for i, s in enumerate(state)]

    def single(kind: str) -> Callable[[Value, list[Value]], list[Value]]:
        return lambda at, state: [join(state[0], term(kind, at))]

    zero = fn.const(wide, start)
    a, b, c, d = fn.loop(0, bundles, bundle, [zero] * VECTORS, several, guard=True, hint="row")
    (total,) = fn.loop(bundles, whole, lanes, [join(join(a, b), join(c, d))], single(wide), guard=True, hint="row")
    width = lanes
    while width > 1:
        width //= 2
        total = join(fn.shuffle(total, total, range(width)), fn.shuffle(total, total, range(width, 2 * width)))
    first = fn.op(scalar, f"extractelement {total.type} {total.name}, i32 0")
    return fn.loop(whole, length, 1, [first], single(scalar), guard=True, hint="row")[0]
