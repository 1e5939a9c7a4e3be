"""A Program: declared buffers and phases, everything one native call runs.

A phase is a kernel, its fields and a number of chunks.  Buffers are named; a phase says which buffer plays
which role of its kernel.  `x`, `w` (packed), `out`, `residual`, `weights` (as the user has them), `bias` and
`map` (sampling positions) come from the caller, all others are declared workspace.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import field

from leanconv.classes import dataclass, replace
from leanconv.compiled import Kernel, KernelSpec, kernel, prepare
from leanconv.kernels import offsets
from leanconv.kernels.fields import pack_fields
from leanconv.memory import AlignedBlock, Buffer, Layout, layout_of
from leanconv.progress import report

ARGUMENTS = ("x", "w", "out", "residual", "weights", "bias", "map")


@dataclass(frozen=True, slots=True)
class Phase:
    """A kernel over `chunks` chunks; `roles` maps the kernel's buffer roles to names of buffers.

    `offsets`: bytes from the start of the buffer of a role at which the phase takes it to begin.
    """

    name: str
    spec: KernelSpec
    fields: Mapping[str, int]
    chunks: int
    roles: Mapping[str, str] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Phase:
        """The same phase on other buffers: for the buffer that a key names it uses the one of the value."""
        roles = {role: names.get(name, name) for role, name in self.roles.items()}
        return replace(self, roles={**{k: v for k, v in names.items() if k not in roles}, **roles})

    def shifted(self, offsets: Mapping[str, int]) -> Phase:
        """The same phase with buffers, by name, that begin so many bytes further on."""
        moved = dict(self.offsets)
        for name, offset in offsets.items():
            roles = [role for role, buffer in self.roles.items() if buffer == name]
            for role in roles if name in self.roles else [*roles, name]:
                moved[role] = moved.get(role, 0) + offset
        return replace(self, offsets=moved)


@dataclass(frozen=True, slots=True)
class Program:
    """Phases that run one after another on up to `threads` threads, over declared workspace buffers."""

    phases: tuple[Phase, ...]
    workspace: tuple[Buffer, ...]
    threads: int
    addresses: Mapping[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where the workspace buffers stand in one block of memory."""
        return layout_of(self.workspace, self.threads)


class Compiled:
    """A program whose kernels are compiled: what the calls of a plan share."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.layout = program.layout
        declared = [*(buffer.name for buffer in program.workspace), *program.addresses]
        assert not set(declared) & set(ARGUMENTS), f"a buffer has the name of an argument: {declared}"
        strides = {name: self.layout.strides[i] for name, i in self.layout.index.items()}
        self._link({name: i for i, name in enumerate([*ARGUMENTS, *declared])}, strides)

    def _link(self, slots: Mapping[str, int], strides: Mapping[str, int]) -> None:
        """Compile the kernels; `slots` are places in the table of addresses, `strides` those from thread to thread."""
        self.slots = slots
        prepare(phase.spec for phase in self.program.phases)
        self.kernels: list[Kernel] = []
        self.fields: list[ctypes.Array[ctypes.c_int64]] = []
        for number, phase in enumerate(self.program.phases):
            report("compile", number, len(self.program.phases))
            compiled = kernel(phase.spec)
            values = dict(phase.fields)
            for name in compiled.fields:
                if name.startswith("slot_"):
                    role = name.removeprefix("slot_")
                    values[name] = slots[phase.roles.get(role, role)]
                elif name.startswith("offset_"):
                    values[name] = phase.offsets.get(name.removeprefix("offset_"), 0)
                elif name.startswith("thread_"):
                    values[name] = strides[phase.roles.get(name[7:], name[7:])]
            self.kernels.append(compiled)
            self.fields.append(pack_fields(compiled.fields, values))


class Job:
    """The memory of one running call: the table of addresses and the record of each phase."""

    __slots__ = ("_block", "_compiled", "address", "table")

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled  # keeps the code and the fields alive
        phases = compiled.program.phases
        self._block = AlignedBlock(offsets.JOB_RECORDS + offsets.RECORD_BYTES * max(1, len(phases)))
        self.address = self._block.address
        self.table = (ctypes.c_void_p * len(compiled.slots))()
        for name, value in compiled.program.addresses.items():
            self.table[compiled.slots[name]] = value
        words = {
            offsets.JOB_PHASES: len(phases),
            offsets.JOB_BUFFERS: ctypes.addressof(self.table),
        }
        for i, phase in enumerate(phases):
            record = offsets.JOB_RECORDS + offsets.RECORD_BYTES * i
            words[record + offsets.RECORD_FUNCTION] = compiled.kernels[i].address
            words[record + offsets.RECORD_FIELDS] = ctypes.addressof(compiled.fields[i])
            words[record + offsets.RECORD_CHUNKS] = phase.chunks
        for offset, word in words.items():
            ctypes.c_int64.from_address(self.address + offset).value = word

    def place_workspace(self, addresses: Sequence[int]) -> None:
        """Put the addresses of the workspace buffers, in the order declared, into the table."""
        for i, address in enumerate(addresses, len(ARGUMENTS)):
            self.table[i] = address
