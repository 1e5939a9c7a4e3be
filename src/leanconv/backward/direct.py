"""The gradient with respect to weights, from the image where it lies.

Idea        a tile of input channels by output channels of one tap stays in registers while pixels are summed: the
            gradient is staged a box of some 256 pixels at a time, the image is read in place, and under each tap only
            the pixels that read inside it are summed, so that nothing is copied to patches and nothing padded
Workspace   a thread: 256 pixels of one panel of output channels, and the totals of what a chunk owns: at most
            C/g * taps * panel elements; fewer taps and channels at a time under a memory limit
Good for    nearly all layers
Bad for     groups of few output channels, which leave lanes empty
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import even_stride
from leanconv.backward.boxes import PIXELS, box_sizes
from leanconv.classes import dataclass, replace
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.backward_stage import GradientRows
from leanconv.kernels.backward_tiles import InPlace, PixelSource, ThroughTable
from leanconv.kernels.backward_weights import BackwardWeightsSpec
from leanconv.kernels.panels import Panels
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

CHUNKS_A_THREAD = 8
PANELS = 4  # a chunk, where one tap alone reads a box of the image: it stays in the second-level cache for them


class DirectWeights(Algorithm):
    """Sums over pixels in place."""

    name: ClassVar[str] = "direct"
    title: ClassVar[str] = "sums over pixels of the image in place, tap by tap"
    paper: ClassVar[str] = (
        "E. Georganas et al.: Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, SC 2018 "
        "(weight update in register tiles)"
    )

    def refusal(self, problem: Problem) -> str | None:
        """Any padding by zeros."""
        return (
            None if problem.pad_mode == "zeros" else f"pad_mode {problem.pad_mode!r}: the image is read without a copy"
        )

    def error_bound(self, problem: Problem) -> float:
        """Of sums of boxes of some 256 pixels, added up one after the other."""
        return weights_error_bound(super().error_bound(problem), problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase."""
        phase, buffers, parameters = gradient_phase(problem, host, threads, workspace)
        return Lowering(
            phases=(phase,),
            workspace=buffers,
            steps=(
                f"each thread stages the gradient of {parameters['box']} pixels of a panel of output channels",
                f"core {parameters['tile']} reads the image in place, tap by tap, and adds to totals",
            ),
            parameters=parameters,
        )


def gradient_phase(
    problem: Problem,
    host: Host,
    threads: int,
    workspace: int | None,
    *,
    accumulate: bool = False,
    table: tuple[int, bool] | None = None,
) -> tuple[Phase, tuple[Buffer, ...], dict[str, int | str]]:
    """The phase that sums over pixels, its buffers, and the settings chosen.

    `accumulate`: the sums are added to what the result holds; `table`: the image is read through a table, of entries of
    so many bytes, some of which are padding or not.
    """
    p = merged(problem) if table is None else problem
    grad = lines_of(p, joined=table is not None)
    panels = panels_of(p, host)
    boxes = box_sizes(p.batch, grad.size)
    cut = _cut(p, host, threads, workspace, panels, math.prod(boxes))
    near = p.x_strides[1] == 1
    source: PixelSource
    if table is None:
        windows = tuple(zip(p.stride, p.dilation, p.pad_low, strict=True))
        source = InPlace(windows, near, p.x_strides[-1] == 1 and p.stride[-1] == 1)
    else:
        source = ThroughTable(p.taps, *table, near, len(grad.size))
    spec = BackwardWeightsSpec(
        target=host.target,
        dtype=p.dtype,
        kernel=p.kernel,
        source=source,
        panels=panels.shape,
        rows=(cut.kinds[0].rows, cut.kinds[1].rows),
        short=(cut.kinds[0].short > 0, cut.kinds[1].short > 0),
        gradient=grad.rows(p, host),
        bias=p.has_bias,
        accumulate=accumulate,
    )
    fields = _fields(p, panels, cut) | grad.fields(p, boxes)
    if table is not None:
        steps = dense_strides((1, 1, *grad.size), "NCHW")[2:]
        fields |= {f"entry_{d}": step * p.taps * table[0] for d, step in enumerate(steps)}
    chunks = p.groups * fields["k_count"] * cut.tap_blocks * cut.channel_parts
    rows = cut.kinds[0 if panels.count else 1].rows
    parameters: dict[str, int | str] = {
        "tile": f"{rows}x{panels.vectors * host.target.lanes(p.dtype)}",
        "box": math.prod(boxes),
        "chunks": chunks,
    }
    return Phase("backward weights", spec, fields, chunks), cut.buffers, parameters


@dataclass(frozen=True, slots=True)
class Lines:
    """The gradient of the output as it is walked over: sizes, and elements between positions."""

    size: tuple[int, ...]
    strides: tuple[int, ...]

    def rows(self, p: Problem, host: Host) -> GradientRows:
        """How it is staged."""
        pixels = self.strides[-1] == 1 and self.size[-1] > 1
        return GradientRows(host.target, p.dtype, len(self.size), p.out_strides[1] == 1, pixels)

    def fields(self, p: Problem, boxes: tuple[int, ...]) -> dict[str, int]:
        """Where it is, and its boxes."""
        item = p.itemsize
        channel = p.out_strides[1] * item
        fields = {"batch": p.batch, "b_n": boxes[0], "y_n": p.out_strides[0] * item, "y_k": channel}
        fields |= {"y_g": p.group_out * channel, "bias_g": p.group_out * item}
        for d, (size, stride) in enumerate(zip(self.size, self.strides, strict=True)):
            fields |= {f"out{d}": size, f"b_{d}": boxes[1 + d], f"y_{d}": stride * item}
        return fields


def lines_of(problem: Problem, *, joined: bool) -> Lines:
    """The lines of the gradient of the output; `joined`: as one where its pixels are evenly spaced."""
    p = problem
    even = even_stride(p.out_strides[2:], p.out_size) if joined else None
    if even is None:
        return Lines(p.out_size, p.out_strides[2:])
    return Lines((math.prod(p.out_size),), (even,))


def weights_error_bound(plain: float, problem: Problem) -> float:
    """What sums over all pixels, box by box, may be off, from the bound of a plain sum."""
    boxes = problem.batch * math.prod(problem.out_size) / PIXELS
    return plain * max(1.0, math.sqrt(boxes) / 8)


@dataclass(frozen=True, slots=True)
class TileRows:
    """Tiles of the input channels of a group: `tiles` of `rows`, the last `short` of them one row lower."""

    rows: int
    tiles: int
    short: int

    @staticmethod
    def of(channels: int, most: int) -> TileRows:
        """As few tiles of at most so many rows as can be, as even as can be."""
        tiles = -(-channels // most)
        rows = -(-channels // tiles)
        return TileRows(rows, tiles, tiles * rows - channels)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How the outputs are shared out: blocks of taps, parts of the input channels, and what a thread needs."""

    kinds: tuple[TileRows, TileRows]
    panels: int
    tap_blocks: int
    taps: int
    channel_parts: int
    stage_panel: int
    sum_tap: int
    sum_panel: int
    buffers: tuple[Buffer, ...]


def merged(problem: Problem) -> Problem:
    """The same sums over fewer, longer lines: the pixels, and images, of a pointwise layer, if evenly spaced."""
    p = problem
    plain = p.taps == 1 and not any(p.pad_low) and all(s == 1 for s in p.stride) and p.in_size == p.out_size
    x, grad = even_stride(p.x_strides[2:], p.in_size), even_stride(p.out_strides[2:], p.out_size)
    if not plain or x is None or grad is None:
        return p
    pixels, batch = math.prod(p.out_size), p.batch
    if batch > 1 and p.x_strides[0] == pixels * x and p.out_strides[0] == pixels * grad:
        pixels, batch = pixels * batch, 1
    return replace(
        p,
        ndim=1,
        batch=batch,
        in_size=(pixels,),
        kernel=(1,),
        stride=(1,),
        dilation=(1,),
        pad_low=(0,),
        pad_high=(0,),
        x_strides=(*p.x_strides[:2], x),
        w_strides=(*p.w_strides[:2], 1),
        out_strides=(*p.out_strides[:2], grad),
    )


def tile_rows(target: Target, vectors: int, apart: bool) -> int:
    """The most input channels of a tile; fewer than the core's pixels where LLVM would spill.

    Loads of the next step need registers beside the tile's (9x3 on AVX-512 leaves too few), and channels that lie apart
    an address each beside the gradient's and the counters.
    """
    rows = target.tile_rows(vectors)
    if rows * vectors > 24 and vectors > 2:
        rows -= 1
    return min(rows, target.pointers - 2) if apart else rows


def _cut(p: Problem, host: Host, threads: int, workspace: int | None, panels: Panels, pixels: int) -> _Cut:
    register = host.target.vector_bytes
    widths = (panels.vectors, panels.last or panels.vectors)
    apart = p.x_strides[1] != 1
    first, last = (TileRows.of(p.group_in, tile_rows(host.target, width, apart)) for width in widths)
    used = [
        (kind, width) for kind, width, on in zip((first, last), widths, (panels.count, panels.last), strict=True) if on
    ]
    width = max(width for _, width in used) * register
    wanted = CHUNKS_A_THREAD * threads if threads > 1 else 1
    together = min(PANELS, panels.total) if p.taps == 1 else 1
    while together > 1 and p.groups * -(-panels.total // together) < wanted:
        together -= 1
    owners = p.groups * -(-panels.total // together)
    most = min(kind.tiles for kind, _ in used)
    blocks = min(p.taps, -(-wanted // owners))
    parts = min(most, -(-wanted // (owners * blocks)))
    while True:
        taps = -(-p.taps // blocks)
        sum_tap = max(-(-kind.tiles // parts) * kind.rows * vectors * register for kind, vectors in used)
        sum_panel = taps * sum_tap + (width if p.has_bias else 0)
        buffers = (
            Buffer("scratch", together * pixels * width, per_thread=True),
            Buffer("sums", together * sum_panel, per_thread=True),
        )
        fits = workspace is None or arena_bytes(buffers, threads) <= workspace
        if fits or (blocks == p.taps and parts == most and together == 1):
            tap_blocks = -(-p.taps // taps)
            return _Cut((first, last), together, tap_blocks, taps, parts, pixels * width, sum_tap, sum_panel, buffers)
        if together > 1:
            together -= 1
        elif blocks < p.taps:
            blocks = min(p.taps, 2 * blocks)
        else:
            parts = min(most, 2 * parts)


def _fields(p: Problem, panels: Panels, cut: _Cut) -> dict[str, int]:
    item = p.itemsize
    counts = {"c": cut.channel_parts, "t": cut.tap_blocks, "k": -(-panels.total // cut.panels), "g": p.groups}
    fields: dict[str, int] = {}
    step = 1
    for letter, count in counts.items():
        fields |= {f"{letter}_div": step, f"{letter}_count": count}
        step *= count
    x, o = ([s * item for s in strides] for strides in (p.x_strides, p.w_strides))
    fields |= {"x_n": x[0], "x_c": x[1], "x_g": p.group_in * x[1]}
    fields |= {"o_k": o[0], "o_c": o[1], "o_g": p.group_out * o[0]}
    fields |= {"panel_count": panels.total, "panel_whole": panels.count}
    fields |= {"panels": cut.panels, "taps": cut.taps, "tap_count": p.taps, "stage_panel": cut.stage_panel}
    fields |= {"sum_tap": cut.sum_tap, "sum_panel": cut.sum_panel, "sum_bytes": cut.panels * cut.sum_panel}
    for kind, tiles in enumerate(cut.kinds):
        fields |= {f"tiles{kind}": tiles.tiles, f"long{kind}": tiles.tiles - tiles.short}
    for d in range(p.ndim):
        fields |= {f"out{d}": p.out_size[d], f"in{d}": p.in_size[d], f"o_{d}": o[2 + d]}
        fields |= {f"at{d}": x[2 + d], f"step{d}": p.stride[d] * x[2 + d], f"tap{d}": p.dilation[d] * x[2 + d]}
    return fields
