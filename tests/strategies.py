"""Random convolutions for tests: `cases` draws a `Case`, which makes its arrays between guard pages.

What a kernel is specialised for comes from short lists, so that compiled kernels serve many cases; what kernels
read when they run (extents, channels, batch, strides, threads) is drawn freely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

import leanconv
from guard import POISON, Flush, GuardedBlock, check_canaries, guarded_copy
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.algorithms.direct import Direct
from leanconv.kernels.reduction import SECTION
from leanconv.problem import Problem, to_user
from leanconv.staging import refusal

Array = np.ndarray[Any, Any]
ALGORITHMS = {algorithm.name: algorithm for algorithm in REGISTRY}


@dataclass(frozen=True)
class Geometry:
    """What a kernel is specialised for along its spatial axes; `pads` are (low, high)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    mode: str = "zeros"

    @property
    def smallest(self) -> tuple[int, ...]:
        """The least extents of an image that this fits, pads of every mode allowed."""
        axes = zip(self.kernel, self.dilation, self.pads, strict=True)
        return tuple(max(1, low + 1, high + 1, (k - 1) * d + 1 - low - high) for k, d, (low, high) in axes)


def _geometry(ndim: int, k: Any, s: Any = 1, d: Any = 1, p: Any = 0, mode: str = "zeros") -> Geometry:
    def each(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * ndim

    pads = tuple(pair if isinstance(pair, tuple) else (pair, pair) for pair in each(p))
    return Geometry(each(k), each(s), each(d), pads, mode)


POINTWISE = [
    _geometry(1, 1),
    _geometry(2, 1),
    _geometry(2, 1, s=2),
    _geometry(2, 1, s=(1, 3)),
    _geometry(3, 1),
    _geometry(3, 1, s=(2, 1, 2)),
]
WINDOWS = [
    _geometry(1, 3, p=1),
    _geometry(1, 11, s=4, p=((2, 0),)),
    _geometry(1, 4, d=3, p=((5, 7),), mode="reflect"),
    _geometry(2, 3),
    _geometry(2, 3, p=1),
    _geometry(2, 3, s=2, p=((0, 1), (1, 0))),
    _geometry(2, 3, d=2, p=2),
    _geometry(2, 3, p=1, mode="replicate"),
    _geometry(2, 3, p=((1, 2), (2, 1)), mode="reflect"),
    _geometry(2, 3, p=((2, 1), (1, 3)), mode="circular"),
    _geometry(2, (5, 2), s=(1, 3), d=(1, 2), p=((3, 0), (0, 4))),
    _geometry(2, (1, 7), p=((0, 0), (3, 3))),
    _geometry(2, 4, s=4),
    _geometry(2, 3, p=((4, 4), (5, 0))),  # windows of nothing but padding
    _geometry(2, 1, s=2, p=1),
    _geometry(3, (2, 3, 3), p=1),
    _geometry(3, (3, 1, 2), s=(2, 1, 1), p=((1, 0), (0, 0), (2, 2)), mode="replicate"),
]
EPILOGUES: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"bias": True, "activation": "relu"},
    {"activation": ("clip", -0.5, 1.5)},
    {"bias": True, "activation": "relu6", "residual": True},
    {"bias": True, "activation": ("leaky_relu", -1.25), "residual": True, "residual_order": "after"},
    {"activation": "sigmoid", "residual": True, "residual_order": "after"},
    {"activation": "silu"},
    {"bias": True, "activation": "tanh"},
    {"bias": True, "activation": "gelu", "residual": True},
    {"activation": "hardswish"},
    {"bias": True, "activation": "hardsigmoid"},
    {"residual": True},
]
# The steepest slope of each activation: how much it can enlarge an error in the sum.
SLOPES = {"silu": 1.13, "gelu": 1.13, "hardswish": 1.5, "leaky_relu": 1.25}
READ_VIEWS = ("dense", "gaps", "permuted", "negative", "broadcast")
WRITE_VIEWS = ("dense", "gaps", "permuted")
CHANNELS = (1, 2, 3, 4, 7, 8, 9, 13, 16, 17, 24, 31, 33, 40)


@dataclass(frozen=True)
class Case:
    """One convolution and how its arrays lie in memory; `x_shape` is in canonical order."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    geometry: Geometry
    groups: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    epilogue: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    views: tuple[str, str, str, str] = ("dense",) * 4  # of x, w, residual and out
    flush: Flush = "right"
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The options that `plan` and `conv2d` share."""
        g = self.geometry
        rest = {k: v for k, v in self.epilogue.items() if k not in ("bias", "residual")}
        return {
            "stride": g.stride,
            "padding": g.pads,
            "dilation": g.dilation,
            "pad_mode": g.mode,
            "groups": self.groups,
            "layout": self.layout,
            **rest,
        }

    @property
    def user_x_shape(self) -> tuple[int, ...]:
        return to_user(self.x_shape, self.layout)

    @property
    def plan_arguments(self) -> dict[str, Any]:
        """Everything for `plan` and `algorithms` but the algorithm and the threads."""
        flags = {name: bool(self.epilogue.get(name)) for name in ("bias", "residual")}
        return {
            "x_shape": self.user_x_shape,
            "w_shape": self.w_shape,
            "dtype": self.dtype,
            **self.options,
            **flags,
        }

    def plan(self, algorithm: str, threads: int = 1, **more: Any) -> leanconv.Plan:
        return leanconv.plan(**self.plan_arguments, algorithm=algorithm, threads=threads, **more)

    @cached_property
    def problem(self) -> Problem:
        return self.plan("reference").problem

    @cached_property
    def values(self) -> dict[str, Array]:
        """Plain arrays by argument name; x and residual are constant along axes to be broadcast."""
        rng = np.random.default_rng(self.seed)

        def draw(shape: tuple[int, ...], view: str) -> Array:
            small = tuple(1 if view == "broadcast" and i % 2 == self.seed % 2 else n for i, n in enumerate(shape))
            return np.ascontiguousarray(np.broadcast_to(rng.standard_normal(small).astype(self.dtype), shape))

        x_view, _, r_view, _ = self.views
        result = {"x": draw(self.user_x_shape, x_view), "w": draw(self.w_shape, "dense")}
        if self.epilogue.get("bias"):
            result["bias"] = draw(self.w_shape[:1], "dense")
        if self.epilogue.get("residual"):
            result["residual"] = draw(self.problem.out_shape, r_view)
        return result

    def guarded_inputs(self, *, viewed: bool) -> dict[str, Array]:
        """Read-only copies between guard pages, dense or as `views` say."""
        how = dict(zip(("x", "w", "residual"), self.views, strict=False)) if viewed else {}
        return {
            name: spread(value, how.get(name, "dense"), self.flush, self.seed) for name, value in self.values.items()
        }

    def guarded_out(self, *, viewed: bool) -> Array:
        """Memory for the result, all of it NaN."""
        blank = np.full(self.problem.out_shape, np.nan, self.dtype)
        return spread(blank, self.views[3] if viewed else "dense", self.flush, self.seed, writable=True)

    @cached_property
    def sums(self) -> tuple[Array, float]:
        """The exact result in float64, and how large the sums are that errors are measured by.

        That is the largest output.  Where outputs are too few to hold a large one, three standard deviations of a sum
        stand for it.
        """
        p, v = self.problem, self.values
        result = oracle.reference(p, **v)
        if not result.size:
            return result, 0.0
        plain = replace(p, activation=None, residual=p.residual and "before")
        squares = {name: np.square(value.astype(np.float64)) for name, value in v.items()}
        typical = math.sqrt(oracle.reference(plain, **squares).max())
        largest = float(np.abs(oracle.reference(plain, **v)).max())
        return result, max(largest, 3 * typical)

    @property
    def expected(self) -> tuple[Array, float]:
        """The exact result in float64 and the error allowed: 1e-6 of the largest output in float32."""
        return self.expected_within(1.0)

    def expected_within(self, growth: float) -> tuple[Array, float]:
        """The same for random sums whose error may be `growth` times as large; an activation's slope enlarges it."""
        activation = self.problem.activation
        result, size = self.sums
        slope = SLOPES.get(activation.name, 1.0) if activation else 1.0
        tolerance, own = (1e-6, 4e-7) if self.dtype == "float32" else (1e-14, 1e-14)
        curved = activation is not None and activation.name in ("sigmoid", "silu", "tanh", "gelu")
        return result, growth * tolerance * slope * size + (own * max(1.0, size) if curved else 0.0)

    def check(self, got: Array, algorithm: str = "direct") -> None:
        """Fail unless a result is right, everywhere, within the bound that the algorithm states."""
        chosen = next(entry for entry in REGISTRY if entry.name == algorithm)  # it may be a new one
        growth = chosen.error_bound(self.problem) / Direct().error_bound(self.problem)
        want, bound = self.expected if growth == 1.0 else self.expected_within(growth)
        assert got.shape == want.shape and got.dtype == self.dtype
        assert not np.isnan(got).any(), f"{np.isnan(got).sum()} of {got.size} elements were not written"
        error = float(np.abs(got - want).max(initial=0.0))
        assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}; {self.problem.describe()}"


def applies(name: str, problem: Problem) -> bool:
    """Whether an algorithm accepts a problem; `leanconv.algorithms` would lower it for every algorithm to tell."""
    return refusal(ALGORITHMS[name], problem) is None


def is_blas(name: str) -> bool:
    """Whether an algorithm multiplies with BLAS: its sums have another order for another memory order."""
    return name.endswith("_blas")


def convolve(case: Case, inputs: dict[str, Array], **more: Any) -> Any:
    """Call `conv1d`, `conv2d` or `conv3d`."""
    function = (leanconv.conv1d, leanconv.conv2d, leanconv.conv3d)[len(case.w_shape) - 3]
    return function(**inputs, **case.options, **more)


def spread(source: Array, how: str, flush: Flush, seed: int, *, writable: bool = False) -> Array:
    """A guarded copy that lies in memory as `how` says."""
    rng = np.random.default_rng(seed)
    item, axes = source.itemsize, list(range(source.ndim))
    if how == "negative":
        turn = tuple(slice(None, None, -1) if rng.integers(2) or i == 1 else slice(None) for i in axes)
        return guarded_copy(source[turn], not writable, flush)[turn]
    if how == "broadcast":
        first = tuple(slice(0, 1) if (source == source[tuple(_only(i, 0, axes))]).all() else slice(None) for i in axes)
        return np.broadcast_to(guarded_copy(source[first], not writable, flush), source.shape)
    order = list(rng.permutation(axes)) if how == "permuted" else axes
    strides, reach = [0] * source.ndim, 0
    for axis in reversed(order):
        gap = int(rng.integers(1, 4)) if how == "gaps" else 1
        strides[axis] = reach + gap * item
        reach += strides[axis] * (source.shape[axis] - 1)
    return guarded_copy(source, not writable, flush, tuple(strides))


def _only(axis: int, at: int, axes: list[int]) -> list[Any]:
    return [slice(at, at + 1) if i == axis else slice(None) for i in axes]


def check_untouched(array: Array) -> None:
    """Fail if something was written between or beside the elements of an array that `spread` made."""
    check_canaries(array)
    owner: Any = array
    while not isinstance(owner, GuardedBlock):
        owner = owner.base
    ours = np.zeros(owner.nbytes, bool)
    if array.size:
        start = array.__array_interface__["data"][0] - owner.address
        for byte in range(array.itemsize):
            np.ndarray(array.shape, bool, ours, start + byte, array.strides)[...] = True
    assert (np.asarray(owner)[~ours] == POISON).all(), "written between the elements"


ANY_KIND = ("plain", "plain", "plain", "grouped", "depthwise")


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    geometries: list[Geometry] | None = None,
    deep: bool = True,
    kinds: tuple[str, ...] = ANY_KIND,
) -> Case:
    """Any convolution that `geometries` (all of them, if None) allow; `deep` sometimes sums several sections."""
    geometry = draw(st.sampled_from(geometries or POINTWISE + WINDOWS))
    ndim = len(geometry.kernel)
    long = deep and "plain" in kinds and draw(st.integers(0, 9)) == 9
    most = {1: 60, 2: 14, 3: 6}[ndim] if not long else 2
    size = tuple(n + draw(st.integers(0, most)) for n in geometry.smallest)
    kind = "plain" if long else draw(st.sampled_from(kinds))
    group_out = draw(st.sampled_from(CHANNELS))
    group_in = draw(st.integers(SECTION + 1, 1700)) if long else draw(st.sampled_from(CHANNELS))
    groups = 1
    if kind == "grouped":
        groups, group_in, group_out = draw(st.sampled_from([2, 3, 7])), min(group_in, 9), min(group_out, 17)
    elif kind == "depthwise":
        groups, group_in = draw(st.integers(1, 20)), 1
        group_out = draw(st.sampled_from((1, 1, 1, 2, 3, 8, 9, 16)))
    batch = draw(st.sampled_from([1, 1, 2, 3, 0]))
    return Case(
        x_shape=(batch, groups * group_in, *size),
        w_shape=(groups * group_out, group_in, *geometry.kernel),
        geometry=geometry,
        groups=groups,
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        threads=draw(st.sampled_from([1, 2, 4])),
        views=(*(draw(st.sampled_from(READ_VIEWS)) for _ in range(3)), draw(st.sampled_from(WRITE_VIEWS))),
        flush=draw(st.sampled_from(["right", "left"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
