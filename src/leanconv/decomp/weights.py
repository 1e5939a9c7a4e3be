"""Weights made to do the work of a step: flipped for a convolution, reordered for a channel shuffle."""

from __future__ import annotations

from typing import Any

import numpy as np

from leanconv.arrays import Array, as_array, check_same_dtype
from leanconv.checks import integer
from leanconv.errors import ArgumentValueError


def flipped(w: Any) -> Any:
    """The weights with which a correlation, as all of leanconv computes it, is a convolution.

    Mathematics and signal processing flip the filter: out[p] is the sum over r of w[r] * x[p - r].  Networks do not,
    and call it convolution all the same.

    Args:
        w: (K, C, *kernel) with 1 to 3 axes of the kernel, or (R, S); float32 or float64.

    Returns:
        A new array in the kind of w, every axis of the kernel reversed.

    Raises:
        ArgumentTypeError: not an array.
        ArgumentValueError: not weights.
    """
    array, restore = as_array(w, "w")
    if array.ndim not in (2, 3, 4, 5):
        raise ArgumentValueError("w", array, "must be (R, S) or (K, C, *kernel) with 1 to 3 axes of the kernel")
    axes = (0, 1) if array.ndim == 2 else tuple(range(2, array.ndim))
    return restore(np.ascontiguousarray(np.flip(array, axes)))


def shuffle_channels(w: Any, shuffle: int, *, groups: int = 1, bias: Any = None) -> Any:
    """Weights whose outputs come in shuffled order, so that no shuffle has to run after the layer.

    A channel shuffle with g groups takes the channels as g rows and reads them column by column: channel i goes to
    place (i mod K/g) * g + i div (K/g).  A dense layer can compute its outputs in any order.  The outputs of a grouped
    one lie where its groups are, so that a shuffle across groups is refused: `shuffle_inputs` lets the layer behind it
    read the channels as they are instead, if that one is dense.

    X. Zhang, X. Zhou, M. Lin, J. Sun: ShuffleNet, CVPR 2018, arXiv:1707.01083.

    Args:
        w: weights (K, C/groups, *kernel) of the layer before the shuffle.
        shuffle: groups of the shuffle; divides K.
        groups: groups of the layer.
        bias: its bias (K,), or None.

    Returns:
        The weights, or (weights, bias) if a bias is given, in the kind of array that w is.

    Raises:
        ArgumentTypeError: not arrays, or of different element types.
        ArgumentValueError: a shuffle that does not divide the channels, a bias that does not fit, a grouped layer whose
            outputs would leave their groups.
    """
    array, restore = as_array(w, "w")
    shift = None if bias is None else as_array(bias, "bias")[0]
    check_same_dtype(array, bias=shift)
    order = _order(array, integer("shuffle", shuffle, 1), array.shape[0] if array.ndim else 0)
    count = integer("groups", groups, 1)
    if len(array) % count:
        raise ArgumentValueError("groups", groups, f"must divide the {len(array)} output channels")
    size = len(array) // count
    if (order // size != np.arange(len(array)) // size).any():
        raise ArgumentValueError("groups", groups, "the shuffle takes outputs out of their groups; use shuffle_inputs")
    shuffled = restore(np.ascontiguousarray(array[order]))
    if shift is None:
        return shuffled
    if shift.shape != (len(array),):
        raise ArgumentValueError("bias", shift, f"must have shape {(len(array),)}")
    return shuffled, restore(np.ascontiguousarray(shift[order]))


def shuffle_inputs(w: Any, shuffle: int) -> Any:
    """Weights that read channels as they were before a shuffle, so that no shuffle has to run before the layer.

    Args:
        w: weights (K, C, *kernel) of a dense layer, or of a depthwise one as (C, 1, *kernel), behind the shuffle; a
            depthwise layer's outputs are then in the order before the shuffle too.
        shuffle: groups of the shuffle (see `shuffle_channels`); divides C.

    Returns:
        The weights, in the kind of array that w is.

    Raises:
        ArgumentTypeError: not an array.
        ArgumentValueError: a shuffle that does not divide the channels.
    """
    array, restore = as_array(w, "w")
    depthwise = array.ndim > 1 and array.shape[1] == 1
    channels = array.shape[0 if depthwise else 1] if array.ndim > 1 else 0
    order = _order(array, integer("shuffle", shuffle, 1), channels)
    inverse = np.argsort(order)
    return restore(np.ascontiguousarray(array[inverse] if depthwise else array[:, inverse]))


def _order(array: Array, shuffle: int, channels: int) -> Array:
    """Which channel a shuffle puts at each place."""
    if array.ndim not in (3, 4, 5):
        raise ArgumentValueError("w", array, "must be (K, C, *kernel) with 1 to 3 axes of the kernel")
    if channels % shuffle:
        raise ArgumentValueError("shuffle", shuffle, f"must divide the {channels} channels")
    return np.arange(channels).reshape(shuffle, channels // shuffle).T.reshape(-1)
