"""Low rank: filters as sums of column times row, found by singular value decomposition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.classes import dataclass

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """Weights as two layers: `vertical` (R', C', R, 1), then `horizontal` (K, R'', 1, S).

    Attributes:
        vertical: for filters of their own (`shared` false) rank columns of each filter, one after another, (K * rank,
            1, R, 1); else a common basis, (rank, C, R, 1).
        horizontal: rows, (K, rank, 1, S).
        ranks: numerical rank of each filter, or of all together if the basis is shared.
        shared: whether all filters read one basis.
        error: Frobenius norm of what the factors leave out, relative to that of the weights.
    """

    vertical: Float64
    horizontal: Float64
    ranks: tuple[int, ...]
    shared: bool
    error: float

    @property
    def rank(self) -> int:
        """Columns of each filter, or of the shared basis."""
        return int(self.horizontal.shape[1])

    def product(self) -> Float64:
        """The weights (K, C, R, S) that the two layers together are."""
        v, h = self.vertical[..., 0], self.horizontal[:, :, 0]
        if self.shared:
            return np.asarray(np.einsum("qcr,kqs->kcrs", v, h))
        columns = v.reshape(len(h), self.rank, v.shape[-1])
        return np.asarray(np.einsum("kqr,kqs->krs", columns, h))[:, None]


def factorise(w: NDArray[Any], tol: float, rank: int | None) -> Factors:
    """The factors of weights (K, C, R, S): each filter by itself if C is 1, else over a basis that all share.

    `rank` if given, else the least whose error is at most `tol` times the norm (of each filter, or of all).
    """
    filters, channels, height, width = w.shape
    exact = np.asarray(w, np.float64)
    shared = channels > 1
    # A shared basis: its columns are all channels and rows of taps, its rows all filters and columns of taps.
    joint = exact.transpose(1, 2, 0, 3).reshape(1, channels * height, filters * width)
    matrices = joint if shared else exact[:, 0]
    u, sizes, vt = np.linalg.svd(matrices, full_matrices=False)
    needed = [_rank(s, tol) for s in sizes]
    kept = min(max(1, max(needed)) if rank is None else rank, sizes.shape[1])
    # Both factors get the root of each singular value, so that neither is large where the other is small.
    root = np.sqrt(sizes[:, :kept])
    columns, rows = u[:, :, :kept] * root[:, None], vt[:, :kept] * root[:, :, None]
    if shared:
        vertical = columns[0].T.reshape(kept, channels, height, 1)
        horizontal = rows[0].reshape(kept, filters, width).transpose(1, 0, 2)[:, :, None]
    else:
        vertical = columns.transpose(0, 2, 1).reshape(filters * kept, 1, height, 1)
        horizontal = rows[:, :, None]
    found = Factors(np.ascontiguousarray(vertical), np.ascontiguousarray(horizontal), tuple(needed), shared, 0.0)
    norm = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(found.product() - exact)) / norm if norm else 0.0
    return Factors(found.vertical, found.horizontal, found.ranks, shared, error)


def _rank(sizes: Float64, tol: float) -> int:
    """The fewest singular values without which the error is at most `tol` times the norm."""
    squares = np.concatenate([np.cumsum(sizes[::-1] ** 2)[::-1], [0.0]])
    return int(np.argmax(squares <= tol * tol * squares[0]))
