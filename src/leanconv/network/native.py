"""Steps linked to programs: one native call for each run of steps that have kernels, NumPy for those between.

All programs of a network share one way to find memory: *regions*, which are storages in the arena, workspaces of steps,
inputs and outputs of the caller, and memory that is kept.  A slot in a program's table of addresses is a region and an
offset, so that a call fills the tables with one vector addition.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.compiled import prepare
from leanconv.memory import Layout, layout_of
from leanconv.network.arrangement import Step
from leanconv.network.operators import evaluate_node, operator
from leanconv.network.places import Place
from leanconv.network.steps.base import Built, Option, address
from leanconv.program import Compiled, Job, Phase, Program
from leanconv.progress import report
from leanconv.threads import pool

ABSOLUTE = "absolute"
"""The region that starts at address 0."""


def workspace_region(number: int) -> str:
    """Name of the region of a step's workspace."""
    return f"workspace of step {number}"


class Linked(Compiled):
    """Phases of several steps whose kernels are compiled; `regions` numbers the regions."""

    def __init__(self, steps: Sequence[LinkedStep], threads: int, regions: Mapping[str, int]) -> None:
        keys: dict[tuple[str, int], int] = {}
        slots: dict[str, int] = {}
        strides: dict[str, int] = {}
        for step in steps:
            for name, (region, offset) in step.slots.items():
                slots[name] = keys.setdefault((region, offset), len(keys))
            strides |= step.strides
        self.program = Program(tuple(phase for step in steps for phase in step.phases), (), threads)
        self.region_of = np.array([regions[region] for region, _ in keys], np.intp)
        self.offset_of = np.array([offset for _, offset in keys], np.int64)
        self.most = max(1, min(threads, max((p.chunks for p in self.program.phases), default=1)))
        self._link(slots, strides)
        # A table is as long as there are slots: names that share an address share a slot.
        self.slots = {f"{region}+{offset}": i for (region, offset), i in keys.items()}


@dataclass(frozen=True, slots=True)
class LinkedStep:
    """A native step: phases on buffers whose names are its own, and where those buffers are."""

    phases: tuple[Phase, ...]
    slots: Mapping[str, tuple[str, int]]
    strides: Mapping[str, int]
    keep: Built

    @property
    def storages(self) -> set[str]:
        """The regions that its buffers lie in."""
        return {region for region, _ in self.slots.values()}


@dataclass(frozen=True, slots=True)
class NumpyStep:
    """A step that NumPy computes.

    Attributes:
        step: what is computed.
        constants: the values of those of its inputs that are constant, by their positions.
    """

    step: Step
    constants: Mapping[int, Array]

    @classmethod
    def of(cls, step: Step) -> NumpyStep:
        """Bring its constants into memory."""
        handles = {i: o.handle for i, o in enumerate(step.call.inputs) if o is not None and o.handle is not None}
        return cls(step.without_constants(), {i: handle.array() for i, handle in handles.items()})

    @property
    def storages(self) -> set[str]:
        """Where its values lie, but for the constants that it holds."""
        places = [o.place for i, o in enumerate(self.step.call.inputs) if o is not None and i not in self.constants]
        return {place.storage for place in (*places, *self.step.call.outputs) if place is not None}

    def run(self, addresses: Mapping[str, int]) -> None:
        """Evaluate it on the values where they lie."""
        call, known = self.step.call, self.constants
        arrays = [
            None if o is None else known[i] if i in known else _array(o.place, addresses)
            for i, o in enumerate(call.inputs)
        ]
        if call.node.op == "leanconv.Copy":
            results: Sequence[Array] = [arrays[0]]  # type: ignore[list-item]
        else:
            found = operator(call.node.op)
            assert found is not None
            results = evaluate_node(found, call.node, arrays)
        for place, result in zip(call.outputs, results, strict=False):
            if place is not None and place.size:
                _array(place, addresses)[...] = result


def _array(place: Place, addresses: Mapping[str, int]) -> Array:
    """A value as an array on its memory (which the caller keeps alive)."""
    if not place.size:
        return np.empty(place.shape, place.dtype)
    low, high = 0, place.item
    for n, step in zip(place.shape, place.byte_strides, strict=True):
        low, high = low + min(0, step * (n - 1)), high + max(0, step * (n - 1))
    memory: Any = (ctypes.c_char * (high - low)).from_address(addresses[place.storage] + place.offset + low)
    return np.ndarray(place.shape, place.dtype, np.frombuffer(memory, np.uint8), -low, place.byte_strides)


def prepare_steps(options: Sequence[Option | None]) -> dict[int, Built]:
    """Compile the kernels of all steps together; returns the steps that take no kernels to be built, by number."""
    built = {i: option.build() for i, option in enumerate(options) if option is not None and not option.specs}
    phases = (phase.spec for step in built.values() for phase in step.phases)
    prepare((*phases, *(spec for option in options if option is not None for spec in option.specs)))
    return built


def link_step(number: int, option: Option, threads: int, built: Built | None = None) -> LinkedStep:
    """Build a step as chosen, unless that is done, and give its buffers names that no other step has."""
    report("pack", number, 0)
    built = built or option.build()
    layout: Layout = layout_of(option.workspace, threads)
    slots: dict[str, tuple[str, int]] = {}
    strides: dict[str, int] = {}
    names: dict[str, str] = {}
    for buffer, offset, stride in zip(option.workspace, layout.offsets, layout.strides, strict=True):
        names[buffer.name] = f"{number}:{buffer.name}"
        slots[names[buffer.name]] = (workspace_region(number), offset)
        strides[names[buffer.name]] = stride
    for role, what in built.roles.items():
        names[role] = f"{number}:{role}"
        if isinstance(what, Place):
            slots[names[role]] = (what.storage, what.offset)
        else:
            slots[names[role]] = (ABSOLUTE, what if isinstance(what, int) else address(what))
    return LinkedStep(tuple(phase.renamed(names) for phase in built.phases), slots, strides, built)


class NativeJob:
    """One program of a network in the memory of one call."""

    __slots__ = ("_job", "_linked", "_table")

    def __init__(self, linked: Linked) -> None:
        self._linked, self._job = linked, Job(linked)
        table: Any = self._job.table
        self._table = np.frombuffer(table, np.int64) if linked.slots else np.empty(0, np.int64)

    def run(self, bases: Array) -> None:
        """Run with regions that start at these addresses."""
        linked = self._linked
        np.add(bases[linked.region_of], linked.offset_of, out=self._table)
        pool().run(self._job.address, linked.most)
