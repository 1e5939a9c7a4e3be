"""Few channels a group: what depthwise and grouped convolution share.

Two kernels: vectors of channels where channels are adjacent in the output, vectors of pixels where those are.
"""

from __future__ import annotations

import math

from leanconv.algorithms.base import Lowering, WeightPacking
from leanconv.algorithms.blocking import SMALLEST_CHUNK, wanted_chunks
from leanconv.algorithms.channeltiles import (
    bands,
    fetched,
    narrow,
    parts,
    streams,
    tile_width,
    unit_section,
    whole_vectors,
)
from leanconv.algorithms.dense import even_stride, image_input, store_columns
from leanconv.algorithms.planes import pixel_vectors
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.channelwise import ChannelwiseSpec
from leanconv.kernels.copy import CopySpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.lanes import Lanes
from leanconv.kernels.pack import PackSpec
from leanconv.kernels.panels import PanelShape
from leanconv.kernels.taporder import TapOrder
from leanconv.kernels.window import Edges, Window
from leanconv.memory import Buffer
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

DENSE_IMAGE = "dense x"
SMALLEST = SMALLEST_CHUNK // 4  # operations of a chunk: memory lets them come at a quarter of the peak


def few_channels(problem: Problem, host: Host, threads: int, workspace: int | None) -> Lowering:
    """Vectors of pixels where those are adjacent in the output, else vectors of channels."""
    alone = problem.out_channels == 1 and even_stride(problem.out_strides[2:], problem.out_size) == 1
    if alone or store_columns(problem):
        return pixel_vectors(problem, host, threads, workspace, window_of(problem))
    return channel_vectors(problem, host, threads)


def window_of(problem: Problem) -> Window:
    """The geometry of a problem as kernels are specialised for it."""
    p = problem
    padded = tuple(low > 0 or high > 0 for low, high in zip(p.pad_low, p.pad_high, strict=True))
    return Window(p.kernel, p.stride, p.dilation, p.pad_low, padded, p.pad_mode)


def edges_of(problem: Problem, width: int, strips: int, short: int) -> Edges:
    """What is known of the edges when the kernel is made."""
    p = problem
    stride, pad, size, out = p.stride[-1], p.pad_low[-1], p.in_size[-1], p.out_size[-1]
    reach = (p.kernel[-1] - 1) * p.dilation[-1]
    right = size + pad - out * stride  # the first column outside, from width * stride of the last tile
    over = reach - stride >= right
    if not pad and not over:
        return Edges(True, 0, None)
    last = width - (1 if short else 0)
    # Output pixels whose windows reach over the left and the right edge have to lie in the first and the last tile.
    inside = (size - 1 - reach + pad) // stride + 1
    fits = strips == 1 or (-(-pad // stride) <= width and out - inside <= last)
    if p.pad_mode != "zeros" or not TapOrder(p.kernel, p.group_in).single or not fits:
        return Edges(False, 0, None)
    return Edges(True, pad, right if over else None)


def pack_lanes(problem: Problem, host: Host, lanes: Lanes) -> WeightPacking:
    """Weights in registers of output channels, group after group."""
    p, item = problem, problem.itemsize
    strides = [s * item for s in p.w_strides]
    apart = lanes.parts > 1
    groups, outputs = (p.groups, lanes.lanes) if apart else (1, lanes.groups * lanes.group_out)
    total = p.group_out if apart else p.out_channels
    panels, rest = -(-total // outputs), total % outputs
    shape = PanelShape(1, total >= outputs, 1 if rest else 0, rest)
    order, fewer = tuple(range(p.ndim + 1)), 0 if outputs == lanes.lanes else outputs
    spec = PackSpec(host.target, p.dtype, p.kernel, shape, p.has_bias, order, fewer)
    panel = block_bytes(p, host)
    fields = {
        "g_div": panels,
        "g_count": groups,
        "p_div": 1,
        "p_count": panels,
        "panel_count": panels,
        "channels": p.group_in,
        "w_k": strides[0],
        "w_c": strides[1],
        "w_g": p.group_out * strides[0],
        "p_g": panels * panel,
        "p_panel": panel,
        "bias_g": p.group_out * item,
        "group_out": p.group_out,
        **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
    }
    phase = Phase("pack weights", spec, fields, groups * panels)
    return WeightPacking(groups * panels * panel, phase, grouped=apart)


def block_bytes(problem: Problem, host: Host) -> int:
    """Packed bytes of one register of output channels."""
    return (problem.taps * problem.group_in + problem.has_bias) * host.target.vector_bytes


def channel_vectors(problem: Problem, host: Host, threads: int) -> Lowering:
    """The lowering for channels that are adjacent in the output; an image that lies otherwise is copied first."""
    given, p, item = problem, problem, problem.itemsize
    before: tuple[Phase, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    steps: tuple[str, ...] = ()
    if p.x_strides[1] != 1 and p.in_channels > 1:
        shape = (p.batch, p.in_channels, *p.in_size)
        p = replace(p, x_strides=dense_strides(shape, "NHWC"))
        before = (copy_image(given, p, host),)
        buffers = (Buffer(DENSE_IMAGE, math.prod(shape) * item),)
        steps = ("copy x into a dense array, channels last",)
    lanes = Lanes(host.target.lanes(p.dtype), p.group_in, p.group_out)
    phase, parameters = channel_phase(p, host, threads, lanes, DENSE_IMAGE if before else "x")
    return Lowering(
        phases=(*before, phase),
        workspace=buffers,
        packing=pack_lanes(p, host, lanes),
        steps=(*steps, f"tiles of {parameters['tile']} (pixels x channels) read the image in place"),
        parameters=parameters,
    )


def copy_image(given: Problem, wanted: Problem, host: Host) -> Phase:
    """The phase that copies x to the strides wanted."""
    p, item = given, given.itemsize
    fields = {"c_div": 1, "c_count": p.in_channels, "n_div": p.in_channels, "n_count": p.batch}
    for letter, strides in (("s", given.x_strides), ("t", wanted.x_strides)):
        for axis, stride in zip(["n", "c", *range(p.ndim)], strides, strict=True):
            fields[f"{letter}_{axis}"] = stride * item
    fields |= {f"size{d}": size for d, size in enumerate(p.in_size)}
    roles = {"source": "x", "target": DENSE_IMAGE}
    return Phase("copy", CopySpec(host.target, p.dtype, p.ndim), fields, p.batch * p.in_channels, roles)


def channel_kernel(
    problem: Problem, host: Host, lanes: Lanes, *, near: bool = False
) -> tuple[ChannelwiseSpec, dict[str, int]]:
    """What the kernel of a whole problem is specialised for, and its fields but for those that cut it into chunks."""
    p = problem
    width, strips, short = tile_width(p, host, near=near)
    edges = edges_of(p, width, strips, short)
    spec = ChannelwiseSpec(
        target=host.target,
        dtype=p.dtype,
        window=window_of(p),
        edges=edges,
        lanes=lanes,
        width=width,
        short=short > 0,
        single=strips == 1,
        whole=p.groups >= lanes.groups,
        rest=p.groups % lanes.groups,
        bias=p.has_bias,
        epilogue=Epilogue(p.activation, p.residual),
        stream=streams(p, host) and whole_vectors(p, host, lanes),
        fetch=fetched(p, host) if edges.known and not near else 0,
        linear=True,
    )
    fields = {
        "row_count": math.prod(p.out_size[:-1]),
        "strip_count": strips,
        "strip_long": strips - short,
        "unit_count": -(-p.groups // lanes.groups),
        "unit_whole": p.groups // lanes.groups,
        **image_input(p).fields,
        **end_fields(p),
    }
    return spec, fields


def channel_phase(
    problem: Problem, host: Host, threads: int, lanes: Lanes, source: str
) -> tuple[Phase, dict[str, int | str]]:
    """The phase that computes a whole problem with vectors of channels."""
    p = problem
    spec, fields = channel_kernel(p, host, lanes)
    rows, strips = fields["row_count"], fields["strip_count"]
    section = unit_section(p, host, lanes, spec.width)
    sections = parts(fields["unit_count"], section)
    spec = replace(spec, linear=spec.fetch > 0 and len(sections) == 1)
    wanted = -(-wanted_chunks(p, threads, SMALLEST) // max(1, p.batch * len(sections)))
    columns = strips if narrow(p, host) else min(strips, -(-wanted // rows))
    per = -(-strips // columns)
    columns = -(-strips // per)
    band = -(-rows // bands(p, threads, min(rows, -(-wanted // columns)), rows, sections, parts(strips, per)))
    heights = -(-rows // band)
    fields |= {
        "u_div": 1,
        "u_count": len(sections),
        "t_div": len(sections),
        "t_count": columns,
        "b_div": len(sections) * columns,
        "b_count": heights,
        "n_div": len(sections) * columns * heights,
        "n_count": p.batch,
        "band": band,
        "strips": per,
        "units": section,
    }
    chunks = p.batch * len(sections) * columns * heights
    parameters: dict[str, int | str] = {
        "tile": f"{spec.width}x{lanes.lanes}",
        "band": band,
        "channels": section * lanes.groups * lanes.group_in,
        "chunks": chunks,
    }
    return Phase("core", spec, fields, chunks, {"x": source}), parameters


def end_fields(problem: Problem) -> dict[str, int]:
    """Strides in bytes of output and residual between images and between pixels."""
    p = problem
    fields: dict[str, int] = {}
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            row = even_stride(strides[2:], p.out_size)
            fields |= {f"{letter}_n": strides[0] * p.itemsize, f"{letter}_row": (row or 0) * p.itemsize}
    return fields
