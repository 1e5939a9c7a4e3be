"""Filters and layers taken apart into smaller ones, which are then computed as one.

`separable` finds filters of low rank and applies them in two passes; `cp` has layers fitted by sums of products of four
vectors, and computes those as four small layers; `shift_conv2d` moves channels by whole pixels and mixes them.
"""

from leanconv.decomp.base import Decomposed
from leanconv.decomp.lowrank import Separable, separable
from leanconv.decomp.plans import BoundFilter, FilterPlan
from leanconv.decomp.polyadic import Cp, cp
from leanconv.decomp.shift import plan_shift, shift_conv2d

__all__ = [
    "BoundFilter",
    "Cp",
    "Decomposed",
    "FilterPlan",
    "Separable",
    "cp",
    "plan_shift",
    "separable",
    "shift_conv2d",
]
