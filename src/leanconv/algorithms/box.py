"""Box filters: how sums over boxes are cut into strips, blocks of rows and chunks for the kernel of `kernels.box`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.algorithms.base import WeightPacking
from leanconv.algorithms.planes import pack_planes
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.box import BoxSpec
from leanconv.kernels.boxrow import BoxRow
from leanconv.kernels.epilogue import Epilogue
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

CHUNKS_A_THREAD = 4
BROAD = 4  # boxes in a strip: below it, much of what a strip sums up is summed up by its neighbour too


def box_refusal(problem: Problem, uniform: bool) -> str | None:
    """Why boxes cannot compute a depthwise problem whose filters are constant, or None.

    `uniform`: all filters have the same value.
    """
    p = problem
    if p.groups != p.in_channels or p.out_channels != p.in_channels:
        return "boxes give one output for each channel"
    if p.has_bias or p.residual:
        return "boxes add no bias and no residual"
    if any(d > 1 for d in p.dilation):
        return f"the taps lie {p.dilation} pixels apart, those of boxes side by side"
    if _inside(p, p.out_size[1]) < 1:
        return "no box reaches into the image"
    if p.layout == "NHWC":
        if not uniform:
            return "the boxes have values of their own, with channels last they must have the same one"
        if p.x_strides[1] != 1 or p.x_strides[3] != p.in_channels:
            return "the pixels of a row of x are not adjacent in memory"
    elif p.x_strides[3] != 1 and p.in_size[1] > 1:
        return "the pixels of a row of x are not adjacent in memory"
    return None


def box_phase(
    problem: Problem, host: Host, threads: int, workspace: int | None
) -> tuple[Phase, tuple[Buffer, ...], WeightPacking, Mapping[str, int | str]]:
    """The phase that sums up boxes, its buffers, the packing of their values, and its settings."""
    p, item = problem, problem.itemsize
    lanes, (high, wide) = host.target.lanes(p.dtype), p.kernel
    last = p.layout == "NHWC"
    elements, planes = (p.in_channels, 1) if last else (1, p.in_channels)
    rows, columns = p.out_size
    padded = any(p.pad_low) or any(p.pad_high)

    def buffers(strip: int) -> tuple[Buffer, ...]:
        pixels = (strip - 1) * p.stride[1] + wide
        if padded and p.pad_mode != "zeros":
            pixels = max(pixels, p.pad_low[1] + p.in_size[1])
        row = (-(-pixels * elements // lanes) + 1) * lanes * item  # vectors may be read from the last number on
        sizes = {"suffix": high, "prefix": 2, "middle": 1, "sums": 1, "total": 1}
        return tuple(Buffer(name, count * row, per_thread=True) for name, count in sizes.items())

    strip = _strip(p, lambda strip: _cheap(buffers(strip), host, threads, workspace))
    strips = -(-columns // strip)
    count = -(-((rows - 1) * p.stride[0] + 1) // high)  # blocks in which windows begin
    wanted = 1 if threads == 1 else CHUNKS_A_THREAD * threads
    parts = min(count, -(-wanted // max(1, p.batch * planes * strips)))
    blocks = -(-count // parts)
    parts = -(-count // blocks)
    inside = _inside(p, strip)
    ends = [strip, columns - (strips - 1) * strip]
    row = BoxRow(
        target=host.target,
        dtype=p.dtype,
        width=wide,
        elements=elements,
        out_piece=_power(min(lanes, min(ends) * elements)),
        apart=p.stride[1] > 1,
        pad_mode=p.pad_mode,
        epilogue=Epilogue(p.activation, None),
    )
    spec = BoxSpec(row, _power(min(lanes, inside * elements)), padded)
    held = buffers(strip)
    fields = {
        "b_div": 1,
        "b_count": parts,
        "s_div": parts,
        "s_count": strips,
        "c_div": parts * strips,
        "c_count": planes,
        "n_div": parts * strips * planes,
        "n_count": p.batch,
        "blocks": blocks,
        "block_count": count,
        "strip": strip,
        "high": high,
        "step_y": p.stride[0],
        "step_x": p.stride[1],
        "pad_y": p.pad_low[0],
        "pad_x": p.pad_low[1],
        **{f"in{d}": n for d, n in enumerate(p.in_size)},
        **{f"out{d}": n for d, n in enumerate(p.out_size)},
        "x_n": p.x_strides[0] * item,
        "x_c": p.x_strides[1] * item,
        "x_row": p.x_strides[2] * item,
        "o_n": p.out_strides[0] * item,
        "o_c": p.out_strides[1] * item,
        "o_row": p.out_strides[2] * item,
        "row": held[2].nbytes,
    }
    chunks = p.batch * planes * strips * parts
    # One tap of each filter is all that is kept.
    packing = pack_planes(replace(p, kernel=(1, 1), has_bias=False), host)
    parameters: dict[str, int | str] = {"strip": strip, "rows": blocks * high, "chunks": chunks}
    return Phase("box", spec, fields, chunks, {"w": "box weights"}), held, packing, parameters


def _cheap(buffers: tuple[Buffer, ...], host: Host, threads: int, workspace: int | None) -> tuple[bool, bool]:
    """Whether buffers stay in half the second-level cache, and within a limit."""
    small = sum(b.nbytes for b in buffers) <= host.l2 // 2
    return small, workspace is None or arena_bytes(buffers, threads) <= workspace


def _strip(problem: Problem, weigh: Callable[[int], tuple[bool, bool]]) -> int:
    """Output columns of a strip: the widest that is cheap, unless its neighbours would share most of what it reads."""
    p, columns = problem, problem.out_size[1]
    strip = columns
    if p.pad_mode != "zeros":
        return columns  # pads are copied from anywhere in a row
    for number in range(1, columns + 1):
        if -(-columns // number) == strip and number > 1:
            continue
        narrower = -(-columns // number)
        if number > 1 and _inside(p, narrower) < 1:
            continue
        strip = narrower
        small, fits = weigh(strip)
        if fits and (small or (strip - 1) * p.stride[1] <= BROAD * p.kernel[1]):
            break
    return strip


def _inside(problem: Problem, strip: int) -> int:
    """The fewest pixels of an image row that a strip reads."""
    p = problem
    found = p.in_size[1]
    for first in range(0, p.out_size[1], strip):
        end = min(first + strip, p.out_size[1])
        corner = first * p.stride[1] - p.pad_low[1]
        found = min(found, min(corner + (end - first - 1) * p.stride[1] + p.kernel[1], p.in_size[1]) - max(corner, 0))
    return found


def _power(number: int) -> int:
    """The greatest power of two that is at most a number."""
    return 1 << (number.bit_length() - 1)
