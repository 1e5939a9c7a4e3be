"""Bytes as text."""

from __future__ import annotations

import numpy as np
import pytest

from leanconv.errors import ArgumentValueError
from leanconv.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, None),
        (0, 0),
        (123, 123),
        (np.int64(5), 5),
        ("123", 123),
        ("0 B", 0),
        ("256KiB", 256 * 1024),
        ("32MiB", 32 * 1024**2),
        (" 1.5 GB ", 1_500_000_000),
        ("1.5gib", 3 * 2**29),
        ("2TB", 2 * 10**12),
        (".5 KB", 500),
        ("0.0015 kB", 1),
        ("9007199254740993 B", 9007199254740993),
    ],
)
def test_parse(size: object, expected: int | None) -> None:
    assert parse_bytes(size, "memory_limit") == expected


@pytest.mark.parametrize("size", ["", "MiB", "32M", "-1 KB", "1e6", "1,000 B", "inf", "1 KiB 2", "٣ B"])
def test_parse_refuses(size: str) -> None:
    with pytest.raises(ArgumentValueError, match="must be a number and a unit"):
        parse_bytes(size, "memory_limit")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (193536, "189.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1363149, "1.3 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_bytes(size) == text
