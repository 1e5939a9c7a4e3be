"""Checks of single values, shared by the modules that take arguments from users.

Each returns the value in its plain form or raises an `ArgumentError` that names the argument.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import dense_strides, to_canonical, to_user

LARGEST_EXTENT = 2**31 - 1  # kernels count elements along one axis in 32 bits
LARGEST_ARRAY = 2**62  # bytes; kernels address them with signed 64 bits

_DTYPES: dict[Any, str] = {
    key: name for name in ("float32", "float64") for key in (name, np.dtype(name), np.dtype(name).type)
}


def integer(argument: str, value: Any, low: int | None, *, shown: Any = None, what: str = "") -> int:
    """Return `value` as an int of at least `low` and at most LARGEST_EXTENT; any int if `low` is None.

    Ints and NumPy integers are ints; bools and whole floats are not. Where `value` is one entry of an
    argument, `shown` is the whole argument and `what` says which entry the rule is about.
    """
    shown = value if shown is None else shown
    if type(value) is not int:
        try:
            if isinstance(value, bool):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            rule = f"{what} must be ints" if what else "must be an int"
            raise ArgumentTypeError(argument, shown, rule) from None
    if low is not None and not low <= value <= LARGEST_EXTENT:
        side = f"at least {low}" if value < low else f"at most {LARGEST_EXTENT}"
        raise ArgumentValueError(argument, shown, f"{what} must be {side}".lstrip())
    return int(value)


def per_axis(argument: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return `ndim` positive ints from one or from that many."""
    if isinstance(value, tuple | list):
        if len(value) != ndim:
            rule = f"must be an int or a tuple of {ndim}, one for each spatial axis"
            raise ArgumentValueError(argument, value, rule)
        return tuple(integer(argument, entry, 1, shown=value, what="entries") for entry in value)
    return (integer(argument, value, 1),) * ndim


def flag(argument: str, value: Any) -> bool:
    """Return a bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ArgumentTypeError(argument, value, "must be True or False")


def one_of(argument: str, value: Any, names: Sequence[str]) -> str:
    """Return a text that is one of `names`."""
    if isinstance(value, str) and value in names:
        return value
    kind = ArgumentValueError if isinstance(value, str) else ArgumentTypeError
    raise kind(argument, value, f"must be one of {', '.join(map(repr, names))}")


def dtype_name(argument: str, dtype: Any, shown: Any = None) -> str:
    """Return "float32" or "float64"; errors show `shown`, the array, if given."""
    try:
        return _DTYPES[dtype]
    except (KeyError, TypeError):
        pass
    try:
        known = None if dtype is None else np.dtype(dtype)
    except TypeError:
        known = None
    if known is not None and known in _DTYPES:
        return _DTYPES[known]
    if known is not None and known.newbyteorder("=") in _DTYPES:
        rule = "must be in the machine's byte order"
    else:
        rule = "must be float32 or float64" if shown is None else "must have element type float32 or float64"
    raise ArgumentTypeError(argument, dtype if shown is None else shown, rule)


def canonical_strides(
    argument: str, strides: Any, shape: Sequence[int], layout: str, *, written: bool = False
) -> tuple[int, ...]:
    """Return strides in canonical order; those of a dense array where they mean nothing.

    `strides` count elements and are in the user's axis order, or are None for a dense array; `shape` is in
    canonical order. An array that is `written` must have positive strides that nest: going up from the
    smallest, each one steps over all elements that the smaller ones reach. That is true of every view made by
    slicing forwards or transposing; the few others without shared elements, which only `as_strided` can make,
    are refused too.
    """
    dense = dense_strides(shape, layout)
    if strides is None:
        return dense
    if not isinstance(strides, tuple | list):
        raise ArgumentTypeError(argument, strides, f"must be a tuple of {len(shape)} ints")
    axes = to_user(shape, layout)
    if len(strides) != len(axes):
        rule = f"must have {len(axes)} entries, one for each axis of {axes}"
        raise ArgumentValueError(argument, strides, rule)
    ints = to_canonical([integer(argument, s, None, shown=strides, what="entries") for s in strides], layout)
    if 0 in shape:
        return dense
    ints = tuple(s if n > 1 else d for s, n, d in zip(ints, shape, dense, strict=True))
    used = sorted((s, n) for s, n in zip(ints, shape, strict=True) if n > 1)
    if sum(abs(s) * (n - 1) for s, n in used) >= LARGEST_ARRAY // 8:
        raise ArgumentValueError(argument, strides, "must not reach further than 2**62 bytes")
    if written:
        reach = 0
        for s, n in used:
            if s <= reach:
                rule = "must be positive" if s <= 0 else "must not let two elements share memory"
                raise ArgumentValueError(argument, strides, f"{rule} (shape {to_user(shape, layout)})")
            reach += s * (n - 1)
    return ints
