"""The algorithms for gradients with respect to weights."""

from __future__ import annotations

from leanconv.algorithms.base import Algorithm
from leanconv.backward.depthwise import DepthwiseWeights
from leanconv.backward.direct import DirectWeights
from leanconv.backward.indirect import IndirectWeights
from leanconv.backward.kn2row import Kn2rowWeights
from leanconv.backward.lowered import Im2colWeights, Im2rowWeights
from leanconv.backward.winograd import WinogradF2Weights, WinogradF4Weights

WEIGHTS: tuple[Algorithm, ...] = (
    DepthwiseWeights(),
    DirectWeights(),
    WinogradF4Weights(),
    WinogradF2Weights(),
    Im2colWeights(),
    Im2rowWeights(),
    Kn2rowWeights(),
    IndirectWeights(),
)
"""Every algorithm, the one preferred where several apply first."""
