"""The gradient of the bias as a phase of its own, for algorithms that do not stage all pixels of the gradient."""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import panels_of
from leanconv.backward.boxes import box_sizes
from leanconv.backward.direct import lines_of
from leanconv.host import Host
from leanconv.kernels.backward_store import BiasGradientSpec
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase


def bias_phase(problem: Problem, host: Host) -> tuple[Phase, Buffer]:
    """A chunk for each panel of output channels, and its buffer: a box of pixels of a panel, for each thread."""
    p, panels = problem, panels_of(problem, host)
    lines = lines_of(p, joined=True)
    boxes = box_sizes(p.batch, lines.size)
    spec = BiasGradientSpec(host.target, p.dtype, panels.shape, lines.rows(p, host))
    total = panels.total
    fields = lines.fields(p, boxes) | {"panel_count": total, "panel_whole": panels.count}
    fields |= {"g_div": total, "g_count": p.groups, "k_div": 1, "k_count": total}
    width = max(panels.vectors if panels.count else 0, panels.last) * host.target.vector_bytes
    phase = Phase("gradient of the bias", spec, fields, p.groups * total)
    return phase, Buffer("scratch", math.prod(boxes) * width, per_thread=True)
