"""The algorithms, one file each, and the registry that everything else walks through."""

from __future__ import annotations

from leanconv.algorithms.band import DirectBand
from leanconv.algorithms.base import Algorithm
from leanconv.algorithms.depthwise import Depthwise
from leanconv.algorithms.direct import Direct
from leanconv.algorithms.grouped import Grouped
from leanconv.algorithms.im2col import Im2col, Im2colStrip
from leanconv.algorithms.im2row import Im2row, Im2rowStrip
from leanconv.algorithms.lowered_blas import Im2colBlas, Im2rowBlas
from leanconv.algorithms.pointwise import Pointwise
from leanconv.algorithms.reference import Reference

REGISTRY: tuple[Algorithm, ...] = (
    Depthwise(),
    Grouped(),
    DirectBand(),
    Pointwise(),
    Direct(),
    Im2rowStrip(),
    Im2colStrip(),
    Im2row(),
    Im2col(),
    Im2rowBlas(),
    Im2colBlas(),
    Reference(),
)
"""Every algorithm, the one preferred where several apply first."""
