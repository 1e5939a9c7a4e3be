"""What arranging a network gives: steps on places, the storages in the arena, and when each of them is alive."""

from __future__ import annotations

from dataclasses import field

from leanconv.classes import dataclass, replace
from leanconv.network.places import Place
from leanconv.network.steps.base import Call, Lowerer

ARENA, INPUT, OUTPUT, CONSTANT = "v:", "in:", "out:", "const:"
"""How names of storages begin."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node, or a copy, on its places; computed by NumPy if nothing has kernels for it (`reason` says why)."""

    name: str
    call: Call
    lowerer: Lowerer | None
    reason: str = ""

    @property
    def op(self) -> str:
        """The operator."""
        return self.call.node.op

    def without_constants(self) -> Step:
        """The same step, which keeps no constants in memory."""
        inputs = tuple(o if o is None or o.handle is None else replace(o, handle=None) for o in self.call.inputs)
        return replace(self, call=replace(self.call, inputs=inputs))

    @property
    def storages(self) -> set[str]:
        """All that it reads or writes."""
        places = [o.place for o in self.call.inputs if o is not None] + [p for p in self.call.outputs if p is not None]
        return {place.storage for place in places}


@dataclass(slots=True)
class Arrangement:
    """Steps in order, the place of every value, and the bytes of each storage in the arena.

    `shrunk`: storages of which only the first bytes are needed after a step: its number, and how many bytes.
    """

    steps: list[Step] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shrunk: dict[str, tuple[int, int]] = field(default_factory=dict)

    def without_constants(self) -> Arrangement:
        """The same arrangement, which keeps no constants in memory."""
        return Arrangement([step.without_constants() for step in self.steps], self.places, self.sizes, self.shrunk)


def lifetimes(found: Arrangement) -> dict[str, tuple[int, int]]:
    """First and last step of each storage in the arena."""
    result: dict[str, tuple[int, int]] = {}
    for number, step in enumerate(found.steps):
        for name in step.storages:
            if name in found.sizes:
                first, _ = result.get(name, (number, number))
                result[name] = first, number
    return result


def live(found: Arrangement) -> list[int]:
    """Bytes of all storages in the arena that are alive at each step."""
    change = [0] * (len(found.steps) + 1)
    for name, (first, last) in lifetimes(found).items():
        change[first] += found.sizes[name]
        step, left = found.shrunk.get(name, (last, 0))
        change[step + 1] -= found.sizes[name] - left
        change[last + 1] -= left
    total, result = 0, []
    for step in change[:-1]:
        total += step
        result.append(total)
    return result


def live_bytes(found: Arrangement) -> int:
    """Bytes that no plan of the arena can go below."""
    return max(live(found), default=0)
