"""Arrays at the border: NumPy as it is, others through DLPack, and which memory may be shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.arrays import (
    as_array,
    check_bias,
    check_out,
    check_overlap,
    check_residual,
    check_same_dtype,
    check_strides,
    element_strides,
)
from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError
from leanconv.options import make_problem

F32 = np.float32


class Foreign:
    """An array of another library: nothing but DLPack."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Standard(Foreign):
    """An array that follows the array API standard."""

    def __array_namespace__(self) -> Any:
        class Namespace:
            from_dlpack = Standard

        return Namespace


def test_a_numpy_array_comes_back_as_it_is() -> None:
    x = np.ones((2, 3), F32)
    array, restore = as_array(x, "x")
    assert array is x
    assert restore(array) is x


def test_views_are_taken_without_a_copy() -> None:
    x = np.zeros((4, 6, 8), F32)[::2, ::-1, 1::3]
    array, _ = as_array(x, "x")
    assert array is x
    assert element_strides(array) == (96, -8, 3)
    assert element_strides(np.broadcast_to(np.ones((3, 1), F32), (2, 3, 4))) == (0, 1, 0)


def test_subclasses_are_seen_as_plain_arrays(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "weights", F32, "w+", shape=(2, 3))
    array, restore = as_array(mapped, "w")
    assert type(array) is np.ndarray
    assert np.shares_memory(array, mapped)
    assert type(restore(array)) is np.ndarray


def test_an_equal_dtype_object_is_accepted() -> None:
    x = np.zeros(3, np.dtype("f4").newbyteorder("=").newbyteorder("S").newbyteorder("S"))
    array, _ = as_array(x, "x")
    assert array is x


@pytest.mark.parametrize("view", [np.s_[:], np.s_[::2, 1:], np.s_[:, ::-1]])
def test_foreign_arrays_share_their_memory(view: Any) -> None:
    x = np.arange(24, dtype=F32).reshape(4, 6)[view]
    array, restore = as_array(Foreign(x), "x")
    assert np.shares_memory(array, x) and array.strides == x.strides
    np.testing.assert_array_equal(array, x)
    assert restore(array) is array  # nothing is known that could take it back


def test_results_come_back_in_the_callers_kind() -> None:
    x = np.ones((2, 3), F32)
    _, restore = as_array(Standard(x), "x")
    result = restore(x)
    assert type(result) is Standard and result.array is x


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    array, restore = as_array(x, "x")
    assert array.shape == (2, 3, 4, 5) and element_strides(array) == (60, 1, 15, 3)
    assert array.ctypes.data == x.data_ptr() and array.flags.writeable
    assert isinstance(restore(array), torch.Tensor) and restore(array).data_ptr() == x.data_ptr()
    for bad in (
        torch.nn.Parameter(x),
        x.half(),
        x.bfloat16(),
        x.to("meta"),
        x.to_sparse(),
        torch._neg_view(x),
        torch.complex(x, x),
    ):
        with pytest.raises(ArgumentTypeError, match=r"^w="):
            as_array(bad, "w")


# -- operands ------------------------------------------------------------------------------------------------

PROBLEM = make_problem(2, (1, 5, 6, 4), (8, 4, 3, 3), dtype="float32", layout="NHWC")


def test_operands_that_fit() -> None:
    out = np.zeros((1, 3, 4, 8), F32)
    check_bias(np.zeros(8, F32), PROBLEM)
    check_residual(np.broadcast_to(F32(1), (1, 3, 4, 8)), PROBLEM)
    check_out(out, PROBLEM)
    check_same_dtype(out, w=out, bias=None)


def test_strides_of_a_plan() -> None:
    out = np.zeros((1, 3, 4, 8), F32)
    check_strides(out, "out", PROBLEM.out_strides, PROBLEM)
    check_strides(np.zeros((5, 3, 4, 8), F32)[::4][:1], "out", PROBLEM.out_strides, PROBLEM)
    for other in (np.zeros((1, 3, 4, 16), F32)[..., :8], np.zeros((1, 8, 3, 4), F32).transpose(0, 2, 3, 1)):
        with pytest.raises(ArgumentValueError, match=r"must have the strides \(96, 32, 8, 1\)"):
            check_strides(other, "out", PROBLEM.out_strides, PROBLEM)
    empty = make_problem(2, (0, 5, 6, 4), (8, 4, 3, 3), dtype="float32", layout="NHWC")
    check_strides(np.zeros((0, 3, 4, 16), F32)[..., :8], "out", empty.out_strides, empty)


def test_interleaved_views_of_one_buffer_do_not_overlap() -> None:
    w = np.ones(4, F32)
    channels_last = np.zeros((1, 56, 56, 128), F32)
    check_overlap(channels_last[..., 64:], channels_last[..., :64], w)
    check_overlap(channels_last[:, ::2], channels_last[:, 1::2], w)
    with pytest.raises(ArgumentValueError, match="must not overlap x"):
        check_overlap(channels_last[..., 64:], channels_last[..., :65], w)


def test_the_residual_may_be_the_output() -> None:
    x, out = np.ones(4, F32), np.zeros((1, 3, 4, 8), F32)
    check_overlap(out, x, x, residual=out)
    check_overlap(out, x, x, residual=out[:])
    check_overlap(out, x, x, residual=out.copy())
    for residual in (out[:, ::-1], np.broadcast_to(out[:, :1], out.shape), out.reshape(1, 4, 3, 8)):
        with pytest.raises(ArgumentValueError, match="must be the residual itself"):
            check_overlap(out, x, x, residual=residual)


@pytest.mark.parametrize("argument", ["x", "w", "bias"])
def test_no_other_operand_may(argument: str) -> None:
    out, other = np.zeros(8, F32), np.ones(8, F32)
    operands = {"x": other, "w": other, "bias": other, argument: out[7:]}
    with pytest.raises(ArgumentValueError, match=f"must not overlap {argument}"):
        check_overlap(out, operands["x"], operands["w"], operands["bias"])


_SLICES = st.builds(slice, st.integers(0, 11), st.integers(1, 12), st.sampled_from([-2, -1, 1, 2, 3]))


@given(a=st.tuples(_SLICES, _SLICES), b=st.tuples(_SLICES, _SLICES))
@settings(max_examples=150, deadline=None)
def test_overlap_is_exact_for_slices(a: tuple[slice, slice], b: tuple[slice, slice]) -> None:
    buffer = np.zeros((12, 12), F32)
    places = np.arange(144).reshape(12, 12)
    shared = bool(np.intersect1d(places[a], places[b]).size)
    try:
        check_overlap(buffer[a], buffer[b], np.ones(1, F32))
    except ArgumentError:
        assert shared
    else:
        assert not shared
