"""What a kernel reads at run time: named i64 fields and named buffers, declared by use."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from leanconv.codegen.ir import I64, PTR, Function, Index, Module, Value


class Fields:
    """Reads named i64 fields of a parameter block inside a kernel and remembers the order they were named in.

    The loads stand in the entry block, so that they dominate every use.
    """

    def __init__(self, fn: Function, block: Value, buffers: Value) -> None:
        self._fn, self._block, self._buffers = fn, block, buffers
        self.names: list[str] = []
        self._loaded: dict[str, Value] = {}
        self._pointers: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        """The value of a field."""
        if name not in self._loaded:
            self.names.append(name)
            self._loaded[name] = self._fn.entry_load(I64, self._block, 8 * (len(self.names) - 1))
        return self._loaded[name]

    def buffer(self, role: str) -> Value:
        """The address of the buffer that plays a role.

        The field `slot_<role>` says where it stands in the table, `offset_<role>` at how many bytes of it to begin.
        """
        if role not in self._pointers:
            start = self._fn.entry_load(PTR, self._buffers, self[f"slot_{role}"])
            self._pointers[role] = self._fn.entry_moved(start, self[f"offset_{role}"])
        return self._pointers[role]


class Prefixed(Fields):
    """The fields and buffers of one part of a kernel, whose names all begin with a prefix of its own."""

    def __init__(self, fields: Fields, prefix: str) -> None:
        self._fields, self._prefix = fields, prefix

    def __getitem__(self, name: str) -> Value:
        """The value of the part's field."""
        return self._fields[self._prefix + name]

    def buffer(self, role: str) -> Value:
        """The address of the buffer that plays the part's role."""
        return self._fields.buffer(self._prefix + role)


class Overlaid(Fields):
    """The fields and buffers of a kernel, but for some fields that it works out itself."""

    def __init__(self, fields: Fields, values: Mapping[str, Value]) -> None:
        self._fields, self._values = fields, values

    def __getitem__(self, name: str) -> Value:
        """The value of a field."""
        return self._values[name] if name in self._values else self._fields[name]

    def buffer(self, role: str) -> Value:
        """The address of the buffer that plays a role."""
        return self._fields.buffer(role)


def prefixed(fields: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The values for `Prefixed`."""
    return {prefix + name: value for name, value in fields.items()}


class KernelFunction:
    """A kernel being written: `void name(ptr buffers, ptr fields, i64 chunk, i64 thread)`."""

    def __init__(self, module: Module, name: str) -> None:
        self.fn = module.function(name, [(PTR, "buffers"), (PTR, "params"), (I64, "chunk"), (I64, "thread")])
        buffers, params, self.chunk, self.thread = self.fn.args
        self.fields = Fields(self.fn, params, buffers)

    def index(self, letter: str) -> Index:
        """One coordinate of the chunk's number: chunk / `{letter}_div` mod `{letter}_count`."""
        return self.fn.urem(self.fn.udiv(self.chunk, self.fields[f"{letter}_div"]), self.fields[f"{letter}_count"])

    def finish(self) -> tuple[str, ...]:
        """End the kernel; the names of its fields in order."""
        self.fn.ret()
        return tuple(self.fields.names)


def pack_fields(names: tuple[str, ...], values: Mapping[str, int]) -> ctypes.Array[ctypes.c_int64]:
    """The parameter block for the fields that a kernel named, in its order."""
    return (ctypes.c_int64 * max(1, len(names)))(*(values[name] for name in names))
