"""What is to be computed: one convolution, described by numbers only.

A `Problem` holds everything kernels and planning depend on and nothing else: no arrays, no algorithm, no
machine. Two calls that compute the same thing in the same memory order have equal problems, so that a plan
made for one serves the other; `options.make_problem` sees to that, and checks everything.

Letters: `N` batch, `C` input channels, `K` output channels, `g` groups. *Canonical* axis order is
`(N, C, *spatial)` for images and `(K, C/g, *kernel)` for weights, whatever the layout. Strides count
elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.classes import dataclass, field_names

Float64 = NDArray[np.float64]

BATCH_LAST = ("CHWN", "CHWN8")
"""Layouts with images innermost, which are planned with a spatial axis more: the images of a block."""

_ITEMSIZE = {"float32": 4, "float64": 8}
_FUNCTIONS = {"forward": "conv{}d", "transposed": "conv_transpose{}d", "backward_weights": "conv{}d_backward_weights"}
_SHORT_DTYPE = {"float32": "f32", "float64": "f64"}


@dataclass(frozen=True, slots=True)
class Activation:
    """A function applied to every output element.

    Attributes:
        name: a key of `ACTIVATIONS`.
        params: its numbers: `(low, high)` for clip, `(slope,)` for leaky_relu, none for the others.
    """

    name: str
    params: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return the name, followed by the numbers if there are any."""
        return self.name + (f"({', '.join(f'{p:g}' for p in self.params)})" if self.params else "")


@dataclass(frozen=True)  # without slots, so that what planning asks for again and again is kept
class Problem:
    """One convolution.

    Attributes:
        ndim: number of spatial axes, 1 to 3; the length of the tuples from `in_size` to `pad_high`. With the batch
            last the images of a block are one of them, the last, with one tap, stride 1 and no padding.
        batch: images, N; 0 is legal and means an empty result. With the batch last: blocks of images, 1 in CHWN.
        in_channels: C.
        out_channels: K.
        in_size: extent of the image along each spatial axis, without padding.
        kernel: taps along each spatial axis.
        stride: step of the kernel along each spatial axis.
        dilation: distance between taps; 1 where the kernel has one tap.
        pad_low: elements added before the image along each spatial axis.
        pad_high: elements added after it.
        pad_mode: "zeros", "reflect", "replicate" or "circular"; "zeros" if nothing is padded.
        groups: g; input and output channels are split into g parts that do not mix.
        dtype: "float32" or "float64", of every array.
        layout: "NCHW" (channels first), "NHWC" (channels last), or "CHWN", "CHWN8" (the batch last, whole or in
            blocks of eight), whatever the number of axes.
        x_strides: elements between neighbours along `(N, C, *spatial)`; may be zero or negative.
        w_strides: the same along `(K, C/g, *kernel)`.
        out_strides: the same along `(N, K, *spatial)`; positive, and no two elements coincide.
        residual_strides: as `out_strides` but may be zero or negative; None without a residual.
        has_bias: whether one number an output channel is added.
        activation: applied after the bias; None for none.
        residual: whether an array shaped like the output is added "before" the activation or "after" it.
        bias_apart: whether the bias is that of other problems, too, and should stay one array where it can; only the
            phases of a transposed convolution say so, where there is no room for several.
        direction: "forward"; or "backward_weights", where `out_strides` are those of the gradient of the output and
            `w_strides` those of the result; or "transposed": output element i * stride - pad_low + tap * dilation takes
            input element i times that tap. Weights are then (C, K/g, *kernel), padding cuts the output, and `pad_high`
            is less by what is added to the output at its end, so that it may be negative.

    Strides of axes with one element mean nothing; they are those of a dense array.
    """

    ndim: int
    batch: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    pad_high: tuple[int, ...]
    pad_mode: str
    groups: int
    dtype: str
    layout: str
    x_strides: tuple[int, ...]
    w_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    residual_strides: tuple[int, ...] | None = None
    has_bias: bool = False
    activation: Activation | None = None
    residual: str | None = None
    direction: str = "forward"
    bias_apart: bool = False

    @cached_property
    def out_size(self) -> tuple[int, ...]:
        """Extent of the output along each spatial axis."""
        axes = zip(self.in_size, self.kernel, self.stride, self.dilation, self.pad_low, self.pad_high, strict=True)
        if self.direction == "transposed":
            return tuple((n - 1) * s + d * (k - 1) + 1 - low - high for n, k, s, d, low, high in axes)
        return tuple((n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, d, low, high in axes)

    @cached_property
    def taps(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel)

    @cached_property
    def group_in(self) -> int:
        """Input channels of a group, C/g."""
        return self.in_channels // self.groups

    @cached_property
    def group_out(self) -> int:
        """Output channels of a group, K/g."""
        return self.out_channels // self.groups

    @property
    def flops(self) -> int:
        """Multiplications and additions of the definition, those with padding (or cut off by it) included."""
        if self.direction == "transposed":
            return 2 * self.batch * self.in_channels * math.prod(self.in_size) * self.group_out * self.taps
        return 2 * self.batch * self.out_channels * math.prod(self.out_size) * self.group_in * self.taps

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the image in the user's axis order."""
        return to_user((self.batch, self.in_channels, *self.in_size), self.layout)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weights in every layout: (K, C/g, *kernel), or (C, K/g, *kernel) of a transposed convolution."""
        if self.direction == "transposed":
            return (self.in_channels, self.group_out, *self.kernel)
        kernel = self.kernel[:-1] if self.layout in BATCH_LAST else self.kernel
        return (self.out_channels, self.group_in, *kernel)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, and of a residual, in the user's axis order."""
        return to_user((self.batch, self.out_channels, *self.out_size), self.layout)

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return _ITEMSIZE[self.dtype]

    @property
    def x_bytes(self) -> int:
        """Bytes of the image's elements (gaps between them not counted)."""
        return math.prod(self.x_shape) * self.itemsize

    @property
    def w_bytes(self) -> int:
        """Bytes of the weights' elements."""
        return math.prod(self.w_shape) * self.itemsize

    @property
    def out_bytes(self) -> int:
        """Bytes of the output's elements."""
        return math.prod(self.out_shape) * self.itemsize

    def __repr__(self) -> str:
        """All fields but one that is as usual: by this text plans are pinned, and times remembered."""
        names = field_names(Problem)[: None if self.bias_apart else -1]
        return f"Problem({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    def describe(self) -> str:
        """Return one line, such as `conv2d f32 1x64x56x56 -> 1x64x56x56 k3x3 s1 p1 NHWC`.

        Shapes are in canonical order. Padding with two different ends is written `low:high`. What is at its
        default (dilation, groups, padding mode, dense arrays, no epilogue) is left out.
        """
        pads = [
            f"{low}" if low == high else f"{low}:{high}" for low, high in zip(self.pad_low, self.pad_high, strict=True)
        ]
        # With the batch last the last axis is one of images.
        axes = self.ndim - 1 if self.layout in BATCH_LAST else self.ndim
        batch = self.batch * math.prod(self.in_size[axes:])
        words = [
            _FUNCTIONS[self.direction].format(axes),
            _SHORT_DTYPE[self.dtype],
            _by_x((batch, self.in_channels, *self.in_size[:axes])),
            "->",
            _by_x((batch, self.out_channels, *self.out_size[:axes])),
            "k" + _by_x(self.kernel[:axes]),
            "s" + _by_x(self.stride[:axes], short=True),
            "p" + _by_x(pads[:axes], short=True),
        ]
        if any(d != 1 for d in self.dilation):
            words.append("d" + _by_x(self.dilation[:axes], short=True))
        if self.groups != 1:
            words.append(f"g{self.groups}")
        words.append(self.layout)
        if self.pad_mode != "zeros":
            words.append(self.pad_mode)
        words += [f"strided-{name}" for name, strides, dense in self._strides() if strides != dense]
        if self.has_bias:
            words.append("+bias")
        if self.residual == "before":
            words.append("+residual")
        if self.activation is not None:
            words.append(f"+{self.activation}")
        if self.residual == "after":
            words.append("+residual")
        return " ".join(words)

    def _strides(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Return (array, its strides, the dense ones) for each array of the call."""
        x = dense_strides((self.batch, self.in_channels, *self.in_size), self.layout)
        ends = (self.out_channels, self.group_in)
        if self.direction == "transposed":
            ends = (self.in_channels, self.group_out)
        w = dense_strides((*ends, *self.kernel), "NCHW")
        out = dense_strides((self.batch, self.out_channels, *self.out_size), self.layout)
        rows = [("x", self.x_strides, x), ("w", self.w_strides, w), ("out", self.out_strides, out)]
        if self.residual_strides is not None:
            rows.append(("residual", self.residual_strides, out))
        return rows


def to_user(canonical: Sequence[int], layout: str) -> tuple[int, ...]:
    """Reorder (N, C, *spatial) of a problem to the axis order of `layout`; shapes and strides alike."""
    if layout in ("NCHW", "CHWN8"):
        return tuple(canonical)
    if layout == "CHWN":
        return tuple(canonical[1:])
    return (canonical[0], *canonical[2:], canonical[1])


def to_canonical(user: Sequence[int], layout: str) -> tuple[int, ...]:
    """Reorder the axes of `layout` to a problem's (N, C, *spatial); shapes and strides alike."""
    if layout in ("NCHW", "CHWN8"):
        return tuple(user)
    if layout == "CHWN":
        return (1, *user)  # one block, whose stride means nothing
    return (user[0], user[-1], *user[1:-1])


def dense_strides(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the strides, in elements, of an array without gaps.

    `shape` and the result are in canonical order; the memory order is that of `layout`.
    """
    strides = []
    step = 1
    for extent in reversed(to_user(shape, layout)):
        strides.append(step)
        step *= extent
    return to_canonical(strides[::-1], layout)


def _by_x(values: Sequence[object], *, short: bool = False) -> str:
    """Join with "x"; a single word if `short` and all are equal."""
    words = [str(value) for value in values]
    return words[0] if short and len(set(words)) == 1 else "x".join(words)


# -- activations --------------------------------------------------------------------------------------------


def _sigmoid(a: Float64) -> Float64:
    small = np.exp(-np.abs(a))  # never overflows, and keeps the digits of large negative arguments
    return np.asarray(np.where(a >= 0, 1.0, small) / (1.0 + small))


def _gelu(a: Float64) -> Float64:
    # erfc, because 1 + erf loses all digits where the result is small.
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return np.asarray(0.5 * a * erfc(a * -math.sqrt(0.5)))


# Defined as PyTorch defines them, in float64; not a number stays not a number.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda a: np.maximum(a, 0.0),
    "relu6": lambda a: np.clip(a, 0.0, 6.0),
    "clip": lambda a, low, high: np.clip(a, low, high),
    "leaky_relu": lambda a, slope: np.where(a < 0.0, a * slope, a),
    "sigmoid": _sigmoid,
    "silu": lambda a: a * _sigmoid(a),
    "hardswish": lambda a: a * np.clip(a + 3.0, 0.0, 6.0) / 6.0,
    "hardsigmoid": lambda a: np.clip(a + 3.0, 0.0, 6.0) / 6.0,
    "gelu": _gelu,
    "tanh": np.tanh,
}


def numpy_activation(activation: Activation, array: Float64) -> Float64:
    """Return the activation of a float64 array of any shape, as a new array."""
    return np.asarray(ACTIVATIONS[activation.name](array, *activation.params), dtype=np.float64)
