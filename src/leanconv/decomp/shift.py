"""Shift convolution: `leanconv.shift_conv2d`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from leanconv.algorithms.shift import Shift
from leanconv.arrays import as_array, check_same_dtype, element_strides
from leanconv.checks import integer, one_of
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.options import PAD_MODES, ActivationLike, Ints, make_activation, make_problem
from leanconv.plan import Plan
from leanconv.planning.limits import resolve_limit
from leanconv.problem import Problem, to_canonical
from leanconv.threads import get_num_threads

PLANS_KEPT = 256


def plan_shift(
    x_shape: Sequence[int],
    shifts: Any,
    filters: int,
    *,
    dtype: DTypeLike = "float32",
    bias: bool = False,
    stride: Ints = 1,
    pad_mode: str = "zeros",
    layout: str = "NCHW",
    activation: ActivationLike = None,
    residual: bool = False,
    residual_order: str = "before",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    x_strides: Sequence[int] | None = None,
) -> Plan:
    """Decide how a shift convolution is computed; see `shift_conv2d`.

    Args:
        x_shape: (N, C, H, W), or (N, H, W, C) with layout="NHWC".
        shifts: (C, 2) ints, rows and columns.
        filters: K.
        dtype: "float32" or "float64".
        bias: whether there is a bias.
        stride: of the output's grid.
        pad_mode: see there; so are layout, activation, residual_order, memory_limit and threads.
        layout: see there.
        activation: see there.
        residual: whether an array of the output's shape is added.
        residual_order: see there.
        memory_limit: see there.
        threads: see there.
        x_strides: elements from neighbour to neighbour along each axis of x; None for a dense one.

    Returns:
        A plan with `.workspace_bytes` and `.bind(w, bias)`, w of shape (K, C, 1, 1).

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit.
        MemoryLimitError: even without workspace the packed weights are more than the limit allows.
    """
    if not isinstance(x_shape, tuple | list) or len(x_shape) != 4:
        raise ArgumentValueError("x_shape", x_shape, "must have 4 axes, (N, C, H, W) or (N, H, W, C)")
    order = one_of("layout", layout, ("NCHW", "NHWC"))
    channels = to_canonical(tuple(x_shape), order)[1]
    problem = make_problem(
        2,
        x_shape,
        (integer("filters", filters, 1), channels, 1, 1),
        dtype=dtype,
        bias=bias,
        stride=stride,
        layout=order,
        activation=activation,
        residual=residual,
        residual_order=residual_order,
        x_strides=x_strides,
    )
    mode = one_of("pad_mode", pad_mode, PAD_MODES)
    moves = _shifts(shifts, channels, problem.in_size, mode)
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    return _plan(problem, moves, mode, count, resolve_limit(memory_limit))


def _shifts(shifts: Any, channels: int, size: Sequence[int], mode: str) -> tuple[tuple[int, int], ...]:
    """Checked shifts of each channel."""
    try:
        table = np.asarray(shifts)
    except ValueError:
        raise ArgumentValueError("shifts", shifts, "must have two entries for each channel") from None
    if table.dtype.kind not in "iu":
        raise ArgumentTypeError("shifts", shifts, "must be ints")
    if table.shape != (channels, 2):
        raise ArgumentValueError("shifts", shifts, f"must have shape ({channels}, 2): rows and columns of each channel")
    for d, axis in enumerate("HW"):
        reach = int(np.abs(table[:, d].astype(np.int64)).max())
        most = size[d] - 1 if mode == "reflect" else size[d] if mode == "circular" else 2**31 - 1 - size[d]
        if reach > most:
            rule = f"must be at most {most} along {axis}={size[d]} with pad_mode={mode!r}"
            raise ArgumentValueError("shifts", shifts, rule)
    return tuple((int(down), int(along)) for down, along in table)


@functools.lru_cache(maxsize=PLANS_KEPT)
def _plan(
    problem: Problem, shifts: tuple[tuple[int, int], ...], pad_mode: str, threads: int, memory_limit: int | None
) -> Plan:
    algorithm = Shift(shifts, pad_mode)
    plan = Plan(problem, algorithm, threads, memory_limit)
    if memory_limit is not None and plan.extra_bytes > memory_limit:
        # What packed weights leave of the limit.
        left = max(0, memory_limit - (plan.extra_bytes - plan.workspace_bytes))
        plan = Plan(problem, algorithm, threads, memory_limit, staging=left)
        if plan.extra_bytes > memory_limit:
            raise MemoryLimitError(memory_limit, plan.extra_bytes, "shift_conv2d")
    return plan


def shift_conv2d(
    x: Any,
    shifts: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    *,
    pad_mode: str = "zeros",
    layout: str = "NCHW",
    activation: ActivationLike = None,
    residual: Any = None,
    residual_order: str = "before",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    out: Any = None,
) -> Any:
    """Shift convolution: every channel moved by its own whole number of pixels, then a 1x1 layer.

    out[k, p, q] is the sum over channels c of w[k, c] * x[c, p * stride + shifts[c, 0], q * stride + shifts[c, 1]].
    The shifted image is never whole: a thread copies some rows of it at a time, every channel from where its shift
    says; under a memory limit too low for that the core reads the image itself through a table of shifts.

    B. Wu et al.: Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, CVPR 2018, arXiv:1711.08141.

    Args:
        x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image.  A NumPy array or
            anything that offers DLPack on the CPU; float32 or float64; any strides.
        shifts: (C, 2) ints: rows and columns that channel c is read further on.
        w: weights, (K, C) or (K, C, 1, 1).
        bias: (K,), or None.
        stride: of the output's grid; an int, or one for each spatial axis.
        pad_mode: what lies outside the image: "zeros", "reflect", "replicate" or "circular".
        layout: "NCHW" or "NHWC".
        activation: as in `leanconv.conv2d`.
        residual: array of the output's shape to be added, or None.
        residual_order: "before" or "after" the activation.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the size
            of the plain ones, may take together.
        threads: most threads of the call; `get_num_threads()` if None.
        out: array for the result, or None for a new one.

    Returns:
        The output, (N, K, P, Q) or (N, P, Q, K), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        MemoryLimitError: even without workspace packed weights are more than the limit allows.
        AllocationError: no memory for packed weights or result.
    """
    image, restore = as_array(x, "x")
    weights, _ = as_array(w, "w")
    shift = None if bias is None else as_array(bias, "bias")[0]
    extra = None if residual is None else as_array(residual, "residual")[0]
    target = None if out is None else as_array(out, "out")[0]
    check_same_dtype(image, w=weights, bias=shift, residual=extra, out=target)
    if image.ndim not in (3, 4):
        raise ArgumentValueError("x", image, "must have 4 axes, or 3 for a single image")
    if weights.ndim not in (2, 4) or weights.shape[2:] not in ((), (1, 1)):
        raise ArgumentValueError("w", weights, "must have shape (K, C) or (K, C, 1, 1)")
    single = image.ndim == 3
    if single:
        image = image[None]
        extra = None if extra is None else extra[None]
        target = None if target is None else target[None]
    plan = plan_shift(
        image.shape,
        shifts,
        len(weights),
        dtype=image.dtype,
        bias=bias is not None,
        stride=stride,
        pad_mode=pad_mode,
        layout=layout,
        activation=make_activation(activation),
        residual=extra is not None,
        residual_order=residual_order,
        memory_limit=memory_limit,
        threads=threads,
        x_strides=element_strides(image),
    )
    result = plan.bind(weights.reshape(*weights.shape[:2], 1, 1), shift)(image, out=target, residual=extra)
    if out is not None:
        return out
    return restore(result[0] if single else result)
