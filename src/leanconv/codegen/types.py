"""Values and types of LLVM IR as the builder writes them."""

from __future__ import annotations

import math
import struct

from leanconv.classes import dataclass

I1, I32, I64, PTR = "i1", "i32", "i64", "ptr"
SCALARS = {"float32": "float", "float64": "double"}
ITEMSIZE = {"float": 4, "double": 8, I32: 4}


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value: its printed name and its LLVM type."""

    name: str
    type: str


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
