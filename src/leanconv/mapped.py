"""Mapped convolution: a two-dimensional convolution whose taps read where a sampling map says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from leanconv.algorithms.mapped import Mapped
from leanconv.arrays import (
    Array,
    address_of,
    as_array,
    check_bias,
    check_out,
    check_overlap,
    check_same_dtype,
    element_strides,
)
from leanconv.checks import dtype_name, integer, one_of, per_axis
from leanconv.classes import replace
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.options import ActivationLike, Ints, Padding, make_activation, make_problem
from leanconv.outputs import new_output
from leanconv.plan import Plan
from leanconv.planning.candidates import Terms, plan_within
from leanconv.planning.limits import resolve_limit
from leanconv.problem import Activation, to_canonical, to_user
from leanconv.threads import get_num_threads

INTERPOLATIONS = ("nearest", "bilinear")
PAD_MODES = ("zeros", "replicate", "circular")
PLANS_KEPT = 256


def mapped_conv2d(
    x: Any,
    w: Any,
    sample_map: Any,
    bias: Any = None,
    groups: int = 1,
    *,
    interpolation: str = "bilinear",
    pad_mode: str | Sequence[str] = "zeros",
    layout: str = "NCHW",
    activation: ActivationLike = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    out: Any = None,
) -> Any:
    """Two-dimensional convolution whose windows are sampled anywhere in the image.

    Output pixel (p, q) is the sum over channels c and taps (r, s) of w[k, c, r, s] times the image's channel c at the
    position sample_map[p, q, r, s]. With `regular_map` that is `conv2d`.

    M. Eder, T. Price, T. Vu, A. Bapat, J.-M. Frahm: Mapped Convolutions, 2019, arXiv:1906.11096.

    Args:
        x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image. A NumPy array or
            anything that offers DLPack on the CPU; float32 or float64; any strides.
        w: weights, (K, C/groups, R, S).
        sample_map: (P, Q, R, S, 2), positions (y, x) in pixels: (0, 0) is the centre of the first pixel. float32 or
            float64, whatever x is; finite. The same for all images and channels.
        bias: (K,), or None.
        groups: groups of channels that do not mix.
        interpolation: "nearest" (halves go up) or "bilinear".
        pad_mode: what lies outside the image: "zeros" (as if the image lay among zeros: bilinear samples within a
            pixel of it fade out), "replicate" or "circular"; or one for y and one for x, such as
            ("replicate", "circular") for a panorama.
        layout: "NCHW" or "NHWC"; channels last is sampled in vectors.
        activation: as in `conv2d`.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the size
            of the plain ones, may take; `get_memory_limit()` if None. A pixel's window at a time is the least.
        threads: most threads of the call; `get_num_threads()` if None.
        out: array for the result, or None for a new one.

    Returns:
        The output, (N, K, P, Q) or (N, P, Q, K), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
        MemoryLimitError: a single pixel at a time needs more than the limit; says the least that would do.
        AllocationError: no memory for workspace or result.
    """
    image, restore = as_array(x, "x")
    weights, _ = as_array(w, "w")
    places, _ = as_array(sample_map, "sample_map")
    shift = as_array(bias, "bias")[0] if bias is not None else None
    result = as_array(out, "out")[0] if out is not None else None
    check_same_dtype(image, w=weights, bias=shift, out=result)
    if image.ndim not in (3, 4):
        raise ArgumentValueError("x", image, "must have 4 axes, or 3 for a single image")
    if weights.ndim != 4:
        raise ArgumentValueError("w", weights, "must have 4 axes, (K, C/groups, R, S)")
    _check_map(places, weights)
    single = image.ndim == 3
    order = one_of("layout", layout, ("NCHW", "NHWC"))
    if single:
        image = image[None]
    if result is not None:
        shape = to_user((len(image), len(weights), *places.shape[:2]), order)
        result = result[None] if single else result
        if result.shape != shape:
            raise ArgumentValueError("out", out, f"must have shape {shape[1:] if single else shape}")
    call = _plan(
        image.shape,
        element_strides(image),
        weights.shape,
        element_strides(weights),
        None if result is None else element_strides(result),
        str(image.dtype),
        places.shape,
        places.strides,
        str(places.dtype),
        shift is not None,
        integer("groups", groups, 1),
        one_of("interpolation", interpolation, INTERPOLATIONS),
        _pad_modes(pad_mode),
        order,
        make_activation(activation),
        resolve_limit(memory_limit),
        get_num_threads() if threads is None else integer("threads", threads, 1),
    )
    problem = call.plan.problem
    if shift is not None:
        check_bias(shift, problem)
        shift = np.ascontiguousarray(shift)
    if result is None:
        target = new_output(problem.out_shape, image.dtype)
    else:
        target = result
        check_out(target, problem)
        check_overlap(target, image, weights, shift)
        if np.may_share_memory(target, places):
            raise ArgumentValueError("out", out, "must not lie within the memory of sample_map")
    if target.size:
        bias_address = 0 if shift is None else address_of(shift)
        call.run(address_of(image), address_of(target), 0, address_of(weights), bias_address, address_of(places))
    if out is not None:
        return out
    return restore(target[0] if single else target)


def regular_map(
    in_size: Ints,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    dtype: DTypeLike = "float32",
) -> Array:
    """The map with which `mapped_conv2d` is `conv2d`: what to start from to deform it.

    Args:
        in_size: height and width of the image, or one int for both.
        kernel: R and S, or one int for both.
        stride: as in `conv2d`; so are padding and dilation.
        padding: see there; taps in the padding have positions outside the image.
        dilation: see there.
        dtype: "float32" or "float64".

    Returns:
        An array (P, Q, R, S, 2) of positions (y, x).

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or a kernel larger than the padded image.
    """
    size, taps, element = per_axis("in_size", in_size, 2), per_axis("kernel", kernel, 2), dtype_name("dtype", dtype)
    p = make_problem(2, (1, 1, *size), (1, 1, *taps), dtype=element, stride=stride, padding=padding, dilation=dilation)
    result = np.empty((*p.out_size, *p.kernel, 2), element)
    for dim in range(2):
        at = np.arange(p.out_size[dim])[:, None] * p.stride[dim] - p.pad_low[dim]
        positions = at + np.arange(p.kernel[dim]) * p.dilation[dim]
        result[..., dim] = positions[:, None, :, None] if dim == 0 else positions[None, :, None, :]
    return result


class _Call:
    """A plan and its runner."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.run = plan.unbound_runner().run


def _check_map(places: Array, weights: Array) -> None:
    """Check a sampling map against the weights; nothing but finite positions may come near an integer."""
    if places.ndim != 5 or places.shape[-1] != 2 or 0 in places.shape:
        raise ArgumentValueError("sample_map", places, "must have shape (P, Q, R, S, 2), each at least 1")
    if places.shape[2:4] != weights.shape[2:]:
        raise ArgumentValueError("sample_map", places, f"must have (R, S) = {weights.shape[2:]}, as w has")
    with np.errstate(all="ignore"):
        finite = bool(np.isfinite(places.sum()))  # one pass without a copy; overflow is settled below
    if not finite and not np.isfinite(places).all():
        raise ArgumentValueError("sample_map", places, "must hold finite positions")


def _pad_modes(pad_mode: Any) -> tuple[str, str]:
    """What is outside along y and x."""
    if isinstance(pad_mode, str):
        return (one_of("pad_mode", pad_mode, PAD_MODES),) * 2
    if not isinstance(pad_mode, tuple | list):
        raise ArgumentTypeError("pad_mode", pad_mode, "must be a name, or a tuple of two, for y and x")
    if len(pad_mode) != 2:
        raise ArgumentValueError("pad_mode", pad_mode, "must be a name, or a tuple of two, for y and x")
    y, x = (one_of("pad_mode", name, PAD_MODES) for name in pad_mode)
    return y, x


@functools.lru_cache(maxsize=PLANS_KEPT)
def _plan(
    x_shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    w_shape: tuple[int, ...],
    w_strides: tuple[int, ...],
    out_strides: tuple[int, ...] | None,
    dtype: str,
    map_shape: tuple[int, ...],
    map_strides: tuple[int, ...],
    map_dtype: str,
    bias: bool,
    groups: int,
    interpolation: str,
    pad_modes: tuple[str, str],
    layout: str,
    activation: Activation | None,
    memory_limit: int | None,
    threads: int,
) -> _Call:
    """The compiled call for arguments of these kinds."""
    batch, channels, height, width = to_canonical(x_shape, layout)
    image = make_problem(2, x_shape, (1, channels, 1, 1), dtype=dtype, layout=layout, x_strides=x_strides)
    # On the output's grid, padded so that the output is as large as the map; the image's strides are put in after.
    grid = make_problem(
        2,
        to_user((batch, channels, *map_shape[:2]), layout),
        w_shape,
        dtype=dtype,
        bias=bias,
        padding=tuple(((taps - 1) // 2, taps // 2) for taps in map_shape[2:4]),
        groups=groups,
        layout=layout,
        activation=activation,
        w_strides=w_strides,
        out_strides=out_strides,
    )
    problem = replace(grid, x_strides=image.x_strides)
    algorithm = Mapped((height, width), map_strides, map_dtype, interpolation, pad_modes)
    plan = plan_within(problem, algorithm, Terms(threads, memory_limit, bound=False))
    while memory_limit is not None and plan.unbound_extra_bytes > memory_limit:
        if plan.threads == 1:
            raise MemoryLimitError(memory_limit, plan.unbound_extra_bytes, "mapped_conv2d")
        plan = plan_within(problem, algorithm, Terms(plan.threads // 2, memory_limit, bound=False))
    return _Call(plan)
