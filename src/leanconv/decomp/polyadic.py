"""Layers of low polyadic rank: `leanconv.cp` has the factors fitted, and runs four small layers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.arrays import Array, as_array
from leanconv.blocks.base import BlockPlan
from leanconv.blocks.chain import lower_chain
from leanconv.checks import integer
from leanconv.classes import dataclass
from leanconv.decomp.base import WHOLE, Decomposed, Way
from leanconv.decomp.factors import Float64
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MissingPackageError
from leanconv.host import this_host
from leanconv.options import make_problem
from leanconv.problem import Problem, to_user

NAMES = ("reduce", "vertical", "horizontal", "expand")
AXES = ("filters", "channels", "rows", "columns")


def cp(w: Any, rank: int, *, tol: float = 1e-8, iterations: int = 500, seed: int = 0) -> Cp:
    """Fit a polyadic (CP) decomposition to a layer: a sum of `rank` products of four vectors.

    w[k, c, r, s] is taken as the sum over q of filters[k, q] * channels[c, q] * rows[r, q] * columns[s, q], which is
    four layers: 1x1 from C to `rank` channels, R x 1 and 1 x S on each of these, and 1x1 from `rank` to K.  They take
    rank * (C + R + S + K) multiplications a pixel for C * K * R * S.  The fit is alternating least squares, by tensorly
    (the extra `leanconv[decompose]`); networks are usually trained on afterwards.

    V. Lebedev, Y. Ganin, M. Rakhuba, I. Oseledets, V. Lempitsky: Speeding-up Convolutional Neural Networks Using
    Fine-tuned CP-Decomposition, ICLR 2015, arXiv:1412.6553.

    Args:
        w: weights (K, C, R, S), float32 or float64, finite.
        rank: how many products are added up.
        tol: the fit ends when an iteration improves the relative error by less.
        iterations: the most iterations.
        seed: of the random numbers that the fit starts from where singular vectors do not suffice.

    Returns:
        An object with the factors, `.error`, and what runs them: `.conv2d(x)`, `.plan(x_shape)`.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a shape that is no layer, a value that is not finite, a rank below 1.
        MissingPackageError: tensorly is not installed.
    """
    array, _ = as_array(w, "w")
    if array.ndim != 4 or 0 in array.shape:
        raise ArgumentValueError("w", array, "must be (K, C, R, S), each at least 1")
    if not np.isfinite(array).all():
        raise ArgumentValueError("w", array, "must be finite")
    count, most = integer("rank", rank, 1), integer("iterations", iterations, 1)
    start = integer("seed", seed, 0)
    if isinstance(tol, bool) or not isinstance(tol, int | float):
        raise ArgumentTypeError("tol", tol, "must be a number")
    if not 0.0 <= tol < 1.0:
        raise ArgumentValueError("tol", tol, "must be at least 0 and below 1")
    return Cp(_fit(array.astype(np.float64), count, float(tol), most, start), array)


def _fit(w: Float64, rank: int, tol: float, iterations: int, seed: int) -> list[Float64]:
    """The factors by alternating least squares."""
    try:
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise MissingPackageError(
            "tensorly", "CP decompositions are fitted with it", "pip install leanconv[decompose]"
        ) from error
    sizes, factors = parafac(
        w,
        rank,
        n_iter_max=iterations,
        init="svd" if rank <= min(w.shape) else "random",
        tol=tol,
        random_state=np.random.RandomState(seed),
        normalize_factors=True,
    )
    # All four factors get the same share of each product's size.
    share = np.asarray(sizes, np.float64) ** 0.25
    return [np.asarray(factor, np.float64) * share for factor in factors]


class Cp(Decomposed):
    """A layer as a sum of products of four vectors; made by `cp`, or from factors that were fitted elsewhere.

    Attributes:
        w: the layer's weights, as they were given, or the product of the factors; a read-only copy.
        filters: (K, rank), float64.
        channels: (C, rank).
        rows: (R, rank).
        columns: (S, rank).
        rank: products that are added up.
        error: norm (Frobenius) of what the factors leave out, relative to that of the weights.
    """

    def __init__(self, factors: Sequence[Any], w: Any = None) -> None:
        """Take factors (filters, channels, rows, columns), each (extent, rank).

        Args:
            factors: four arrays, float32 or float64, finite.
            w: the weights (K, C, R, S) they stand for; None for exactly their product, in their element type.

        Raises:
            ArgumentTypeError: not arrays.
            ArgumentValueError: not four matrices of one rank; weights of another shape.
        """
        if not isinstance(factors, tuple | list) or len(factors) != 4:
            raise ArgumentValueError("factors", factors, f"must be four matrices: {', '.join(AXES)}")
        given = [as_array(factor, f"factors[{i}]")[0] for i, factor in enumerate(factors)]
        for i, factor in enumerate(given):
            if factor.ndim != 2 or 0 in factor.shape or factor.shape[1] != given[0].shape[-1]:
                raise ArgumentValueError(f"factors[{i}]", factor, "must be (extent, rank), of the rank of the others")
            if not np.isfinite(factor).all():
                raise ArgumentValueError(f"factors[{i}]", factor, "must be finite")
        exact = [factor.astype(np.float64) for factor in given]
        self.filters, self.channels, self.rows, self.columns = exact
        self.rank = self.filters.shape[1]
        product = self.product()
        whole = product.astype(np.result_type(*given)) if w is None else as_array(w, "w")[0]
        if whole.shape != product.shape:
            raise ArgumentValueError("w", whole, f"must have the factors' shape {product.shape}")
        super().__init__(whole)
        norm = float(np.linalg.norm(whole.astype(np.float64)))
        self.error = float(np.linalg.norm(product - whole)) / norm if norm and w is not None else 0.0

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways to compute them, besides "whole"."""
        return ("four_stages",)

    @property
    def multiplications(self) -> tuple[int, int]:
        """Multiplications for an output pixel in four stages, at stride 1, and of the whole layer."""
        return self.rank * sum(self.w.shape), self.w.size

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of the factors, in the weights' element type, and of the weights."""
        return self.rank * sum(self.w.shape) * self.w.itemsize, self.w.nbytes

    def product(self) -> Float64:
        """The weights that the factors stand for, (K, C, R, S); float64."""
        left = np.einsum("kq,cq->kcq", self.filters, self.channels)
        return np.asarray(np.einsum("kcq,rq,sq->kcrs", left, self.rows, self.columns))

    def __repr__(self) -> str:
        """One line: shape, rank, error, what is saved."""
        four, whole = self.multiplications
        return f"<Cp {self.w.shape}: rank {self.rank}, error {self.error:.1e}, {four} for {whole} multiplications>"

    def _layer(self, channels: int, x_shape: Sequence[int]) -> tuple[int, int]:
        if channels != self.w.shape[1]:
            raise ArgumentValueError("x_shape", x_shape, f"must have the {self.w.shape[1]} channels of w")
        return self.w.shape[0], 1

    def _way(self, name: str, whole: Problem) -> Way:
        return FourStages(whole, self.rank)

    def _weights(self, name: str, whole: Problem) -> list[Array]:
        if name == WHOLE:
            return [self.w]
        return [
            self.channels.T[:, :, None, None],
            self.rows.T[:, None, :, None],
            self.columns.T[:, None, None, :],
            self.filters[:, :, None, None],
        ]


@dataclass(frozen=True, slots=True)
class FourStages:
    """A layer of a polyadic rank as four: reduce, filter down, filter along, expand."""

    whole: Problem
    rank: int

    @property
    def layers(self) -> tuple[Problem, Problem, Problem, Problem]:
        """The four layers; bias, activation and residual in the last."""
        p = self.whole
        pads = tuple(zip(p.pad_low, p.pad_high, strict=True))
        common: dict[str, Any] = {"dtype": p.dtype, "layout": p.layout}
        point = (1, 1)
        x_strides = to_user(p.x_strides, p.layout)
        first = make_problem(2, p.x_shape, (self.rank, p.in_channels, *point), x_strides=x_strides, **common)
        down = make_problem(
            2,
            first.out_shape,
            (self.rank, 1, p.kernel[0], 1),
            stride=(p.stride[0], 1),
            padding=(pads[0], (0, 0)),
            dilation=(p.dilation[0], 1),
            groups=self.rank,
            **common,
        )
        along = make_problem(
            2,
            down.out_shape,
            (self.rank, 1, 1, p.kernel[1]),
            stride=(1, p.stride[1]),
            padding=((0, 0), pads[1]),
            dilation=(1, p.dilation[1]),
            groups=self.rank,
            **common,
        )
        last = make_problem(
            2,
            along.out_shape,
            (p.out_channels, self.rank, *point),
            bias=p.has_bias,
            activation=p.activation,
            residual=p.residual is not None,
            residual_order=p.residual or "before",
            **common,
        )
        return first, down, along, last

    def refusal(self) -> str | None:
        """Rows of the middle layers may be there for one band only, so that only zeros can be padded."""
        if self.whole.pad_mode != "zeros":
            return f"the padding is {self.whole.pad_mode!r}, four stages pad with zeros"
        return None

    def plan(self, threads: int, memory_limit: int | None) -> BlockPlan:
        """The four layers in one kernel.

        Raises:
            MemoryLimitError: bands of one row need more than the limit.
        """
        layers = self.layers
        lowering = lower_chain(layers, NAMES, this_host(), threads, memory_limit)
        return BlockPlan(layers, NAMES, lowering, threads, memory_limit)
