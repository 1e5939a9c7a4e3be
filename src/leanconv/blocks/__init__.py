"""Several layers as one pass: what lies between them stays in the cache and is never a whole tensor.

`plan_separable` (depthwise, then pointwise) and `plan_inverted_residual` (expand, depthwise, project, as in
MobileNetV2) decide how a block is computed and in how many bytes, as `leanconv.plan` does for one layer; `.bind(...)`
packs the weights.  `separable_conv2d` and `inverted_residual` do all of it in one call.  Images have channels last.
"""

from leanconv.blocks.base import BlockPlan, BoundBlock
from leanconv.blocks.inverted import inverted_residual, plan_inverted_residual
from leanconv.blocks.separable import plan_separable, separable_conv2d

__all__ = [
    "BlockPlan",
    "BoundBlock",
    "inverted_residual",
    "plan_inverted_residual",
    "plan_separable",
    "separable_conv2d",
]
