"""Filters of low rank, pixels adjacent: how the two passes are cut for the kernel of `kernels.separable`."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.algorithms.channelwise import window_of
from leanconv.algorithms.planes import pixel_vectors
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.chain import RowWindow
from leanconv.kernels.planes import PlaneSpec
from leanconv.kernels.separable import SeparableSpec
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

VERTICAL, HORIZONTAL = "vertical weights", "horizontal weights"
FEWEST_SUMS = 4  # that leave all weights of a column in registers
MOST_TAPS = 11  # of such a column: longer blocks of code spill
MOST_ROWS = 8  # of a tile: beyond it nothing is gained by loading fewer pixels twice


def two_passes(
    vertical: Problem, horizontal: Problem, host: Host, threads: int, workspace: int | None
) -> tuple[Phase, tuple[Buffer, ...], Mapping[str, int | str]]:
    """The phase that filters down and along, its buffers and its settings.

    `vertical` has one group for each channel of x and as many outputs of each as `horizontal` has input channels in
    all the groups that read it; `horizontal` has a group for each filter, of as many channels as the rank.
    """
    v, h, item = vertical, horizontal, vertical.itemsize
    lanes, width = host.target.lanes(v.dtype), v.in_size[1]
    piece = min(lanes, 1 << (width.bit_length() - 1))
    window = RowWindow(v.kernel[0], v.stride[0], v.dilation[0], v.pad_low[0])
    height, vectors, resident = _tile(window, v.out_size[0], -(-width // piece), host)
    # The vertical pass has unit strides along the rows of what it writes.
    rows = replace(h, x_strides=(h.in_channels * h.in_size[0] * width, h.in_size[0] * width, width, 1))
    copied = h.stride[1] > 1 or h.pad_mode != "zeros"
    row_bytes = -(-width // lanes) * lanes * item
    filtered = (Buffer("filtered", height * row_bytes, per_thread=True),) if copied else ()
    most = workspace
    if workspace is not None and copied:
        most = max(0, workspace - threads * -(-height * row_bytes // 64) * 64)
    lowering = pixel_vectors(rows, host, threads, most, window_of(rows))
    (phase,) = lowering.phases
    assert isinstance(phase.spec, PlaneSpec)
    spec = SeparableSpec(
        plane=phase.spec,
        window=window,
        padded=v.pad_low[0] > 0 or v.pad_high[0] > 0,
        pad_mode=v.pad_mode,
        height=height,
        vectors=vectors,
        piece=piece,
        resident=resident,
    )
    fields = {
        **phase.fields,
        "x_n": v.x_strides[0] * item,
        "x_g": v.x_strides[1] * item,
        "multiplier": h.groups // v.groups,
        "v_in": v.in_size[0],
        "v_at": v.x_strides[2] * item,
        "v_low": -(-v.pad_low[0] // v.stride[0]),
        "v_high": (v.in_size[0] - window.reach + v.pad_low[0]) // v.stride[0] + 1,
        "v_k": h.group_in * v.kernel[0] * item,
        "f_row": row_bytes,
    }
    parameters = {**lowering.parameters, "column tile": f"{height}x{vectors * piece}"}
    roles = {**phase.roles, "v": VERTICAL, "w": HORIZONTAL}
    return Phase("core", spec, fields, phase.chunks, roles), (*lowering.workspace, *filtered), parameters


def _tile(window: RowWindow, rows: int, registers: int, host: Host) -> tuple[int, int, bool]:
    """Rows and registers of a tile, and whether all weights stay in registers beside the sums."""
    sums = host.target.accumulators + 2 - window.kernel
    resident = window.kernel <= MOST_TAPS and sums >= FEWEST_SUMS
    if not resident:
        sums = host.target.accumulators // 2
    vectors = 2 if registers > 1 else 1
    return max(1, min(MOST_ROWS, sums // vectors, rows)), vectors, resident
