"""Phases of element-wise formulas and of copies, from the places of their operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.classes import replace
from leanconv.kernels.net_expression import Formula
from leanconv.kernels.net_map import FAR, SAME, UNIT, MapSpec
from leanconv.kernels.net_turn import TurnSpec
from leanconv.network.places import Place, broadcast
from leanconv.network.steps.base import Setting
from leanconv.program import Phase

CHUNK_BYTES = 32 << 10  # of the output, at least, in a chunk: taking one costs some tens of nanoseconds
Dim = tuple[int, tuple[int, ...]]  # extent, and bytes from step to step in each array


def map_phase(
    name: str, formula: Formula, operands: Sequence[Place], out: Place, setting: Setting, roles: Sequence[str] = ()
) -> Phase:
    """`out = formula(operands)`, operands broadcast to the output's shape; `roles`: their names if not in0, in1, ..."""
    item = out.item
    placed = [broadcast(place, out.shape) for place in operands]
    dims = merged_axes(out, placed)
    length, steps = dims.pop() if dims else (1, (item,) * (len(placed) + 1))
    rows = tuple(UNIT if s == item or length == 1 else SAME if s == 0 else FAR for s in steps)
    names = [*(f"in{i}" for i in range(len(placed))), "out"]
    spec = MapSpec(setting.host.target, out.dtype, formula, len(dims), rows)
    count = math.prod(n for n, _ in dims)
    parts = max(1, min(8 * setting.threads, count * length * item // CHUNK_BYTES))
    per_row = max(1, min(parts // count if count < parts else 1, length))
    block = -(-length // per_row // 64) * 64 if per_row > 1 else length
    block = max(1, min(block, length))
    many = max(1, count // parts)
    parts = -(-length // block)
    fields = {
        "b_div": 1,
        "b_count": parts,
        "r_div": parts,
        "r_count": -(-count // many),
        "rows": many,
        "row_count": count,
        "block": block,
        "length": length,
    }
    for d, (n, bytes_) in enumerate(dims):
        fields[f"size{d}"] = n
        fields |= {f"{role}_{d}": step for role, step in zip(names, bytes_, strict=True)}
    fields |= {f"{role}_at": step for role, step in zip(names, steps, strict=True)}
    given = dict(zip(names, roles, strict=False)) if roles else {}
    return Phase(name, spec, fields, fields["r_count"] * parts, given)


def copy_phase(name: str, source: Place, out: Place, setting: Setting) -> Phase:
    """A copy between any strides; elements of 4 or 8 bytes, whatever they mean."""
    raw = "float32" if out.item == 4 else "float64"
    source, out = replace(source, dtype=raw), replace(out, dtype=raw)
    return _turn_phase(name, source, out, setting) or map_phase(name, Formula(1), [source], out, setting)


def merged_axes(out: Place, placed: Sequence[Place]) -> list[Dim]:
    """Axes of an output and of operands of its shape, outermost of the output first, as few as strides allow."""
    return _merged([(n, steps) for n, *steps in _axes(out, placed)])


def _axes(out: Place, placed: Sequence[Place]) -> list[tuple[int, ...]]:
    columns = zip(out.shape, *(place.byte_strides for place in placed), out.byte_strides, strict=True)
    return sorted((row for row in columns if row[0] > 1), key=lambda row: -abs(row[-1]))


def _merged(axes: Sequence[tuple[int, Sequence[int]]]) -> list[Dim]:
    """Axes, outermost first, with those that can be counted as one joined."""
    dims: list[Dim] = []
    for n, steps in axes:
        if dims and all(outer == n * inner for outer, inner in zip(dims[-1][1], steps, strict=True)):
            dims[-1] = (dims[-1][0] * n, tuple(steps))
        else:
            dims.append((n, tuple(steps)))
    return dims


def _turn_phase(name: str, source: Place, out: Place, setting: Setting) -> Phase | None:
    """A copy through transposes, if elements are adjacent along one axis here and along another one there."""
    item, lanes = out.item, setting.host.target.lanes(out.dtype)
    dims = merged_axes(out, [source])
    rows = [d for d, (n, (s, _)) in enumerate(dims) if s == item and n >= lanes]
    columns = [d for d, (n, (_, t)) in enumerate(dims) if t == item and n >= lanes]
    if len(rows) != 1 or len(columns) != 1 or rows == columns:
        return None
    (i,), (j,) = rows, columns
    (row_count, (_, row)), (column_count, (column, _)) = dims[i], dims[j]
    outer = [dim for d, dim in enumerate(dims) if d not in (i, j)]
    planes = math.prod(n for n, _ in outer)
    wanted = max(1, min(-(-8 * setting.threads // planes), row_count * column_count * item // CHUNK_BYTES))
    block = -(-row_count // wanted // lanes) * lanes
    parts = -(-row_count // block)
    fields = {
        "b_div": 1,
        "b_count": parts,
        "p_div": parts,
        "p_count": planes,
        "row_count": row_count,
        "column_count": column_count,
        "block": block,
        "in0_column": column,
        "out_row": row,
    }
    for d, (n, (s, t)) in enumerate(outer):
        fields |= {f"size{d}": n, f"in0_{d}": s, f"out_{d}": t}
    return Phase(name, TurnSpec(setting.host.target, out.dtype, len(outer)), fields, planes * parts)
