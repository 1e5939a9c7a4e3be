"""Values and types of LLVM IR as the builder writes them."""

from __future__ import annotations

import math
import struct

I1, I32, I64, PTR = "i1", "i32", "i64", "ptr"
SCALARS = {"float32": "float", "float64": "double"}
ITEMSIZE = {"float": 4, "double": 8, I32: 4}


class Value:
    """An SSA value: its printed name and its LLVM type; never changed once it is made.

    Written out, because a kernel makes thousands: as a frozen dataclass they took a quarter of the time of its text.
    """

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: str) -> None:
        self.name, self.type = name, type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and (self.name, self.type) == (other.name, other.type)

    def __hash__(self) -> int:
        return hash((self.name, self.type))

    def __repr__(self) -> str:
        return f"Value({self.name!r}, {self.type!r})"


Index = Value | int


def vector(scalar: str, lanes: int) -> str:
    """The LLVM type of a vector of `lanes` scalars."""
    return f"<{lanes} x {scalar}>"


def lanes_of(type_: str) -> int:
    """How many lanes a vector type has (1 for a scalar)."""
    return int(type_[1:].split(" ", 1)[0]) if type_.startswith("<") else 1


def scalar_of(type_: str) -> str:
    """The element type of a vector type (a scalar type is its own)."""
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


def literal(number: float, scalar: str) -> str:
    """An exact LLVM floating-point literal (both widths are written as the bits of a double)."""
    if scalar == "float":
        try:
            number = struct.unpack("<f", struct.pack("<f", number))[0]
        except OverflowError:  # beyond what the type holds
            number = math.copysign(math.inf, number)
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
