"""Filters of low rank: `leanconv.separable` finds the ranks and runs two passes, down and along, as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from leanconv.arrays import Array, as_array, element_strides
from leanconv.blocks.base import BlockPlan
from leanconv.checks import integer, one_of
from leanconv.decomp.factors import Float64, factorise
from leanconv.decomp.passes import Passes
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.locks import new_lock
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.plan import Plan
from leanconv.planning.choice import choose as choose_plan
from leanconv.planning.limits import resolve_limit
from leanconv.planning.model import phase_seconds, seconds
from leanconv.problem import Problem
from leanconv.threads import get_num_threads

METHODS = ("auto", "two_passes", "whole")
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}  # of a filter's norm: what rounding leaves of a filter of lower rank
KEPT = 16  # bound plans of one object


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


class Separable:
    """Filters and their factors; made by `separable`.

    Attributes:
        w: the filters, a read-only copy.
        ranks: numerical rank of each filter; one number for dense weights.
        rank: columns that are used of each filter (the largest of `ranks`, unless chosen), or of the shared basis.
        vertical: (K * rank, 1, R, 1), those of a filter one after another; dense: (rank, C, R, 1).  float64.
        horizontal: (K, rank, 1, S).  float64.
        error: norm of what is left out, relative to that of the filters.
        constants: the value of each filter if all its taps are the same, or None: then `box_filter` does it.
    """

    def __init__(self, w: Array, tol: float, rank: int | None) -> None:
        """Made by `separable`, which checks."""
        self.w = np.array(w, order="C")
        self.w.flags.writeable = False
        self._filters = self.w if self.w.ndim == 4 else self.w[None, None]
        factors = factorise(self._filters, tol, rank)
        self.vertical, self.horizontal = factors.vertical, factors.horizontal
        self.ranks, self.rank, self.error = factors.ranks, factors.rank, factors.error
        self.shared = factors.shared
        self._product = factors.product()
        first = self._filters[0]
        self._uniform = not self.shared and bool((self._filters == first).all())
        self.constants = _constants(self._filters, tol) if not self.shared else None
        self._bound: dict[Any, BoundFilter] = {}
        self._lock = new_lock()

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

    def plan(
        self,
        x_shape: Sequence[int],
        *,
        dtype: DTypeLike = "float32",
        bias: bool = False,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        layout: str = "NCHW",
        pad_mode: str = "zeros",
        activation: ActivationLike = None,
        residual: bool = False,
        residual_order: str = "before",
        method: str = "auto",
        memory_limit: int | str | None = None,
        threads: int | None = None,
        x_strides: Sequence[int] | None = None,
    ) -> FilterPlan:
        """Decide how the filters are applied to images of a shape.

        Args:
            x_shape: (N, C, H, W), or (N, H, W, C) with layout="NHWC".
            dtype: element type of image and result; the factors are rounded to it.
            bias: whether there is a bias of K numbers.
            stride: as in `leanconv.conv2d`; so are padding, dilation, layout, pad_mode, activation, residual_order.
            padding: see there.
            dilation: see there.
            layout: see there.
            pad_mode: see there.
            activation: see there.
            residual: whether an array of the result's shape is added.
            residual_order: see there.
            method: "two_passes"; "whole" for an ordinary convolution with the filters as they were given; "auto" for
                the one that the cost model expects to be faster, of those that fit the memory limit.
            memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the
                size of the plain ones, may take together.
            threads: most threads a call uses; `leanconv.get_num_threads()` if None.
            x_strides: elements from neighbour to neighbour along each axis of x; None for a dense one.

        Returns:
            A plan with `.method`, `.workspace_bytes`, `.flops`, `.steps` and `.bind(bias)`.

        Raises:
            ArgumentTypeError: an argument of the wrong type.
            ArgumentValueError: a value that is not allowed, or channels that are not those of the filters.
            NotApplicableError: two passes were asked for and cannot be fused; carries the reason.
            MemoryLimitError: nothing fits the limit; says the least that would do.
        """
        if not isinstance(x_shape, tuple | list) or len(x_shape) != 4:
            raise ArgumentValueError("x_shape", x_shape, "must have 4 axes, (N, C, H, W) or (N, H, W, C)")
        order = one_of("layout", layout, ("NCHW", "NHWC"))
        channels = integer("x_shape", x_shape[1 if order == "NCHW" else 3], 1, shown=x_shape, what="channels")
        filters, groups = self._layer(channels, x_shape)
        whole = make_problem(
            2,
            x_shape,
            (filters, channels // groups, *self._filters.shape[2:]),
            dtype=dtype,
            bias=bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            layout=order,
            pad_mode=pad_mode,
            activation=activation,
            residual=residual,
            residual_order=residual_order,
            x_strides=x_strides,
        )
        count = get_num_threads() if threads is None else integer("threads", threads, 1)
        limit = resolve_limit(memory_limit)
        passes = Passes(whole, self.rank, self.shared, self._uniform)
        reason = passes.refusal()
        chosen = one_of("method", method, METHODS)
        if chosen == "two_passes" and reason is not None:
            raise NotApplicableError(chosen, reason)
        found: list[tuple[float, FilterPlan]] = []
        refused: list[MemoryLimitError] = []
        for name in (chosen,) if chosen != "auto" else METHODS[1:] if reason is None else METHODS[2:]:
            try:
                found.append(self._candidate(name, passes, count, limit))
            except MemoryLimitError as error:
                refused.append(error)
        if not found:
            raise min(refused, key=lambda error: error.needed)
        return min(found, key=lambda candidate: candidate[0])[1]

    def _candidate(self, name: str, passes: Passes, threads: int, limit: int | None) -> tuple[float, FilterPlan]:
        """A plan by one method, and the seconds predicted for it."""
        if name == "whole":
            whole = choose_plan(passes.whole, "auto", threads, limit)
            return seconds(whole), FilterPlan(self, name, passes.whole, whole)
        block = passes.plan(threads, limit)
        return phase_seconds(block.phases[0], threads), FilterPlan(self, name, passes.whole, block)

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

    def conv2d(self, x: Any, bias: Any = None, *, residual: Any = None, out: Any = None, **options: Any) -> Any:
        """Apply the filters; the plan for arrays like these, and the packed factors, are kept for the next call.

        Args:
            x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image.  float32 or
                float64.
            bias: (K,), or None.
            residual: array of the result's shape to be added, or None.
            out: dense array for the result, or None for a new one.
            **options: as in `plan`: stride, padding, dilation, layout, pad_mode, activation, residual_order, method,
                memory_limit, threads.

        Returns:
            (N, K, P, Q) or (N, P, Q, K), in the kind of array that x is; `out` if given.

        Raises:
            ArgumentTypeError: an argument of the wrong type.
            ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping an input.
            NotApplicableError: two passes were asked for and cannot be fused.
            MemoryLimitError: nothing fits the limit.
            AllocationError: no memory for factors, workspace or result.
        """
        image, restore = as_array(x, "x")
        if image.ndim not in (3, 4):
            raise ArgumentValueError("x", image, "must have 4 axes, or 3 for a single image")
        single = image.ndim == 3
        extra = None if residual is None else as_array(residual, "residual")[0]
        target = None if out is None else as_array(out, "out")[0]
        if single:
            image = image[None]
            extra = None if extra is None else extra[None]
            target = None if target is None else target[None]
        bound = self._bound_for(image, bias, extra is not None, options)
        result = bound(image, out=target, residual=extra)
        if out is not None:
            return out
        return restore(result[0] if single else result)

    def _bound_for(self, image: Array, bias: Any, residual: bool, options: dict[str, Any]) -> BoundFilter:
        """The plan bound to the factors, kept if there is no bias, which may have changed."""
        threads = options.get("threads")
        fixed = {**options, "threads": get_num_threads() if threads is None else threads}
        key = (image.shape, image.strides, str(image.dtype), residual, repr(sorted(fixed.items(), key=str)))
        if bias is None:
            with self._lock:
                found = self._bound.get(key)
            if found is not None:
                return found
        strides = element_strides(image) if math.prod(image.shape) else None
        plan = self.plan(
            image.shape,
            dtype=image.dtype,
            bias=bias is not None,
            residual=residual,
            x_strides=strides,
            **fixed,
        )
        bound = plan.bind(bias)
        if bias is None:
            with self._lock:
                if len(self._bound) >= KEPT:
                    self._bound.clear()
                self._bound[key] = bound
        return bound


def _constants(filters: Array, tol: float) -> tuple[float, ...] | None:
    """The value of every filter, if each has the same value in all its taps."""
    exact = filters.astype(np.float64).reshape(len(filters), -1)
    means = exact.mean(axis=1)
    off = np.abs(exact - means[:, None]).max(axis=1)
    return tuple(map(float, means)) if bool((off <= tol * np.abs(means)).all()) else None


class FilterPlan:
    """How filters are applied to images of one shape; made by `Separable.plan`.

    Attributes:
        filters: the filters.
        method: "two_passes" or "whole".
        problem: the whole convolution.
        inner: the plan of the block of two passes, or of the whole convolution.
    """

    def __init__(self, filters: Separable, method: str, problem: Problem, inner: BlockPlan | Plan) -> None:
        """Made by `Separable.plan`."""
        self.filters, self.method, self.problem, self.inner = filters, method, problem, inner

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, in the image's layout."""
        return self.problem.out_shape

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call needs beyond its arrays and the packed factors; exact."""
        return self.inner.workspace_bytes

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of the factors (or filters) in the order the kernels read them."""
        return self.inner.packed_weight_bytes

    @property
    def extra_bytes(self) -> int:
        """What counts against a memory limit."""
        return self.inner.extra_bytes

    @property
    def intermediate_bytes(self) -> int:
        """Bytes of the tensor that two layers would write between them; 0 for a whole convolution."""
        return self.inner.intermediate_bytes if isinstance(self.inner, BlockPlan) else 0

    @property
    def flops(self) -> int:
        """Multiplications and additions of what is computed."""
        return self.inner.flops if isinstance(self.inner, BlockPlan) else self.problem.flops

    @property
    def whole_flops(self) -> int:
        """Those of the whole convolution."""
        return self.problem.flops

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""
        return self.inner.steps

    def __repr__(self) -> str:
        """One line: method, problem, bytes."""
        return (
            f"<FilterPlan {self.method}, {self.problem.describe()}: workspace {self.workspace_bytes} B, packed weights "
            f"{self.packed_weight_bytes} B>"
        )

    def bind(self, bias: Any = None) -> BoundFilter:
        """Pack the factors, for many calls.

        Args:
            bias: (K,), if the plan has a bias; later changes to it are not seen.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a bias the plan does not have, or none where it has one.
            AllocationError: no memory for the packed factors.
        """
        p, source = self.problem, self.filters
        repeat = p.out_channels // len(source.horizontal)  # one filter for every channel
        if isinstance(self.inner, Plan):
            w = np.tile(source.w.reshape(-1, *p.w_shape[1:]).astype(p.dtype), (repeat, 1, 1, 1))
            return BoundFilter(self, self.inner.bind(w, bias))
        factors = [np.tile(f, (repeat, 1, 1, 1)).astype(p.dtype) for f in (source.vertical, source.horizontal)]
        if bias is not None and not p.has_bias:
            raise ArgumentValueError("bias", bias, "must be None, the plan has no bias")
        if bias is None and p.has_bias:
            raise ArgumentValueError("bias", bias, "must be given, the plan has one")
        return BoundFilter(self, self.inner.bind(*factors, biases=(None, bias)))


class BoundFilter:
    """Filters ready to be applied: call it with images. Safe to call from several threads at once."""

    def __init__(self, plan: FilterPlan, run: Any) -> None:
        """Made by `FilterPlan.bind`."""
        self.plan, self._run = plan, run

    def __call__(self, x: Any, out: Any = None, residual: Any = None) -> Any:
        """Apply the filters to an image.

        Args:
            x: of the plan's shape, strides and element type.
            out: dense array for the result, or None for a new one.
            residual: array of the result's shape, if the plan adds one.

        Returns:
            The result, in the kind of array that x is; `out` itself if given.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape or strides that are not the plan's; out not writable or overlapping an input.
            MemoryLimitError: concurrent calls together would pass the plan's memory limit.
            AllocationError: no memory for workspace or result.
        """
        return self._run(x, out=out, residual=residual)
