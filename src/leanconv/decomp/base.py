"""What filters taken apart have in common: a plan for a shape of images, and a call that keeps it with its weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from leanconv.arrays import Array, as_array, element_strides
from leanconv.blocks.base import BlockPlan
from leanconv.checks import integer, one_of
from leanconv.decomp.plans import BoundFilter, FilterPlan
from leanconv.errors import ArgumentValueError, MemoryLimitError, NotApplicableError
from leanconv.locks import new_lock
from leanconv.options import ActivationLike, Ints, Padding, make_problem
from leanconv.planning.choice import choose as choose_plan
from leanconv.planning.limits import resolve_limit
from leanconv.planning.model import phase_seconds, seconds
from leanconv.problem import Problem
from leanconv.threads import get_num_threads

KEPT = 16  # bound plans of one object
WHOLE = "whole"


class Way(Protocol):
    """One way to compute a convolution from factors in one kernel."""

    def refusal(self) -> str | None:
        """Why it cannot compute it, or None."""

    def plan(self, threads: int, memory_limit: int | None) -> BlockPlan:
        """The kernel, decided; raises MemoryLimitError."""


class Decomposed(ABC):
    """Filters and their factors.

    Attributes:
        w: the filters, a read-only copy.
    """

    def __init__(self, w: Array) -> None:
        """Made by the functions of this package, which check."""
        self.w = np.array(w, order="C")
        self.w.flags.writeable = False
        self._bound: dict[Any, BoundFilter] = {}
        self._lock = new_lock()

    @property
    @abstractmethod
    def methods(self) -> tuple[str, ...]:
        """Names of the ways to compute them, besides "whole"."""

    @abstractmethod
    def _layer(self, channels: int, x_shape: Sequence[int]) -> tuple[int, int]:
        """How many filters there are on an image of so many channels, and groups."""

    @abstractmethod
    def _way(self, name: str, whole: Problem) -> Way:
        """A way to compute a whole convolution."""

    @abstractmethod
    def _weights(self, name: str, whole: Problem) -> list[Array]:
        """The weights of the layers of a way; of "whole" those of the convolution."""

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
            dtype: element type of image and result; factors are rounded to it.
            bias: whether there is a bias of K numbers.
            stride: as in `leanconv.conv2d`; so are padding, dilation, layout, pad_mode, activation, residual_order.
            padding: see there.
            dilation: see there.
            layout: see there.
            pad_mode: see there.
            activation: see there.
            residual: whether an array of the result's shape is added.
            residual_order: see there.
            method: one of `.methods`; "whole" for an ordinary convolution with the filters as they were given; "auto"
                for the one that the cost model expects to be fastest, of those that fit the memory limit.
            memory_limit: most bytes (an int, or text such as "256KiB") that workspace, and packed weights beyond the
                size of the plain ones, may take together.
            threads: most threads a call uses; `leanconv.get_num_threads()` if None.
            x_strides: elements from neighbour to neighbour along each axis of x; None for a dense one.

        Returns:
            A plan with `.method`, `.workspace_bytes`, `.flops`, `.steps` and `.bind(bias)`.

        Raises:
            ArgumentTypeError: an argument of the wrong type.
            ArgumentValueError: a value that is not allowed, or channels that are not those of the filters.
            NotApplicableError: the method asked for cannot compute this; carries the reason.
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
            (filters, channels // groups, *self.w.shape[-2:]),
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
        names: tuple[str, ...] = (one_of("method", method, ("auto", *self.methods, WHOLE)),)
        ways: dict[str, Way] = {name: self._way(name, whole) for name in self.methods}
        if names[0] in ways and (reason := ways[names[0]].refusal()) is not None:
            raise NotApplicableError(names[0], reason)
        if names == ("auto",):
            names = (*(name for name, way in ways.items() if way.refusal() is None), WHOLE)
        found: list[tuple[float, FilterPlan]] = []
        refused: list[MemoryLimitError] = []
        for name in names:
            try:
                found.append(self._candidate(name, whole, ways, count, limit))
            except MemoryLimitError as error:
                refused.append(error)
        if not found:
            raise min(refused, key=lambda error: error.needed)
        return min(found, key=lambda candidate: candidate[0])[1]

    def _candidate(
        self, name: str, whole: Problem, ways: Mapping[str, Way], threads: int, limit: int | None
    ) -> tuple[float, FilterPlan]:
        """A plan by one method, and the seconds predicted for it."""
        if name == WHOLE:
            chosen = choose_plan(whole, "auto", threads, limit)
            return seconds(chosen), FilterPlan(name, whole, chosen, self._weights(name, whole))
        block = ways[name].plan(threads, limit)
        plan = FilterPlan(name, whole, block, self._weights(name, whole))
        return phase_seconds(block.phases[0], threads), plan

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
            NotApplicableError: the method asked for cannot compute this.
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
        limit = resolve_limit(options.get("memory_limit"))  # which may be that of a `with` block
        key = (image.shape, image.strides, str(image.dtype), residual, limit, repr(sorted(fixed.items(), key=str)))
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
