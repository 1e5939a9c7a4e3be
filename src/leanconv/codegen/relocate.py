"""Where the sections of an object lie in memory, and the object as it reads there.

Sections lie one after another, code first. Behind them stands a slot for each symbol that is defined elsewhere or that
is reached through a global offset table: a jump of eight bytes to an address, then the address.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from leanconv.codegen.elf import AARCH64, X86_64, ObjectFile, Relocation, Section, UnsupportedObjectError
from leanconv.errors import CompileError

_SLOT, _SLOT_ADDRESS = 16, 8
_MOST_BYTES = 64 << 20  # the largest kernels have some 200 KiB
_JUMPS = {
    X86_64: bytes.fromhex("ff2502000000 6690"),  # jmp *2(%rip); nop of two bytes
    AARCH64: bytes.fromhex("50000058 00021fd6"),  # ldr x16, .+8; br x16
}

# What is stored, as numbered by the ABIs' supplements. x86-64:
_R64, _PC32, _PLT32, _GOTPCREL, _PC64, _GOTPCRELX, _REX_GOTPCRELX = 1, 2, 4, 9, 24, 41, 42
_X86_GOT = frozenset((_GOTPCREL, _GOTPCRELX, _REX_GOTPCRELX))
_X86 = _X86_GOT | {_R64, _PC32, _PLT32, _PC64}
# AArch64:
_ABS64, _PREL64, _PREL32, _PAGE, _ADD, _JUMP, _CALL, _GOT_PAGE, _GOT_LOAD = 257, 260, 261, 275, 277, 282, 283, 311, 312
_LOADS = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # loads and stores, by the logarithm of their size
_ARM_GOT = frozenset((_GOT_PAGE, _GOT_LOAD))
_GOT = {X86_64: _X86_GOT, AARCH64: _ARM_GOT}
_ARM = _ARM_GOT | {_ABS64, _PREL64, _PREL32, _PAGE, _ADD, _JUMP, _CALL, *_LOADS}

Resolve = Callable[[str], int]


class Layout:
    """Offsets of an object's sections and slots from where it is loaded, and `nbytes`, what they take in all."""

    def __init__(self, found: ObjectFile) -> None:
        """Place everything.

        Raises:
            CompileError: it would take more memory than any kernel does.
            UnsupportedObjectError: the object is for another kind of CPU, or has relocations unknown here.
        """
        if found.machine not in _JUMPS:
            raise UnsupportedObjectError(f"code for machine {found.machine}")
        known, through = _X86 if found.machine == X86_64 else _ARM, _GOT[found.machine]
        self.places: dict[int, int] = {}
        end = 0
        for number, section in sorted(found.sections.items(), key=lambda item: not item[1].code):
            end = _aligned(end, section.alignment)
            self.places[number] = end
            end += section.size
        end = _aligned(end, _SLOT)
        self.slots: dict[int, int] = {}
        for each in found.relocations:
            if each.kind not in known:
                raise UnsupportedObjectError(f"relocation {each.kind} of machine {found.machine}")
            if each.symbol not in self.slots and (each.kind in through or not found.symbols[each.symbol].section):
                self.slots[each.symbol] = end
                end += _SLOT
        if end > _MOST_BYTES:
            raise CompileError(f"object code is damaged: it would take {end:,} bytes")
        self.nbytes = end


def relocated(data: bytes, found: ObjectFile, layout: Layout, base: int, resolve: Resolve) -> bytearray:
    """The object `found` in `data` as it is in memory at `base`; `resolve` knows the addresses of other symbols.

    Raises:
        CompileError: a relocation makes no sense.
        UnsupportedObjectError: a symbol is too far away.
    """
    image = bytearray(layout.nbytes)
    for number, section in found.sections.items():
        if section.stored:
            place = layout.places[number]
            image[place : place + section.size] = data[section.offset : section.offset + section.size]
    for symbol, place in layout.slots.items():
        address = base + _place(found, layout, symbol) if found.symbols[symbol].section else 0
        address = address or resolve(found.symbols[symbol].name)
        image[place : place + _SLOT_ADDRESS] = _JUMPS[found.machine]
        struct.pack_into("<Q", image, place + _SLOT_ADDRESS, address)
    patch = _patch_x86 if found.machine == X86_64 else _patch_arm
    through = _GOT[found.machine]
    for each in found.relocations:
        if each.kind in through:
            target = layout.slots[each.symbol] + _SLOT_ADDRESS
        elif found.symbols[each.symbol].section:
            target = _place(found, layout, each.symbol)
        else:
            target = layout.slots[each.symbol]
        at = layout.places[each.section] + each.offset
        patch(image, base, at, target + each.addend, each, found.sections[each.section])
    return image


def addresses(found: ObjectFile, layout: Layout, base: int, names: Iterable[str]) -> dict[str, int]:
    """Where the functions `names` of an object that is loaded at `base` begin.

    Raises:
        CompileError: it does not define one of them.
    """
    numbers = {symbol.name: number for number, symbol in enumerate(found.symbols) if symbol.section > 0}
    missing = [name for name in names if name not in numbers]
    if missing:
        raise CompileError(f"object code does not define {', '.join(missing)}")
    return {name: base + _place(found, layout, numbers[name]) for name in names}


def _place(found: ObjectFile, layout: Layout, number: int) -> int:
    symbol = found.symbols[number]
    if symbol.section not in layout.places:
        raise CompileError(f"object code is damaged: {symbol.name!r} is in a section that is not loaded")
    return layout.places[symbol.section] + symbol.value


def _aligned(end: int, alignment: int) -> int:
    return -(-end // alignment) * alignment


def _check(each: Relocation, section: Section, width: int) -> None:
    if each.offset + width > section.size:
        raise CompileError("object code is damaged: a relocation outside its section")


def _patch_x86(image: bytearray, base: int, at: int, target: int, each: Relocation, section: Section) -> None:
    if each.kind in (_R64, _PC64):
        _check(each, section, 8)
        value = base + target if each.kind == _R64 else target - at
        struct.pack_into("<Q", image, at, value & 0xFFFFFFFFFFFFFFFF)
        return
    _check(each, section, 4)
    struct.pack_into("<i", image, at, _signed(target - at, 32))


def _patch_arm(image: bytearray, base: int, at: int, target: int, each: Relocation, section: Section) -> None:
    kind = each.kind
    if kind in (_ABS64, _PREL64):
        _check(each, section, 8)
        value = base + target if kind == _ABS64 else target - at
        struct.pack_into("<Q", image, at, value & 0xFFFFFFFFFFFFFFFF)
        return
    _check(each, section, 4)
    if kind == _PREL32:
        struct.pack_into("<i", image, at, _signed(target - at, 32))
        return
    if at % 4:
        raise CompileError("object code is damaged: an instruction at an odd address")
    (word,) = struct.unpack_from("<I", image, at)
    low = (base + target) & 0xFFF
    if kind in (_PAGE, _GOT_PAGE):
        pages = _signed(((base + target) >> 12) - ((base + at) >> 12), 21)
        word = word & 0x9F00001F | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    elif kind in (_JUMP, _CALL):
        word = word & 0xFC000000 | _scaled(_signed(target - at, 28), 2) & 0x3FFFFFF
    elif kind == _ADD:
        word = word & 0xFFC003FF | low << 10
    else:
        word = word & 0xFFC003FF | _scaled(low, 3 if kind == _GOT_LOAD else _LOADS[kind]) << 10
    struct.pack_into("<I", image, at, word)


def _signed(value: int, bits: int) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise UnsupportedObjectError(f"a distance of {value} bytes or pages")
    return value


def _scaled(value: int, shift: int) -> int:
    if value & ((1 << shift) - 1):
        raise CompileError("object code is damaged: a relocation to an address that is not aligned")
    return value >> shift
