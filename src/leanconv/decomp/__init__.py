"""Filters and layers taken apart into smaller ones, which are then computed as one.

`separable` finds filters of low rank and applies them in two passes.
"""

from leanconv.decomp.lowrank import BoundFilter, FilterPlan, Separable, separable

__all__ = ["BoundFilter", "FilterPlan", "Separable", "separable"]
