"""Input rows that two chunks of a block read: expanded once, in a phase before, into memory of all threads.

Where threads share the rows of an image, each chunk would expand some that its neighbour expands too: two of 14 at
stride 1 under 3x3 taps, a seventh of the expansion.
"""

from __future__ import annotations

from leanconv.blocks.bands import Cut, Grouping
from leanconv.blocks.expansion import core_fields, core_spec
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.problem import Problem
from leanconv.program import Phase


def shared_rows(
    expand: Problem, depthwise: Problem, grouping: Grouping, cut: Cut, host: Host, threads: int
) -> tuple[Phase, dict[str, int]]:
    """The phase that expands them, [image, boundary, section, row, pixel, channel], and the fields that say where."""
    item, panels, boundaries = expand.itemsize, grouping.panels, cut.blocks(depthwise) - 1
    pixels, pitch = cut.shared * expand.in_size[1], grouping.width * item
    spec = core_spec(expand, host, panels, {pixels}, expand.in_channels, Epilogue(expand.activation))
    first, step = cut.boundary(depthwise, 0), cut.block * depthwise.stride[0]
    row, section = expand.in_size[1] * expand.in_channels * item, pixels * pitch
    boundary = panels.total * section
    each = min(panels.total, -(-panels.total * boundaries * expand.batch // threads))  # a chunk a thread, or a boundary
    runs = -(-panels.total // each)
    fields = {
        **core_fields(expand, host, spec, panels, expand.in_channels, expand.in_channels * item, pitch),
        "k_div": 1,
        "k_count": runs,
        "b_div": runs,
        "b_count": 1,
        "n_div": runs,
        "n_count": boundaries,
        "g_div": runs * boundaries,
        "g_count": expand.batch,
        "n_first": 0,
        "block": pixels,
        "pixels": pixels,
        "panels": each,
        "x_n": step * row,
        "x_g": expand.x_strides[0] * item,
        "o_n": boundary,
        "o_g": boundaries * boundary,
        "o_panel": section,
        "w_g": 0,
    }
    fields |= {"w_later": fields["w_panel"], "w_back": fields["w_panel"]}
    roles, chunks = {"w": "expand weights", "out": "shared"}, runs * boundaries * expand.batch
    phase = Phase("shared rows", spec, fields, chunks, roles, {"x": first * row})
    places = {
        "shared_first": first,
        "shared_step": step,
        "shared_n": boundaries * boundary,
        "shared_boundary": boundary,
        "shared_section": section,
    }
    return phase, places
