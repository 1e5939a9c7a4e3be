"""The arrays of a layer that is measured, and whether a result is right: float64 decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv import oracle
from leanconv.bench.layers import Layer, LayerError
from leanconv.layouts import ordered
from leanconv.outputs import empty
from leanconv.problem import Problem

# Above this much work the oracle takes seconds, and a sample of the output is compared instead.
WHOLE_FLOPS = 2_000_000_000
_SAMPLE_FLOPS = 100_000_000
_LARGEST_SAMPLE = 512
_KEPT = 64  # positions that passes after the first compare

# Largest error, relative to the largest output, that counts as right. Far above rounding, also that of fast
# transforms, and far below what one forgotten tap does.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}


@dataclass(frozen=True)
class Expectation:
    """What the output of a layer should hold, all of it or at some positions.

    Attributes:
        positions: (image, *spatial) of each compared position, one row each; None for the whole output.
        values: the right values, (N, K, *spatial) or (position, K).
        compared: in words, how much is compared.
        shape: of the whole output, (N, K, *spatial).
    """

    positions: NDArray[np.intp] | None
    values: NDArray[np.float64]
    compared: str
    shape: tuple[int, ...]

    def error(self, out: NDArray[Any]) -> float:
        """Return the largest absolute error over the largest absolute value; infinite if `out` holds a NaN.

        Args:
            out: the output with channels first. An element that was never written is NaN and makes the error
                infinite, also where positions are sampled.
        """
        if np.isnan(out).any():
            return math.inf
        got = out if self.positions is None else out[(self.positions[:, 0], slice(None), *self.positions.T[1:])]
        scale = float(np.abs(self.values).max())
        return float(np.abs(got - self.values).max()) / (scale or 1.0)

    def thinned(self, seed: int) -> Expectation:
        """Return the expectation of a few positions, which is cheap to keep: for results like one that was right."""
        if self.positions is not None:
            return self
        extents = (self.shape[0], *self.shape[2:])
        positions = _positions(extents, _KEPT, np.random.default_rng(seed))
        values = self.values[(positions[:, 0], slice(None), *positions.T[1:])]
        return Expectation(positions, values, f"{values.size:,} of {self.values.size:,} outputs", self.shape)


@dataclass(frozen=True)
class Trial:
    """The arrays of a layer, channels first, and what should come out."""

    x: NDArray[Any]
    w: NDArray[Any]
    bias: NDArray[Any]
    expected: Expectation

    def image(self, layout: str) -> NDArray[Any]:
        """Return the image, dense in the order of `layout`."""
        if layout == "NCHW":
            return self.x
        turned = ordered(self.x, layout)
        image = empty(turned.shape, turned.dtype)
        image[...] = turned
        return image


def make_trial(layer: Layer, dtype: str, seed: int, expected: Expectation | None = None) -> Trial:
    """Return random arrays for a layer, normally distributed and scaled for outputs of about 1.

    Args:
        layer: the shape.
        dtype: of the arrays.
        seed: the same one gives the same arrays.
        expected: what should come out, if it is known from an earlier trial of the same seed.
    """
    rng = np.random.default_rng(seed)
    problem = layer.problem("NCHW", dtype, bias=True)
    if problem.batch == 0:
        raise LayerError(f"layer {layer.name!r}: an empty batch cannot be measured")
    number = np.dtype(dtype).type

    def normal(shape: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_normal(dtype=number, out=empty(shape, number))

    x, bias = normal(problem.x_shape), normal((problem.out_channels,))
    w = normal(problem.w_shape) * number(1 / math.sqrt(problem.group_in * problem.taps))
    return Trial(x, w, bias, expected or expect(layer, x, w, bias, rng))


def expect(
    layer: Layer, x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any] | None, rng: np.random.Generator
) -> Expectation:
    """Return what the layer computes from these arrays (channels first), in full if that is affordable."""
    problem = layer.problem("NCHW", str(x.dtype), bias=bias is not None)
    outputs = math.prod(problem.out_shape)
    if problem.flops < WHOLE_FLOPS:
        return Expectation(None, oracle.reference(problem, x, w, bias), f"all {outputs:,} outputs", problem.out_shape)
    flops_each = problem.flops / (problem.batch * math.prod(problem.out_size))
    count = min(max(int(_SAMPLE_FLOPS / flops_each), 16), _LARGEST_SAMPLE)
    positions = _positions((problem.batch, *problem.out_size), count, rng)
    values = _at(problem, layer, positions, x, w, bias)
    return Expectation(positions, values, f"{values.size:,} of {outputs:,} outputs", problem.out_shape)


def _positions(extents: tuple[int, ...], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return positions, one a row: corners of the first and last image, where mistakes gather, and others."""
    corners: Iterable[tuple[int, ...]] = itertools.product(*({0, extent - 1} for extent in extents))
    others = rng.integers(0, extents, size=(count, len(extents)))
    return np.unique(np.concatenate([np.array(list(corners)), others]), axis=0)


def _at(
    problem: Problem,
    layer: Layer,
    positions: NDArray[np.intp],
    x: NDArray[Any],
    w: NDArray[Any],
    bias: NDArray[Any] | None,
) -> NDArray[np.float64]:
    """Return the output at some positions: each is the one output of a convolution of the pixels under it."""
    spans = tuple(d * (k - 1) + 1 for d, k in zip(problem.dilation, problem.kernel, strict=True))
    windows = np.zeros((len(positions), problem.in_channels, *spans))
    for window, (image, *position) in zip(windows, positions, strict=True):
        first = [q * s - low for q, s, low in zip(position, problem.stride, problem.pad_low, strict=True)]
        inside = [
            slice(max(-f, 0), max(min(n - f, span), 0))
            for f, n, span in zip(first, problem.in_size, spans, strict=True)
        ]
        source = [slice(f + cut.start, f + cut.stop) for f, cut in zip(first, inside, strict=True)]
        if all(cut.start < cut.stop for cut in inside):
            window[(slice(None), *inside)] = x[(image, slice(None), *source)]
    single = replace(layer, batch=len(positions), in_size=spans, padding=((0, 0),) * layer.ndim)
    shape = (len(positions), problem.out_channels)
    return oracle.reference(single.problem("NCHW", "float64", bias=bias is not None), windows, w, bias).reshape(shape)
