"""A chain of linear layers as one: `leanconv.fuse_filters`."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.arrays import as_array, check_same_dtype
from leanconv.checks import flag, per_axis
from leanconv.errors import ArgumentValueError
from leanconv.options import Ints, Padding, make_problem


def fuse_filters(
    first: Any,
    second: Any,
    *,
    strides: tuple[Ints, Ints] = (1, 1),
    dilations: tuple[Ints, Ints] = (1, 1),
    paddings: tuple[Padding, Padding] = (0, 0),
    biases: tuple[Any, Any] = (None, None),
    edges: bool = False,
) -> FusedFilter:
    """Two layers without an activation between them as one.

    The one has taps at every sum of a tap of the first and (times the first's stride) one of the second: its kernel
    spans D1 * (R1 - 1) + s1 * D2 * (R2 - 1) + 1 rows.  It pays for small kernels, or where the first layer makes many
    channels of few.  Inside the image it is exact, rounding apart.  Where the second layer reads its padding it is not:
    there the two layers have zeros between them, the one has the outputs that the first would have there.  So a padded
    second layer is refused, unless `edges` says that its border may differ.

    Args:
        first: weights (C1, C, *kernel) of the first layer, dense, with 1 to 3 axes of the kernel.
        second: weights (K, C1, *kernel) of the second one.
        strides: of both; each an int or one for each axis.
        dilations: of both.
        paddings: of both: ints, or for each axis an int or a (low, high) pair; of zeros.
        biases: of both, (C1,) and (K,), or None.
        edges: whether outputs that read the second layer's padding may differ.

    Returns:
        The arguments of the one layer: `.w`, `.bias`, `.stride`, `.padding`; and `.arguments`, all of them by name, for
        `leanconv.conv2d(x, **fused.arguments)` or the function of that number of axes.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: shapes that do not fit; padding of the second layer without `edges`.
    """
    one, restore = as_array(first, "first")
    two, _ = as_array(second, "second")
    shifts = [None if b is None else as_array(b, f"biases[{i}]")[0] for i, b in enumerate(_pair("biases", biases))]
    check_same_dtype(one, second=two, **{f"biases[{i}]": b for i, b in enumerate(shifts)})
    ndim = one.ndim - 2
    if ndim not in (1, 2, 3) or 0 in one.shape:
        raise ArgumentValueError("first", one, "must be (C1, C, *kernel) with 1 to 3 axes of the kernel")
    if two.ndim != one.ndim or 0 in two.shape or two.shape[1] != len(one):
        raise ArgumentValueError("second", two, f"must be (K, {len(one)}, *kernel), with as many axes as first")
    for i, (shift, layer) in enumerate(zip(shifts, (one, two), strict=True)):
        if shift is not None and shift.shape != (len(layer),):
            raise ArgumentValueError(f"biases[{i}]", shift, f"must have shape {(len(layer),)}")
    step = [per_axis("strides", s, ndim) for s in _pair("strides", strides)]
    gaps = [per_axis("dilations", d, ndim) for d in _pair("dilations", dilations)]
    pads = [_pads(p, ndim) for p in _pair("paddings", paddings)]
    if any(map(any, pads[1])) and not flag("edges", edges):
        rule = "the second layer must not be padded: zeros lie between the layers there; edges=True lets borders differ"
        raise ArgumentValueError("paddings", paddings, rule)
    kernels = one.shape[2:], two.shape[2:]
    reach = [
        d1 * (r1 - 1) + s1 * d2 * (r2 - 1) + 1
        for r1, r2, s1, d1, d2 in zip(*kernels, step[0], gaps[0], gaps[1], strict=True)
    ]
    w = np.zeros((len(two), one.shape[1], *reach))
    exact = one.astype(np.float64), two.astype(np.float64)
    for tap in np.ndindex(*kernels[1]):
        # The first filter as the second's tap sees it, and where its first tap lies.
        seen = np.einsum("kq,qc...->kc...", exact[1][(..., *tap)], exact[0])
        corner = [t * d * s for t, d, s in zip(tap, gaps[1], step[0], strict=True)]
        under: tuple[Any, ...] = tuple(
            slice(at, at + d * (n - 1) + 1, d) for at, d, n in zip(corner, gaps[0], kernels[0], strict=True)
        )
        w[(..., *under)] += seen
    bias = None
    if any(shift is not None for shift in shifts):
        total = exact[1].reshape(*two.shape[:2], -1).sum(-1) @ (np.zeros(len(one)) if shifts[0] is None else shifts[0])
        bias = (total if shifts[1] is None else total + shifts[1]).astype(one.dtype)
    stride = tuple(s1 * s2 for s1, s2 in zip(*step, strict=True))
    padding = tuple((a[0] + s * b[0], a[1] + s * b[1]) for a, b, s in zip(pads[0], pads[1], step[0], strict=True))
    return FusedFilter(restore(w.astype(one.dtype)), None if bias is None else restore(bias), stride, padding)


class FusedFilter:
    """One layer in place of two; made by `fuse_filters`.

    Attributes:
        w: (K, C, *kernel).
        bias: (K,), or None.
        stride: one for each axis.
        padding: (low, high) for each axis.
    """

    def __init__(self, w: Any, bias: Any, stride: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> None:
        """Made by `fuse_filters`."""
        self.w, self.bias, self.stride, self.padding = w, bias, stride, padding

    @property
    def arguments(self) -> dict[str, Any]:
        """The layer as arguments of `leanconv.conv1d`, `conv2d` or `conv3d`."""
        return {"w": self.w, "bias": self.bias, "stride": self.stride, "padding": self.padding}


def _pair(argument: str, values: Any) -> tuple[Any, Any]:
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise ArgumentValueError(argument, values, "must have two entries, one a layer")
    return values[0], values[1]


def _pads(padding: Padding, ndim: int) -> tuple[tuple[int, int], ...]:
    """(low, high) for each axis, of padding that does not depend on an image."""
    if isinstance(padding, str) and padding != "valid":
        raise ArgumentValueError("paddings", padding, "must be 'valid' or numbers: it must not depend on the image")
    one = (1, 1, *(1,) * ndim)
    try:
        problem = make_problem(ndim, one, one, dtype="float32", padding=padding)
    except ArgumentValueError as error:
        raise ArgumentValueError("paddings", error.value, error.rule) from None
    return tuple(zip(problem.pad_low, problem.pad_high, strict=True))
