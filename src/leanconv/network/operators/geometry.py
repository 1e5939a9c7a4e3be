"""Windows that slide over an image: strides, dilations and padding as ONNX states them for convolution and pooling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.network.graph import Node
from leanconv.network.operators.base import ints


@dataclass(frozen=True, slots=True)
class Windows:
    """Where windows lie: `out` positions a spatial axis, each a `kernel` of taps on the image with its padding.

    With `ceil_mode` the last windows may reach `overhang` elements beyond the padded image.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    out: tuple[int, ...]
    overhang: tuple[int, ...]


def windows(node: Node, in_size: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Windows of a Conv, or of a pooling operator (`ceil_mode`), on an image.

    Args:
        node: with the attributes auto_pad, pads, strides, dilations and ceil_mode.
        in_size: extents of the image, without padding.
        kernel: taps along each axis.
    """
    ndim = len(in_size)
    stride, dilation = per_axis(node, "strides", ndim), per_axis(node, "dilations", ndim)
    if len(kernel) != ndim:
        raise ValueError(f"a kernel of {len(kernel)} axes on an image of {ndim} spatial axes")
    if any(k < 1 for k in kernel):
        raise ValueError("the kernel is empty along an axis")
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    low, high = pads(node, in_size, spans, stride)
    if any(p < 0 for p in (*low, *high)):
        raise ValueError("negative padding")
    same = attribute_text(node, "auto_pad").startswith("SAME")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    out, overhang = [], []
    for n, span, s, a, b in zip(in_size, spans, stride, low, high, strict=True):
        room = a + n + b - span
        if same:
            count = -(-n // s)
        elif room < 0:
            raise ValueError(f"the kernel spans {span} elements, more than the padded image's {a + n + b}")
        elif ceil:
            count = -(-room // s) + 1
            # A window must begin in the image or the padding before it.
            count -= (count - 1) * s >= a + n
        else:
            count = room // s + 1
        out.append(count)
        overhang.append(max((count - 1) * s - room, 0))
    return Windows(tuple(kernel), stride, dilation, low, high, tuple(out), tuple(overhang))


def per_axis(node: Node, name: str, ndim: int) -> tuple[int, ...]:
    """An attribute of one positive int for each spatial axis; ones if it is missing."""
    found = ints(node.attributes.get(name, (1,) * ndim))
    if len(found) != ndim or any(value < 1 for value in found):
        raise ValueError(f"{name}={found} must be {ndim} positive ints")
    return found


def attribute_text(node: Node, name: str) -> str:
    """A text attribute, `""` if it is missing."""
    value = node.attributes.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def pads(
    node: Node, in_size: Sequence[int], spans: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after the image along each axis, by `auto_pad` or `pads`."""
    ndim = len(in_size)
    how = attribute_text(node, "auto_pad") or "NOTSET"
    if how == "VALID":
        return (0,) * ndim, (0,) * ndim
    if how in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(in_size, spans, stride, strict=True)]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        return (less, more) if how == "SAME_UPPER" else (more, less)
    if how != "NOTSET":
        raise ValueError(f"auto_pad={how!r} is unknown")
    found = ints(node.attributes.get("pads", (0,) * (2 * ndim)))
    if len(found) != 2 * ndim:
        raise ValueError(f"pads={found} must be {2 * ndim} ints")
    return found[:ndim], found[ndim:]


def padded(x: Array, place: Windows, fill: float | bool) -> Array:
    """An image (N, C, *spatial) with its padding and the overhang of the last windows, all holding `fill`."""
    after = [b + over for b, over in zip(place.high, place.overhang, strict=True)]
    if not any(place.low) and not any(after):
        return x
    widths = [(0, 0), (0, 0), *zip(place.low, after, strict=True)]
    return np.pad(x, widths, constant_values=fill)


def taps(image: Array, place: Windows) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each tap its coordinates and the pixels under it, (N, C, *out), as a view of a padded image."""
    for tap in product(*map(range, place.kernel)):
        under = tuple(
            slice(t * d, t * d + s * (q - 1) + 1, s) if q else slice(0, 0)
            for t, d, s, q in zip(tap, place.dilation, place.stride, place.out, strict=True)
        )
        yield tap, image[(slice(None), slice(None), *under)]
