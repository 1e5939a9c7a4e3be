"""Lowered layers as JSON's types: the next process has the phases of a network without what makes them.

An algorithm, and what knows how to make its kernels, are most of what a process imports to run a network whose kernels
are on disk.  Of a lowering that is read back, specifications are names of kernels in the cache (`StoredSpec`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from leanconv.algorithms.base import Lowering, Tables, WeightPacking
from leanconv.compiled import KernelSpec, StoredSpec, key_of
from leanconv.errors import CacheError
from leanconv.memory import Buffer
from leanconv.network.slabs import panel_outputs
from leanconv.network.steps.base import for_any_extents
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.program import Phase

Origin = Callable[[str], KernelSpec]


class Writer:
    """Writes lowerings, and lists the kernels that they name.

    Attributes:
        specs: of each kernel its key, `outputs`, and the key of the one for any extents, or "".
    """

    def __init__(self) -> None:
        """Begin with no kernel."""
        self.specs: list[list[Any]] = []
        self._numbers: dict[KernelSpec, int] = {}

    def lowering(self, low: Lowering) -> list[Any] | None:
        """A lowering; None for one that holds addresses of this process, or is made of several."""
        if low.addresses or low.parts:
            return None
        packing, tables = low.packing, low.tables
        return [
            self._phases(low.phases),
            _buffers(low.workspace),
            None
            if packing is None
            else [packing.nbytes, packing.bias_apart, packing.grouped, self._phases(packing.phases)],
            None if tables is None else [_buffers(tables.buffers), self._phases(tables.phases)],
            list(low.steps),
            dict(low.parameters),
        ]

    def _phases(self, phases: Sequence[Phase]) -> list[Any]:
        return [
            [
                phase.name,
                self._number(phase.spec),
                dict(phase.fields),
                phase.chunks,
                dict(phase.roles),
                dict(phase.offsets),
            ]
            for phase in phases
        ]

    def _number(self, spec: KernelSpec) -> int:
        if spec not in self._numbers:
            free = for_any_extents(spec)
            self.specs.append([key_of(spec), panel_outputs(spec), "" if free == spec else key_of(free)])
            self._numbers[spec] = len(self.specs) - 1
        return self._numbers[spec]


class Reader:
    """Reads lowerings of one network; layers share the kernels that they name."""

    def __init__(self, specs: Sequence[Sequence[Any]]) -> None:
        """Take what `Writer.specs` was."""
        self._rows = specs
        self._specs: dict[int, StoredSpec] = {}

    def plan(self, written: Sequence[Any], known: Mapping[str, Any], problem: Problem) -> Plan:
        """The plan of a layer whose lowering `Writer` wrote; `known`: its algorithm and more, as in `Decided`."""
        limits = (known["threads"], known["limit"], known["settings"])
        make = functools.partial(Plan, problem, known["algorithm"], *limits, staging=known["staging"])
        origin = functools.partial(_origin, make)
        phases, workspace, packing, tables, steps, parameters = written
        found = Lowering(
            self._phases(phases, origin),
            _read_buffers(workspace),
            None if packing is None else self._packing(packing, origin),
            tuple(map(sys.intern, steps)),
            parameters,
            {},
            None if tables is None else self._tables(tables, origin),
        )
        return make(lowering=found)

    def _packing(self, written: Sequence[Any], origin: Origin) -> WeightPacking:
        nbytes, bias_apart, grouped, phases = written
        first, *more = self._phases(phases, origin)
        return WeightPacking(nbytes, first, bias_apart, tuple(more), grouped)

    def _tables(self, written: Sequence[Any], origin: Origin) -> Tables:
        buffers, phases = written
        first, *more = self._phases(phases, origin)
        return Tables(_read_buffers(buffers), first, tuple(more))

    def _phases(self, phases: Sequence[Any], origin: Origin) -> tuple[Phase, ...]:
        return tuple(
            Phase(sys.intern(name), self._spec(number, origin), fields, chunks, roles, offsets)
            for name, number, fields, chunks, roles, offsets in phases
        )

    def _spec(self, number: int, origin: Origin) -> StoredSpec:
        if number not in self._specs:
            key, outputs, free = self._rows[number]
            any_extents = StoredSpec(free, outputs, None, origin) if free else None
            self._specs[number] = StoredSpec(key, outputs, any_extents, origin)
        return self._specs[number]


def _origin(make: Callable[[], Plan], key: str) -> KernelSpec:
    """The specification of a kernel of a plan: the layer is lowered again."""
    low = make().lowering
    more: Iterable[Phase] = () if low.packing is None else low.packing.phases
    tables: Iterable[Phase] = () if low.tables is None else low.tables.phases
    for phase in (*low.phases, *more, *tables):
        for spec in (phase.spec, for_any_extents(phase.spec)):
            if key_of(spec) == key:
                return spec
    raise CacheError(f"no layer of the network takes a kernel {key}; LEANCONV_CACHE=off does without what was kept")


def _buffers(buffers: Sequence[Buffer]) -> list[Any]:
    return [[buffer.name, buffer.nbytes, buffer.per_thread] for buffer in buffers]


def _read_buffers(written: Sequence[Any]) -> tuple[Buffer, ...]:
    return tuple(Buffer(sys.intern(name), nbytes, per_thread) for name, nbytes, per_thread in written)
