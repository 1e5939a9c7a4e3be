"""The algorithms for gradients with respect to weights."""

from __future__ import annotations

from leanconv.algorithms.base import Algorithm
from leanconv.backward.depthwise import DepthwiseWeights
from leanconv.backward.direct import DirectWeights

WEIGHTS: tuple[Algorithm, ...] = (
    DepthwiseWeights(),
    DirectWeights(),
)
"""Every algorithm, the one preferred where several apply first."""
