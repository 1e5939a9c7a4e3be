"""Filters and layers taken apart into smaller ones, which are then computed as one; and weights that save a step.

`separable` finds filters of low rank and applies them in two passes, or as sums over boxes; `cp` has layers fitted by
sums of products of four vectors, and computes those as four small layers; `box_filter` is a mean over boxes of any
size; `shift_conv2d` moves channels by whole pixels and mixes them.  `flipped`, `shuffle_channels`, `shuffle_inputs`
and `fuse_filters` change weights, so that nothing has to run.
"""

from leanconv.decomp.base import Decomposed
from leanconv.decomp.box import box_filter
from leanconv.decomp.fuse import FusedFilter, fuse_filters
from leanconv.decomp.lowrank import Separable, separable
from leanconv.decomp.plans import BoundFilter, FilterPlan
from leanconv.decomp.polyadic import Cp, cp
from leanconv.decomp.shift import plan_shift, shift_conv2d
from leanconv.decomp.weights import flipped, shuffle_channels, shuffle_inputs

__all__ = [
    "BoundFilter",
    "Cp",
    "Decomposed",
    "FilterPlan",
    "FusedFilter",
    "Separable",
    "box_filter",
    "cp",
    "flipped",
    "fuse_filters",
    "plan_shift",
    "separable",
    "shift_conv2d",
    "shuffle_channels",
    "shuffle_inputs",
]
