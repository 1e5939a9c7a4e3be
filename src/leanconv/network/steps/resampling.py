"""Resize, Upsample and Pad: pixels taken from where tables say, or a fill and a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass, replace
from leanconv.kernels.net_expression import Formula, Step
from leanconv.kernels.net_gather import GatherSpec
from leanconv.network.graph import Node
from leanconv.network.operators.base import ints
from leanconv.network.operators.resize import axis_taps, coordinate_mode, mode, resampling
from leanconv.network.operators.slicing import pad_mode, pad_widths
from leanconv.network.places import Place, sliced
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.network.steps.maps import copy_phase, map_phase
from leanconv.planning.model import phases_seconds
from leanconv.program import Phase

MOST_TAPS = 16  # combinations of an output pixel that are summed in one straight line


@dataclass(frozen=True, slots=True)
class _Table:
    """Input positions and weights of each output position along an axis, both (out, taps); None for weights of 1."""

    index: Array
    weight: Array | None


def _gather(name: str, x: Place, out: Place, tables: Sequence[_Table], setting: Setting) -> Option:
    """One phase over tables of all spatial axes."""
    item, dims = x.item, len(tables)
    weighted = any(table.weight is not None for table in tables)
    unit = all(p.strides[1] == 1 or p.shape[1] == 1 for p in (x, out))
    spec = GatherSpec(setting.host.target, x.dtype, tuple(t.index.shape[1] for t in tables), weighted, unit)
    rows, batch = out.shape[2], out.shape[0]
    parts = max(1, min(rows, -(-8 * setting.threads // batch)))
    block = -(-rows // parts)
    parts = -(-rows // block)
    fields = {
        "p_div": 1,
        "p_count": parts,
        "n_div": parts,
        "n_count": batch,
        "p_block": block,
        "channels": x.shape[1],
        "x_n": x.strides[0] * item,
        "x_c": x.strides[1] * item,
        "o_n": out.strides[0] * item,
        "o_c": out.strides[1] * item,
    }
    roles: dict[str, Place | Memory | int] = {"x": x, "out": out}
    kept = 0
    for d in range(dims):
        fields |= {f"out{d}": out.shape[2 + d], f"to{d}": out.strides[2 + d] * item}
        table = tables[d]
        index = np.ascontiguousarray(table.index.astype(np.int64) * (x.strides[2 + d] * item))
        roles[f"index{d}"] = index
        kept += index.nbytes
        if weighted:
            weight = np.ones(index.shape) if table.weight is None else table.weight
            stored = np.ascontiguousarray(weight.astype(x.dtype))
            roles[f"weight{d}"] = stored
            kept += stored.nbytes
    phase = Phase(name, spec, fields, batch * parts)
    seconds = phases_seconds((phase,), setting.threads)
    return Option("gather", seconds, lambda: Built((phase,), roles), (), kept, kept)


class Resize(Lowerer):
    """Resize and Upsample along the spatial axes."""

    image: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Spatial axes only, constant sizes, nothing outside of the image."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or not 3 <= len(x.shape) <= 5:
            return "kernels take images of float32 and float64 with one to three spatial axes"
        if any(t is not None and t.size and constants[i] is None for i, t in enumerate(types) if i):
            return "sizes that are not constant"
        place = resampling(node, x.shape, _inputs(constants))
        if any(n != m or scale != 1 for n, m, scale in list(zip(x.shape, place.out, place.scales, strict=True))[:2]):
            return "batch or channels change their extent"
        if coordinate_mode(node) == "tf_crop_and_resize":
            return "a part of the image"
        if math.prod(t.index.shape[1] for t in _tables(node, x.shape, constants)) > MOST_TAPS:
            return "many taps, as with antialiasing"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        constants = [None if o is None else o.constant for o in call.inputs]
        x = call.given(0)
        return [_gather(call.node.name, x, call.output, _tables(call.node, x.shape, constants), setting)]


def _inputs(constants: Arrays) -> list[Array | None]:
    return [None if a is None or not a.size else a for a in constants[1:]]


def _tables(node: Node, shape: tuple[int, ...], constants: Arrays) -> list[_Table]:
    place = resampling(node, shape, _inputs(constants))
    tables = []
    for axis in range(2, len(shape)):
        n, m, scale = shape[axis], place.out[axis], place.scales[axis]
        if n == m and scale == 1:
            tables.append(_Table(np.arange(n)[:, None], None))
            continue
        taps = axis_taps(node, n, m, scale, place.first[axis], place.last[axis])
        tables.append(_short(taps.index, None if mode(node) == "nearest" else taps.weight))
    return tables


def _short(index: Array, weight: Array | None) -> _Table:
    """A table without columns in which every weight is zero."""
    if weight is None:
        return _Table(index, None)
    # Moved to the front, taps with a weight take as many columns as the position that has most of them.
    order = np.argsort(weight == 0, axis=1, kind="stable")
    most = max(1, int((weight != 0).sum(axis=1).max()))
    return _Table(np.take_along_axis(index, order, 1)[:, :most], np.take_along_axis(weight, order, 1)[:, :most])


class Pad(Lowerer):
    """Pad with a constant, or along spatial axes with what is inside."""

    follows: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Constant pads."""
        x = types[0]
        if x is None or x.dtype not in FLOATS:
            return "kernels copy float32 and float64"
        if any(t is not None and constants[i] is None for i, t in enumerate(types) if i):
            return "pads that are not constant"
        widths = _widths(node, len(x.shape), constants)
        if any(a < -n or b < -n for n, (a, b) in zip(x.shape, widths, strict=True)):
            return "more is cut off than there is"
        if pad_mode(node) != "constant" and (
            not 3 <= len(x.shape) <= 5 or widths[:2] != [(0, 0), (0, 0)] or any(min(w) < 0 for w in widths)
        ):
            return "pads with what is inside are made along spatial axes"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """A gather, or a fill and a copy."""
        x, out, node = call.given(0), call.output, call.node
        constants = [None if o is None else o.constant for o in call.inputs]
        widths = _widths(node, len(x.shape), constants)
        if pad_mode(node) != "constant":
            how = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[pad_mode(node)]
            tables = [
                _Table(np.pad(np.arange(n), w, mode=how)[:, None], None)  # type: ignore[call-overload]
                for n, w in zip(x.shape[2:], widths[2:], strict=True)
            ]
            return [_gather(node.name, x, out, tables, setting)]
        fill = constants[2] if len(constants) > 2 else None
        value = float(node.attributes.get("value", 0.0)) if fill is None else float(fill.reshape(()))
        shape = tuple(n - max(-a, 0) - max(-b, 0) for n, (a, b) in zip(x.shape, widths, strict=True))
        steps = (1,) * len(shape)
        source = sliced(x, [max(-a, 0) for a, _ in widths], steps, shape)
        target = sliced(out, [max(a, 0) for a, _ in widths], steps, shape)
        phases = [map_phase(f"{node.name} fill", Formula(0, (Step("const", (), (value,)),)), [], out, setting)]
        roles: dict[str, Place | Memory | int] = {"out": out}
        if target.size:
            copy = copy_phase(f"{node.name} copy", source, target, setting)
            phases.append(replace(copy, roles={"in0": "inside source", "out": "inside"}))
            roles |= {"inside source": source, "inside": target}
        seconds = phases_seconds(phases, setting.threads)
        return [Option("fill and copy", seconds, lambda: Built(tuple(phases), roles))]


def _widths(node: Node, rank: int, constants: Arrays) -> list[tuple[int, int]]:
    pads = constants[1] if len(constants) > 1 else None
    axes = constants[3] if len(constants) > 3 else None
    return pad_widths(node, rank, None if pads is None else ints(pads), None if axes is None else ints(axes))


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Resize(), "Resize", "Upsample")
    registry.add(Pad(), "Pad")
