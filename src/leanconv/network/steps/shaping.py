"""Operators that only say how the same elements are to be seen: views where strides allow it, or else one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from leanconv.classes import replace
from leanconv.network.constants import is_known
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.base import axis_of, ints
from leanconv.network.operators.shaping import permutation
from leanconv.network.operators.slicing import slices
from leanconv.network.places import Place, broadcast, reshaped, row_major, sliced, strides_in, transposed
from leanconv.network.steps.base import Arrays, Built, Call, Lowerer, Operand, Option, Placer, Registry, Setting, Types
from leanconv.network.steps.maps import copy_phase
from leanconv.planning.model import phases_seconds

COPIED = (4, 8)
"""Bytes of elements that kernels copy."""


def copy_option(name: str, source: Place, out: Place, setting: Setting) -> list[Option]:
    """The one way to copy a value."""
    phase = copy_phase(name, source, out, setting)
    roles = {"in0": source, "out": out}
    return [Option("copy", phases_seconds((phase,), setting.threads), lambda: Built((phase,), roles))]


class _Shaping(Placer):
    """What they share: the element type does not matter."""

    follows: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """All but the data is constant, and elements have a size that kernels copy."""
        if any(t is not None and not is_known(constants, i) for i, t in enumerate(types) if i):
            return "a shape that is not constant"
        first = types[0]
        if first is None or np.dtype(first.dtype).itemsize not in COPIED or first.dtype.startswith("str"):
            return "elements of other than 4 or 8 bytes"
        return None


class Reshape(_Shaping, Lowerer):
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout."""

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """No mask."""
        if any(node.outputs[1:]):
            return "a mask is an output"
        return super().refusal(node, types, constants)

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """The same elements, if their strides allow it."""
        assert inputs[0] is not None
        found = reshaped(inputs[0].place, out[0].shape)
        return None if found is None else [found]

    def order(self, node: Node, first: Place | None, rank: int) -> tuple[int, ...]:
        """C order, unless somebody wants another."""
        return row_major(rank)

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Where a common refinement of both shapes can be seen."""
        x = types[0]
        assert x is not None
        if reshaped(place, x.shape) is not None:
            return True
        finer = _common(x.shape, place.shape)
        return all(n > 0 for n in finer) and int(np.prod(finer)) == place.size and reshaped(place, finer) is not None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One copy; both shapes are seen as one that is a view of each."""
        x, out = call.given(0), call.output
        target = reshaped(out, x.shape)
        if target is not None:
            return copy_option(call.node.name, x, target, setting)
        source = reshaped(x, out.shape)
        if source is not None:
            return copy_option(call.node.name, source, out, setting)
        finer = _common(x.shape, out.shape)
        source, target = reshaped(x, finer), reshaped(out, finer)
        assert source is not None and target is not None, "see writes"
        return copy_option(call.node.name, source, target, setting)


def _common(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The coarsest shape that both can be split into; of another size if extents do not divide each other."""
    ends_a = np.cumprod(a[::-1])[::-1].tolist()
    ends_b = np.cumprod(b[::-1])[::-1].tolist()
    ends = sorted({*ends_a, *ends_b, 1}, reverse=True)
    return tuple(high // low for high, low in pairwise(ends))


class Transpose(_Shaping):
    """Transpose: always a view."""

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """Strides in another order."""
        assert inputs[0] is not None
        return [transposed(inputs[0].place, permutation(node, len(inputs[0].place.shape)))]


class Expand(_Shaping):
    """Expand: always a view."""

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """Strides of zero."""
        assert inputs[0] is not None
        return [broadcast(inputs[0].place, out[0].shape)]


class Slice(_Shaping):
    """Slice: always a view."""

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """An offset, and strides times the steps."""
        assert inputs[0] is not None
        place = inputs[0].place
        values = [None if o is None or o.constant is None else ints(o.constant) for o in inputs[1:]]
        ranges = [range(n)[cut] for n, cut in zip(place.shape, slices(node, len(place.shape), values), strict=True)]
        if any(len(r) == 0 for r in ranges):
            return [replace(place, shape=out[0].shape, strides=strides_in(out[0].shape, row_major(len(ranges))))]
        return [sliced(place, [r.start for r in ranges], [r.step for r in ranges], out[0].shape)]


class Split(_Shaping):
    """Split: always views."""

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """An offset each."""
        assert inputs[0] is not None
        place = inputs[0].place
        axis, first, found = axis_of(int(node.attributes.get("axis", 0)), len(place.shape)), 0, []
        for type_ in out:
            starts = [first if a == axis else 0 for a in range(len(place.shape))]
            found.append(sliced(place, starts, (1,) * len(starts), type_.shape))
            first += type_.shape[axis]
        return found


class Blocks(_Shaping, Lowerer):
    """DepthToSpace and SpaceToDepth: one copy between views of six axes."""

    image: ClassVar[bool] = True

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The permutation of the operator's definition, on strides."""
        node, x, out = call.node, call.given(0), call.output
        b = int(node.attributes["blocksize"])
        n, c, h, w = x.shape
        if node.op == "SpaceToDepth":
            source = reshaped(x, (n, c, h // b, b, w // b, b))
            assert source is not None
            by_channel = node.attributes.get("mode", "DCR") in ("CRD", b"CRD")
            source = transposed(source, (0, 1, 3, 5, 2, 4) if by_channel else (0, 3, 5, 1, 2, 4))
            target = reshaped(out, (n, c, b, b, h // b, w // b) if by_channel else (n, b, b, c, h // b, w // b))
        elif node.attributes.get("mode", "DCR") in ("DCR", b"DCR"):
            source = reshaped(x, (n, b, b, c // b**2, h, w))
            assert source is not None
            source = transposed(source, (0, 3, 4, 1, 5, 2))
            target = reshaped(out, (n, c // b**2, h, b, w, b))
        else:
            source = reshaped(x, (n, c // b**2, b, b, h, w))
            assert source is not None
            source = transposed(source, (0, 1, 4, 2, 5, 3))
            target = reshaped(out, (n, c // b**2, h, b, w, b))
        assert target is not None  # an axis can always be split
        return copy_option(node.name, source, target, setting)


class Copy(_Shaping, Lowerer):
    """A copy that no node asks for: into an output, into a part of a Concat, to C order."""

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One phase."""
        return copy_option(call.node.name, call.given(0), call.output, setting)


class Concat(Placer):
    """Concat: its inputs are written into their parts of the output, or copied there."""

    follows: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Elements of a size that kernels copy."""
        if any(t is not None and (np.dtype(t.dtype).itemsize not in COPIED) for t in types):
            return "elements of other than 4 or 8 bytes"
        return None


def concat_axis(node: Node, rank: int) -> int:
    """The axis that is joined."""
    return axis_of(int(node.attributes.get("axis", 1 if node.version < 4 else 0)), rank)


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Reshape(), "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
    registry.add(Transpose(), "Transpose")
    registry.add(Expand(), "Expand")
    registry.add(Slice(), "Slice")
    registry.add(Split(), "Split")
    registry.add(Blocks(), "DepthToSpace", "SpaceToDepth")
    registry.add(Concat(), "Concat")
