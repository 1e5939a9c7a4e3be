"""Every check of arrays and sizes, and what the exceptions say and are."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from leanconv import arrays, options, sizes
from leanconv.errors import (
    AllocationError,
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    CacheError,
    CompileError,
    LeanconvError,
    MemoryLimitError,
    NotApplicableError,
)

Row = tuple[Callable[[], object], type[ArgumentError], str]

TYPE, VALUE = ArgumentTypeError, ArgumentValueError


def take(obj: Any) -> Callable[[], object]:
    return lambda: arrays.as_array(obj, "x")


class OnGpu:
    def __dlpack__(self) -> None: ...
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __repr__(self) -> str:
        return "OnGpu()"


class Broken(OnGpu):
    def __dlpack__(self) -> None:
        raise BufferError("no, thanks.")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Negated(OnGpu):
    def is_neg(self) -> bool:
        return True


PROBLEM = options.make_problem(2, (1, 4, 5, 6), (8, 4, 3, 3), dtype="float32")  # output 1x8x3x4
OUT = np.zeros((1, 8, 3, 4), np.float32)
READ_ONLY = OUT.copy()
READ_ONLY.flags.writeable = False
BIG = np.zeros((2, 8, 3, 4), np.float32)
FIELD = np.zeros(3, [("tag", "i1"), ("value", "f4")])["value"]

ROWS: list[Row] = [
    # -- arrays
    (take([1.0]), TYPE, "x=[1.0]: must be a NumPy array or an array that offers DLPack, not list"),
    (take(None), TYPE, "x=None: must be a NumPy array or an array that offers DLPack, not NoneType"),
    (take(OnGpu()), TYPE, "x=OnGpu(): must be in the CPU's memory; copy it there first"),
    (take(Broken()), TYPE, "x=OnGpu(): cannot be read through DLPack: no, thanks"),
    (take(Negated()), TYPE, "x=OnGpu(): must not be a negated view; pass .resolve_neg()"),
    (
        take(np.zeros((2, 3), np.float16)),
        TYPE,
        "x=<ndarray (2, 3) float16>: must have element type float32 or float64",
    ),
    (
        take(np.zeros((2, 3), np.int64)),
        TYPE,
        "x=<ndarray (2, 3) int64>: must have element type float32 or float64",
    ),
    (take(np.zeros(3, ">f8")), TYPE, "x=<ndarray (3,) >f8>: must be in the machine's byte order"),
    (
        take(np.ma.zeros(3)),
        TYPE,
        "x=<MaskedArray (3,) float64>: must not be masked; pass .filled(value) or .data",
    ),
    (
        take(FIELD),
        VALUE,
        "x=<ndarray (3,) float32>: must have its elements at multiples of their size in memory; pass a copy",
    ),
    (
        lambda: arrays.check_same_dtype(OUT, w=OUT.astype(np.float64)),
        TYPE,
        "w=<ndarray (1, 8, 3, 4) float64>: must have the element type of x, float32",
    ),
    (
        lambda: arrays.check_bias(np.zeros(4, np.float32), PROBLEM),
        VALUE,
        "bias=<ndarray (4,) float32>: must have shape (8,)",
    ),
    (
        lambda: arrays.check_bias(np.zeros(8), PROBLEM),
        TYPE,
        "bias=<ndarray (8,) float64>: must have element type float32",
    ),
    (
        lambda: arrays.check_residual(BIG, PROBLEM),
        VALUE,
        "residual=<ndarray (2, 8, 3, 4) float32>: must have shape (1, 8, 3, 4)",
    ),
    (
        lambda: arrays.check_out(BIG, PROBLEM),
        VALUE,
        "out=<ndarray (2, 8, 3, 4) float32>: must have shape (1, 8, 3, 4)",
    ),
    (
        lambda: arrays.check_out(READ_ONLY, PROBLEM),
        VALUE,
        "out=<ndarray (1, 8, 3, 4) float32>: must be writable",
    ),
    (
        lambda: arrays.check_strides(OUT[..., ::-1], "residual", PROBLEM.out_strides, PROBLEM),
        VALUE,
        "residual=<ndarray (1, 8, 3, 4) float32>: must have the strides (96, 12, 4, 1) (elements) it was "
        "planned for, has (96, 12, 4, -1)",
    ),
    (
        lambda: arrays.check_overlap(BIG[:1], BIG, OUT),
        VALUE,
        "out=<ndarray (1, 8, 3, 4) float32>: must not overlap x",
    ),
    (
        lambda: arrays.check_overlap(BIG[:1], OUT, OUT, None, BIG[:1, ::-1]),
        VALUE,
        "out=<ndarray (1, 8, 3, 4) float32>: must be the residual itself or not overlap it",
    ),
    # -- sizes
    (
        lambda: sizes.parse_bytes("32 MB per thread", "memory_limit"),
        VALUE,
        "memory_limit='32 MB per thread': must be a number and a unit such as \"32MiB\" "
        "(B, KB, KiB, MB, MiB, GB, GiB, TB, TiB), or a number of bytes, from 0 on",
    ),
    (lambda: sizes.parse_bytes(-1, "memory_limit"), VALUE, "memory_limit=-1: must be at least 0 bytes"),
    (
        lambda: sizes.parse_bytes(1.5, "memory_limit"),
        TYPE,
        'memory_limit=1.5: must be None, an int (bytes) or a text such as "32MiB"',
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[message[:60] for _, _, message in ROWS])
def test_message(row: Row, check_row: Callable[[Row], None]) -> None:
    check_row(row)


@pytest.mark.parametrize("module", [arrays, sizes])
def test_every_check_has_a_row(
    module: ModuleType, checks_without_a_row: Callable[[ModuleType, list[Row]], list[int]]
) -> None:
    assert checks_without_a_row(module, ROWS) == []


@pytest.mark.parametrize(
    ("error", "builtin", "message"),
    [
        (ArgumentValueError("stride", 0, "must be at least 1"), ValueError, "stride=0: must be at least 1"),
        (ArgumentTypeError("x", "a" * 100, "no"), TypeError, "x='" + "a" * 76 + "...: no"),
        (
            NotApplicableError("pointwise", "the kernel is 3x3"),
            ValueError,
            "algorithm 'pointwise' does not apply: the kernel is 3x3",
        ),
        (
            MemoryLimitError(1000, 1234567, "im2col"),
            MemoryError,
            "im2col needs 1,234,567 bytes; the memory limit is 1,000 bytes",
        ),
        (AllocationError("no memory"), MemoryError, "no memory"),
        (CompileError("no kernel"), RuntimeError, "no kernel"),
        (CacheError("no folder"), RuntimeError, "no folder"),
    ],
)
def test_errors_are_also_built_in_errors(error: LeanconvError, builtin: type, message: str) -> None:
    assert isinstance(error, LeanconvError)
    assert isinstance(error, builtin)
    assert str(error) == message


def test_a_broken_repr_does_not_hide_the_rule() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    assert str(ArgumentTypeError("x", Rude(), "must be an array")) == "x=<Rude>: must be an array"
