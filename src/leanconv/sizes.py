"""Numbers of bytes as people write them: "256KiB", "32MiB", "1.5 GB"."""

from __future__ import annotations

import re
from typing import Any

from leanconv.errors import ArgumentTypeError, ArgumentValueError

_UNITS = {"B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}iB"] = 1024**_power

_BY_LOWER = {unit.lower(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_bytes(size: Any, argument: str) -> int | None:
    """Return a number of bytes; None, which stands for no limit, stays None.

    Args:
        size: None, an int of at least 0, or a text: a decimal number and a unit, with or without a space,
            upper or lower case. KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000; B or no
            unit is bytes. A fraction of a byte is dropped, so that a limit is never exceeded.
        argument: name to use in errors.

    Raises:
        ArgumentTypeError: neither None, nor an int, nor a text.
        ArgumentValueError: negative, or not understood.
    """
    if size is None:
        return None
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        factor = _BY_LOWER.get(match[2].lower() or "b") if match else None
        if match is None or factor is None:
            units = ", ".join(_UNITS)
            rule = f'must be a number and a unit such as "32MiB" ({units}), or a number of bytes, from 0 on'
            raise ArgumentValueError(argument, size, rule)
        whole, _, part = match[1].partition(".")
        return int(whole or "0") * factor + int(int(part or "0") * factor // 10 ** len(part))
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise ArgumentTypeError(argument, size, 'must be None, an int (bytes) or a text such as "32MiB"')
    if size < 0:
        raise ArgumentValueError(argument, size, "must be at least 0 bytes")
    return int(size)


def format_bytes(size: int) -> str:
    """Return bytes as a text with one decimal in units of 1024: "512 B", "189.0 KiB", "1.3 MiB"."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1023.95:  # what would be rounded to 1024.0 belongs to the next unit
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
