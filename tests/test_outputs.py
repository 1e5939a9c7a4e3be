"""Arrays for results: where they begin, and what `leanconv.empty` refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import leanconv
from leanconv.memory import ALIGNMENT


@pytest.mark.parametrize("shape", [(), 0, 7, (3, 0, 2), (1, 5, 5, 3), (1, 256, 256, 4)])
@pytest.mark.parametrize("dtype", ["float32", np.float64])
def test_empty_begins_with_a_cache_line(shape: Any, dtype: Any) -> None:
    array = leanconv.empty(shape, dtype)
    assert array.shape == np.empty(shape).shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable
    assert array.ctypes.data % ALIGNMENT == 0
    array.fill(3)
    assert (array == 3).all()


def test_results_are_written_to_it() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 4, 9, 9), np.float32), rng.standard_normal((8, 4, 3, 3), np.float32)
    out = leanconv.empty((1, 8, 9, 9))
    assert leanconv.conv2d(x, w, padding=1, out=out) is out
    np.testing.assert_array_equal(out, leanconv.conv2d(x, w, padding=1))


@pytest.mark.parametrize(
    "shape, dtype, error, message",
    [
        ((3, -1), "float32", leanconv.ArgumentValueError, "shape=(3, -1): extents must be at least 0"),
        ((3, 1.5), "float32", leanconv.ArgumentTypeError, "shape=(3, 1.5): extents must be ints"),
        ((2**31,), "float32", leanconv.ArgumentValueError, "at most 2147483647"),
        ("12", "float32", leanconv.ArgumentTypeError, "shape='12': extents must be ints"),
        (3, "int8", leanconv.ArgumentTypeError, "dtype='int8': must be float32 or float64"),
    ],
)
def test_empty_refuses(shape: Any, dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        leanconv.empty(shape, dtype)
    assert message in str(caught.value)


def test_empty_without_memory() -> None:
    with pytest.raises(leanconv.AllocationError):
        leanconv.empty((2**31 - 1, 2**20))
