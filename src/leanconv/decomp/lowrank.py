"""Filters of low rank: `leanconv.separable` finds the ranks and runs two passes, down and along, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.arrays import Array, as_array
from leanconv.checks import integer
from leanconv.decomp.base import WHOLE, Decomposed, Way
from leanconv.decomp.box import Boxes
from leanconv.decomp.factors import Float64, factorise
from leanconv.decomp.passes import Passes
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import Problem

TOLERANCE = {"float32": 1e-6, "float64": 1e-13}  # of a filter's norm: what rounding leaves of a filter of lower rank


def separable(w: Any, tol: float | None = None, *, rank: int | None = None) -> Separable:
    """Find the rank of filters, and take them apart into columns and rows.

    A filter R x S of rank q is a sum of q columns times rows, so q * (R + S) multiplications do for R * S: a Gaussian
    has rank 1, and so have Sobel's and box filters.  Filters (K, 1, R, S) and (R, S) are taken apart one by one.  In
    dense layers all filters share one basis: q vertical filters (C channels, R x 1), then K horizontal ones (q
    channels, 1 x S), by the singular values of the (C * R) x (K * S) matrix of the weights.

    R. Rigamonti, A. Sironi, V. Lepetit, P. Fua: Learning Separable Filters, CVPR 2013; M. Jaderberg, A. Vedaldi,
    A. Zisserman: Speeding up Convolutional Neural Networks with Low Rank Expansions, BMVC 2014 (scheme 2).

    Args:
        w: (R, S), one filter for every channel; (K, 1, R, S), for an image of one channel or K/C filters of each
            channel; or (K, C, R, S), dense.  float32 or float64, finite.  A copy is kept.
        tol: the largest error allowed, as part of the norm (Frobenius) of a filter or of the dense weights; None for
            what rounding leaves: 1e-6 for float32, 1e-13 for float64.
        rank: the rank to use, whatever its error; None for the least that keeps to `tol`.

    Returns:
        An object with `.ranks`, `.rank`, `.vertical`, `.horizontal`, `.error`, `.constants`, and what runs them:
        `.conv2d(x)`, `.plan(x_shape)`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a shape that is no filter, a value that is not finite, a tolerance or rank out of range.
    """
    array, _ = as_array(w, "w")
    if array.ndim not in (2, 4) or 0 in array.shape:
        raise ArgumentValueError("w", array, "must be (R, S), (K, 1, R, S) or (K, C, R, S), each at least 1")
    if not np.isfinite(array).all():
        raise ArgumentValueError("w", array, "must be finite")
    limit = TOLERANCE[str(array.dtype)] if tol is None else _tolerance(tol)
    if rank is not None:
        rank = integer("rank", rank, 1)
        channels = array.shape[1] if array.ndim == 4 and array.shape[1] > 1 else 1
        filters = array.shape[0] if channels > 1 else 1
        most = min(channels * array.shape[-2], filters * array.shape[-1])
        if rank > most:
            raise ArgumentValueError("rank", rank, f"must be at most {most}, the rank that any such filter has")
    return Separable(array, limit, rank)


def _tolerance(tol: Any) -> float:
    if isinstance(tol, bool) or not isinstance(tol, int | float | np.floating):
        raise ArgumentTypeError("tol", tol, "must be a number")
    if not 0.0 <= tol < 1.0:
        raise ArgumentValueError("tol", tol, "must be at least 0 and below 1")
    return float(tol)


class Separable(Decomposed):
    """Filters and their factors; made by `separable`.

    Attributes:
        w: the filters, a read-only copy.
        ranks: numerical rank of each filter; one number for dense weights.
        rank: columns that are used of each filter (the largest of `ranks`, unless chosen), or of the shared basis.
        vertical: (K * rank, 1, R, 1), those of a filter one after another; dense: (rank, C, R, 1).  float64.
        horizontal: (K, rank, 1, S).  float64.
        error: norm of what is left out, relative to that of the filters.
        constants: the value of each filter if all its taps are the same, else None; "box" is then a method.
    """

    def __init__(self, w: Array, tol: float, rank: int | None) -> None:
        """Made by `separable`, which checks."""
        super().__init__(w)
        self._filters = self.w if self.w.ndim == 4 else self.w[None, None]
        factors = factorise(self._filters, tol, rank)
        self.vertical, self.horizontal = factors.vertical, factors.horizontal
        self.ranks, self.rank, self.error = factors.ranks, factors.rank, factors.error
        self.shared = factors.shared
        self._product = factors.product()
        self._uniform = not self.shared and bool((self._filters == self._filters[0]).all())
        self.constants = _constants(self._filters, tol) if not self.shared else None

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways to compute them, besides "whole"."""
        return ("two_passes",) if self.constants is None else ("two_passes", "box")

    @property
    def multiplications(self) -> tuple[int, int]:
        """Multiplications for an output pixel (of all filters) in two passes, at stride 1, and of the whole filters."""
        filters, channels, height, width = self._filters.shape
        down = self.rank * (channels if self.shared else filters) * height
        return down + filters * self.rank * width, filters * channels * height * width

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of the factors, in the filters' element type, and of the filters."""
        return (self.vertical.size + self.horizontal.size) * self.w.itemsize, self._filters.nbytes

    def product(self) -> Float64:
        """The filters that the factors stand for, (R, S) or (K, C, R, S) as `w`; float64."""
        return self._product.reshape(self.w.shape)

    def __repr__(self) -> str:
        """One line: shape, rank, error, what is saved."""
        two, whole = self.multiplications
        return (
            f"<Separable {self.w.shape}: rank {self.rank}, error {self.error:.1e}, {two} for {whole} multiplications>"
        )

    def _layer(self, channels: int, x_shape: Sequence[int]) -> tuple[int, int]:
        """How many filters there are on an image of so many channels, and groups."""
        filters = len(self._filters)
        if self.shared:
            if self._filters.shape[1] != channels:
                raise ArgumentValueError("x_shape", x_shape, f"must have the {self._filters.shape[1]} channels of w")
            return filters, 1
        if self.w.ndim == 2:
            return channels, channels
        if filters % channels:
            raise ArgumentValueError(
                "x_shape", x_shape, f"must have a number of channels that divides {filters} filters"
            )
        return filters, channels

    def _way(self, name: str, whole: Problem) -> Way:
        if name == "box":
            return Boxes(whole, uniform=len(set(self.constants or ())) == 1)
        return Passes(whole, self.rank, self.shared, self._uniform)

    def _weights(self, name: str, whole: Problem) -> list[Array]:
        layers: list[Array] = [self.vertical, self.horizontal]
        if name == WHOLE:
            layers = [self._filters]
        elif name == "box":
            values = np.reshape(self.constants or (), (-1, 1, 1, 1))
            layers = [np.broadcast_to(values, self._filters.shape)]
        copies = whole.out_channels // len(self._filters)  # one filter for every channel
        return [np.tile(layer, (copies, 1, 1, 1)) for layer in layers]


def _constants(filters: Array, tol: float) -> tuple[float, ...] | None:
    """The value of every filter, if each has the same value in all its taps."""
    exact = filters.astype(np.float64).reshape(len(filters), -1)
    means = exact.mean(axis=1)
    off = np.abs(exact - means[:, None]).max(axis=1)
    return tuple(map(float, means)) if bool((off <= tol * np.abs(means)).all()) else None
