"""How the sums over pixels are cut: boxes of about so many pixels, from the problem's extents alone."""

from __future__ import annotations

from collections.abc import Sequence

PIXELS = 256  # a box: its staged gradient (16 KiB of 16 channels) stays in the first-level cache


def box_sizes(batch: int, out_size: Sequence[int], pixels: int = PIXELS) -> tuple[int, ...]:
    """Images, and extents along each dimension, of boxes of at most `pixels` pixels, whole lines if they fit."""
    sizes: list[int] = []
    rest = pixels
    for extent in reversed((max(1, batch), *out_size)):
        parts = -(-extent // max(1, rest))
        sizes.insert(0, -(-extent // parts))
        rest = rest // extent if parts == 1 else 1
    return tuple(sizes)
