"""The algorithms, one file each, and the registry that everything else walks through."""

from __future__ import annotations

from leanconv.algorithms.base import Algorithm
from leanconv.algorithms.direct import Direct
from leanconv.algorithms.im2col import Im2col, Im2colStrip
from leanconv.algorithms.im2row import Im2row, Im2rowStrip
from leanconv.algorithms.lowered_blas import Im2colBlas, Im2rowBlas
from leanconv.algorithms.pointwise import Pointwise
from leanconv.algorithms.reference import Reference
from leanconv.algorithms.winograd import (
    WinogradF2,
    WinogradF2OnTheFly,
    WinogradF4,
    WinogradF4OnTheFly,
    WinogradF6,
    WinogradF6OnTheFly,
)

REGISTRY: tuple[Algorithm, ...] = (
    Pointwise(),
    Direct(),
    Im2rowStrip(),
    Im2colStrip(),
    Im2row(),
    Im2col(),
    Im2rowBlas(),
    Im2colBlas(),
    Reference(),
    WinogradF2(),
    WinogradF4(),
    WinogradF6(),
    WinogradF2OnTheFly(),
    WinogradF4OnTheFly(),
    WinogradF6OnTheFly(),
)
"""Every algorithm, the one preferred where several apply first."""
