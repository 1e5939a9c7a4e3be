"""What kernels with vectors along the last axis do, counted for the cost model."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.kernels.batchpanels import Shape
from leanconv.kernels.cost import ENTRIES, PAGE, Cost, issue_slots

Fields = Mapping[str, int]


def core_cost(
    shape: Shape, f: Fields, chunks: int, dims: int, terms: float, runs: int, *, pages: float = 0.0, held: float
) -> Cost:
    """All tiles of a phase: sums of `terms` in `runs`, over outputs of `dims` axes but the last.

    `pages` that a window lies on where channels are read apart from each other; all panels of a row read `held` bytes.
    """
    lanes, item = shape.target.lanes(shape.dtype), 8 if shape.dtype == "float64" else 4
    wide = 2 * lanes
    pixels = f["n_count"] * f["g_count"] * f["lines"] * f[f"out{dims - 1}"]
    short = f["panel_count"] - f["panel_long"]
    outputs = f["panel_long"] * shape.rows + short * (shape.rows - 1)
    high = outputs / f["panel_count"]
    if shape.across:
        tiles = [(2, pixels / 2)]
    else:
        whole, rest = divmod(f["length"], wide)
        tiles = [(2, pixels * whole), (-(-rest // lanes), pixels * (rest > 0))]
    counts = dict.fromkeys(("multiply", "store", "tile", "tap", "apart", "page"), 0.0)
    window = terms * wide * item
    panel = high * f["w_row"]
    reads: list[tuple[float, float]] = []
    for vectors, places in tiles:
        number = places * f["panel_count"]
        counts["multiply"] += number * terms * issue_slots(high, vectors)
        counts["store"] += number * high * vectors
        counts["tile"] += number
        counts["tap"] += number * runs
        if pages:  # if they are too many to be kept at hand, every panel asks for them again
            again = f["panel_count"] if pages > ENTRIES else 1
            counts["page"] += places * terms * again * min(1.0, abs(f["x_c"]) / PAGE)
            counts["apart"] += number * terms
        reads += [
            (number * panel, min(f["panels"], f["panel_count"]) * panel + window),
            (number * window, held + panel),
        ]
    weights = f["g_count"] * outputs * f["w_row"]
    reads.append((f["n_count"] * f["b_count"] * weights, weights))
    out = pixels * f["length"] * outputs * item
    return Cost(counts, tuple(reads), ((out, out),), chunks)
