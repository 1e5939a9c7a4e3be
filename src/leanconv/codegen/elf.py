"""Relocatable ELF objects, read and checked: sections that run, symbols, and what is to be patched.

LLVM writes such objects for Linux (System V ABI, chapter 4; the AMD64 and AArch64 supplements number the relocations).
Only what code generators write is read: 64 bits, little endian, explicit addends. Nothing in a file is believed before
it is known to lie inside the file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from leanconv.errors import CompileError

X86_64, AARCH64 = 62, 183

_HEADER = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_RELOCATABLE = 1
_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL, _GROUP, _SHNDX = 1, 2, 4, 8, 9, 17, 18
_WRITE, _ALLOC, _EXECUTE, _THREADS = 1, 2, 4, 0x400
_ABSOLUTE, _RESERVED = 0xFFF1, 0xFF00
_MOST_ALIGNMENT = 4096


class UnsupportedObjectError(Exception):
    """The object is sound as far as it was read, but needs more of a linker than this."""


class Section(NamedTuple):
    """A section that is in memory when the code runs."""

    offset: int  # in the file
    size: int
    alignment: int
    code: bool
    stored: bool  # else zeros that the file does not hold


class Relocation(NamedTuple):
    """At `offset` of section `section`: the address of symbol `symbol` plus `addend`, encoded as `kind` says."""

    section: int
    offset: int
    kind: int
    symbol: int
    addend: int


class Symbol(NamedTuple):
    """A name; where it is defined (`section` 0: elsewhere) and its offset there."""

    name: str
    section: int
    value: int


class ObjectFile(NamedTuple):
    """What a relocatable object holds; sections by their number in the file, symbols in order."""

    machine: int
    sections: dict[int, Section]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read_object(data: bytes) -> ObjectFile:
    """Read a relocatable object.

    Raises:
        CompileError: it is damaged, or no ELF object of 64 bits.
        UnsupportedObjectError: it holds what kernels do not need: data that is written, thread-local or common symbols.
    """
    machine, headers = _headers(data)
    sections: dict[int, Section] = {}
    tables = []
    for number, (_, kind, flags, _, offset, size, _, _, alignment, _) in enumerate(headers):
        if kind != _NOBITS:
            _within(data, offset, size, f"section {number}")
        if kind in (_REL, _GROUP, _SHNDX):
            raise UnsupportedObjectError(f"section {number} of type {kind}")
        if kind == _SYMTAB:
            tables.append(number)
        if flags & _ALLOC:
            if kind not in (_PROGBITS, _NOBITS) or flags & (_WRITE | _THREADS):
                raise UnsupportedObjectError(f"section {number} of type {kind} and flags {flags:#x}")
            alignment = alignment or 1
            if alignment & (alignment - 1) or alignment > _MOST_ALIGNMENT:
                raise CompileError(f"object code is damaged: section {number} is aligned to {alignment} bytes")
            sections[number] = Section(offset, size, alignment, bool(flags & _EXECUTE), kind == _PROGBITS)
    if len(tables) != 1:
        raise CompileError(f"object code is damaged: {len(tables)} tables of symbols")
    symbols = _symbols(data, headers, tables[0], sections)
    return ObjectFile(machine, sections, symbols, _relocations(data, headers, tables[0], sections, len(symbols)))


def _headers(data: bytes) -> tuple[int, list[tuple[int, ...]]]:
    """Machine and section headers."""
    if len(data) < _HEADER.size:
        raise CompileError(f"object code is damaged: {len(data)} bytes")
    magic, width, order, *_, kind, machine, _, _, _, start, _, _, _, _, size, count, _ = _HEADER.unpack_from(data)
    if magic != b"\x7fELF" or width != 2 or order != 1 or kind != _RELOCATABLE:
        raise CompileError("object code is no relocatable ELF object of 64 bits, little endian")
    if size != _SECTION.size or not 0 < count < _RESERVED:
        raise CompileError(f"object code is damaged: {count} section headers of {size} bytes")
    _within(data, start, size * count, "section headers")
    return machine, list(_SECTION.iter_unpack(data[start : start + size * count]))


def _symbols(
    data: bytes, headers: list[tuple[int, ...]], table: int, sections: dict[int, Section]
) -> tuple[Symbol, ...]:
    offset, size, link = headers[table][4], headers[table][5], headers[table][6]
    if size % _SYMBOL.size or link >= len(headers):
        raise CompileError("object code is damaged: its table of symbols")
    names = data[headers[link][4] : headers[link][4] + headers[link][5]]
    result = []
    for name, info, _, section, value, _ in _SYMBOL.iter_unpack(data[offset : offset + size]):
        end = names.find(b"\0", name)
        if name and end < 0:
            raise CompileError("object code is damaged: a symbol's name")
        if section >= _RESERVED and section != _ABSOLUTE:
            raise UnsupportedObjectError(f"a symbol in section {section:#x}")
        if section == _ABSOLUTE:
            section = -1 if info & 15 == 4 else _unsupported("an absolute symbol")  # 4: the source file's name
        elif section >= len(headers) or (section in sections and value > sections[section].size):
            raise CompileError("object code is damaged: a symbol outside its section")
        result.append(Symbol(names[name:end].decode("utf-8", "replace") if name else "", section, value))
    return tuple(result)


def _relocations(
    data: bytes, headers: list[tuple[int, ...]], table: int, sections: dict[int, Section], symbols: int
) -> tuple[Relocation, ...]:
    result = []
    for _, kind, _, _, start, size, link, section, _, _ in headers:
        if kind != _RELA or section not in sections:
            continue
        if size % _RELOCATION.size or link != table or not sections[section].stored:
            raise CompileError("object code is damaged: a table of relocations")
        for offset, info, addend in _RELOCATION.iter_unpack(data[start : start + size]):
            if info >> 32 >= symbols:
                raise CompileError("object code is damaged: a relocation by a symbol that does not exist")
            result.append(Relocation(section, offset, info & 0xFFFFFFFF, info >> 32, addend))
    return tuple(result)


def _within(data: bytes, offset: int, size: int, what: str) -> None:
    if offset + size > len(data):
        raise CompileError(f"object code is damaged: {what} beyond its {len(data)} bytes")


def _unsupported(what: str) -> int:
    raise UnsupportedObjectError(what)
