"""What a phase does, as counts in which no machine's speed is a part; `planning/model.py` turns them into seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from leanconv.classes import dataclass

COUNTS = {
    "multiply": "vector multiply-adds as they issue: empty lanes, loads and latency that hold them up included",
    "tile": "register tiles",
    "tap": "runs of channels that tiles sum without a break",
    "edge": "addresses worked out for single pixels at the edge of the image",
    "apart": "steps of tiles whose channels do not lie side by side",
    "gone": "lines of such steps that have left the first-level cache when the next tap reads them",
    "page": "steps of tiles that read a page of memory each, of more pages than are kept at hand",
    "store": "vectors of results stored as they are",
    "turn": "vectors of results transposed and stored",
    "vector": "vectors copied",
    "block": "vectors copied through transposes in registers",
    "run": "runs of adjacent elements copied",
    "element": "single elements copied",
    "scalar": "multiply-adds of single elements in float64",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts by the names of `COUNTS`, and traffic.

    `reads` and `writes` are pairs: bytes, and bytes of the set that they are read from, or written to, again and again.
    `streams`, pairs of the same kind, are read beside the multiply-adds, each byte for a few of them only: the longer
    of the two takes most of the time. `chunks` are the parts that threads share; None if there can be as many equal
    parts as threads. `phases` are begun by all threads together, one after another.
    """

    counts: Mapping[str, float] = field(default_factory=dict)
    reads: tuple[tuple[float, float], ...] = ()
    writes: tuple[tuple[float, float], ...] = ()
    chunks: int | None = None
    streams: tuple[tuple[float, float], ...] = ()
    phases: int = 1


LATENCY = 8  # sums that must be in flight: four cycles of two units
LINE, PAGE = 64, 4096
ENTRIES = 64  # pages that the first-level translation buffer holds


def issue_slots(rows: float, vectors: float) -> float:
    """Issue slots of one step of a tile: its multiply-adds, its loads at two a cycle, or latency."""
    return max(rows * vectors, rows + vectors, LATENCY)


def part_inside(out: int, stride: int, dilation: int, pad: int, taps: int, size: int) -> float:
    """The part of all (output position, tap) of a dimension that reads inside the image."""
    total = 0
    for tap in range(taps):
        # Positions q with 0 <= q * stride + at < size.
        at = tap * dilation - pad
        low = max(0, -(at // stride))
        high = min(out, -((at - size) // stride))
        total += max(0, high - low)
    return total / (out * taps)
