"""Every check of shapes and options: the call that breaks it, the type of the error and the whole message."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from leanconv import checks, options
from leanconv.errors import ArgumentError, ArgumentTypeError, ArgumentValueError
from leanconv.problem import Activation

Row = tuple[Callable[[], object], type[ArgumentError], str]

X, W = (1, 4, 5, 6), (8, 4, 3, 3)
TYPE, VALUE = ArgumentTypeError, ArgumentValueError


def make(x_shape: Any = X, w_shape: Any = W, ndim: Any = 2, **options_: Any) -> Callable[[], object]:
    return lambda: options.make_problem(ndim, x_shape, w_shape, **{"dtype": "float32", **options_})


ROWS: list[Row] = [
    # -- shapes
    (make(ndim=4), VALUE, "ndim=4: must be 1, 2 or 3"),
    (make(ndim=True), VALUE, "ndim=True: must be 1, 2 or 3"),
    (make(7), TYPE, "x_shape=7: must be a tuple of 4 ints"),
    (make((4, 5, 6)), VALUE, "x_shape=(4, 5, 6): must have 4 axes, (N, C, H, W)"),
    (make((5, 6, 4), layout="NHWC"), VALUE, "x_shape=(5, 6, 4): must have 4 axes, (N, H, W, C)"),
    (make(w_shape=(3, 3)), VALUE, "w_shape=(3, 3): must have 4 axes, (K, C/groups, R, S)"),
    (make(w_shape=(3, 3), layout="NHWC"), VALUE, "w_shape=(3, 3): must have 4 axes, (K, C/groups, R, S)"),
    (make((1, 4, 5.0, 6)), TYPE, "x_shape=(1, 4, 5.0, 6): extents must be ints"),
    (make((1, 4, True, 6)), TYPE, "x_shape=(1, 4, True, 6): extents must be ints"),
    (make((1, 4, -5, 6)), VALUE, "x_shape=(1, 4, -5, 6): extents must be at least 0"),
    (make((1, 4, 2**31, 6)), VALUE, "x_shape=(1, 4, 2147483648, 6): extents must be at most 2147483647"),
    (make((1, 4, 0, 6)), VALUE, "x_shape=(1, 4, 0, 6): extents other than the batch must be at least 1"),
    (make(w_shape=(0, 4, 3, 3)), VALUE, "w_shape=(0, 4, 3, 3): extents must be at least 1"),
    (
        make(w_shape=(8, 3, 3, 3)),
        VALUE,
        "w_shape=(8, 3, 3, 3): must have C/groups = 4/1 = 4 channels, has 3",
    ),
    (
        make(w_shape=(8, 4, 3, 3), groups=2),
        VALUE,
        "w_shape=(8, 4, 3, 3): must have C/groups = 4/2 = 2 channels, has 4",
    ),
    (
        make(w_shape=(8, 4, 7, 3)),
        VALUE,
        "w_shape=(8, 4, 7, 3): the dilated kernel spans 7 along H, more than the padded input's 5",
    ),
    (
        make(dilation=(2, 4), padding=(0, 1)),
        VALUE,
        "w_shape=(8, 4, 3, 3): the dilated kernel spans 9 along W, more than the padded input's 8",
    ),
    (
        make((2**31 - 1, 2**20, 2**10, 1), (1, 2**20, 1, 1)),
        VALUE,
        "x_shape=(2147483647, 1048576, 1024, 1): the image would take more than 2**62 bytes",
    ),
    (
        make((1, 1, 1, 2**30), (2**30, 2**30, 1, 1), layout="NHWC", dtype="float64"),
        VALUE,
        "w_shape=(1073741824, 1073741824, 1, 1): the array of weights would take more than 2**62 bytes",
    ),
    (
        make((2**20, 1, 2**15, 2**15), (2**15, 1, 1, 1)),
        VALUE,
        "x_shape=(1048576, 1, 32768, 32768): the output of shape (1048576, 32768, 32768, 32768) would take "
        "more than 2**62 bytes",
    ),
    # -- options
    (make(groups=3), VALUE, "groups=3: must divide the 4 input channels"),
    (
        make(w_shape=(7, 2, 3, 3), groups=2),
        VALUE,
        "groups=2: must divide the 7 output channels",
    ),
    (make(groups=0), VALUE, "groups=0: must be at least 1"),
    (make(groups=2.0), TYPE, "groups=2.0: must be an int"),
    (make(groups=True), TYPE, "groups=True: must be an int"),
    (make(stride=0), VALUE, "stride=0: must be at least 1"),
    (make(stride="2"), TYPE, "stride='2': must be an int"),
    (
        make(stride=(1, 2, 3)),
        VALUE,
        "stride=(1, 2, 3): must be an int or a tuple of 2, one for each spatial axis",
    ),
    (make(stride=(1, None)), TYPE, "stride=(1, None): entries must be ints"),
    (make(stride=np.ones(2)), TYPE, "stride=<ndarray (2,) float64>: must be an int"),
    (make(dilation=(1, -1)), VALUE, "dilation=(1, -1): entries must be at least 1"),
    (make(padding="full"), VALUE, "padding='full': must be 'same', 'valid' or numbers"),
    (make(padding=-1), VALUE, "padding=-1: must be at least 0"),
    (make(padding=None), TYPE, "padding=None: must be an int"),
    (make(padding=((0, 1), (0, -1))), VALUE, "padding=((0, 1), (0, -1)): entries must be at least 0"),
    (
        make(padding=(1, 2, 3)),
        VALUE,
        "padding=(1, 2, 3): must be an int or a tuple of 2: for each spatial axis an int or a (low, high) pair",
    ),
    (
        make(padding=((1, 2, 3), 1)),
        VALUE,
        "padding=((1, 2, 3), 1): must be an int or a tuple of 2: for each spatial axis an int or a (low, high) pair",
    ),
    (make(padding=2**31 - 1), VALUE, "padding=2147483647: the padded H must be at most 2147483647"),
    (
        make(padding=(1, (0, 6)), pad_mode="reflect"),
        VALUE,
        "padding=(1, (0, 6)): must be less than W=6 with pad_mode='reflect'",
    ),
    (
        make(padding=6, pad_mode="circular"),
        VALUE,
        "padding=6: must be at most H=5 with pad_mode='circular'",
    ),
    (
        make(pad_mode="constant"),
        VALUE,
        "pad_mode='constant': must be one of 'zeros', 'reflect', 'replicate', 'circular'",
    ),
    (
        make(pad_mode=0),
        TYPE,
        "pad_mode=0: must be one of 'zeros', 'reflect', 'replicate', 'circular'",
    ),
    (make(layout="NCDHW"), VALUE, "layout='NCDHW': must be one of 'NCHW', 'NHWC', 'CHWN', 'CHWN8'"),
    (make(layout=None), TYPE, "layout=None: must be one of 'NCHW', 'NHWC', 'CHWN', 'CHWN8'"),
    (make(layout="HWCN"), VALUE, "layout='HWCN': must be one of 'NCHW', 'NHWC', 'CHWN', 'CHWN8'"),
    (make(dtype="float16"), TYPE, "dtype='float16': must be float32 or float64"),
    (make(dtype="bfloat16"), TYPE, "dtype='bfloat16': must be float32 or float64"),
    (make(dtype=None), TYPE, "dtype=None: must be float32 or float64"),
    (make(dtype=[]), TYPE, "dtype=[]: must be float32 or float64"),
    (make(dtype=">f4"), TYPE, "dtype='>f4': must be in the machine's byte order"),
    (make(bias=1), TYPE, "bias=1: must be True or False"),
    (make(residual="before"), TYPE, "residual='before': must be True or False"),
    (
        make(residual_order="first"),
        VALUE,
        "residual_order='first': must be one of 'before', 'after'",
    ),
    (make(activation=3), TYPE, "activation=3: must be None, a name, or a tuple of name and numbers"),
    (make(activation=()), TYPE, "activation=(): must be None, a name, or a tuple of name and numbers"),
    (
        make(activation="mish"),
        VALUE,
        "activation='mish': must be one of 'relu', 'relu6', 'clip', 'leaky_relu', 'sigmoid', 'silu', "
        "'hardswish', 'hardsigmoid', 'gelu', 'tanh'",
    ),
    (make(activation="clip"), VALUE, "activation='clip': must be ('clip', low, high)"),
    (make(activation=("relu", 1)), VALUE, "activation=('relu', 1): takes no numbers"),
    (make(activation=("clip", 0, "6")), TYPE, "activation=('clip', 0, '6'): low and high must be numbers"),
    (make(activation=("clip", 0, None)), TYPE, "activation=('clip', 0, None): low and high must be numbers"),
    (
        make(activation=("leaky_relu", float("nan"))),
        VALUE,
        "activation=('leaky_relu', nan): slope must not be nan",
    ),
    (make(activation=("clip", 6, 0)), VALUE, "activation=('clip', 6, 0): low must not be greater than high"),
    (
        make(activation=Activation("clip", (0.0,))),
        VALUE,
        "activation=Activation(name='clip', params=(0.0,)): must be ('clip', low, high)",
    ),
    # -- strides
    (make(x_strides=3), TYPE, "x_strides=3: must be a tuple of 4 ints"),
    (
        make(x_strides=(1, 2)),
        VALUE,
        "x_strides=(1, 2): must have 4 entries, one for each axis of (1, 4, 5, 6)",
    ),
    (make(w_strides=(1, 2, 3, 1.5)), TYPE, "w_strides=(1, 2, 3, 1.5): entries must be ints"),
    (
        make(x_strides=(1, 1, 2**60, 1)),
        VALUE,
        "x_strides=(1, 1, 1152921504606846976, 1): must not reach further than 2**62 bytes",
    ),
    (
        make(out_strides=(96, 12, -4, 1)),
        VALUE,
        "out_strides=(96, 12, -4, 1): must be positive (shape (1, 8, 3, 4))",
    ),
    (
        make(out_strides=(96, 12, 4, 0)),
        VALUE,
        "out_strides=(96, 12, 4, 0): must be positive (shape (1, 8, 3, 4))",
    ),
    (
        make(out_strides=(96, 12, 3, 1)),
        VALUE,
        "out_strides=(96, 12, 3, 1): must not let two elements share memory (shape (1, 8, 3, 4))",
    ),
    (
        make(residual_strides=(96, 12, 4, 1)),
        VALUE,
        "residual_strides=(96, 12, 4, 1): must be None without a residual",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[message[:60] for _, _, message in ROWS])
def test_message(row: Row, check_row: Callable[[Row], None]) -> None:
    check_row(row)


@pytest.mark.parametrize("module", [checks, options])
def test_every_check_has_a_row(
    module: ModuleType, checks_without_a_row: Callable[[ModuleType, list[Row]], list[int]]
) -> None:
    assert checks_without_a_row(module, ROWS) == []
