"""What the kernels do in a phase, counted from their specifications and fields.

A specification may count for itself, by a method `cost(fields, chunks, host) -> Cost`; those that share the dense core
and the copies in front of it are counted here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import singledispatch

from leanconv.host import Host
from leanconv.kernels.blas import FinishSpec, GemmSpec
from leanconv.kernels.columns import ColumnSpec, RowPackSpec
from leanconv.kernels.copy import CopySpec
from leanconv.kernels.cost import ENTRIES, LINE, PAGE, Cost, issue_slots
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.image import Rows
from leanconv.kernels.naive import NaiveSpec
from leanconv.kernels.pack import PackSpec
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.planeblocks import PlaneBlocks
from leanconv.kernels.rowtiles import InRows
from leanconv.kernels.rowwindows import RowWindows
from leanconv.planning.copies import in_runs, staged, staged_alone
from leanconv.planning.tilereads import edges_of, input_bytes, lines_of, span_of, terms_of
from leanconv.program import Phase

Fields = Mapping[str, int]

FAR = 0.25  # part of the third level of cache from which an image counts as read from memory: others displace it
ASKED, ASKED_APART = 3.0, 2.0
"""How much more slowly than a plain run the core reads an image in place, from memory: it asks for lines of several
pixels or channels in turn, when it needs them, which the processor does not foresee as well as the run of a copy. Where
channels lie apart a tile takes a part of a line, and the next ones the rest."""

HELD = 1.2
"""How many times the first-level cache lines of pixels and rows of weights of a tap may be for the next tap to find
them there: of 512 channels on Zen 5 a sum that does not takes 1.2 times as long as one by blocks, with stride 2 on 14 x
14, and 1.05 times on 28 x 28; of 256 channels 1.03 times."""

KEPT = 0.4  # of working out an address: taking it from a table and putting it back


def phase_cost(phase: Phase, host: Host) -> Cost | None:
    """What a phase does, or None if nobody counts for its kernel."""
    own = getattr(phase.spec, "cost", None)
    if own is not None:
        counted: Cost = own(phase.fields, phase.chunks, host)
        return counted
    return _cost(phase.spec, phase.fields, phase.chunks, host)


@singledispatch
def _cost(spec: object, f: Fields, chunks: int, host: Host) -> Cost | None:
    alone = staged_alone(spec, f)
    return None if alone is None else Cost(alone.counts, alone.reads, alone.writes, chunks)


def _blocks(f: Fields) -> Iterator[tuple[int, int]]:
    """(pixels, how many blocks have so many)."""
    last = f["pixels"] - (f["b_count"] - 1) * f["block"]
    if f["b_count"] > 1:
        yield f["block"], f["b_count"] - 1
    yield last, 1


def _runs(spec: DenseSpec, f: Fields) -> Iterator[tuple[int, int]]:
    """(pixels that tiles cover without a break, how many such runs): blocks, or rows of the output."""
    if isinstance(spec.source, InRows):
        return iter([(f["out1"], f["out0"])])
    return _blocks(f)


def _hanging(source: RowWindows, f: Fields, rows: int) -> float:
    """The part of tiles that hang over the image."""
    if not source.padded:
        return 0.0
    inside = [max(0, min(f[f"high{d}"], f[f"out{d}"]) - min(max(f[f"low{d}"], 0), f[f"out{d}"])) for d in (0, 1)]
    tiles = -(-f["out1"] // rows)
    whole = max(0, tiles - -(-min(f["low1"], f["out1"]) // rows) - -(-max(0, f["out1"] - f["high1"]) // rows))
    return 1 - inside[0] / f["out0"] * whole / tiles


@_cost.register
def _dense(spec: DenseSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Tiles of pixels by panels."""
    red, item = spec.reduction, 8 if spec.dtype == "float64" else 4
    lanes = host.target.lanes(spec.dtype)
    outer = math.prod(red.kernel)
    # Of all terms, rows of a panel, those of one tap; other loops than over channels may be in it.
    channels = terms_of(spec, f) / outer
    inner = red.kernel[-1] if red.merged else 1
    images = f["n_count"] * f["g_count"]
    counts: defaultdict[str, float] = defaultdict(float)
    reads: list[tuple[float, float]] = []
    writes: list[tuple[float, float]] = []
    block = max(size for size, _ in _blocks(f))
    shape: PanelShape = spec.panels
    panels = [(shape.vectors, f["panel_whole"], spec.rows[0], 0.0)] if shape.whole else []
    if shape.last:
        panels.append((shape.last, 1, spec.rows[1], spec.pairs / 2))
    inside, edges = edges_of(spec, f)
    total = sum(vectors * count for vectors, count, *_ in panels)
    depth_bytes = f["w_panel"]
    for vectors, count, rows, spared in panels:
        tiles = sum(-(-size // rows) * number for size, number in _runs(spec, f)) * images * count
        high = f["pixels"] * images * count / tiles
        counts["multiply"] += tiles * outer * channels * inside * issue_slots(high, vectors - spared)
        counts["tile"] += tiles
        counts["tap"] += tiles * outer / inner
        counts["edge"] += tiles * edges(rows) * outer * high
        if isinstance(spec.source, RowWindows):
            counts["vector"] += tiles * _hanging(spec.source, f, rows) * spec.source.copied(rows, red.kernel, lanes)
        if spec.scattered and spec.columns:
            counts["element"] += tiles * high * vectors * lanes
        else:
            counts["turn" if spec.columns else "store"] += tiles * high * vectors
        if isinstance(spec.source, PlaneBlocks):  # a line of each channel for all taps of a row, a page for all rows
            lines = math.prod(red.kernel[:-1])
            blocks = channels / spec.source.block
            counts["tap"] += tiles * outer * (blocks - 1)
            counts["edge"] += tiles * edges(rows) * outer * high * blocks * KEPT
            counts["apart"] += tiles * lines * channels * inside
            if f["x_c"] >= PAGE and channels > ENTRIES:
                counts["page"] += tiles * channels
        elif not red.unit_channel and channels > 1:
            counts["apart"] += tiles * outer * channels * inside
            touched = lines_of(spec, f, high)
            if outer > 1 and channels * (touched * LINE + vectors * lanes * item) > host.l1 * HELD:
                counts["gone"] += tiles * outer * channels * inside * touched
            if f.get("x_c", 0) >= PAGE and channels * math.prod(red.kernel[:-1]) > ENTRIES:
                counts["page"] += tiles * math.prod(red.kernel[:-1]) * channels * inside
        panel_bytes = depth_bytes * vectors / shape.vectors
        span = span_of(spec, f, high, channels, item)
        reads.append((tiles * panel_bytes, panel_bytes + span))
        reads.append((tiles * span, min(1.0, block / f["pixels"]) * input_bytes(spec, f, span, high) + panel_bytes))
    weights = f["g_count"] * total / shape.vectors * depth_bytes
    passes = f["n_count"] * f["b_count"] * weights  # threads take other panels or other blocks: each byte once a block
    if weights <= host.l2:
        reads.append((passes, weights))
    outputs = (total - (shape.last > 0)) * lanes + (shape.valid if shape.last else 0)
    out = images * f["pixels"] * outputs * item
    source = input_bytes(spec, f, span, high) * images
    writes.append((out, out))
    if spec.stage is not None:
        copied = staged(spec.stage, f, host)
        for name, value in copied.counts.items():
            counts[name] += value * f["k_count"]
        reads += [(nbytes * f["k_count"], set_) for nbytes, set_ in copied.reads]
        writes += [(nbytes * f["k_count"], set_) for nbytes, set_ in copied.writes]
    if isinstance(spec.source, Rows) and spec.source.ahead:
        asked = 1.0
    elif spec.stage is None:
        asked = ASKED if red.unit_channel else ASKED_APART
    else:
        asked = 1.0 if in_runs(spec.stage) else ASKED
    streams = _from_memory(source, f, asked, host)
    if weights > host.l2:
        streams += ((passes, weights),)
    return Cost(counts, tuple(reads), tuple(writes), chunks, streams)


def _from_memory(source: float, f: Fields, asked: float, host: Host) -> tuple[tuple[float, float], ...]:
    """The stream of an image that is too large to be in a cache; none of others, whose reading hides.

    The chunks of all panels follow one another on each block: they find it in a cache, unless it is too large as well.
    """
    if source <= host.l3 * FAR:
        return ()
    block = source / (f["n_count"] * f["b_count"])
    return ((asked * source * (1 if block <= host.l3 * FAR else f["k_count"]), source),)


@_cost.register
def _columns(spec: ColumnSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Tiles of channels by two vectors of pixels."""
    lanes, item = host.target.lanes(spec.dtype), 8 if spec.dtype == "float64" else 4
    wide = 2 * lanes
    depth = f["w_row"] // item - spec.bias
    images = f["n_count"] * f["g_count"]
    short = f["panel_count"] - f["panel_long"]
    outputs = f["panel_long"] * spec.rows + short * (spec.rows - 1)
    high = outputs / f["panel_count"]
    counts: defaultdict[str, float] = defaultdict(float)
    tiles = 0
    for size, number in _blocks(f):
        whole, rest = divmod(size, wide)
        for vectors, many in ((2, whole), (-(-rest // lanes), 1 if rest else 0)):
            if many:
                part = images * number * many * f["panel_count"]
                tiles += part
                counts["multiply"] += part * depth * issue_slots(high, vectors)
                counts["store"] += part * high * vectors
    counts["tile"] += tiles
    counts["tap"] += tiles
    if spec.stage is None and f.get("x_c", 0) >= PAGE:
        counts["page"] += tiles / f["panel_count"] * depth
    weights = outputs * f["w_row"]
    column = depth * wide * item
    source = images * f["pixels"] * depth * item
    out = images * f["pixels"] * outputs * item
    reads: list[tuple[float, float]] = [
        (tiles * high * f["w_row"], min(f["panels"] / f["panel_count"], 1.0) * weights + column),
        (tiles * column, column + high * f["w_row"]),
        (images * f["b_count"] * weights, f["g_count"] * weights),
    ]
    writes: list[tuple[float, float]] = [(out, out)]
    if spec.stage is not None:
        copied = staged(spec.stage, f, host)
        for name, value in copied.counts.items():
            counts[name] += value * f["k_count"]
        reads += [(nbytes * f["k_count"], set_) for nbytes, set_ in copied.reads]
        writes += [(nbytes * f["k_count"], set_) for nbytes, set_ in copied.writes]
    streams = _from_memory(source, f, 1.0 if spec.ahead else ASKED, host)
    return Cost(counts, tuple(reads), tuple(writes), chunks, streams)


@_cost.register
def _naive(spec: NaiveSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Every product on its own."""
    outputs = chunks * math.prod(f[f"out{d}"] for d in range(len(spec.kernel)))
    return Cost({"scalar": outputs * math.prod(spec.kernel) * f["channels"]}, (), (), chunks)


@_cost.register
def _gemm(spec: GemmSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """BLAS shares the work among threads of its own; it packs both matrices."""
    lanes, item = host.target.lanes(spec.dtype), 8 if spec.dtype == "float64" else 4
    m, n, k = f["m"], f["n"], f["k"]
    packed = (m + n) * k
    counts = {"multiply": f["g_count"] * m * n * k / lanes * 1.1, "element": f["g_count"] * packed / lanes}
    return Cost(counts, ((f["g_count"] * packed * item, packed * item),), (), None)


@_cost.register
def _finish(spec: FinishSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """One pass over the output."""
    elements, item = chunks * f["length"], 8 if spec.dtype == "float64" else 4
    nbytes = elements * item
    counts = {"vector": elements / host.target.lanes(spec.dtype), "run": chunks}
    return Cost(counts, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)


@_cost.register
def _copy(spec: CopySpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Element by element."""
    elements = chunks * math.prod(f[f"size{d}"] for d in range(spec.dims))
    nbytes = elements * (8 if spec.dtype == "float64" else 4)
    return Cost({"element": elements}, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)


@_cost.register
def _pack(spec: PackSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Weights gathered one by one."""
    nbytes = f["p_panel"] * chunks
    elements = nbytes / (8 if spec.dtype == "float64" else 4)
    return Cost({"element": elements}, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)


@_cost.register
def _pack_rows(spec: RowPackSpec, f: Fields, chunks: int, host: Host) -> Cost:
    """Weights gathered one by one."""
    nbytes = f["p_g"] * f["g_count"]
    elements = nbytes / (8 if spec.dtype == "float64" else 4)
    return Cost({"element": elements}, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)
