"""The layouts of images: shapes in each, and copies from one to another.

    NCHW     (N, C, H, W)            channels first
    NHWC     (N, H, W, C)            channels last
    CHWN     (C, H, W, N)            the batch last: pixel by pixel all images, for large batches
    CHWN8    (N/8, C, H, W, 8)       the same in blocks of eight images

A convolution with the batch last is one with channels first and a spatial axis more, the images of a block, along which
the kernel has one tap; so it is planned (`Problem`), and nothing that reads a problem needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.arrays import Array, as_array
from leanconv.batch_last import BLOCK
from leanconv.checks import integer, one_of
from leanconv.errors import ArgumentValueError
from leanconv.problem import BATCH_LAST

LAYOUTS = ("NCHW", "NHWC", *BATCH_LAST)


def shape_in(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """The shape of an image in a layout, from (N, C, *spatial); CHWN8 has whole blocks."""
    n, c, *spatial = shape
    if layout == "NHWC":
        return (n, *spatial, c)
    if layout == "CHWN":
        return (c, *spatial, n)
    if layout == "CHWN8":
        return (-(-n // BLOCK), c, *spatial, BLOCK)
    return (n, c, *spatial)


def to_layout(x: Any, source: str, target: str, *, batch: int | None = None) -> Any:
    """Copy images from one layout to another.

    Args:
        x: images in the layout `source`, with one to three spatial axes: a NumPy array or anything that offers DLPack
            on the CPU; float32 or float64.
        source: "NCHW", "NHWC", "CHWN" or "CHWN8".
        target: another of them, or the same.
        batch: how many images to keep; all of them if None. CHWN8 holds whole blocks of eight: what is missing in the
            last one is filled with zeros, and converting back with `batch` leaves it out.

    Returns:
        A new array without gaps, in the kind of array that x is.

    Raises:
        ArgumentTypeError: not an array of these element types, or a name that is no text.
        ArgumentValueError: no such layout, a wrong number of axes, a last axis of CHWN8 that is not 8, or more images
            to be kept than there are.
    """
    array, restore = as_array(x, "x")
    one_of("source", source, LAYOUTS)
    one_of("target", target, LAYOUTS)
    extra = 1 if source == "CHWN8" else 0
    if not 3 <= array.ndim - extra <= 5:
        raise ArgumentValueError("x", array, f"must have {3 + extra} to {5 + extra} axes in layout {source!r}")
    if extra and array.shape[-1] != BLOCK:
        raise ArgumentValueError("x", array, f"must have {BLOCK} images in its last axis")
    canonical = channels_first(array, source)
    if batch is not None and integer("batch", batch, 0) > len(canonical):
        raise ArgumentValueError("batch", batch, f"must be at most the {len(canonical)} images of x")
    return restore(ordered(canonical[:batch], target))


def channels_first(array: Array, layout: str) -> Array:
    """The same images as (N, C, *spatial); a view where there is one."""
    if layout == "NHWC":
        return np.moveaxis(array, -1, 1)
    if layout == "CHWN":
        return np.moveaxis(array, -1, 0)
    if layout == "CHWN8":
        blocks = np.moveaxis(array, -1, 1)
        return blocks.reshape(len(blocks) * BLOCK, *blocks.shape[2:])
    return array


def ordered(canonical: Array, layout: str) -> Array:
    """Images (N, C, *spatial) as a new array in a layout."""
    result = np.zeros(shape_in(canonical.shape, layout), canonical.dtype)
    if layout == "NHWC":
        np.moveaxis(result, -1, 1)[...] = canonical
    elif layout == "CHWN":
        np.moveaxis(result, -1, 0)[...] = canonical
    elif layout == "CHWN8":
        blocks = np.moveaxis(result, -1, 1)
        whole = len(canonical) // BLOCK
        blocks[:whole] = canonical[: whole * BLOCK].reshape(whole, BLOCK, *canonical.shape[1:])
        rest = canonical[whole * BLOCK :]
        if len(rest):
            blocks[whole, : len(rest)] = rest
    else:
        result[...] = canonical
    return result
