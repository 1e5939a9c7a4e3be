"""What all algorithms on the register-tiled core share: weights in panels, and the phase that runs the core."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.blocking import Blocking, panels_of, tile_heights
from leanconv.algorithms.sharing import shared
from leanconv.algorithms.traffic import ahead, asked_for, from_afar, lines_of_next, past
from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.image import Image, Rows, Source
from leanconv.kernels.pack import PackSpec
from leanconv.kernels.panels import Panels
from leanconv.kernels.reduction import FEW, Reduction, reduction_fields
from leanconv.kernels.rowtiles import InRows
from leanconv.kernels.stage import Stage
from leanconv.problem import Problem
from leanconv.program import Phase


@dataclass(frozen=True, slots=True)
class CoreInput:
    """Where the core reads its pixels: `channels` elements for each of `kernel` taps, and the fields of the source.

    `stage` copies windows to the buffer "scratch" of each thread first; the source then reads that. `block` channels go
    through all taps before the next ones, if the source sums that way (0: all do). `asks`: at some sizes of the image
    rows are worth being asked for ahead. `ahead`: tiles are staged while others
    are summed, not a block first.
    """

    source: Source
    kernel: tuple[int, ...]
    channels: int
    unit_channel: bool
    merged: bool
    fields: Mapping[str, int]
    buffer: str = "x"
    stage: Stage | None = None
    block: int = 0
    asks: bool = False
    ahead: bool = False


@functools.lru_cache(maxsize=64)  # all that may compute a problem ask, some twice
def image_input(problem: Problem) -> CoreInput:
    """The image itself, read through its strides, edges and all."""
    p, item = problem, problem.itemsize
    strides = [s * item for s in p.x_strides]
    channel, at = strides[1], strides[2:]
    fields = {"x_n": strides[0], "x_g": p.group_in * channel, "x_c": channel}
    pad_bytes = 0
    for d, (size, out, taps) in enumerate(zip(p.in_size, p.out_size, p.kernel, strict=True)):
        stride, dilation, pad = p.stride[d], p.dilation[d], p.pad_low[d]
        pad_bytes += pad * at[d]
        fields |= {
            f"out{d}": out,
            f"in{d}": size,
            f"at{d}": at[d],
            f"step{d}": stride * at[d],
            f"tap{d}": dilation * at[d],
            f"low{d}": -(-pad // stride),
            f"high{d}": (size - 1 - (taps - 1) * dilation + pad) // stride + 1,
        }
    fields["pad_bytes"] = pad_bytes
    padded = any(p.pad_low) or any(p.pad_high)
    unit = p.x_strides[1] == 1
    merged = unit and p.dilation[-1] == 1 and p.x_strides[-1] == p.group_in
    width = item if p.x_strides[-1] == 1 and not unit else None
    source = Image(p.stride, p.dilation, p.pad_low, padded, p.pad_mode, width)
    return CoreInput(source, p.kernel, p.group_in, unit, merged, fields)


def rows_input(problem: Problem) -> CoreInput | None:
    """The image as a matrix with a row per pixel, if its pixels are evenly spaced (kernel 1, stride 1, no padding)."""
    row = even_stride(problem.x_strides[2:], problem.in_size)
    if row is None:
        return None
    item = problem.itemsize
    channel = problem.x_strides[1] * item
    fields = {
        "x_n": problem.x_strides[0] * item,
        "x_g": problem.group_in * channel,
        "x_c": channel,
        "x_row": row * item,
    }
    unit = problem.x_strides[1] == 1
    source = Rows(item if row == 1 and not unit else None)
    return CoreInput(source, (1,), problem.group_in, unit, False, fields)


def lies_well(problem: Problem) -> bool:
    """Whether windows are single pixels whose channels are adjacent, one behind the other or a stride apart.

    To copy them gains nothing. Sixteen layers of 24 to 2048 channels: the better of two copies took 1.02 times as long
    as reading in place with one thread, 1.06 with two. With strides, twelve of 16 to 1024: 0.99 to 1.7 times, and with
    two threads 0.99 to 2.0 (AVX-512).
    """
    p = problem
    if p.taps > 1 or any((*p.pad_low, *p.pad_high)):
        return False
    if set(p.stride) != {1}:
        return p.x_strides[1] == 1
    return (p.x_strides[1] == 1 or p.in_channels == 1) and rows_input(p) is not None


def even_stride(strides: tuple[int, ...], sizes: tuple[int, ...]) -> int | None:
    """The distance between pixels counted along the last dimension first, if it is the same everywhere."""
    step: int | None = None
    span = 1
    for stride, size in zip(reversed(strides), reversed(sizes), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != step * span:
            return None
        span *= size
    return 1 if step is None else step


def output_refusal(problem: Problem) -> str | None:
    """Why the core cannot store straight into such an output (or read such a residual), or None if it can."""
    for name, strides in (("output", problem.out_strides), ("residual", problem.residual_strides)):
        if strides is None:
            continue
        row = even_stride(strides[2:], problem.out_size)
        pixels = math.prod(problem.out_size)
        if row is None or (store_columns(problem) and row != 1 and pixels > 1):
            return f"the {name}'s pixels are not evenly spaced in memory"
        if not store_columns(problem) and strides[1] != 1 and problem.out_channels > 1:
            return f"neither pixels nor channels of the {name} are adjacent in memory"
    return None


def store_columns(problem: Problem) -> bool:
    """Whether a tile is stored with pixels adjacent (channels first) rather than channels."""
    return problem.out_strides[1] != 1 and problem.out_channels > 1


def scattered(problem: Problem) -> bool:
    """Whether the core has to work out where each pixel of the output goes."""
    return output_refusal(problem) is not None


def without_gaps(problem: Problem, host: Host, limit: int | None) -> bool:
    """Whether a limit has no room for filling the last panel up to whole registers.

    The core then reads the last register of each row in pieces: up to three loads instead of one.
    """
    if limit is None:
        return False
    filled, exact = (panel_fields(problem, host, tight=tight)["w_g"] for tight in (False, True))
    return (filled - exact) * problem.groups > limit


def panel_fields(problem: Problem, host: Host, *, tight: bool = False, panels: Panels | None = None) -> dict[str, int]:
    """Sizes of packed weights, in the usual panels or in others."""
    lanes, item = host.target.lanes(problem.dtype), problem.itemsize
    panels = panels or panels_of(problem, host)
    steps = problem.taps * problem.group_in
    rows = steps + (1 if problem.has_bias else 0)
    fields = {
        "w_g": rows * panels.outputs(lanes, tight=tight) * item,
        "w_panel": rows * panels.vectors * lanes * item,
        "panel_count": panels.total,
        "panel_whole": panels.count,
    }
    return fields


@functools.lru_cache(maxsize=64)
def pack_weights(
    problem: Problem,
    host: Host,
    order: tuple[int, ...] | None = None,
    *,
    tight: bool = False,
    block: int = 0,
    panels: Panels | None = None,
) -> WeightPacking:
    """The packing of a problem's weights into panels; `order` of a sum as in `PackSpec`, or taps and then channels.

    `block` channels under all taps stand before the next ones (0: all do); `panels` if not the usual ones.
    """
    p, item, panels = problem, problem.itemsize, panels or panels_of(problem, host)
    sizes = panel_fields(problem, host, tight=tight, panels=panels)
    axes = order or tuple(range(p.ndim + 1))
    spec = PackSpec(host.target, p.dtype, p.kernel, panels.shape, p.has_bias, axes, tight=tight, block=block)
    strides = [s * item for s in p.w_strides]
    fields = {
        "g_div": panels.total,
        "g_count": p.groups,
        "p_div": 1,
        "p_count": panels.total,
        "panel_count": panels.total,
        "channels": p.group_in,
        "w_k": strides[0],
        "w_c": strides[1],
        "w_g": p.group_out * strides[0],
        "p_g": sizes["w_g"],
        "p_panel": sizes["w_panel"],
        "bias_g": p.group_out * item,
        "group_out": p.group_out,
        **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
    }
    phase = Phase("pack weights", spec, fields, p.groups * panels.total)
    return WeightPacking(p.groups * sizes["w_g"], phase, grouped=True)


def core_phase(
    problem: Problem, host: Host, threads: int, source: CoreInput, *, tight: bool = False
) -> tuple[Phase, dict[str, int | str]]:
    """The phase that runs the core over a whole problem, and the settings chosen."""
    even = isinstance(source.source, Rows) and source.unit_channel
    apart = source.fields.get("x_row", source.fields.get(f"step{problem.ndim - 1}", 0)) if source.unit_channel else 0
    pixels, panels = math.prod(problem.out_size), panels_of(problem, host)
    rows = tile_heights(pixels, host, panels, apart=apart, even=even)
    return dense_phase(problem, host, source, *shared(problem, host, threads, rows), tight=tight, threads=threads)


def dense_phase(
    problem: Problem,
    host: Host,
    source: CoreInput,
    rows: tuple[int, int],
    cut: Blocking,
    image: int | None = None,
    *,
    tight: bool = False,
    threads: int = 1,
) -> tuple[Phase, dict[str, int | str]]:
    """The core with tiles of `rows` over blocks as cut, on all images or on one; `tight` weights as in `PackSpec`.

    `threads` share the chunks.
    """
    p, panels = problem, panels_of(problem, host)
    last = math.prod(p.out_size) - (cut.blocks - 1) * cut.block
    runs = p.out_size[-1:] if isinstance(source.source, InRows) else (cut.block, last)  # that whole tiles cover
    panel = panel_fields(p, host)["w_panel"]
    plain = not store_columns(p) and not scattered(p)
    beside = tight or source.ahead or source.channels <= FEW  # which ask for nothing, or for other lines
    later = 0 if beside else lines_of_next(panel, panels, -(-cut.block // rows[0]), host)
    spec = DenseSpec(
        target=host.target,
        dtype=p.dtype,
        source=source.source,
        reduction=Reduction.of(
            source.kernel,
            source.channels,
            unit_channel=source.unit_channel,
            merged=source.merged,
            # One pixel takes weights as fast as memory gives them, and asking for lines early gets in the way: a matrix
            # of 100 MB times a vector took 7.5 ms with it, 6.0 without (one thread).
            # Weights of which the second-level cache holds two panels and more come from there by themselves.
            stream=from_afar(panel, panels, host) and rows[0] > 1 and not (later and panel <= host.l2 // 4),
            block=source.block,
        ),
        panels=panels.shape,
        rows=rows,
        ragged=any(size % height for size in runs for height in rows),
        bias=p.has_bias,
        columns=any(s is not None and s[1] != 1 for s in (p.out_strides, p.residual_strides)) and p.out_channels > 1
        if scattered(p)
        else store_columns(p),
        epilogue=Epilogue(p.activation, p.residual),
        stage=source.stage,
        fetch=plain and asked_for(p, panels, host),
        past=plain and past(p, host) and not source.ahead,
        scattered=p.ndim if scattered(p) else 0,
        tight=tight,
        later=later,
        ahead=source.ahead,
    )
    fields = core_fields(p, host, source, cut, image, tight=tight)
    if later:
        apart = panel * -(-threads // 2)  # every other thread takes panels from the front, the rest from the back
        fields |= {"w_later": apart, "w_back": -apart} if cut.group == 1 else {"w_later": panel, "w_back": panel}
    far = ahead(math.prod(source.kernel) * source.channels, rows[0], panels)
    fields["o_ahead"] = far * fields["o_row"]
    if source.asks:
        fields["x_ahead"] = far * fields["x_row"]
    chunks = fields["n_count"] * fields["g_count"] * fields["b_count"] * fields["k_count"]
    parameters: dict[str, int | str] = {
        "tile": f"{rows[0]}x{panels.vectors * host.target.lanes(p.dtype)}",
        "block": cut.block,
        "panels": cut.group,
        "chunks": chunks,
    }
    return Phase("core", spec, fields, chunks, {"x": source.buffer}), parameters


def core_fields(
    problem: Problem, host: Host, source: CoreInput, cut: Blocking, image: int | None, *, tight: bool
) -> dict[str, int]:
    """All fields of the core's kernel."""
    p = problem
    pixels = math.prod(p.out_size)
    fields = {**panel_fields(p, host, tight=tight), **source.fields}
    groups_of_panels = -(-fields["panel_count"] // cut.group)
    fields |= {
        "k_div": 1,
        "k_count": groups_of_panels,
        "b_div": groups_of_panels,
        "b_count": cut.blocks,
        "g_div": groups_of_panels * cut.blocks,
        "g_count": p.groups,
        "n_div": groups_of_panels * cut.blocks * p.groups,
        "n_count": p.batch if image is None else 1,
        "n_first": image or 0,
        "block": cut.block,
        "pixels": pixels,
        "panels": cut.group,
        **reduction_fields(source.channels),
    }
    tap = source.channels
    for d in reversed(range(len(source.kernel))):
        fields[f"w_rows{d}"] = tap
        tap *= source.kernel[d]
    return fields | output_fields(p, host)


def output_fields(problem: Problem, host: Host) -> dict[str, int]:
    """Byte steps of the output and of a residual."""
    p = problem
    fields: dict[str, int] = {}
    lanes = host.target.lanes(p.dtype)
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is None:
            continue
        channel = strides[1] * p.itemsize
        row = even_stride(strides[2:], p.out_size)
        fields |= {
            f"{letter}_n": strides[0] * p.itemsize,
            f"{letter}_g": p.group_out * channel,
            f"{letter}_k": channel,
            f"{letter}_panel": panels_of(p, host).vectors * lanes * channel,
            f"{letter}_row": (row or 0) * p.itemsize,
            **{f"{letter}_{d}": stride * p.itemsize for d, stride in enumerate(strides[2:])},
        }
    return {**fields, **{f"z{d}": size for d, size in enumerate(p.out_size)}}
