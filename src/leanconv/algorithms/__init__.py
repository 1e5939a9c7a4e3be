"""The algorithms, one file each, and the registry that everything else walks through."""

from __future__ import annotations

from leanconv.algorithms.band import DirectBand
from leanconv.algorithms.base import Algorithm
from leanconv.algorithms.copy_strategies import (
    Im2colCopyLong,
    Im2colCopySelf,
    Im2colScan,
    Im2rowCopyLong,
    Im2rowCopySelf,
    Im2rowScan,
)
from leanconv.algorithms.depthwise import Depthwise
from leanconv.algorithms.direct import Direct
from leanconv.algorithms.fft import Fft, FftWhole
from leanconv.algorithms.fft_depthwise import FftDepthwise
from leanconv.algorithms.grouped import Grouped
from leanconv.algorithms.im2col import Im2col, Im2colStrip
from leanconv.algorithms.im2row import Im2row, Im2rowStrip
from leanconv.algorithms.im2win import Im2win, Im2winBand
from leanconv.algorithms.implicit_gemm import ImplicitGemm
from leanconv.algorithms.indirect import Indirect
from leanconv.algorithms.kn2 import Kn2col, Kn2row
from leanconv.algorithms.kn2_aa import Kn2colAa, Kn2rowAa
from leanconv.algorithms.kn2_as import Kn2colAs, Kn2rowAs
from leanconv.algorithms.kn2row_exact import Kn2rowExact
from leanconv.algorithms.lowered_blas import Im2colBlas, Im2rowBlas
from leanconv.algorithms.mec import Mec, MecA
from leanconv.algorithms.mec_rows import MecRows
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

PUBLISHED: tuple[Algorithm, ...] = (
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
    Im2winBand(),
    Im2win(),
    Mec(),
    MecA(),
    MecRows(),
    Kn2rowExact(),
    Kn2colAa(),
    Kn2rowAa(),
    Kn2colAs(),
    Kn2rowAs(),
    Kn2col(),
    Kn2row(),
    Indirect(),
    ImplicitGemm(),
    Im2colScan(),
    Im2colCopySelf(),
    Im2colCopyLong(),
    Im2rowScan(),
    Im2rowCopySelf(),
    Im2rowCopyLong(),
    WinogradF2(),
    WinogradF4(),
    WinogradF6(),
    WinogradF2OnTheFly(),
    WinogradF4OnTheFly(),
    WinogradF6OnTheFly(),
    Fft(),
    FftWhole(),
    FftDepthwise(),
)
"""The algorithms of this package, the one preferred where several apply first."""

REGISTRY: list[Algorithm] = list(PUBLISHED)
"""Every algorithm; `leanconv.register_algorithm` adds to it."""
