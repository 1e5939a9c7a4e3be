"""Vectors in the IR builder: masks, transposes, rounding and constants, run and compared with NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from guard import check_canaries, guarded, guarded_copy
from kernels import Compiled
from leanconv.codegen.ir import SCALARS, Function, Value, vector
from leanconv.codegen.types import ITEMSIZE, lanes_of, literal, scalar_of
from leanconv.kernels.epilogue import load_lanes, pieces, store_lanes, transpose

BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])


@BOTH
@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_masks_touch_nothing_beyond_them(dtype: str, lanes: int) -> None:
    """Masked and piecewise loads and stores of every count, known or not, at the edge of a forbidden page."""
    kind, item = vector(SCALARS[dtype], lanes), ITEMSIZE[SCALARS[dtype]]

    def masked(fn: Function, source: Value, target: Value, count: Value) -> None:
        mask = fn.lane_mask(lanes, count)
        fn.masked_store(fn.masked_load(kind, source, mask), target, mask)

    unknown = Compiled("ppi", masked)
    for count in range(lanes + 1):
        ways = [lambda x, y, n=count: unknown(x, y, n)]
        for masks in (False, True):

            def known(fn: Function, source: Value, target: Value, n: int = count, masks: bool = masks) -> None:
                store_lanes(fn, load_lanes(fn, kind, source, n, masks=masks), target, n, masks=masks)

            if count:
                ways.append(Compiled("pp", known))
        for flush in ("right", "left"):
            for way in ways:
                x = guarded_copy(np.arange(1, count + 1, dtype=dtype), flush=flush)
                y = guarded((count,), dtype, flush=flush)
                way(x, y)
                np.testing.assert_array_equal(x, y)
                check_canaries(y)
    zeros = Compiled("ppi", lambda fn, s, t, n: fn.store(fn.masked_load(kind, s, fn.lane_mask(lanes, n)), t))
    full = np.full(lanes, 9, dtype)
    zeros(np.arange(1, lanes + 1, dtype=dtype), full, lanes - 1)
    np.testing.assert_array_equal(full, [*range(1, lanes), 0])
    assert item * lanes == full.nbytes


def test_pieces() -> None:
    for count in range(33):
        parts = pieces(count)
        assert [i for first, size in parts for i in range(first, first + size)] == list(range(count))
        assert all(size & (size - 1) == 0 for _, size in parts)


@BOTH
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_transpose(dtype: str, lanes: int) -> None:
    """Every number of rows up to the lanes; lanes of rows that are missing may hold anything."""
    kind, item = vector(SCALARS[dtype], lanes), ITEMSIZE[SCALARS[dtype]]
    for rows in range(1, lanes + 1):

        def write(fn: Function, source: Value, target: Value, rows: int = rows) -> None:
            loaded = [fn.load(kind, source, i * lanes * item) for i in range(rows)]
            for i, value in enumerate(transpose(fn, loaded)):
                fn.store(value, target, i * lanes * item)

        x = np.arange(rows * lanes, dtype=dtype).reshape(rows, lanes)
        y = np.full((lanes, lanes), -1, dtype)
        Compiled("pp", write)(x, y)
        np.testing.assert_array_equal(y[:, :rows], x.T)


@BOTH
def test_arithmetic_is_rounded_as_written(dtype: str) -> None:
    """A fused multiply-add rounds once, an unfused one twice, and nothing is reordered."""
    kind = vector(SCALARS[dtype], 4)
    eps = float(np.finfo(dtype).eps)
    a, b, c = (np.full(4, v, dtype) for v in (1 + eps, 1 - eps, -1.0))
    for fused, want in ((True, -eps * eps), (False, 0.0)):

        def write(fn: Function, target: Value, *args: Value, fused: bool = fused) -> None:
            x, y, z = (fn.load(kind, pointer) for pointer in args)
            fn.store(fn.multiply_add(x, y, z, fused=fused), target)

        out = np.zeros(4, dtype)
        Compiled("pppp", write)(out, a, b, c)
        np.testing.assert_array_equal(out, np.full(4, want, dtype))


@BOTH
def test_constants_are_exact(dtype: str) -> None:
    info = np.finfo(dtype)
    numbers = [
        0.0,
        -0.0,
        1 / 3,
        math.pi,
        float(info.max),
        -float(info.tiny),
        float(info.smallest_subnormal),
        math.inf,
        math.nan,
    ]
    for number in numbers:
        for kind in (SCALARS[dtype], vector(SCALARS[dtype], 2), vector(SCALARS[dtype], 8)):
            out = np.zeros(lanes_of(kind), dtype)
            Compiled("p", lambda fn, target, k=kind, n=number: fn.store(fn.const(k, n), target))(out)
            want = np.full(len(out), number, dtype)
            np.testing.assert_array_equal(out, want)
            np.testing.assert_array_equal(np.signbit(out), np.signbit(want))
    assert literal(1.0, "float") == literal(1.0, "double") == "0x3FF0000000000000"
    assert (lanes_of("float"), scalar_of("float")) == (1, "float")
    assert (lanes_of("<8 x double>"), scalar_of("<8 x double>")) == (8, "double")
