"""Large weights packed from their file slab by slab: the plain ones are never in memory as a whole.

Half of VGG-16's memory is one matrix of 411 MB; packed at once it would be there twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leanconv.algorithms.base import WeightPacking
from leanconv.arrays import Array, address_of
from leanconv.classes import replace
from leanconv.compiled import KernelSpec, StoredSpec
from leanconv.kernels.pack import PackSpec
from leanconv.memory import Block, allocate
from leanconv.plan import pack_into

SMALLEST = 2 << 20
"""Bytes of packed weights from which on slabs are worth the trouble."""

SLAB_BYTES = 1 << 20

Rows = Callable[[int, int], Array]
"""The weights of the output channels from one to before another."""


def can_be_packed_in_slabs(packing: WeightPacking) -> bool:
    """Whether weights are large, and packed panel by panel of output channels."""
    if packing.nbytes < SMALLEST or packing.more or packing.bias_apart:
        return False
    return panel_outputs(packing.phase.spec) > 0 and packing.phase.fields["g_count"] == 1


def panel_outputs(spec: KernelSpec) -> int:
    """Output channels of a panel, of a kernel that packs weights panel by panel; 0 for others."""
    if isinstance(spec, StoredSpec):
        return spec.outputs
    return (spec.outputs or spec.panels.vectors * spec.target.lanes(spec.dtype)) if isinstance(spec, PackSpec) else 0


def packed_in_slabs(packing: WeightPacking, rows: Rows, channels: int, bias: Array | None, threads: int) -> Block:
    """A block with the weights of so many output channels as a packing has them."""
    phase, outputs = packing.phase, panel_outputs(packing.phase.spec)
    panels, nbytes = phase.fields["panel_count"], phase.fields["p_panel"]
    step = max(1, SLAB_BYTES // nbytes)
    block = allocate(packing.nbytes)
    shift = None if bias is None else np.ascontiguousarray(bias)
    for first in range(0, panels, step):
        count = min(step, panels - first)
        # The kernel counts panels from the slab's first, and has to know which is the last.
        fields = {**phase.fields, "g_div": count, "p_count": count, "panel_count": panels - first}
        slab = replace(packing, phase=replace(phase, fields=fields, chunks=count))
        last = first + count == panels  # that panel may hold more channels than the others, or fewer
        weights = rows(first * outputs, channels if last else (first + count) * outputs)
        part = 0 if shift is None else address_of(shift) + first * outputs * shift.itemsize
        pack_into(block.address + first * nbytes, slab, weights, part, threads)
    return block
