"""Arrays at the border: what callers pass in, and what they get back.

NumPy arrays are used as they are. Arrays of other libraries (PyTorch, JAX, ...) are seen through DLPack,
without a copy, and results are handed back in the same kind. No library is imported that is not yet loaded.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leanconv.checks import dtype_name
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import Problem, to_user

Array: TypeAlias = NDArray[Any]
Restore: TypeAlias = Callable[[Array], Any]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)

# DLPack's numbers for memory that the CPU can read and write: CPU, CUDA pinned, ROCm pinned, CUDA managed.
_CPU_DEVICES = (1, 3, 11, 13)

# Enough for views of one buffer that interleave, such as two halves of the channels; microseconds.
_OVERLAP_WORK = 10_000


def as_array(obj: Any, argument: str) -> tuple[Array, Restore]:
    """Return `obj` as a NumPy array on the same memory, and the way back for a result.

    Args:
        obj: a NumPy array (a subclass other than a masked array is seen as a plain one), or any object that
            offers DLPack on the CPU. Element type float32 or float64 in native byte order; aligned elements.
        argument: name to use in errors.

    Returns:
        The array, and a function that gives an array to the caller in `obj`'s kind, on the same memory; a
        NumPy array if `obj`'s library cannot take one.

    Raises:
        ArgumentTypeError: not an array, on another device, or of an element type that is not supported.
        ArgumentValueError: the elements are not aligned.
    """
    if type(obj) is np.ndarray:
        array = obj
        restore: Restore = _unchanged
    elif isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise ArgumentTypeError(argument, obj, "must not be masked; pass .filled(value) or .data")
        array, restore = np.asarray(obj), _unchanged
    else:
        array, restore = _from_dlpack(obj, argument), _restore(obj)
    dtype = array.dtype
    if dtype is not _FLOAT32 and dtype is not _FLOAT64:
        dtype_name(argument, dtype, shown=obj)
    if not array.flags.aligned:
        rule = "must have its elements at multiples of their size in memory; pass a copy"
        raise ArgumentValueError(argument, obj, rule)
    return array, restore


def _address_of(array: Array) -> int:
    data: int = array.__array_interface__["data"][0]
    return data


def _quick_address(array: Array, _offset: int = object.__basicsize__) -> int:
    # The data pointer is the first member of every array after the object's head: NumPy's C API promises that
    # to compiled extensions. 0.2 us instead of 1.0 us for the dictionary of __array_interface__.
    return _pointer_at(id(array) + _offset).value or 0


_pointer_at = ctypes.c_void_p.from_address
_probe = np.ones((2, 3))[1:, 1:]


address_of = _quick_address if _quick_address(_probe) == _address_of(_probe) else _address_of
"""Where an array's element of index 0 lies; the array must not be empty."""


def element_strides(array: Array) -> tuple[int, ...]:
    """Return the strides of an aligned array in elements, in its own axis order."""
    size = array.itemsize
    return tuple(step // size for step in array.strides)


def check_same_dtype(x: Array, **others: Array | None) -> None:
    """Check that arrays, given by argument name, have the element type of `x`."""
    for argument, array in others.items():
        if array is not None and array.dtype != x.dtype:
            rule = f"must have the element type of x, {x.dtype}"
            raise ArgumentTypeError(argument, array, rule)


def check_bias(bias: Array, problem: Problem) -> None:
    """Check that a bias has one number an output channel, of the problem's element type."""
    _check_like("bias", bias, (problem.out_channels,), problem)


def check_residual(residual: Array, problem: Problem) -> None:
    """Check that a residual has the output's shape and element type."""
    _check_like("residual", residual, problem.out_shape, problem)


def check_out(out: Array, problem: Problem) -> None:
    """Check that `out` can take the result: writable, of the right shape and element type.

    Its strides are the problem's business: `make_problem(out_strides=...)` refuses those that make two
    elements share memory, and `check_strides` compares.
    """
    _check_like("out", out, problem.out_shape, problem)
    if not out.flags.writeable:
        raise ArgumentValueError("out", out, "must be writable")


def check_strides(array: Array, argument: str, strides: Sequence[int], problem: Problem) -> None:
    """Check that an array has the strides a plan was made for.

    Args:
        array: array of the right shape.
        argument: name to use in errors.
        strides: one of the problem's, in elements and canonical order; axes of one element do not count.
        problem: whose layout gives the array's axis order.
    """
    wanted = to_user(strides, problem.layout)
    if array.size and any(
        step != want * array.itemsize and n > 1
        for step, want, n in zip(array.strides, wanted, array.shape, strict=True)
    ):
        rule = f"must have the strides {wanted} (elements) it was planned for, has {element_strides(array)}"
        raise ArgumentValueError(argument, array, rule)


def check_overlap(out: Array, x: Array, w: Array, bias: Array | None = None, residual: Array | None = None) -> None:
    """Check that writing `out` cannot change what is still to be read.

    `out` may share no element with x, w or bias. It may be the residual itself (same memory, same strides:
    each element is read just before it is written) but not overlap it in any other way.

    Address ranges are compared first, which settles almost every call. Where they meet, the elements are
    compared exactly, so that views that interleave in one buffer (channels `[:64]` and `[64:]` of an NHWC
    array) pass. An arrangement so contrived that deciding it would take long counts as an overlap.
    """
    for argument, array in (("x", x), ("w", w), ("bias", bias)):
        if array is not None and np.may_share_memory(out, array) and _shares_memory(out, array):
            raise ArgumentValueError("out", out, f"must not overlap {argument}")
    if residual is None or not np.may_share_memory(out, residual) or _is_same(out, residual):
        return
    if _shares_memory(out, residual):
        raise ArgumentValueError("out", out, "must be the residual itself or not overlap it")


def _check_like(argument: str, array: Array, shape: tuple[int, ...], problem: Problem) -> None:
    if array.shape != shape:
        raise ArgumentValueError(argument, array, f"must have shape {shape}")
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(argument, array, f"must have element type {problem.dtype}")


def _is_same(a: Array, b: Array) -> bool:
    """Return whether two arrays have the same elements at the same indices."""
    if a.ctypes.data != b.ctypes.data or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return all(s == t for s, t, n in zip(a.strides, b.strides, a.shape, strict=True) if n > 1)


def _shares_memory(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


# -- DLPack --------------------------------------------------------------------------------------------------


def _unchanged(array: Array) -> Array:
    return array


def _from_dlpack(obj: Any, argument: str) -> Array:
    """Return the NumPy view of an object that offers DLPack."""
    kind = type(obj)
    if not (hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__")):
        rule = f"must be a NumPy array or an array that offers DLPack, not {kind.__name__}"
        raise ArgumentTypeError(argument, obj, rule)
    if getattr(obj, "is_neg", bool)():
        # PyTorch exports a tensor whose sign is still to be flipped as if it were not.
        raise ArgumentTypeError(argument, obj, "must not be a negated view; pass .resolve_neg()")
    try:
        device, _ = obj.__dlpack_device__()
        if device in _CPU_DEVICES:
            return np.from_dlpack(obj)
    except Exception as error:
        # What libraries raise here differs; their sentence says what to do ("use tensor.detach()").
        sentence = str(error).strip().rstrip(".")
        raise ArgumentTypeError(argument, obj, f"cannot be read through DLPack: {sentence}") from error
    raise ArgumentTypeError(argument, obj, "must be in the CPU's memory; copy it there first")


def _restore(obj: Any) -> Restore:
    """Return the function that gives a NumPy array to the caller in the kind of `obj`."""
    top = _library(type(obj))
    library = sys.modules.get(top) if top is not None else None
    if library is None and hasattr(obj, "__array_namespace__"):
        library = obj.__array_namespace__()
    return getattr(library, "from_dlpack", _unchanged)


def _library(kind: type) -> str | None:
    """Return the loaded package that `kind`, or the nearest of its bases, comes from, if it takes DLPack."""
    for base in kind.__mro__:
        top = base.__module__.partition(".")[0]
        if hasattr(sys.modules.get(top), "from_dlpack"):
            return top
    return None
