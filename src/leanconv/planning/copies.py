"""What the copies in front of the core do: patch matrices, bands and window tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.host import Host
from leanconv.kernels.band import Band, BandSpec
from leanconv.kernels.cost import PAGE, Cost
from leanconv.kernels.micropanels import PackTiles
from leanconv.kernels.patches import Patches, PatchSpec
from leanconv.kernels.window_phases import WindowBand, WindowSpec
from leanconv.kernels.windows import Windows

Fields = Mapping[str, int]


def staged(stage: object, f: Fields, host: Host) -> Cost:
    """What a stage copies for all blocks of a phase, once each."""
    own = getattr(stage, "cost", None)
    if own is not None:
        counted: Cost = own(f, host)
        return counted
    images, blocks = f["n_count"] * f["g_count"], f["b_count"]
    if isinstance(stage, Patches):
        return patches(stage, f, images * f["pixels"], host.l2 / 2)
    if isinstance(stage, Band):
        rows = -(-f["pixels"] // f["plane"])
        first = (rows - blocks) * stage.first_stride + blocks * stage.first_reach
        return band(stage, f, images * first, host.l2 / 2, host.l1 // PAGE)
    if isinstance(stage, WindowBand):
        windows = stage.windows
        wide = f["pixels"] * f["hop"] + blocks * f["reach"]
        return window(windows, f, images * wide, host.l2 / 2)
    nbytes = images * f["pixels"] * f.get("channels", 1) * 4
    return Cost({"element": nbytes / 4}, (), ((nbytes, nbytes),))


def in_runs(stage: object) -> bool:
    """Whether a stage reads runs of adjacent channels."""
    if isinstance(stage, WindowBand):
        return stage.windows.adjacent == "channels"
    copied = stage.patches if isinstance(stage, PackTiles) else stage
    return not isinstance(copied, Band | Patches) or copied.unit_channel


def staged_alone(spec: object, f: Fields) -> Cost | None:
    """What a phase that only stages does, or None if it is another."""
    if isinstance(spec, PatchSpec):
        return patches(spec.patches, f, f["g_count"] * f["pixels"], None)
    if isinstance(spec, BandSpec):
        return band(spec.band, f, f["g_count"] * f["band0"], None)
    if isinstance(spec, WindowSpec):
        positions = math.prod(f[f"e{d}"] for d in range(len(spec.windows.kernel)))
        return window(spec.windows, f, f["g_count"] * positions, None)
    return None


def patches(p: Patches, f: Fields, pixels: float, kept: float | None) -> Cost:
    """Windows of so many pixels; `kept` bytes of cache hold what is written, or it goes all the way."""
    lanes, item = p.target.lanes(p.dtype), 8 if p.dtype == "float64" else 4
    taps, channels = math.prod(p.kernel), f["channels"]
    elements = pixels * taps * channels
    width = f[f"out{p.dims - 1}"]
    if p.rows:
        counts = {"run": pixels * taps}
        if p.unit_channel:
            counts |= {"vector": pixels * taps * (channels // lanes), "element": pixels * taps * (channels % lanes)}
        else:
            counts["element"] = elements
    else:
        rows = elements / width
        counts = {"run": rows}
        if p.stride[-1] == 1 and not p.unit_channel:
            counts |= {"vector": rows * (width // lanes), "element": rows * (width % lanes)}
        else:
            counts["element"] = elements
    return Cost(counts, (), _written(elements * item, kept))


def band(b: Band, f: Fields, first: float, kept: float | None, ways: float = math.inf) -> Cost:
    """`first` positions of the first dimension; the first level of cache holds `ways` lines a multiple of a page apart.

    A transpose writes to as many pixels as there are lanes, in turn: where more of them lie so than it holds, each line
    is fetched for each vector. 1024 channels, planes to pixels on 16 lanes: 6 ns a vector, not 0.2.
    """
    lanes, channels = b.lanes, f["channels"]
    others = [f[f"band{d}"] for d in range(1, b.dims)]
    row: float = others[-1] if others else 1
    rows = first * math.prod(others[:-1]) if others else 1.0
    positions = first * math.prod(others)
    elements = positions * channels
    if b.dense and b.gather[-1] == 1:
        counts = {"vector": elements / lanes, "run": rows * (3 if b.padded else 1)}
    elif b.unit_pixel and not b.unit_channel and b.gather[-1] <= 2:
        if not others:
            row = positions
        whole = -(-row // lanes) * lanes / row
        blocks = -(-channels // lanes) * positions * whole
        counts = {"block": blocks, "run": rows * -(-channels // lanes)}
        if lanes > ways and channels * b.item % PAGE == 0:
            counts["element"] = blocks * lanes
    elif b.unit_channel:
        counts = {
            "run": positions,
            "vector": positions * (channels // lanes),
            "element": positions * (channels % lanes),
        }
    else:
        counts = {"run": positions, "element": elements}
    return Cost(counts, (), _written(elements * b.item, kept))


def window(w: Windows, f: Fields, positions: float, kept: float | None) -> Cost:
    """So many positions of the tensor."""
    lanes, channels, taps = w.target.lanes(w.dtype), f["channels"], math.prod(w.kernel)
    elements = positions * taps * channels
    if w.adjacent == "channels":
        run = channels * w.joint
        runs = elements / run
        counts = {"run": runs, "vector": runs * -(-run // lanes)}
    elif w.adjacent == "pixels":
        counts = {"block": positions * taps * -(-channels // lanes), "run": positions * taps / lanes}
    else:
        counts = {"run": positions * taps, "element": elements}
    return Cost(counts, (), _written(elements * w.item, kept))


def _written(nbytes: float, kept: float | None) -> tuple[tuple[float, float], ...]:
    return ((nbytes, nbytes if kept is None else min(nbytes, kept)),)
